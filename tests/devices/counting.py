"""A device that counts what it is asked, so that a lost or a doubled request shows."""

from __future__ import annotations

import struct
from typing import ClassVar

from supervisor.device import Device
from supervisor.registers import POSTED, Register, Task


class Counting(Device):
    """COUNT is plain; ADD counts and answers nothing; NEXT counts and answers; TRACE emits the count."""

    state: ClassVar[tuple[str, ...]] = ("total", "history")

    COUNT = Register(0x00)
    NEXT = Register(0x04)
    ADD = Task(0x08, write=POSTED)
    TRACE = Task(0x0C, write=POSTED)
    ADD_AND_WAIT = Task(0x10)
    FIRE = Task(0x14, write=POSTED)

    def __init__(self) -> None:
        self.total = 0
        self.history: list[int] = []

    def _count(self, amount: int) -> int:
        self.total += amount
        self.COUNT = self.total
        return self.total

    @NEXT.on_read
    def _next(self) -> int:
        return self._count(1)

    @ADD.on_write
    def _add(self, value: int) -> None:
        self._count(value)

    @ADD_AND_WAIT.on_write
    def _add_and_wait(self, value: int) -> None:
        self._count(value)

    @TRACE.on_write
    def _trace(self, value: int) -> None:
        self._count(value)
        self.ctx.emit(struct.pack("<I", self.total))

    @FIRE.on_write
    def _fire(self, value: int) -> None:
        if value:
            self.ctx.raise_irq(3)
        else:
            self.ctx.lower_irq(3)

    def call(self, request: bytes) -> bytes:
        self._count(1)
        return struct.pack("<I", self.total) + request

    def receive(self, data: bytes) -> None:
        self.history.append(len(data))
        self._count(len(data))

    def alarm(self, token: int) -> None:
        self._count(token)
