"""The BBC micro:bit (version 1): a Nordic nRF51822 that runs unmodified MicroPython firmware.

The machine owns the CPU, the 256 KiB of flash, the 16 KiB of RAM and the UICR; everything else on the board
is a device of the configuration (``config/microbit.yaml``). Memory map: nRF51 Series Reference Manual,
chapter "Memory".

Flash is written in two ways. An erase comes as an order from the NVMC, which cannot reach the flash itself;
the machine carries it out and reports it done. Programming is an ordinary store of the guest: the flash is
write-protected, so that each store to it comes here, and takes effect if NVMC's CONFIG.WEN allows it, by
clearing bits, which is all that programming can do.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, TextIO

from machines._unicorn import unicorn
from machines.board import Board
from machines.console import Console
from machines.files import find_file
from machines.hexfile import load_hex
from supervisor import Supervisor

__all__ = ["Microbit"]

FLASH_BASE, FLASH_BYTES = 0x0000_0000, 256 * 1024
RAM_BASE, RAM_BYTES = 0x2000_0000, 16 * 1024
UICR_BASE, UICR_BYTES = 0x1000_1000, 0x1000
ROM_TABLE_BASE, ROM_TABLE_BYTES = 0xF000_0000, 0x1000  # firmware reads the chip's revision there
ERASED = b"\xff"
NVMC_CONFIG, CONFIG_WRITE = 0x504, 1
ERASE_ORDER = struct.Struct("<II")  # address, bytes: what the NVMC emits
ERASE_DONE = b"\1"


class Microbit(Board):
    """Options: ``firmware``, an Intel HEX file; ``serial`` and ``flash_controller``, names of devices."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        firmware: str,
        serial: str = "uart0",
        flash_controller: str = "nvmc",
        stdin: Any = None,
        stdout: TextIO | None = None,
    ) -> None:
        image = load_hex(find_firmware(firmware, supervisor.config.source))
        console = Console(supervisor, supervisor[serial], stdin=stdin, stdout=stdout)
        super().__init__(supervisor, console)
        core = self.core
        core.map_memory(FLASH_BASE, FLASH_BYTES, ERASED)
        core.map_memory(RAM_BASE, RAM_BYTES)
        core.map_memory(UICR_BASE, UICR_BYTES, ERASED)
        core.map_memory(ROM_TABLE_BASE, ROM_TABLE_BYTES)
        for address, data in image:
            core.load(address, data)
        self._nvmc = supervisor[flash_controller]
        self._nvmc.on_output(self._erase)
        self._programmed: list[tuple[int, int]] = []  # addresses whose code must be forgotten
        for base, size in ((FLASH_BASE, FLASH_BYTES), (UICR_BASE, UICR_BYTES)):
            core.uc.mem_protect(base, size, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        core.uc.hook_add(unicorn.UC_HOOK_MEM_WRITE_PROT, self._program)

    def _erase(self, orders: bytes) -> None:
        """The NVMC's orders; it is told when they are carried out."""
        for address, size in ERASE_ORDER.iter_unpack(orders):
            self.core.load(address, ERASED * size)
            self._nvmc.send(ERASE_DONE)

    def _program(self, uc: Any, _kind: int, address: int, size: int, value: int, _data: Any) -> bool:
        """The guest stores to flash. Unicorn has not, and goes on, once this returns true."""
        try:
            allowed = self._nvmc.read(NVMC_CONFIG, 4) == CONFIG_WRITE
        except BaseException as error:  # noqa: BLE001 - there is C between here and run_slice
            self.core.abort(error)
            return True
        if allowed:
            before = int.from_bytes(uc.mem_read(address, size), "little")
            uc.mem_write(address, (before & value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
            self._programmed.append((address, address + size))
        return True

    def after_slice(self) -> None:
        """What was compiled from flash that has been programmed is forgotten."""
        while self._programmed:
            self.core.uc.ctl_remove_cache(*self._programmed.pop())


def find_firmware(firmware: str, source: str) -> Path:
    """The firmware file; see :func:`machines.files.find_file`."""
    return find_file("firmware", firmware, source, "`make firmware` gets it")
