"""Guest time: follows the host, stands still, never leaps, stops at alarms."""

from __future__ import annotations

import random

from machines.guest_time import LEAP_NS, GuestClock
from supervisor.device import NO_ALARM


class _Host:
    def __init__(self) -> None:
        self.now_ns = 123_456_789

    def __call__(self) -> int:
        return self.now_ns


def test_given_small_steps_guest_time_follows_the_host() -> None:
    """Between two slices the guest catches up, and stands still otherwise."""
    host = _Host()
    clock = GuestClock(host)
    for _ in range(100):
        host.now_ns += 100_000
        before = clock.now()
        assert clock.now() == before
        clock.advance(NO_ALARM)
    assert clock.now() == 100 * 100_000


def test_given_stalled_host_guest_time_leaps_by_no_more_than_a_slice() -> None:
    """What the guest cannot have run did not happen, and is not caught up with later either."""
    host = _Host()
    clock = GuestClock(host)
    host.now_ns += 3_000_000_000
    clock.advance(NO_ALARM)
    assert clock.now() == LEAP_NS
    host.now_ns += 1_000
    clock.advance(NO_ALARM)
    assert clock.now() == LEAP_NS + 1_000


def test_given_alarm_guest_time_stops_there_and_goes_on_next_time() -> None:
    """An alarm is delivered before the guest can see a counter past it."""
    host = _Host()
    clock = GuestClock(host)
    host.now_ns += 1_000_000
    clock.advance(400_000)
    assert clock.now() == 400_000
    clock.advance(NO_ALARM)
    assert clock.now() == 1_000_000


def test_given_sleeping_guest_time_runs_freely_up_to_its_alarm() -> None:
    """Sleep is no stall; oversleeping is."""
    host = _Host()
    clock = GuestClock(host)
    host.now_ns += 700_000_000
    clock.advance(500_000_000, asleep=True)
    assert clock.now() == 500_000_000
    clock.advance(NO_ALARM)
    assert clock.now() == 500_000_000 + LEAP_NS


def test_given_any_schedule_guest_time_never_runs_back_or_ahead() -> None:
    """Monotonic, and never faster than the host."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    host = _Host()
    origin_ns = host.now_ns
    clock = GuestClock(host)
    for _ in range(5_000):
        host.now_ns += chooser.choice((0, 10, 50_000, 900_000, 20_000_000))
        before = clock.now()
        alarm_ns = clock.now() + chooser.choice((0, 1, 70_000, 5_000_000, 10**12))
        clock.advance(alarm_ns, asleep=chooser.random() < 0.3)
        assert before <= clock.now() <= min(alarm_ns, host.now_ns - origin_ns)
