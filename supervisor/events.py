"""What ``Supervisor.events()`` yields and observers are given: the lifecycle records, at their public door.

Each is frozen and has ``at_ns`` (host monotonic). They are news, not orders: bounded, and dropped if nobody
reads them.
"""

from __future__ import annotations

from supervisor.policy.events import ExitKind, ExitReason
from supervisor.policy.records import (
    DeviceDied,
    DeviceFailed,
    DeviceKilled,
    DeviceReady,
    DeviceRemoved,
    DeviceRestarted,
    DeviceRestarting,
    DeviceStarting,
    DeviceStopped,
    GaveUp,
    GroupEnded,
    GroupFailed,
    GroupKilled,
    GroupReady,
    GroupRecord,
    GroupRemoved,
    GroupRestarted,
    GroupRestarting,
    GroupStarting,
    GroupStopped,
    Impossible,
    Outcome,
    OutcomeKind,
    Record,
    SupervisorReady,
    SupervisorStopped,
)
from supervisor.seat import DeviceCrashed, InputGivenUp
from supervisor.timeline import RestartTimeline

__all__ = [
    "DeviceCrashed",
    "DeviceDied",
    "DeviceFailed",
    "DeviceKilled",
    "DeviceReady",
    "DeviceRemoved",
    "DeviceRestarted",
    "DeviceRestarting",
    "DeviceStarting",
    "DeviceStopped",
    "ExitKind",
    "ExitReason",
    "GaveUp",
    "GroupEnded",
    "GroupFailed",
    "GroupKilled",
    "GroupReady",
    "GroupRecord",
    "GroupRemoved",
    "GroupRestarted",
    "GroupRestarting",
    "GroupStarting",
    "GroupStopped",
    "Impossible",
    "InputGivenUp",
    "Outcome",
    "OutcomeKind",
    "Record",
    "RestartTimeline",
    "SupervisorReady",
    "SupervisorStopped",
]
