"""Which core a process runs on, where the scheduler cannot know better.

A process that dies is taken apart on its core without a break: one to two milliseconds, more for a large one.
Whoever is runnable there waits as long, though another core may be idle: the scheduler looks for a better
place when somebody wakes up, and else a few times a second. So those who need each other in the next
millisecond are kept apart for the moment; nobody is bound to a core for longer (sched_setaffinity(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

__all__ = ["avoiding", "keep_off_our_core", "push_off_our_core"]

_here = ctypes.CDLL(None).sched_getcpu
_everywhere = os.sched_getaffinity(0)  # before anybody who embeds us has bound itself to a core


def keep_off_our_core(pid: int) -> None:
    """For a process that is about to be killed: it shall die on another core than ours, if there is one."""
    with contextlib.suppress(OSError):  # it is gone, or we may not: then it is as it would have been
        _leave(pid, _here(), os.sched_getaffinity(pid))


def push_off_our_core(pid: int) -> bool:
    """Moves a process that is runnable to another core than ours; false if there is none for it."""
    with contextlib.suppress(OSError):
        allowed = os.sched_getaffinity(pid)
        if _leave(pid, _here(), allowed):
            os.sched_setaffinity(pid, allowed)
            return True
    return False


@contextlib.contextmanager
def avoiding(core: int | None, pid: int) -> Iterator[None]:
    """What wakes process ``pid`` in here wakes it on another core than ``core``, if there is one for it.

    One that may not run everywhere is left alone: somebody else may be at this, and will undo it.
    """
    allowed: set[int] = set()
    with contextlib.suppress(OSError):
        if core is not None and pid:
            before = os.sched_getaffinity(pid)
            if before == _everywhere and _leave(pid, core, before):
                allowed = before
    try:
        yield
    finally:
        if allowed:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(pid, allowed)


def _leave(pid: int, core: int, allowed: set[int]) -> bool:
    others = allowed - {core}
    if others and len(others) < len(allowed):
        os.sched_setaffinity(pid, others)
    return bool(others)
