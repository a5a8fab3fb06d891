"""POWER and CLOCK, which share one block (nRF51 Reference Manual, chapters "POWER" and "CLOCK").

The oscillators start at once. Of POWER there is what firmware looks at: all RAM blocks are on, the reset
reason is power-on (all zeros), the retained register retains.
"""

from __future__ import annotations

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Register

RUNNING = 1 << 16
SOURCE_CRYSTAL = 1


class Clock(Block):
    """HFCLK and LFCLK: a start task raises the started event and shows in the status."""

    HFCLKSTART = task(0x000)
    HFCLKSTOP = task(0x004)
    LFCLKSTART = task(0x008)
    LFCLKSTOP = task(0x00C)
    CAL = task(0x010)
    CTSTART = task(0x014)
    CTSTOP = task(0x018)
    CONSTLAT = task(0x078)
    LOWPWR = task(0x07C)
    HFCLKSTARTED = Event(0x100)
    LFCLKSTARTED = Event(0x104)
    POFWARN = Event(0x108)
    DONE = Event(0x10C)
    CTTO = Event(0x110)
    RESETREAS = Register(0x400, write=POSTED)
    HFCLKRUN = Register(0x408, write=POSTED)
    HFCLKSTAT = Register(0x40C, write=POSTED)
    LFCLKRUN = Register(0x414, write=POSTED)
    LFCLKSTAT = Register(0x418, write=POSTED)
    LFCLKSRCCOPY = Register(0x41C, write=POSTED)
    RAMSTATUS = Register(0x428, reset=0xF, write=POSTED)
    SYSTEMOFF = Register(0x500, mask=1, write=POSTED)
    POFCON = Register(0x510, mask=0x7, write=POSTED)
    LFCLKSRC = Register(0x518, mask=0x3, write=POSTED)
    GPREGRET = Register(0x51C, mask=0xFF, write=POSTED)
    RAMON = Register(0x524, reset=0x3, write=POSTED)
    CTIV = Register(0x538, mask=0x7F, write=POSTED)
    RESET = Register(0x544, mask=1, write=POSTED)
    XTALFREQ = Register(0x550, reset=0xFF, mask=0xFF, write=POSTED)
    RAMONB = Register(0x554, reset=0x3, write=POSTED)
    DCDCEN = Register(0x578, mask=1, write=POSTED)

    @HFCLKSTART.on_write
    def _start_high(self, _value: int) -> None:
        self.HFCLKRUN = 1
        self.HFCLKSTAT = RUNNING | SOURCE_CRYSTAL
        self.HFCLKSTARTED = 1

    @HFCLKSTOP.on_write
    def _stop_high(self, _value: int) -> None:
        self.HFCLKRUN = 0
        self.HFCLKSTAT = RUNNING  # the CPU then runs from the RC oscillator

    @LFCLKSTART.on_write
    def _start_low(self, _value: int) -> None:
        self.LFCLKRUN = 1
        self.LFCLKSRCCOPY = self.LFCLKSRC
        self.LFCLKSTAT = RUNNING | self.LFCLKSRC
        self.LFCLKSTARTED = 1

    @LFCLKSTOP.on_write
    def _stop_low(self, _value: int) -> None:
        self.LFCLKRUN = 0
        self.LFCLKSTAT = 0

    @CAL.on_write
    def _calibrate(self, _value: int) -> None:
        self.DONE = 1

    @RESETREAS.on_write
    def _clear_reasons(self, value: int) -> None:
        self.RESETREAS &= ~value


DEVICE = Clock
