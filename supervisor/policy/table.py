"""One child's life as a table: for every state and every event, what is done and where it can lead.

The table is data and total: a cell that does nothing says so, either because the event is expected and means
nothing there (``IGNORE``) or because no reactor that keeps its contract can send it (``IMPOSSIBLE``, recorded
and survived). ``docs/states.md`` is generated from it, and the simulation checks every step against ``to``.

Rules of the file:

* ``Tick`` in this table means "this child's own deadline has passed".
* No cell leads from a state with a process to SPAWNING except through the end of that process.
* What is to become of a child once its process is gone is not a state of its own but ``Child.after``:
  six states of dying would each need the same cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from supervisor.policy.events import (
    Forked,
    Gone,
    Hello,
    Ignored,
    Ready,
    Refused,
    RemoveChild,
    RestartChild,
    Silent,
    SpawnFailed,
    StartChild,
    StopChild,
    Tick,
)
from supervisor.policy.intensity import Window
from supervisor.policy.states import ChildState

__all__ = ["CHILD_EVENTS", "TABLE", "After", "Cell", "Child", "Do"]


class After(Enum):
    """What a child becomes once its process is gone, when that has been decided beforehand."""

    DOWN = "stays down"  # the operator or the end of the supervisor wants it so
    RESPAWN = "is spawned again at once"  # the operator or the keeper wants it so
    GROUP = "comes back together with its siblings"
    FINISHED = "is not restarted"  # temporary, and stopped on a sibling's account
    FAILED = "is out of service"  # refused


@dataclass(frozen=True, slots=True)
class Child:
    """What is remembered of one child."""

    state: ChildState = ChildState.DOWN
    generation: int = 0
    """Of the present process, or of the last one; 0 before the first."""
    restarts: int = 0
    """How often it has come back to READY."""
    deadline_ns: int | None = None
    """When its Tick is due."""
    not_before_ns: int = 0
    """The end of the backoff that the next generation has to wait for."""
    attempts: int = 0
    """Charged restarts since the last healthy run: the place on the backoff's ramp."""
    ready_at_ns: int | None = None
    """When the present process became READY; None if it has not."""
    down_since_ns: int | None = None
    """Since when it has been missing against everybody's wish; None while nobody misses it."""
    forked: bool = False
    """The present process is known to exist."""
    after: After | None = None
    why: str = ""
    """Why it was refused or is FAILED."""
    awaited: bool = True
    """The first start still waits for it."""
    added: bool = False
    """Not in the configuration but added while running: forgotten when it is temporary and has ended."""
    new: bool = False
    """Added, and neither ready nor settled yet: a failure ends it, as OTP's start_child does."""
    window: Window = ()
    """Its own budget, used where devices are isolated instead of giving up."""


class Do(Enum):
    """What a cell does. The value is the sentence that the documentation prints."""

    IGNORE = "–"
    IMPOSSIBLE = "impossible: recorded, nothing changes"
    COME = "wanted: spawned as soon as its siblings and its dependencies allow"
    REMOVE = "forgotten, unless another depends on it; its name is free again"
    REST = "stays down, the delay is dropped"
    EXPECT = "its Hello is due within `hello_timeout`"
    BUILD = "its Ready is due within `start_timeout`"
    SERVE = "serves; what depends on it may come"
    LEAVE = "asked to stop (killed at once if `brutal_kill`), then stays down"
    RENEW = "asked to stop (killed at once if `brutal_kill`), then spawned again, uncharged"
    REFUSE = "asked to stop, then failed; fails the first start"
    REFUSE_DYING = "will be failed instead of restarted; fails the first start"
    REFUSE_LATE = "failed instead of restarted"
    EXCUSE = "asked to stop, then finished: it had nothing to do"
    KILL = "killed"
    STAY_DOWN = "will stay down"
    RETURN = "will be spawned again, unless its end was a fault of its own"
    LOST = "the process is gone: restart type, strategy, budget and backoff decide"


