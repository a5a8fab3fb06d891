"""TIMER and RTC: counters that the machine evaluates, and the compare events that go with them."""

from __future__ import annotations

import pytest

from devices.nrf51.rtc import Rtc
from devices.nrf51.timer import Timer
from tests.devices_builtin.bench import MODES, Bench, in_mode, local

START, STOP, COUNT, CLEAR = 0x000, 0x004, 0x008, 0x00C
SHORTS, INTENSET, MODE, BITMODE, PRESCALER = 0x200, 0x304, 0x504, 0x508, 0x510
MICROSECOND, MILLISECOND, SECOND = 1_000, 1_000_000, 1_000_000_000


def _capture(bench: Bench, channel: int = 0) -> int:
    bench.write(0x040 + 4 * channel)
    return bench.read(0x540 + 4 * channel)


@pytest.mark.parametrize("mode", MODES)
def test_given_prescaler_timer_counts_microseconds_and_captures_them(mode: str) -> None:
    """16 MHz / 2^4 is one tick a microsecond; a capture latches the present value."""
    with in_mode(mode, "nrf51.timer") as (_sup, bench):
        bench.write(BITMODE, 3)
        bench.write(START)
        bench.advance(1234 * MICROSECOND)
        assert _capture(bench) == 1234
        bench.advance(MILLISECOND)
        assert _capture(bench) == 2234
        bench.write(STOP)
        bench.advance(MILLISECOND)
        assert _capture(bench) == 2234
        bench.write(CLEAR)
        assert _capture(bench) == 0


@pytest.mark.parametrize(("bitmode", "bits"), [(0, 16), (1, 8), (2, 24), (3, 32)])
def test_given_bitmode_timer_wraps_at_its_width(bitmode: int, bits: int) -> None:
    """BITMODE chooses the counter's width."""
    bench = local(Timer)
    bench.write(BITMODE, bitmode)
    bench.write(START)
    bench.advance(((1 << bits) + 5) * MICROSECOND)
    assert _capture(bench) == 5


def test_given_small_timer_bitmode_cannot_widen_it() -> None:
    """TIMER1 and TIMER2 have 16 bits."""
    bench = local(Timer, bits=16)
    bench.write(BITMODE, 3)
    bench.write(START)
    bench.advance(65_537 * MICROSECOND)
    assert _capture(bench) == 1


@pytest.mark.parametrize("mode", MODES)
def test_given_compare_timer_interrupts_at_that_very_tick(mode: str) -> None:
    """COMPARE comes when the counter reaches CC, not before, and only once."""
    with in_mode(mode, "nrf51.timer") as (_sup, bench):
        bench.write(BITMODE, 3)
        bench.write(0x540 + 8, 500)
        bench.write(INTENSET, 1 << 18)
        bench.write(START)
        bench.advance(500 * MICROSECOND - 1)
        assert not bench.irq()
        bench.advance(1)
        assert bench.irq()
        assert bench.read(0x140 + 8) == 1
        bench.write(0x140 + 8, 0)
        assert not bench.irq()
        bench.advance(MILLISECOND)
        assert not bench.irq()


def test_given_clear_shortcut_timer_is_periodic_without_drift() -> None:
    """COMPARE0_CLEAR starts the count over: 1,000 periods take 1,000 times as long."""
    bench = local(Timer)
    bench.write(BITMODE, 3)
    bench.write(0x540, 250)
    bench.write(SHORTS, 1)
    bench.write(START)
    assert bench.advance(250 * MICROSECOND * 1000) == 1000
    assert _capture(bench, 1) == 0


def test_given_stop_shortcut_timer_stands_at_its_compare_value() -> None:
    """COMPARE1_STOP stops the counter."""
    bench = local(Timer)
    bench.write(0x544, 100)
    bench.write(SHORTS, 1 << 9)
    bench.write(START)
    bench.advance(MILLISECOND)
    assert _capture(bench) == 100


def test_given_signalled_events_timer_sets_no_alarms_that_nobody_would_notice() -> None:
    """Once every COMPARE is set and none has a shortcut, the timer sleeps."""
    bench = local(Timer)
    bench.write(START)
    bench.advance(65_536 * MICROSECOND)
    assert [bench.read(0x140 + 4 * channel) for channel in range(4)] == [1, 1, 1, 1]
    assert not bench.waits
    bench.write(0x140, 0)
    assert bench.waits


