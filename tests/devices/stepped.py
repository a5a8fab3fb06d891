"""Preloaded by a zygote whose processes are struck at chosen steps; and a device that does everything."""

from __future__ import annotations

from typing import ClassVar

from supervisor.registers import POSTED, Register, Task
from tests.devices.counting import Counting
from tests.steps import install


class Stepped(Counting):
    """Counting, with alarms, outputs in one go, and a state that grows."""

    state: ClassVar[tuple[str, ...]] = ("total", "history", "ballast")

    ALARM = Task(0x20)  # an alarm in so many µs of guest time
    OUTPUTS = Task(0x24, write=POSTED)  # so many pieces of output, and as many edges
    GROW = Task(0x28)  # the state takes so many KiB
    FIRED = Register(0x2C)

    def __init__(self) -> None:
        super().__init__()
        self.ballast = b""

    @ALARM.on_write
    def _alarm_in(self, value: int) -> None:
        self.ctx.set_alarm(self.ctx.now_ns + value * 1000, value)

    def alarm(self, token: int) -> None:
        self._count(1)
        self.FIRED = token
        self.ctx.emit(b"alarm %d" % token)

    @OUTPUTS.on_write
    def _outputs(self, value: int) -> None:
        for number in range(value):
            self._count(1)
            self.ctx.emit(b"%d:%d" % (self.total, number))
            self.ctx.raise_irq(number)
            self.ctx.lower_irq(number)
        self.ctx.raise_irq(self.total & 7)

    @GROW.on_write
    def _grow(self, value: int) -> None:
        self._count(1)
        self.ballast = bytes([value & 0xFF]) * 1024 * value


install()
