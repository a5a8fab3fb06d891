"""ADC: the analogue-to-digital converter (nRF51 Reference Manual, chapter "ADC").

A conversion takes no time and yields the option ``level``, scaled to the resolution that CONFIG asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Register

RESOLUTION_BITS = (8, 9, 10, 10)  # CONFIG.RES; 3 is reserved


class Adc(Block):
    """START converts; END says so."""

    @dataclass(frozen=True)
    class Options:
        """``level``: the input as a fraction of full scale, 0 to 1."""

        level: float = 0.5

    START = task(0x000)
    STOP = task(0x004)
    END = Event(0x100)
    BUSY = Register(0x400, write=POSTED)
    ENABLE = Register(0x500, mask=0x3, write=POSTED)
    CONFIG = Register(0x504, reset=0x18, mask=0x3FF7F, write=POSTED)
    RESULT = Register(0x508, mask=0x3FF, write=POSTED)

    @START.on_write
    def _convert(self, _value: int) -> None:
        full_scale = (1 << RESOLUTION_BITS[self.CONFIG & 0x3]) - 1
        self.RESULT = min(full_scale, max(0, round(self.ctx.options.level * full_scale)))
        self.END = 1

    @BUSY.on_write
    def _busy_ignored(self, _value: int) -> None:
        """BUSY is read-only."""

    @RESULT.on_write
    def _result_ignored(self, _value: int) -> None:
        """RESULT is read-only."""


DEVICE = Adc
