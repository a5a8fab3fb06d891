"""What the policy wants done, and what it tells the world.

Actions are orders to the reactor and must be carried out in the order given. Records are lifecycle news for
observers; they are bounded and may be dropped on the way, so nothing may depend on them being read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from supervisor.policy.events import Event, ExitReason
from supervisor.policy.states import ChildState, Phase

__all__ = [
    "Action",
    "AskStop",
    "DeviceDied",
    "DeviceFailed",
    "DeviceKilled",
    "DeviceReady",
    "DeviceRemoved",
    "DeviceRestarted",
    "DeviceRestarting",
    "DeviceStarting",
    "DeviceStopped",
    "Finished",
    "Forget",
    "GaveUp",
    "Impossible",
    "Kill",
    "Outcome",
    "OutcomeKind",
    "Record",
    "Report",
    "Spawn",
    "SupervisorReady",
    "SupervisorStopped",
]


class OutcomeKind(Enum):
    """Why the whole supervisor ended."""

    STOPPED = "stopped"
    GAVE_UP = "gave_up"
    START_FAILED = "start_failed"
    AUTO_SHUTDOWN = "auto_shutdown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why the whole supervisor ended, through which child, and in words."""

    kind: OutcomeKind
    culprit: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """Root of all records; ``at_ns`` is the ``now_ns`` of the step that made it."""

    at_ns: int = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class DeviceStarting(Record):
    """A process for this generation was ordered."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class DeviceReady(Record):
    """The device serves. ``restarts`` counts how often it has come back until now."""

    name: str
    generation: int
    restarts: int


@dataclass(frozen=True, slots=True)
class DeviceDied(Record):
    """The process ended unasked. ``charged`` says whether a restart was charged to the budget for it."""

    name: str
    generation: int
    exit: ExitReason
    charged: bool


@dataclass(frozen=True, slots=True)
class DeviceRestarting(Record):
    """The next generation is wanted and waits ``delay_ns`` (and for what it depends on).

    ``generation`` is that of the process that is gone.
    """

    name: str
    generation: int
    delay_ns: int


@dataclass(frozen=True, slots=True)
class DeviceRestarted(Record):
    """The device is back. ``outage_ns`` runs from the moment its predecessor stopped serving."""

    name: str
    generation: int
    restarts: int
    outage_ns: int


@dataclass(frozen=True, slots=True)
class DeviceStopped(Record):
    """The process ended because it was asked to, or cleanly and for good by itself."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class DeviceFailed(Record):
    """Out of service until an operator starts it: isolated, refused, or without its dependency."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class DeviceRemoved(Record):
    """Forgotten: removed by the operator, or added and temporary and ended, or added and never ready."""

    name: str


@dataclass(frozen=True, slots=True)
class DeviceKilled(Record):
    """A deadline has passed and the process was ordered killed; its end is reported separately."""

    name: str
    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class GaveUp(Record):
    """The budget is spent: ``restarts`` within ``period_ns`` is more than the intensity allows."""

    culprit: str
    restarts: int
    period_ns: int


@dataclass(frozen=True, slots=True)
class SupervisorReady(Record):
    """The first start is over: every child has been ready once (or has ended by itself, or was stopped)."""


@dataclass(frozen=True, slots=True)
class SupervisorStopped(Record):
    """Everything is down."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Impossible(Record):
    """An event that this state (None: a child nobody knows) does not explain. Nothing was changed."""

    event: Event
    state: ChildState | Phase | None


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for this generation. Answered by Forked and Hello, Gone or SpawnFailed."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class AskStop:
    """Ask the process to end. Answered by Gone (or SpawnFailed, if there never was a process)."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the process. Answered by Gone (or SpawnFailed, if there never was a process)."""

    name: str
    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Give back what is held for this child. It has no process; nothing about it follows."""

    name: str
    restarts: int


@dataclass(frozen=True, slots=True)
class Report:
    """Publish a record."""

    record: Record


@dataclass(frozen=True, slots=True)
class Finished:
    """The whole supervisor has stopped; no action follows, ever."""

    outcome: Outcome


Action = Spawn | AskStop | Kill | Forget | Report | Finished
