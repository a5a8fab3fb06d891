"""NVMC: the flash controller (nRF51 Reference Manual, chapter "NVMC").

The flash is guest memory, and guest memory belongs to the machine: no device has it. So an erase is an order
to the machine, which comes out as an emitted record, and READY stays 0 until the machine has reported the
work done through ``receive``. Outputs and inputs are never lost or doubled, so neither is an erase, whoever
dies meanwhile; a guest that polls READY, as the manual demands, cannot look too early.

Whether stores of the guest may change the flash is the machine's to enforce; it reads CONFIG.WEN for that.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from supervisor.device import Device
from supervisor.registers import POSTED, Register

CONFIG_WRITE, CONFIG_ERASE = 1, 2
ORDER = struct.Struct("<II")  # address and bytes to erase
DONE = b"\1"
UICR_AT, UICR_BYTES = 0x1000_1000, 0x400


class Nvmc(Device):
    """ERASEPAGE takes the address of a page, ERASEALL and ERASEUICR a 1; CONFIG must allow it (WEN = 2)."""

    @dataclass(frozen=True)
    class Options:
        """``page_bytes`` and ``flash_bytes``: the flash's geometry."""

        page_bytes: int = 1024
        flash_bytes: int = 256 * 1024

    state = ("orders",)

    READY = Register(0x400, reset=1, mask=1, write=POSTED)
    CONFIG = Register(0x504, mask=0x3, write=POSTED)
    ERASEPAGE = Register(0x508, write=POSTED)
    ERASEALL = Register(0x50C, mask=1, write=POSTED)
    ERASEPCR0 = Register(0x510, write=POSTED)
    ERASEUICR = Register(0x514, mask=1, write=POSTED)

    def __init__(self) -> None:
        self.orders = 0  # given to the machine and not reported done

    @READY.on_write
    def _ignored(self, _value: int) -> None:
        """READY is read-only."""

    @ERASEPAGE.on_write
    def _erase_page(self, address: int) -> None:
        page = self.ctx.options.page_bytes
        if address < self.ctx.options.flash_bytes:
            self._order(address - address % page, page)

    @ERASEPCR0.on_write
    def _erase_protected_page(self, address: int) -> None:
        self._erase_page(address)

    @ERASEALL.on_write
    def _erase_all(self, value: int) -> None:
        if value:
            self._order(0, self.ctx.options.flash_bytes)
            self._order(UICR_AT, UICR_BYTES)

    @ERASEUICR.on_write
    def _erase_uicr(self, value: int) -> None:
        if value:
            self._order(UICR_AT, UICR_BYTES)

    def _order(self, address: int, size: int) -> None:
        if self.CONFIG == CONFIG_ERASE:
            self.orders += 1
            self.READY = 0
            self.ctx.emit(ORDER.pack(address, size))

    def receive(self, data: bytes) -> None:
        self.orders = max(0, self.orders - data.count(DONE))
        self.READY = not self.orders


DEVICE = Nvmc