def test_given_capture_the_next_match_is_a_whole_turn_away() -> None:
    """A capture moves the compare value to where the counter is now."""
    bench = local(Timer)
    bench.write(BITMODE, 1)
    bench.write(START)
    bench.advance(256 * MICROSECOND)
    bench.write(0x140, 0)
    bench.advance(10 * MICROSECOND)
    _capture(bench)
    bench.advance(255 * MICROSECOND)
    assert bench.read(0x140) == 0
    bench.advance(MICROSECOND)
    assert bench.read(0x140) == 1


def test_given_counter_mode_timer_counts_tasks_and_not_time() -> None:
    """MODE 1: COUNT steps the counter."""
    bench = local(Timer)
    bench.write(MODE, 1)
    bench.write(0x540, 3)
    bench.write(START)
    bench.advance(SECOND)
    for expected in (1, 2, 3):
        assert bench.read(0x140) == 0
        bench.write(COUNT)
        assert _capture(bench, 1) == expected
    assert bench.read(0x140) == 1


@pytest.mark.parametrize("mode", MODES)
def test_given_killed_worker_timer_goes_on_where_it_was(mode: str) -> None:
    """Neither the count nor a compare event suffers from a restart."""
    with in_mode(mode, "nrf51.timer") as (sup, bench):
        bench.write(BITMODE, 3)
        bench.write(0x540, 5000)
        bench.write(INTENSET, 1 << 16)
        bench.write(START)
        bench.advance(MILLISECOND)
        assert _capture(bench, 1) == 1000
        sup.kill("dut", charged=False)
        bench.advance(MILLISECOND)
        assert _capture(bench, 1) == 2000
        sup.kill("dut", charged=False)
        bench.advance(3 * MILLISECOND)
        assert bench.irq()


def test_given_started_rtc_counts_at_the_crystals_pace() -> None:
    """32,768 ticks a second without a prescaler, 32 with one of 1023."""
    for prescaler, ticks in ((0, 32_768), (1023, 32)):
        bench = local(Rtc)
        bench.write(0x508, prescaler)
        bench.write(START)
        bench.advance(SECOND)
        assert bench.read(0x504) == ticks
        assert not bench.waits  # nobody has asked for an event


@pytest.mark.parametrize("mode", MODES)
def test_given_rtc_compare_interrupts_when_the_counter_is_there(mode: str) -> None:
    """COMPARE[1] at 16,384 is half a second."""
    with in_mode(mode, "nrf51.rtc") as (_sup, bench):
        bench.write(0x544, 16_384)
        bench.write(INTENSET, 1 << 17)
        bench.write(START)
        bench.advance(SECOND // 2 - 1)
        assert not bench.irq()
        bench.advance(1)
        assert bench.irq()
        assert bench.read(0x504) == 16_384


def test_given_tick_interrupt_rtc_ticks_at_every_increment() -> None:
    """TICK follows the prescaled counter."""
    bench = local(Rtc)
    bench.write(0x508, 31)
    bench.write(0x344, 1)
    bench.write(START)
    assert bench.advance(SECOND) == 1024


def test_given_overflow_trigger_rtc_overflows_sixteen_ticks_later() -> None:
    """TRIGOVRFLW sets the counter to 0xFFFFF0."""
    bench = local(Rtc)
    bench.write(INTENSET, 2)
    bench.write(START)
    bench.write(0x00C)
    assert bench.read(0x504) == 0xFF_FFF0
    bench.advance(SECOND // 2048 + 1)
    assert bench.read(0x104) == 1
    assert bench.read(0x504) == 0


def test_given_two_channels_at_one_tick_both_events_happen() -> None:
    """Compare registers with the same value match together, also where one of them clears the counter."""
    for device, enable, clear in ((Timer, 0x304, 1), (Rtc, 0x304, 0)):
        bench = local(device)
        bench.write(0x540, 100)
        bench.write(0x544, 100)
        bench.write(SHORTS, clear)
        bench.write(enable, 0b11 << 16)
        bench.write(START)
        bench.advance(SECOND // 100)
        assert (bench.read(0x140), bench.read(0x144)) == (1, 1)
