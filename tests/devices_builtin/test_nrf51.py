"""The nRF51 peripherals against their reference manual."""

from __future__ import annotations

import struct

import pytest

from devices.nrf51.adc import Adc
from devices.nrf51.clock import Clock
from devices.nrf51.ficr import Ficr
from devices.nrf51.gpio import Gpio
from devices.nrf51.nvmc import Nvmc
from devices.nrf51.ppi import Ppi
from devices.nrf51.rng import Rng
from devices.nrf51.spi import Spi
from devices.nrf51.temp import Temp
from devices.nrf51.twi import Twi
from devices.nrf51.uart import Uart
from devices.nrf51.wdt import Wdt
from tests.devices_builtin.bench import MODES, in_mode, local

INTENSET, INTENCLR = 0x304, 0x308
BYTE_TIME_NS = 86_806  # 10 bits at 115,200 baud
BAUD_115200 = 0x01D7_E000


def test_given_enabled_event_line_is_raised_until_event_is_cleared() -> None:
    """Bit n of INTEN belongs to the event at 0x100 + 4 n, and the line is a level."""
    bench = local(Temp)
    bench.write(0x000)
    assert bench.read(0x100) == 1
    assert not bench.irq()
    bench.write(INTENSET, 1)
    assert bench.irq()
    assert bench.read(INTENCLR) == 1
    bench.write(0x100, 0)
    assert not bench.irq()


def test_given_raised_line_intenclr_lowers_it_and_keeps_the_event() -> None:
    """Disabling an interrupt does not clear what caused it."""
    bench = local(Temp)
    bench.write(INTENSET, 1)
    bench.write(0x000)
    bench.write(INTENCLR, 1)
    assert not bench.irq()
    assert bench.read(0x100) == 1
    assert bench.read(INTENSET) == 0


@pytest.mark.parametrize("mode", MODES)
def test_given_uart_bytes_go_out_in_order_and_come_in_one_by_one(mode: str) -> None:
    """TXD emits and signals TXDRDY; RXDRDY comes once a byte, a byte time after the last one was read."""
    with in_mode(mode, "nrf51.uart") as (_sup, bench):
        bench.write(0x524, BAUD_115200)
        for byte in b"hello":
            bench.write(0x11C, 0)
            bench.write(0x51C, byte)
            assert bench.read(0x11C) == 1
        assert bench.output == b"hello"
        bench.write(INTENSET, 1 << 2)
        bench.device.send(b"ab")
        assert not bench.irq()  # the receiver has not been started
        bench.write(0x000)
        assert bench.irq()
        bench.write(0x108, 0)
        assert bench.read(0x518) == ord("a")
        assert bench.advance(BYTE_TIME_NS - 500) == 0
        assert bench.read(0x108) == 0
        bench.advance(1_000)
        assert bench.read(0x108) == 1
        assert bench.read(0x518) == ord("b")


def test_given_unread_byte_the_next_one_waits_and_is_not_lost() -> None:
    """A guest that is slow to read overruns nothing."""
    bench = local(Uart)
    bench.write(0x000)
    bench.device.send(b"xyz")
    bench.advance(10 * BYTE_TIME_NS)
    read = []
    for _ in range(3):
        read.append(bench.read(0x518))
        bench.write(0x108, 0)
        bench.advance(20 * BYTE_TIME_NS)
    assert bytes(read) == b"xyz"
    assert bench.read(0x108) == 0


@pytest.mark.parametrize("mode", MODES)
def test_given_seed_rng_yields_the_same_bytes_whatever_the_time(mode: str) -> None:
    """The sequence depends on the seed and on how many were taken, not on when."""

    def take(pause_ns: int) -> list[int]:
        with in_mode(mode, "nrf51.rng", "{seed: 7}") as (_sup, bench):
            bench.write(0x000)
            values = []
            for _ in range(8):
                bench.advance(pause_ns)
                assert bench.read(0x100) == 1
                values.append(bench.read(0x508))
                bench.write(0x100, 0)
            return values

    assert take(0) == take(1_000_000)


def test_given_valrdy_stop_short_rng_makes_one_value_per_start() -> None:
    """SHORTS bit 0 stops the generator at each value."""
    bench = local(Rng, seed=7)
    bench.write(0x200, 1)
    bench.write(0x000)
    first = bench.read(0x508)
    bench.write(0x100, 0)
    assert bench.read(0x100) == 0
    bench.write(0x000)
    assert bench.read(0x100) == 1
    assert bench.read(0x508) != first


def test_given_other_seed_rng_yields_other_bytes() -> None:
    """The option matters."""
    values = []
    for seed in (1, 2):
        bench = local(Rng, seed=seed)
        bench.write(0x000)
        bench.write(0x100, 0)
        values.append(bench.read(0x508))
    assert values[0] != values[1]


