"""WDT: the watchdog (nRF51 Reference Manual, chapter "WDT"). It can be set up and fed, and never bites."""

from __future__ import annotations

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Register


class Wdt(Block):
    """RUNSTATUS shows whether it has been started; once running it cannot be stopped."""

    START = task(0x000)
    TIMEOUT = Event(0x100)
    RUNSTATUS = Register(0x400, mask=1, write=POSTED)
    REQSTATUS = Register(0x404, reset=1, mask=0xFF, write=POSTED)
    CRV = Register(0x504, reset=0xFFFF_FFFF, write=POSTED)
    RREN = Register(0x508, reset=1, mask=0xFF, write=POSTED)
    CONFIG = Register(0x50C, reset=1, mask=0x9, write=POSTED)
    RR = Register(0x600, count=8, write=POSTED)

    @START.on_write
    def _start(self, _value: int) -> None:
        self.RUNSTATUS = 1

    @RUNSTATUS.on_write
    def _run_ignored(self, _value: int) -> None:
        """RUNSTATUS is read-only."""

    @REQSTATUS.on_write
    def _request_ignored(self, _value: int) -> None:
        """REQSTATUS is read-only."""


DEVICE = Wdt
