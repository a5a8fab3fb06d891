"""TWI: the I²C bus master (nRF51 Reference Manual, chapter "TWI").

Nobody answers on this board's bus: the address is not acknowledged, ERROR with ERRORSRC.ANACK follows, and
the master waits for STOP. Firmware polls these events very hard, which costs nothing: they are plain.
"""

from __future__ import annotations

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Register

ERRORSRC_ANACK = 1 << 1


class Twi(Block):
    """Every transfer ends in ERROR; STOP is answered by STOPPED."""

    STARTRX = task(0x000)
    STARTTX = task(0x008)
    STOP = task(0x014)
    SUSPEND = task(0x01C)
    RESUME = task(0x020)
    STOPPED = Event(0x104)
    RXDREADY = Event(0x108)
    TXDSENT = Event(0x11C)
    ERROR = Event(0x124)
    BB = Event(0x138)
    SUSPENDED = Event(0x148)
    SHORTS = Register(0x200, mask=0x3, write=POSTED)
    ERRORSRC = Register(0x4C4, mask=0x7, write=POSTED)
    ENABLE = Register(0x500, mask=0x7, write=POSTED)
    PSELSCL = Register(0x508, reset=0xFFFF_FFFF, write=POSTED)
    PSELSDA = Register(0x50C, reset=0xFFFF_FFFF, write=POSTED)
    RXD = Register(0x518, mask=0xFF, write=POSTED)
    TXD = Register(0x51C, mask=0xFF, write=POSTED)
    FREQUENCY = Register(0x524, reset=0x0400_0000, write=POSTED)
    ADDRESS = Register(0x588, mask=0x7F, write=POSTED)

    @STARTRX.on_write
    def _start_reading(self, _value: int) -> None:
        self._not_acknowledged()

    @STARTTX.on_write
    def _start_writing(self, _value: int) -> None:
        self._not_acknowledged()

    @STOP.on_write
    def _stop(self, _value: int) -> None:
        self.STOPPED = 1

    @SUSPEND.on_write
    def _suspend(self, _value: int) -> None:
        self.SUSPENDED = 1

    @ERRORSRC.on_write
    def _clear_errors(self, value: int) -> None:
        self.ERRORSRC &= ~value

    def _not_acknowledged(self) -> None:
        self.ERRORSRC |= ERRORSRC_ANACK
        self.ERROR = 1


DEVICE = Twi
