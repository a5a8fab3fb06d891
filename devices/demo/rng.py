"""A random number generator for our own guest: three registers.

=======  ======  =========================================================
0x00     DATA    read: the next 32 random bits
0x04     COUNT   read: how many words have been taken
0x08     SEED    write: begins the sequence of that seed anew
=======  ======  =========================================================

The sequence is xorshift64* from the option ``seed``. Its position is state: a restarted generator goes on
with the word that comes next, and a word that was read once is never handed out twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from supervisor.device import Device
from supervisor.registers import POSTED, Register

MASK_64 = 2**64 - 1
MULTIPLIER = 0x2545_F491_4F6C_DD1D
NEVER_ZERO = 0x9E37_79B9_7F4A_7C15  # xorshift stays at zero for ever


class Rng(Device):
    """Words on demand."""

    @dataclass(frozen=True)
    class Options:
        """``seed``: decides every word to come."""

        seed: int = 1

    state = ("position",)

    DATA = Register(0x00, write=POSTED)
    COUNT = Register(0x04, write=POSTED)
    SEED = Register(0x08, write=POSTED)

    def __init__(self) -> None:
        self.position = NEVER_ZERO

    def start(self, ctx: Any) -> None:
        self._seed(ctx.options.seed)

    @SEED.on_write
    def _seed(self, value: int) -> None:
        self.position = (value ^ NEVER_ZERO) & MASK_64 or NEVER_ZERO
        self.COUNT = 0

    @DATA.on_read
    def _next(self) -> int:
        position = self.position
        position ^= position >> 12
        position = (position ^ position << 25) & MASK_64
        position ^= position >> 27
        self.position = position
        self.COUNT += 1
        return (position * MULTIPLIER & MASK_64) >> 32

    @COUNT.on_write
    def _count_ignored(self, _value: int) -> None:
        """COUNT is read-only."""


DEVICE = Rng
