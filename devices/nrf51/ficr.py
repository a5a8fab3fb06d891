"""FICR: factory information (nRF51 Reference Manual, chapter "FICR"). Read-only, written at the factory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from supervisor.device import Device
from supervisor.registers import Register

UNWRITTEN = 0xFFFF_FFFF


class _Burnt(Register):
    """A word that cannot be changed."""

    def store(self, device: Any, index: int, value: int) -> None:
        """Writes are ignored."""


class Ficr(Device):
    """An nRF51822 with 256 KiB of flash in pages of 1 KiB and 16 KiB of RAM in two blocks."""

    @dataclass(frozen=True)
    class Options:
        """``device_id``: the 64 bits that tell this chip from its siblings."""

        device_id: int = 0x0123_4567_89AB_CDEF

    CODEPAGESIZE = _Burnt(0x010, reset=1024)
    CODESIZE = _Burnt(0x014, reset=256)
    CLENR0 = _Burnt(0x028, reset=UNWRITTEN)
    PPFC = _Burnt(0x02C, reset=UNWRITTEN)
    NUMRAMBLOCK = _Burnt(0x034, reset=2)
    SIZERAMBLOCKS = _Burnt(0x038, reset=8192)
    CONFIGID = _Burnt(0x05C, reset=0xFFFF_0026)
    DEVICEID = _Burnt(0x060, count=2)
    ER = _Burnt(0x080, count=4, reset=UNWRITTEN)
    IR = _Burnt(0x090, count=4, reset=UNWRITTEN)
    DEVICEADDRTYPE = _Burnt(0x0A0, reset=UNWRITTEN)
    DEVICEADDR = _Burnt(0x0A4, count=2)
    OVERRIDEEN = _Burnt(0x0AC, reset=UNWRITTEN)

    def start(self, ctx: Any) -> None:
        device_id = ctx.options.device_id
        self.DEVICEID[0] = self.DEVICEADDR[0] = device_id & 0xFFFF_FFFF
        self.DEVICEID[1] = device_id >> 32 & 0xFFFF_FFFF
        self.DEVICEADDR[1] = device_id >> 32 & 0xFFFF

    def read_unknown(self, offset: int, size: int) -> int:
        return UNWRITTEN & ((1 << (8 * size)) - 1)


DEVICE = Ficr
