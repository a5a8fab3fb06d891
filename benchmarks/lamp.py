"""The device that is measured: a plain, a posted and an asked-for register."""

from __future__ import annotations

from typing import ClassVar

from supervisor.device import Device
from supervisor.registers import POSTED, Register

__all__ = ["ASK", "DEVICE", "PLAIN", "PUT", "Lamp"]

PLAIN, PUT, ASK = 0x00, 0x04, 0x08  # offsets


class Lamp(Device):
    """PLAIN is polled, PUT is written without waiting, ASK must reach the device: it counts who asks."""

    state: ClassVar[tuple[str, ...]] = ("asked",)

    LIT = Register(PLAIN, reset=7)
    LEVEL = Register(PUT, write=POSTED)
    NEXT = Register(ASK)

    def __init__(self) -> None:
        self.asked = 0

    @NEXT.on_read
    def _next(self) -> int:
        self.asked += 1
        return self.asked


DEVICE = Lamp  # the zygote rehearses it, as it does for a built-in device
