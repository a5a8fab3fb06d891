"""How long a restart waits.

The first restart waits ``first``; the k-th after it waits ``next * factor ** (k - 1)``, never more than
``max``. Chance only ever shortens the delay, by up to the fraction ``jitter``: ``max`` stays a promise, and
devices that failed together still come back apart when all of them have reached it.
"""

from __future__ import annotations

from supervisor.policy.spec import BackoffSpec

__all__ = ["delay_ns", "is_healthy"]


def delay_ns(spec: BackoffSpec, attempts: int, chance: float) -> int:
    """The delay after ``attempts`` earlier restarts without a healthy run between; chance in [0, 1)."""
    if attempts == 0:
        longest = spec.first_ns
    else:
        try:
            longest = int(spec.next_ns * spec.factor ** (attempts - 1))
        except OverflowError:  # the power has left the range of floats, and so passed any limit
            longest = spec.max_ns if spec.next_ns else 0
    longest = min(longest, spec.max_ns)
    return longest - int(longest * spec.jitter * chance)


def is_healthy(spec: BackoffSpec, ready_at_ns: int | None, now_ns: int) -> bool:
    """True if a child that has been ready since ``ready_at_ns`` (None: never) starts counting anew."""
    return ready_at_ns is not None and now_ns - ready_at_ns >= spec.healthy_after_ns
