"""Deadlines and waiting for one descriptor. Public timeouts are float seconds, here they are monotonic
integer ns.

A deadline of None means for ever, 0 means "do not wait" (no clock is read for it).
"""

from __future__ import annotations

import select
import time

__all__ = ["deadline_after", "seconds_left", "wait_for"]

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


def deadline_after(timeout: float | None) -> int | None:
    """Return the deadline that is ``timeout`` seconds away."""
    if timeout is None:
        return None
    if timeout <= 0:
        return 0
    return time.monotonic_ns() + int(timeout * NS_PER_S)


def seconds_left(deadline: int | None) -> float | None:
    """Return what is left until a deadline, never less than 0; None for ever."""
    if deadline is None:
        return None
    return max(0, deadline - time.monotonic_ns()) / NS_PER_S if deadline else 0.0


def wait_for(fd: int, events: int, deadline: int | None) -> bool:
    """Wait until a descriptor is ready or hung up; False when the deadline is over.

    "Do not wait" is answered with False without looking: the caller has just tried.
    """
    if deadline == 0:
        return False
    poll = select.poll()
    poll.register(fd, events)
    if deadline is None:
        poll.poll()
        return True
    left_ns = deadline - time.monotonic_ns()
    if left_ns <= 0:
        return False
    # Rounded up: a wait that ends early would spin through the last millisecond.
    return bool(poll.poll(-(-left_ns // NS_PER_MS)))
