"""The restart budget: at most so many restarts within a sliding window of time.

A window is the tuple of the times (ns) at which restarts were charged, oldest first. It is pruned whenever
something is charged, so it never holds more than ``intensity + 1`` times. As in OTP, a restart exactly one
period old still counts, and with an intensity of 0 the first death is one too many.
"""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["Window", "charge"]

Window = tuple[int, ...]


def charge(window: Window, now_ns: int, *, intensity: int, period_ns: int) -> tuple[Window, bool]:
    """The window with one more restart at ``now_ns``, and whether that is more than ``intensity`` allows."""
    kept = window[bisect_left(window, now_ns - period_ns) :]
    charged = (*kept, now_ns)
    return charged, len(charged) > intensity
