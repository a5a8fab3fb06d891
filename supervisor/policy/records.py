"""What the policy tells the world: news for observers.

Records are bounded and may be dropped on the way, so nothing may depend on them being read. Those of a group
are those of a device under other names: a group lives as a device does, but has no process.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum

from supervisor.policy.events import Event, ExitReason
from supervisor.policy.states import ChildState, Phase

__all__ = [
    "DeviceDied",
    "DeviceFailed",
    "DeviceKilled",
    "DeviceReady",
    "DeviceRemoved",
    "DeviceRestarted",
    "DeviceRestarting",
    "DeviceStarting",
    "DeviceStopped",
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
    "Outcome",
    "OutcomeKind",
    "Record",
    "SupervisorReady",
    "SupervisorStopped",
    "of_group",
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
    """The budget is spent: the ``restarts`` that would be within ``period_ns`` are one more than allowed."""

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
class GroupStarting(Record):
    """The group's children are being started."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class GroupReady(Record):
    """Every child of the group is ready. ``restarts`` counts how often the group has come back until now."""

    name: str
    generation: int
    restarts: int


@dataclass(frozen=True, slots=True)
class GroupEnded(Record):
    """The group has ended unasked: its budget is spent, or its significant children have ended.

    ``charged`` says whether a restart was charged to the supervisor above it.
    """

    name: str
    generation: int
    exit: ExitReason
    charged: bool


@dataclass(frozen=True, slots=True)
class GroupRestarting(Record):
    """The whole group is wanted again, and waits ``delay_ns`` (and for what it depends on)."""

    name: str
    generation: int
    delay_ns: int


@dataclass(frozen=True, slots=True)
class GroupRestarted(Record):
    """The whole group is back. ``outage_ns`` runs from the end of the last one."""

    name: str
    generation: int
    restarts: int
    outage_ns: int


@dataclass(frozen=True, slots=True)
class GroupStopped(Record):
    """The group is down because it was asked to be, or has ended cleanly and for good."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class GroupFailed(Record):
    """Out of service, with all its children, until an operator starts it."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class GroupRemoved(Record):
    """Forgotten, with all its children."""

    name: str


@dataclass(frozen=True, slots=True)
class GroupKilled(Record):
    """The group's stop_timeout has passed: every child that was left is being killed."""

    name: str
    generation: int
    why: str


GroupRecord = (
    GroupStarting
    | GroupReady
    | GroupEnded
    | GroupRestarting
    | GroupRestarted
    | GroupStopped
    | GroupFailed
    | GroupRemoved
    | GroupKilled
)

_OF_GROUP: dict[type[Record], type[GroupRecord]] = {
    DeviceStarting: GroupStarting,
    DeviceReady: GroupReady,
    DeviceDied: GroupEnded,
    DeviceRestarting: GroupRestarting,
    DeviceRestarted: GroupRestarted,
    DeviceStopped: GroupStopped,
    DeviceFailed: GroupFailed,
    DeviceRemoved: GroupRemoved,
    DeviceKilled: GroupKilled,
}


def of_group(record: Record) -> Record:
    """The record of a child that is a group, under the name that says so."""
    kind = _OF_GROUP.get(type(record))
    if kind is None:
        return record
    return kind(**{one.name: getattr(record, one.name) for one in fields(record)})
