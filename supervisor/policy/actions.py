"""What the policy wants done: orders to the reactor, to be carried out in the order given."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.policy.records import Outcome, Record

__all__ = ["Action", "AskStop", "Finished", "Forget", "Kill", "Report", "Spawn"]


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
    """Give back what is held for this child. It has no process; nothing about it follows.

    ``why`` is set if it had failed.
    """

    name: str
    restarts: int
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Report:
    """Publish a record."""

    record: Record


@dataclass(frozen=True, slots=True)
class Finished:
    """The whole supervisor has stopped; no action follows, ever."""

    outcome: Outcome


Action = Spawn | AskStop | Kill | Forget | Report | Finished
