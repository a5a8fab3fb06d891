"""PL011, PL031, SP804 and the demo's generator against their manuals."""

from __future__ import annotations

import pytest

from devices.arm.pl011 import Pl011
from devices.arm.pl031 import Pl031
from devices.arm.sp804 import Sp804
from devices.demo.rng import Rng
from tests.devices_builtin.bench import MODES, in_mode, local

DR, FR, LCR_H, CR, IMSC, RIS, MIS, ICR = 0x00, 0x18, 0x2C, 0x30, 0x38, 0x3C, 0x40, 0x44
RXFE, RXFF, TXFE = 1 << 4, 1 << 6, 1 << 7
MICROSECOND, SECOND = 1_000, 1_000_000_000


@pytest.mark.parametrize("mode", MODES)
def test_given_enabled_pl011_bytes_go_both_ways(mode: str) -> None:
    """Sending emits; receiving raises RXIM's interrupt until the FIFO has been read empty."""
    with in_mode(mode, "arm.pl011") as (_sup, bench):
        bench.write(LCR_H, 0x70)
        bench.write(CR, 0x301)
        for byte in b"out":
            bench.write(DR, byte)
        assert bench.output == b"out"
        bench.write(IMSC, 0x10)
        bench.device.send(b"in")
        assert bench.irq()
        assert not bench.read(FR) & RXFE
        assert bytes([bench.read(DR), bench.read(DR)]) == b"in"
        assert bench.read(FR) & RXFE
        assert not bench.irq()


def test_given_disabled_pl011_sends_nothing() -> None:
    """UARTEN and TXE gate the transmitter."""
    bench = local(Pl011)
    bench.write(DR, ord("x"))
    assert bench.output == b""


def test_given_many_bytes_pl011_fifo_is_full_and_loses_none() -> None:
    """RXFF shows at 16 bytes with the FIFO, at one without."""
    bench = local(Pl011)
    bench.write(CR, 0x301)
    bench.device.send(bytes(range(20)))
    assert bench.read(FR) & RXFF
    bench.write(LCR_H, 0x10)
    assert bench.read(FR) == RXFF | TXFE
    assert [bench.read(DR) for _ in range(20)] == list(range(20))
    assert bench.read(FR) == RXFE | TXFE


def test_given_identification_words_a_driver_recognizes_the_cells() -> None:
    """PeriphID and PCellID are what drivers look for."""
    for device, part in ((Pl011, 0x011), (Pl031, 0x031), (Sp804, 0x804)):
        bench = local(device)
        words = [bench.read(0xFE0 + 4 * index) for index in range(4)]
        assert words[0] | (words[1] & 0xF) << 8 == part
        assert [bench.read(0xFF0 + 4 * index) for index in range(4)] == [0x0D, 0xF0, 0x05, 0xB1]


@pytest.mark.parametrize("mode", MODES)
def test_given_pl031_counts_seconds_and_matches(mode: str) -> None:
    """RTCDR runs from where it is set; RTCMR raises the interrupt at that second."""
    with in_mode(mode, "arm.pl031", "{start: 100}") as (sup, bench):
        bench.advance(SECOND * 5 // 2)
        assert bench.read(0x00) == 102
        bench.write(0x08, 1_000)
        bench.write(0x04, 1_002)
        bench.write(0x10, 1)
        sup.kill("dut", charged=False)
        bench.advance(SECOND * 2 - 1)
        assert (bench.read(0x00), bench.irq()) == (1_001, False)
        bench.advance(1)
        assert (bench.read(0x00), bench.irq()) == (1_002, True)
        bench.write(0x1C, 1)
        assert not bench.irq()


def test_given_periodic_sp804_interrupts_every_load_ticks() -> None:
    """Periodic mode starts over from LOAD; INTCLR acknowledges."""
    bench = local(Sp804)
    bench.write(0x00, 1_000)
    bench.write(0x08, 0xE2)
    bench.advance(250 * MICROSECOND)
    assert bench.read(0x04) == 750
    assert bench.advance(9_750 * MICROSECOND) == 10
    assert bench.irq()
    bench.write(0x0C)
    assert not bench.irq()


@pytest.mark.parametrize("mode", MODES)
def test_given_one_shot_sp804_fires_once_and_stands_at_zero(mode: str) -> None:
    """One-shot mode ends at zero; the second timer is the first one's twin."""
    with in_mode(mode, "arm.sp804") as (_sup, bench):
        bench.write(0x20, 100_000)
        bench.write(0x28, 0xA3)
        bench.advance(100_000 * MICROSECOND - 1)
        assert not bench.irq()
        bench.advance(1)
        assert (bench.irq(), bench.read(0x34), bench.read(0x24)) == (True, 1, 0)
        bench.advance(SECOND)
        bench.write(0x2C)
        assert not bench.irq()
        assert not bench.waits


def test_given_prescaler_and_width_sp804_obeys_both() -> None:
    """16 bits free-running wrap at 65,536 ticks of 16 µs."""
    bench = local(Sp804)
    bench.write(0x00, 0x1_0004)
    bench.write(0x08, 0xA4)
    bench.advance(5 * 16 * MICROSECOND)
    assert bench.read(0x10) == 1
    assert bench.read(0x04) == 0xFFFF - 1


@pytest.mark.parametrize("mode", MODES)
def test_given_killed_worker_demo_rng_repeats_no_word(mode: str) -> None:
    """The sequence goes on across deaths exactly as without them."""
    undisturbed = local(Rng, seed=5)
    expected = [undisturbed.read(0x00) for _ in range(20)]
    with in_mode(mode, "demo.rng", "{seed: 5}") as (sup, bench):
        words = []
        for _ in range(20):
            words.append(bench.read(0x00))
            sup.kill("dut", charged=False)
        assert words == expected
        assert bench.read(0x04) == 20
        bench.write(0x08, 5)
        assert bench.read(0x00) == expected[0]