@dataclass(frozen=True, slots=True)
class Cell:
    """What is done, and every state the child may be in afterwards; none: it is forgotten.

    Whatever ends an added child that is temporary, or that was never ready, also has it forgotten.
    """

    do: Do
    to: frozenset[ChildState]


CHILD_EVENTS = (
    StartChild,
    StopChild,
    RestartChild,
    RemoveChild,
    Forked,
    Hello,
    Ready,
    Gone,
    SpawnFailed,
    Refused,
    Ignored,
    Silent,
    Tick,
)

_S = ChildState
_COMING = (_S.SPAWNING, _S.WAITING, _S.FAILED)  # FAILED: what it depends on has failed
_ENDED = (_S.SPAWNING, _S.WAITING, _S.DOWN, _S.FINISHED, _S.FAILED)
_LEAVING = (_S.STOPPING, _S.KILLING)


def _row(state: ChildState, **cells: tuple[Do, tuple[ChildState, ...]] | Do) -> dict[type, Cell]:
    """One state's cells by event name; a bare ``Do`` stays in the state. Every name must be there, once."""
    row: dict[type, Cell] = {}
    for event in CHILD_EVENTS:
        cell = cells.pop(event.__name__)
        do, to = cell if isinstance(cell, tuple) else (cell, (state,))
        row[event] = Cell(do, frozenset(to))
    if cells:
        raise KeyError(*cells)
    return row


