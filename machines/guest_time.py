"""Guest time: follows the host's monotonic clock, but stands still during a slice and never leaps.

A machine runs its CPU in slices. Between two slices it lets guest time catch up with the host, at most up to
the next alarm, so that each alarm is delivered before the guest can see a counter past it. If the host has
been away for longer than a guest could explain (a restart, a busy machine), guest time does not follow: for
the guest that time did not happen. So what a guest measures depends on what it did, not on what went wrong
around it. While the guest sleeps, time runs freely up to the alarm that it waits for.

Integer nanoseconds; begins at zero. Pure: the host's clock is an argument.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["GuestClock"]

LEAP_NS = 1_250_000  # a slice of 1 ms and what lies between two; 20,000 instructions of a 16 MHz chip


class GuestClock:
    """``now_ns`` is guest time; ``advance`` is called between slices."""

    def __init__(self, host: Callable[[], int], *, leap_ns: int = LEAP_NS) -> None:
        self._host = host
        self._origin_ns = host()
        self._leap_ns = leap_ns
        self.now_ns = 0

    def now(self) -> int:
        """``now_ns``, for whoever wants a callable."""
        return self.now_ns

    def advance(self, alarm_ns: int, *, asleep: bool = False) -> None:
        """Catches up with the host, up to ``alarm_ns``; awake by at most a leap, asleep by any time."""
        host_ns = self._host() - self._origin_ns
        explained_ns = max(self.now_ns, alarm_ns) if asleep else self.now_ns
        behind_ns = host_ns - explained_ns
        if behind_ns > self._leap_ns:
            self._origin_ns += behind_ns - self._leap_ns
            host_ns -= behind_ns - self._leap_ns
        self.now_ns = max(self.now_ns, min(host_ns, alarm_ns))
