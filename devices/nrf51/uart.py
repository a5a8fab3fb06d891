"""UART: the serial port (nRF51 Reference Manual, chapter "UART").

The line is as fast as the machine wants: a byte written to TXD is out at once, and TXDRDY follows. Towards
the guest bytes keep their distance, ten bit times of BAUDRATE after the guest has read the one before, so no
byte is ever overrun and a RXDRDY that is cleared after the read of RXD is not lost.

What is typed before the receiver is started waits on the line.
"""

from __future__ import annotations

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Register

BAUD_9600 = 0x0027_5000
UNITS_PER_HZ = 2**32 / 16_000_000  # BAUDRATE is a fraction of the 16 MHz clock
BITS_PER_BYTE = 10  # start, eight, stop
NANOSECONDS = 1_000_000_000


class Uart(Block):
    """``receive`` takes what comes in over the line; what the guest sends is emitted."""

    state = ("line", "receiving", "in_rxd")

    STARTRX = task(0x000)
    STOPRX = task(0x004)
    STARTTX = task(0x008)
    STOPTX = task(0x00C)
    SUSPEND = task(0x01C)
    CTS = Event(0x100)
    NCTS = Event(0x104)
    RXDRDY = Event(0x108)
    TXDRDY = Event(0x11C)
    ERROR = Event(0x124)
    RXTO = Event(0x144)
    SHORTS = Register(0x200, write=POSTED)
    ERRORSRC = Register(0x480, mask=0xF, write=POSTED)
    ENABLE = Register(0x500, mask=0x7, write=POSTED)
    PSELRTS = Register(0x508, reset=0xFFFF_FFFF, write=POSTED)
    PSELTXD = Register(0x50C, reset=0xFFFF_FFFF, write=POSTED)
    PSELCTS = Register(0x510, reset=0xFFFF_FFFF, write=POSTED)
    PSELRXD = Register(0x514, reset=0xFFFF_FFFF, write=POSTED)
    RXD = Register(0x518, mask=0xFF, write=POSTED)
    TXD = Register(0x51C, mask=0xFF, write=POSTED)
    BAUDRATE = Register(0x524, reset=0x0400_0000, write=POSTED)
    CONFIG = Register(0x56C, mask=0x1F, write=POSTED)

    def __init__(self) -> None:
        self.line = b""  # bytes under way to the guest
        self.receiving = False
        self.in_rxd = False  # RXD holds a byte that the guest has not read

    @STARTRX.on_write
    def _start_receiver(self, _value: int) -> None:
        self.receiving = True
        self._next_byte()

    @STOPRX.on_write
    def _stop_receiver(self, _value: int) -> None:
        self.receiving = False
        self.RXTO = 1

    @TXD.on_write
    def _send(self, value: int) -> None:
        self.ctx.emit(bytes((value,)))
        self.TXDRDY = 1

    @RXD.on_read
    def _take(self) -> int:
        value = int(self.RXD)
        if self.in_rxd:
            self.in_rxd = False
            if self.line:
                self.ctx.set_alarm(self.ctx.now_ns + self._byte_time_ns())
        return value

    @ERRORSRC.on_write
    def _clear_errors(self, value: int) -> None:
        self.ERRORSRC &= ~value

    def receive(self, data: bytes) -> None:
        self.line += data
        self._next_byte()

    def alarm(self, token: int) -> None:
        self._next_byte()

    def _next_byte(self) -> None:
        if self.receiving and self.line and not self.in_rxd:
            self.RXD = self.line[0]
            self.line = self.line[1:]
            self.in_rxd = True
            self.RXDRDY = 1

    def _byte_time_ns(self) -> int:
        hertz = (self.BAUDRATE or BAUD_9600) / UNITS_PER_HZ
        return int(BITS_PER_BYTE * NANOSECONDS / hertz)


DEVICE = Uart