def test_given_start_tasks_clocks_run_and_say_so() -> None:
    """HFCLKSTART and LFCLKSTART raise their events and show in the status registers."""
    bench = local(Clock)
    bench.write(0x000)
    assert (bench.read(0x100), bench.read(0x40C)) == (1, 0x1_0001)
    bench.write(0x518, 1)
    bench.write(0x008)
    assert (bench.read(0x104), bench.read(0x418)) == (1, 0x1_0001)
    bench.write(0x00C)
    assert bench.read(0x418) == 0


def test_given_transfer_twi_reports_that_nobody_answers() -> None:
    """The address is not acknowledged; STOP is answered by STOPPED; ERRORSRC is cleared by ones."""
    bench = local(Twi)
    bench.write(0x588, 0x1D)
    bench.write(0x008)
    assert (bench.read(0x124), bench.read(0x4C4)) == (1, 2)
    bench.write(0x014)
    assert bench.read(0x104) == 1
    bench.write(0x4C4, 2)
    assert bench.read(0x4C4) == 0


def test_given_byte_spi_reads_an_idle_line() -> None:
    """MISO floats high."""
    bench = local(Spi)
    bench.write(0x51C, 0x55)
    assert (bench.read(0x108), bench.read(0x518)) == (1, 0xFF)


def test_given_set_and_clear_gpio_drives_pins_and_reads_them_back() -> None:
    """OUTSET, OUTCLR, DIRSET and PIN_CNF act on OUT and DIR; inputs are pulled up."""
    bench = local(Gpio)
    assert bench.read(0x510) == 0xFFFF_FFFF
    bench.write(0x518, 0b110)
    assert bench.read(0x510) == 0xFFFF_FFF9
    bench.write(0x508, 0b010)
    assert (bench.read(0x504), bench.read(0x510)) == (0b010, 0xFFFF_FFFB)
    bench.write(0x50C, 0b010)
    assert bench.read(0x504) == 0
    assert bench.read(0x700 + 4) & 1
    bench.write(0x700 + 4 * 5, 3)
    assert bench.read(0x514) == 0b100110


def test_given_pressed_button_gpio_shows_it_at_the_input() -> None:
    """The option ``inputs`` is what comes from outside."""
    assert local(Gpio, inputs=0xFFFD_FFFF).read(0x510) == 0xFFFD_FFFF


def test_given_level_adc_scales_it_to_the_resolution() -> None:
    """RES chooses 8, 9 or 10 bits."""
    bench = local(Adc, level=1.0)
    for resolution, full_scale in enumerate((255, 511, 1023)):
        bench.write(0x504, resolution)
        bench.write(0x000)
        assert bench.read(0x508) == full_scale


def test_given_cold_temp_reads_in_quarter_degrees_twos_complement() -> None:
    """-10.5 °C are -42 steps."""
    bench = local(Temp, celsius=-10.5)
    bench.write(0x000)
    assert bench.read(0x508) == 2**32 - 42


def test_given_ficr_writes_change_nothing() -> None:
    """Factory data cannot be written."""
    bench = local(Ficr, device_id=0x1122_3344_5566_7788)
    for offset, value in ((0x10, 1024), (0x14, 256), (0x34, 2), (0x60, 0x5566_7788), (0x64, 0x1122_3344)):
        bench.write(offset, 0)
        assert bench.read(offset) == value
    assert bench.read(0x200) == 0xFFFF_FFFF


def test_given_groups_ppi_switches_their_channels() -> None:
    """CHENSET, CHENCLR and the group tasks act on CHEN."""
    bench = local(Ppi)
    bench.write(0x504, 0b1011)
    bench.write(0x508, 0b0010)
    assert bench.read(0x500) == 0b1001
    bench.write(0x804, 0b1000)
    bench.write(0x00C)  # disable group 1
    assert bench.read(0x504) == 0b0001
    bench.write(0x008)  # enable group 1
    assert bench.read(0x500) == 0b1001


def test_given_start_watchdog_says_that_it_runs() -> None:
    """RUNSTATUS is read-only."""
    bench = local(Wdt)
    bench.write(0x400, 1)
    assert bench.read(0x400) == 0
    bench.write(0x000)
    assert bench.read(0x400) == 1


@pytest.mark.parametrize("mode", MODES)
def test_given_erase_order_nvmc_is_busy_until_the_machine_reports(mode: str) -> None:
    """The order comes out once; READY is 0 until it is carried out; without CONFIG nothing happens."""
    with in_mode(mode, "nrf51.nvmc") as (_sup, bench):
        bench.write(0x508, 0x3_0000)
        assert (bench.read(0x400), bench.output) == (1, b"")
        bench.write(0x504, 2)
        bench.write(0x508, 0x3_0123)
        assert bench.read(0x400) == 0
        assert bench.output == struct.pack("<II", 0x3_0000, 1024)
        bench.device.send(b"\1")
        assert bench.read(0x400) == 1


def test_given_page_beyond_the_flash_nvmc_orders_nothing() -> None:
    """A guest cannot make the machine erase what is no flash."""
    bench = local(Nvmc)
    bench.write(0x504, 2)
    bench.write(0x508, 0x2000_0000)
    assert (bench.read(0x400), bench.output) == (1, b"")
