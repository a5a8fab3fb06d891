"""A one-shot timer, for tests of guest time."""

from __future__ import annotations

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
