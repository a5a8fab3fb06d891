"""What ``Supervisor.events()`` yields and observers are given: the lifecycle records, at their public door.

Each is frozen and has ``at_ns`` (host monotonic). They are news, not orders: bounded, and dropped if nobody
reads them.
"""

from __future__ import annotations

from supervisor.policy.actions import (
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
    Impossible,
    Outcome,
    OutcomeKind,
    Record,
    SupervisorReady,
    SupervisorStopped,
)
from supervisor.policy.events import ExitKind, ExitReason
from supervisor.seat import DeviceCrashed, InputGivenUp

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
    "Impossible",
    "InputGivenUp",
    "Outcome",
    "OutcomeKind",
    "Record",
    "SupervisorReady",
    "SupervisorStopped",
]
