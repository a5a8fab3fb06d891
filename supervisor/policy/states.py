"""The states of one child and the phases of the whole supervisor.

They live below everything else in this room, because records, tables and views all name them.
What leads from one state to the next is written once, in ``supervisor.policy.table``.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["ALIVE", "ChildState", "Phase"]


class ChildState(Enum):
    """Where one child is in its life."""

    DOWN = "down"  # no process, and none is wanted
    WAITING = "waiting"  # no process; the next one waits for its delay, its siblings or its dependencies
    SPAWNING = "spawning"  # ordered; the process, and then its Hello, is due
    BUILDING = "building"  # said Hello; its Ready is due
    READY = "ready"  # serving
    STOPPING = "stopping"  # asked to stop; its end is due
    KILLING = "killing"  # killed; nothing else can be done until it is known to be gone
    FAILED = "failed"  # given up or refused; only an operator brings it back
    FINISHED = "finished"  # ended by itself, and its restart type wants no other


ALIVE = frozenset(
    {
        ChildState.SPAWNING,
        ChildState.BUILDING,
        ChildState.READY,
        ChildState.STOPPING,
        ChildState.KILLING,
    }
)
"""The states in which a process may exist: whoever leaves them has been seen gone."""


class Phase(Enum):
    """Where the whole supervisor is in its life."""

    IDLE = "idle"  # not started yet
    STARTING = "starting"  # the first start: some child has not been ready yet
    RUNNING = "running"
    STOPPING = "stopping"  # everything is on its way down, in order
    ENDED = "ended"  # Finished was said; nothing is ever said again
