"""PL011: the UART (Arm PrimeCell UART PL011 Technical Reference Manual, DDI 0183).

The transmitter is as fast as the machine wants, so its FIFO is always empty. The receive FIFO holds 16 bytes
where it is enabled (LCR_H.FEN), else 1; what does not fit waits on the line, and nothing is overrun.
Modem lines, DMA and error conditions are not modelled. Flags are plain: polling them costs nothing.
"""

from __future__ import annotations

from typing import Any

from devices.arm._primecell import Fixed, PrimeCell
from supervisor.registers import POSTED, Register

FR_TXFE, FR_RXFF, FR_RXFE = 1 << 7, 1 << 6, 1 << 4
CR_RXE, CR_TXE, CR_UARTEN = 1 << 9, 1 << 8, 1 << 0
LCR_FEN = 1 << 4
INT_RX, INT_TX, INT_RT = 1 << 4, 1 << 5, 1 << 6
FIFO_BYTES = 16


class Pl011(PrimeCell):
    """``receive`` takes what comes in over the line; what the guest sends is emitted."""

    part = 0x011
    state = ("line",)

    DR = Register(0x000, mask=0xFF, write=POSTED)
    RSR = Register(0x004, mask=0xFF, write=POSTED)
    FR = Fixed(0x018, reset=FR_TXFE | FR_RXFE)
    ILPR = Register(0x020, mask=0xFF, write=POSTED)
    IBRD = Register(0x024, mask=0xFFFF, write=POSTED)
    FBRD = Register(0x028, mask=0x3F, write=POSTED)
    LCR_H = Register(0x02C, mask=0xFF, write=POSTED)
    CR = Register(0x030, reset=CR_RXE | CR_TXE, mask=0xFF87, write=POSTED)
    IFLS = Register(0x034, reset=0x12, mask=0x3F, write=POSTED)
    IMSC = Register(0x038, mask=0x7FF, write=POSTED)
    RIS = Fixed(0x03C)
    MIS = Fixed(0x040)
    ICR = Register(0x044, mask=0x7FF, write=POSTED)
    DMACR = Register(0x048, mask=0x7, write=POSTED)

    def __init__(self) -> None:
        self.line = b""  # bytes under way to the guest, those in the FIFO first

    def start(self, ctx: Any) -> None:
        super().start(ctx)
        self.PERIPHERAL_ID[2] = 0x14  # revision 1

    @DR.on_read
    def _take(self) -> int:
        byte, self.line = self.line[:1], self.line[1:]
        self._show_fifo()
        return byte[0] if byte else 0

    @DR.on_write
    def _send(self, value: int) -> None:
        if self.CR & CR_UARTEN and self.CR & CR_TXE:
            self.ctx.emit(bytes((value,)))
            self.signal(INT_TX)

    @RSR.on_write
    def _clear_errors(self, _value: int) -> None:
        self.RSR = 0

    @CR.on_write
    def _control(self, value: int) -> None:
        self.CR = value
        self._show_fifo()

    @LCR_H.on_write
    def _line_control(self, value: int) -> None:
        self.LCR_H = value
        self._show_fifo()

    @IMSC.on_write
    def _mask(self, value: int) -> None:
        self.enable(value)

    @ICR.on_write
    def _clear(self, value: int) -> None:
        self.acknowledge(value)

    def receive(self, data: bytes) -> None:
        self.line += data
        self._show_fifo()

    def _show_fifo(self) -> None:
        """Flags and the receive interrupt follow what is in the FIFO."""
        receiving = self.CR & CR_UARTEN and self.CR & CR_RXE
        waiting = len(self.line) if receiving else 0
        full = waiting >= (FIFO_BYTES if self.LCR_H & LCR_FEN else 1)
        self.FR = FR_TXFE | (FR_RXFF if full else 0) | (0 if waiting else FR_RXFE)
        if waiting:
            self.signal(INT_RX | INT_RT)
        else:
            self.acknowledge(INT_RX | INT_RT)


DEVICE = Pl011
