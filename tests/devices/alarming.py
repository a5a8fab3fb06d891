"""A one-shot timer, for tests of guest time."""

from __future__ import annotations

import time

from supervisor.device import Device
from supervisor.registers import Register, Task


class Alarming(Device):
    """Writing n to START asks for an alarm in n ms; FIRED counts them."""

    START = Task(0x0)
    FIRED = Register(0x4)

    @START.on_write
    def _start(self, value: int) -> None:
        self.ctx.set_alarm(self.ctx.now_ns + value * 1_000_000, 1)

    def alarm(self, token: int) -> None:
        self.FIRED += token
        self.ctx.raise_irq()


class Exploding(Alarming):
    """An alarm that is asked for at BOOM kills its process each time; those of START are as ever."""

    BOOM = Task(0x8)
    HANG = Task(0xC)
    TAKEN = Register(0x10)

    @BOOM.on_write
    def _boom(self, value: int) -> None:
        self.ctx.set_alarm(self.ctx.now_ns + value * 1_000_000, 2)

    @HANG.on_write
    def _hang(self, value: int) -> None:
        self.ctx.set_alarm(self.ctx.now_ns + value * 1_000_000, 3)

    def receive(self, data: bytes) -> None:
        self.TAKEN += len(data)

    def alarm(self, token: int) -> None:
        if token == 2:
            raise RuntimeError("boom")
        while token == 3:
            time.sleep(1)
        super().alarm(token)
