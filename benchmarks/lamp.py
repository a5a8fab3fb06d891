"""The device that is measured: a plain, a posted and an asked-for register, and memory to hold."""

from __future__ import annotations

from typing import ClassVar

from supervisor.device import Device
from supervisor.registers import POSTED, Register

__all__ = ["ASK", "DEVICE", "HOLD", "PLAIN", "PUT", "Lamp"]

PLAIN, PUT, ASK, HOLD = 0x00, 0x04, 0x08, 0x0C  # offsets


class Lamp(Device):
    """PLAIN is polled, PUT is written without waiting, ASK must reach the device: it counts who asks.
    A process holds as many MiB as are written to HOLD, and its successor none."""

    state: ClassVar[tuple[str, ...]] = ("asked",)

    LIT = Register(PLAIN, reset=7)
    LEVEL = Register(PUT, write=POSTED)
    NEXT = Register(ASK)
    HELD = Register(HOLD)

    def __init__(self) -> None:
        self.asked = 0
        self._held = b""

    @HELD.on_write
    def _hold(self, mib: int) -> None:
        self._held = b"1" * (mib << 20)

    @NEXT.on_read
    def _next(self) -> int:
        self.asked += 1
        return self.asked


DEVICE = Lamp  # the zygote rehearses it, as it does for a built-in device
