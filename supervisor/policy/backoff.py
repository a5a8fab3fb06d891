"""How long a restart waits.

The first restart waits ``first``; the k-th after it waits ``next * factor ** (k - 1)``, never more than
``max``. Chance only ever shortens the delay, by up to the fraction ``jitter``: ``max`` stays a promise, and
devices that failed together still come back apart when all of them have reached it.

Where several children die in one instant, those after the first also wait for a share, chosen by chance, of
the time that the others need to be forked: what they all need at their start is then not asked for by all at
once.
"""

from __future__ import annotations

from supervisor.policy.spec import BackoffSpec

__all__ = ["FORK_NS", "delay_ns", "is_healthy", "spread_ns"]

FORK_NS = 1_500_000
"""About what it takes to fork one worker: those who died together are forked one after the other anyway."""


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


def spread_ns(spec: BackoffSpec, before: int, chance: float) -> int:
    """What a restart waits in addition when ``before`` others have died in the same instant."""
    return min(int(before * FORK_NS * spec.jitter * chance), spec.max_ns)


def is_healthy(spec: BackoffSpec, ready_at_ns: int | None, now_ns: int) -> bool:
    """True if a child that has been ready since ``ready_at_ns`` (None: never) starts counting anew."""
    return ready_at_ns is not None and now_ns - ready_at_ns >= spec.healthy_after_ns