TABLE: dict[ChildState, dict[type, Cell]] = {
    _S.DOWN: _row(
        _S.DOWN,
        StartChild=(Do.COME, _COMING),
        StopChild=Do.IGNORE,
        RestartChild=(Do.COME, _COMING),
        RemoveChild=(Do.REMOVE, ()),
        # What a process said before its end may be read after it: late, but no contradiction.
        Forked=Do.IGNORE,
        Hello=Do.IGNORE,
        Ready=Do.IGNORE,
        Gone=Do.IMPOSSIBLE,
        SpawnFailed=Do.IMPOSSIBLE,
        Refused=Do.IGNORE,
        Ignored=Do.IGNORE,
        Silent=Do.IGNORE,
        Tick=Do.IGNORE,
    ),
    _S.WAITING: _row(
        _S.WAITING,
        StartChild=Do.IGNORE,
        StopChild=(Do.REST, (_S.DOWN,)),
        RestartChild=(Do.COME, _COMING),
        RemoveChild=Do.IMPOSSIBLE,
        Forked=Do.IGNORE,
        Hello=Do.IGNORE,
        Ready=Do.IGNORE,
        Gone=Do.IMPOSSIBLE,
        SpawnFailed=Do.IMPOSSIBLE,
        Refused=(Do.REFUSE_LATE, (_S.FAILED,)),
        Ignored=Do.IGNORE,
        Silent=Do.IGNORE,
        Tick=(Do.COME, _COMING),
    ),
    _S.SPAWNING: _row(
        _S.SPAWNING,
        StartChild=Do.IGNORE,
        StopChild=(Do.LEAVE, _LEAVING),
        RestartChild=(Do.RENEW, (*_LEAVING, _S.SPAWNING)),
        RemoveChild=Do.IMPOSSIBLE,
        Forked=Do.EXPECT,
        Hello=(Do.BUILD, (_S.BUILDING,)),
        Ready=Do.IMPOSSIBLE,
        Gone=(Do.LOST, _ENDED),
        SpawnFailed=(Do.LOST, _ENDED),
        Refused=(Do.REFUSE, _LEAVING),
        Ignored=Do.IMPOSSIBLE,
        Silent=(Do.KILL, (_S.KILLING,)),
        Tick=(Do.KILL, (_S.KILLING,)),
    ),
    _S.BUILDING: _row(
        _S.BUILDING,
        StartChild=Do.IGNORE,
        StopChild=(Do.LEAVE, _LEAVING),
        RestartChild=(Do.RENEW, (*_LEAVING, _S.BUILDING)),
        RemoveChild=Do.IMPOSSIBLE,
        Forked=Do.IGNORE,
        Hello=Do.IMPOSSIBLE,
        Ready=(Do.SERVE, (_S.READY,)),
        Gone=(Do.LOST, _ENDED),
        SpawnFailed=Do.IMPOSSIBLE,
        Refused=(Do.REFUSE, _LEAVING),
        Ignored=(Do.EXCUSE, _LEAVING),
        Silent=(Do.KILL, (_S.KILLING,)),
        Tick=(Do.KILL, (_S.KILLING,)),
    ),
    _S.READY: _row(
        _S.READY,
        StartChild=Do.IGNORE,
        StopChild=(Do.LEAVE, _LEAVING),
        RestartChild=(Do.RENEW, (*_LEAVING, _S.READY)),
        RemoveChild=Do.IMPOSSIBLE,
        Forked=Do.IGNORE,
        Hello=Do.IMPOSSIBLE,
        Ready=Do.IMPOSSIBLE,
        Gone=(Do.LOST, _ENDED),
        SpawnFailed=Do.IMPOSSIBLE,
        Refused=(Do.REFUSE, _LEAVING),
        Ignored=Do.IMPOSSIBLE,
        Silent=(Do.KILL, (_S.KILLING,)),
        Tick=Do.IGNORE,
    ),
    _S.STOPPING: _row(
        _S.STOPPING,
        StartChild=Do.RETURN,
        StopChild=Do.STAY_DOWN,
        RestartChild=Do.RETURN,
        RemoveChild=Do.IMPOSSIBLE,
        Forked=Do.IGNORE,
        Hello=Do.IGNORE,
        Ready=Do.IGNORE,
        Gone=(Do.LOST, _ENDED),
        SpawnFailed=(Do.LOST, _ENDED),
        # It was asked to stop before it refused; the next generation will say it again.
        Refused=Do.IGNORE,
        Ignored=Do.IGNORE,
        # The stop deadline is the only judge of a worker that is draining.
        Silent=Do.IGNORE,
        Tick=(Do.KILL, (_S.KILLING,)),
    ),
    _S.KILLING: _row(
        _S.KILLING,
        StartChild=Do.RETURN,
        StopChild=Do.STAY_DOWN,
        RestartChild=Do.RETURN,
        RemoveChild=Do.IMPOSSIBLE,
        Forked=Do.IGNORE,
        Hello=Do.IGNORE,
        Ready=Do.IGNORE,
        Gone=(Do.LOST, _ENDED),
        SpawnFailed=(Do.LOST, _ENDED),
        Refused=Do.REFUSE_DYING,
        Ignored=Do.IGNORE,
        Silent=Do.IGNORE,
        Tick=Do.IGNORE,
    ),
    _S.FAILED: _row(
        _S.FAILED,
        StartChild=(Do.COME, _COMING),
        StopChild=Do.IGNORE,
        RestartChild=(Do.COME, _COMING),
        RemoveChild=(Do.REMOVE, ()),
        Forked=Do.IGNORE,
        Hello=Do.IGNORE,
        Ready=Do.IGNORE,
        Gone=Do.IMPOSSIBLE,
        SpawnFailed=Do.IMPOSSIBLE,
        Refused=Do.IGNORE,
        Ignored=Do.IGNORE,
        Silent=Do.IGNORE,
        Tick=Do.IGNORE,
    ),
    _S.FINISHED: _row(
        _S.FINISHED,
        StartChild=(Do.COME, _COMING),
        StopChild=Do.IGNORE,
        RestartChild=(Do.COME, _COMING),
        RemoveChild=(Do.REMOVE, ()),
        Forked=Do.IGNORE,
        Hello=Do.IGNORE,
        Ready=Do.IGNORE,
        Gone=Do.IMPOSSIBLE,
        SpawnFailed=Do.IMPOSSIBLE,
        Refused=Do.IGNORE,
        Ignored=Do.IGNORE,
        Silent=Do.IGNORE,
        Tick=Do.IGNORE,
    ),
}
