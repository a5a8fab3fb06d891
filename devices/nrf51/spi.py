"""SPI: the serial bus master (nRF51 Reference Manual, chapter "SPI").

Nothing hangs on this board's bus: MISO floats high, so each byte sent brings back 0xFF.
"""

from __future__ import annotations

from devices.nrf51._block import Block, Event
from supervisor.registers import POSTED, Register

IDLE_LINE = 0xFF


class Spi(Block):
    """A write of TXD exchanges a byte; READY says that RXD holds the answer."""

    READY = Event(0x108)
    ENABLE = Register(0x500, mask=0x7, write=POSTED)
    PSELSCK = Register(0x508, reset=0xFFFF_FFFF, write=POSTED)
    PSELMOSI = Register(0x50C, reset=0xFFFF_FFFF, write=POSTED)
    PSELMISO = Register(0x510, reset=0xFFFF_FFFF, write=POSTED)
    RXD = Register(0x518, mask=0xFF, write=POSTED)
    TXD = Register(0x51C, mask=0xFF, write=POSTED)
    FREQUENCY = Register(0x524, reset=0x0400_0000, write=POSTED)
    CONFIG = Register(0x554, mask=0x7, write=POSTED)

    @TXD.on_write
    def _exchange(self, value: int) -> None:
        self.TXD = value
        self.RXD = IDLE_LINE
        self.READY = 1

    @RXD.on_write
    def _ignored(self, _value: int) -> None:
        """RXD is read-only."""


DEVICE = Spi
