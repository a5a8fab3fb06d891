"""What the policy is told: one frozen value for each thing that can happen.

Whoever asks (``Start``, ``Stop``, ``StartChild``, ``AddChild`` and so on) is obeyed and charged
nothing. Whatever comes from a process carries the generation it speaks of; what speaks of an older
generation than the child's present one is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from supervisor.exits import describe_exit
from supervisor.policy.spec import ChildSpec, SupervisorSpec

__all__ = [
    "Abort",
    "AddChild",
    "ChildEvent",
    "Event",
    "ExitKind",
    "ExitReason",
    "Forked",
    "Gone",
    "Hello",
    "Ignored",
    "Ready",
    "Refused",
    "Reload",
    "RemoveChild",
    "RestartChild",
    "Silent",
    "SpawnFailed",
    "Start",
    "StartChild",
    "Stop",
    "StopChild",
    "Tick",
    "WorkerEvent",
]


class ExitKind(Enum):
    """How a process ended, as far as anybody knows; or how a group did, which is no process."""

    EXITED = "exited"
    SIGNALED = "signaled"
    UNKNOWN = "unknown"
    SHUTDOWN = "shutdown"  # a group that has stopped, given up or shut itself down: OTP's reason "shutdown"
    NOT_STARTED = "not_started"  # a group of which some child could not be started


@dataclass(frozen=True, slots=True)
class ExitReason:
    """How a process ended: ``code`` is the exit code, the signal's number, or None when unknown."""

    kind: ExitKind
    code: int | None = None
    detail: str = ""

    def clean(self, spec: ChildSpec) -> bool:
        """True if the process ended by itself with a code that ``spec`` calls clean, or is a group's end."""
        if self.kind is ExitKind.SHUTDOWN:
            return True
        return self.status is not None and self.status in spec.clean_exit_codes

    @property
    def status(self) -> int | None:
        """The exit code, or the signal's number made negative; ``None`` where neither is known."""
        if self.code is None:
            return None
        return -self.code if self.kind is ExitKind.SIGNALED else self.code

    def __str__(self) -> str:
        match self.kind:
            case ExitKind.SHUTDOWN:
                text = "has shut down"
            case ExitKind.NOT_STARTED:
                text = "could not be started"
            case _:
                text = describe_exit(self.status)
        return f"{text} ({self.detail})" if self.detail else text


@dataclass(frozen=True, slots=True)
class Start:
    """Start every child for the first time."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop every child, in order, for good."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Kill every child at once, for good: what brutal_kill, or a stop that took too long, is to a group."""

    why: str = "stopped by brutal_kill"


@dataclass(frozen=True, slots=True)
class Reload:
    """Other rules for a running supervisor, as OTP's code_change: no process is started, stopped or replaced.

    Specifications are exchanged in place and count from the next generation on; children that are new are
    DOWN until they are started; children that are missing go on as they are. ``tree.why_not_reload`` says
    whether it may be asked for.
    """

    spec: SupervisorSpec


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: deadlines may have, too."""


@dataclass(frozen=True, slots=True)
class StartChild:
    """The operator wants a stopped, failed or finished child back."""

    name: str


@dataclass(frozen=True, slots=True)
class StopChild:
    """The operator wants this child down until told otherwise."""

    name: str


@dataclass(frozen=True, slots=True)
class RestartChild:
    """The operator or the keeper wants a new generation: charged to neither budget nor backoff."""

    name: str


@dataclass(frozen=True, slots=True)
class AddChild:
    """A new child, the last in start order, is wanted at once. If it is not ready once, it is forgotten.

    ``group`` is the supervisor that it becomes a child of (empty: the outermost). ``tree.why_not_add`` says
    whether it may be asked for.
    """

    spec: ChildSpec
    group: str = ""

    @property
    def name(self) -> str:
        """The new child's name."""
        return self.spec.name


@dataclass(frozen=True, slots=True)
class RemoveChild:
    """A child that is down, failed or finished is forgotten; ``tree.why_not_remove`` says whether it may."""

    name: str


@dataclass(frozen=True, slots=True)
class Forked:
    """The process exists: its Hello is due from now. May come after its Hello, or never."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The process is up and has proved who it is."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The device is built and restored, and serves."""

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The process is known to be gone (its pidfd says so); ``charged=False`` if a chaos monkey did it."""

    name: str
    generation: int
    exit: ExitReason
    charged: bool = True


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """There is no process and there will be none for this Spawn; no Gone follows."""

    name: str
    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker or its host refuses class, options or state: a restart cannot help. Its Gone follows."""

    name: str
    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """The device says, before it is Ready, that there is nothing for it to do (OTP's ``ignore``).

    Its Gone follows; nobody restarts it, and it failed nothing.
    """

    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class Silent:
    """The process lives but a heartbeat or a request is overdue."""

    name: str
    generation: int


WorkerEvent = Forked | Hello | Ready | Gone | SpawnFailed | Refused | Ignored | Silent
"""Events that carry a generation."""

ChildEvent = StartChild | StopChild | RestartChild | RemoveChild | WorkerEvent
"""Events that a child's own table knows."""

Event = Start | Stop | Abort | Reload | Tick | AddChild | ChildEvent
