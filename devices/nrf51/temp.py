"""TEMP: the temperature sensor of the chip (nRF51 Reference Manual, chapter "TEMP"), in steps of 0.25 °C."""

from __future__ import annotations

from dataclasses import dataclass

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Register

STEPS_PER_DEGREE = 4


class Temp(Block):
    """START measures at once; DATARDY says so. TEMP is two's complement."""

    @dataclass(frozen=True)
    class Options:
        """``celsius``: what the sensor measures."""

        celsius: float = 25.0

    START = task(0x000)
    STOP = task(0x004)
    DATARDY = Event(0x100)
    TEMP = Register(0x508, write=POSTED)

    @START.on_write
    def _start(self, _value: int) -> None:
        self.TEMP = round(self.ctx.options.celsius * STEPS_PER_DEGREE)
        self.DATARDY = 1

    @TEMP.on_write
    def _ignored(self, _value: int) -> None:
        """TEMP is read-only."""


DEVICE = Temp
