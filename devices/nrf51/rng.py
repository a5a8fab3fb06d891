"""RNG: the random number generator (nRF51 Reference Manual, chapter "RNG").

The true one is a noise source; this one is an SplitMix64 sequence from the option ``seed``, so that a guest's
run can be repeated, and its position is part of the state: a restarted generator goes on where it was.

The next byte is made when the guest asks for it (by START, or by clearing VALRDY while the generator runs),
not after so many microseconds: the sequence that a guest sees does not depend on its speed.
"""

from __future__ import annotations

from dataclasses import dataclass

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Register

SHORT_VALRDY_STOP = 1
MASK_64 = 2**64 - 1
GOLDEN_STEP = 0x9E37_79B9_7F4A_7C15


class _Valrdy(Event):
    """VALRDY: clearing it makes room for the next value."""

    def store(self, device: Rng, index: int, value: int) -> None:
        super().store(device, index, value)
        if not value:
            device.make_value()


class Rng(Block):
    """Bytes in VALUE, one for each VALRDY."""

    @dataclass(frozen=True)
    class Options:
        """``seed``: 64 bits that decide every byte to come."""

        seed: int = 1

    state = ("position", "running")

    START = task(0x000)
    STOP = task(0x004)
    VALRDY = _Valrdy(0x100)
    SHORTS = Register(0x200, mask=1, write=POSTED)
    CONFIG = Register(0x504, mask=1, write=POSTED)
    VALUE = Register(0x508, mask=0xFF, write=POSTED)

    def __init__(self) -> None:
        self.position = 0
        self.running = False

    @VALUE.on_write
    def _ignored(self, _value: int) -> None:
        """VALUE is read-only."""

    @START.on_write
    def _start(self, _value: int) -> None:
        if not self.running:
            self.running = True
            self.make_value()

    @STOP.on_write
    def _stop(self, _value: int) -> None:
        self.running = False

    def make_value(self) -> None:
        """Puts the next byte into VALUE, if the generator runs and the guest has taken the one before."""
        if not self.running or self.VALRDY:
            return
        self.position += 1
        self.VALUE = self._byte_at(self.position)
        self.VALRDY = 1
        if self.SHORTS & SHORT_VALRDY_STOP:
            self.running = False

    def _byte_at(self, position: int) -> int:
        mixed = (self.ctx.options.seed + position * GOLDEN_STEP) & MASK_64
        mixed = ((mixed ^ mixed >> 30) * 0xBF58_476D_1CE4_E5B9) & MASK_64
        mixed = ((mixed ^ mixed >> 27) * 0x94D0_49BB_1331_11EB) & MASK_64
        return int(mixed ^ mixed >> 31) & 0xFF


DEVICE = Rng
