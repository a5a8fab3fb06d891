"""What Arm's PrimeCell peripherals have in common: interrupt registers and the identification words.

IMSC enables interrupts, RIS shows the raw ones, MIS the enabled ones of them, a 1 written to ICR clears. The
one interrupt line is raised while MIS is not zero. Where these four lie differs from cell to cell; a subclass
declares them under these names (IMSC with ``on_write`` calling ``enable``, ICR calling ``acknowledge``).
"""

from __future__ import annotations

from typing import Any

from supervisor.device import Device
from supervisor.registers import POSTED, Register

__all__ = ["Fixed", "PrimeCell"]

CELL_IDENTIFICATION = (0x0D, 0xF0, 0x05, 0xB1)


class Fixed(Register):
    """A read-only register."""

    def __init__(self, offset: int, *, reset: int = 0, count: int = 1, stride: int = 4) -> None:
        super().__init__(offset, reset=reset, count=count, stride=stride, write=POSTED)

    def store(self, device: Any, index: int, value: int) -> None:
        """Writes are ignored."""


class PrimeCell(Device):
    """Base of the cells; ``part`` is the number in the identification words, such as 0x011."""

    part = 0
    designer = 0x41  # Arm

    IMSC: Any
    RIS: Any
    MIS: Any

    PERIPHERAL_ID = Fixed(0xFE0, count=4)
    CELL_ID = Fixed(0xFF0, count=4)

    def start(self, ctx: Any) -> None:
        identification = self.part | self.designer << 12
        for index in range(4):
            self.PERIPHERAL_ID[index] = identification >> 8 * index & 0xFF
            self.CELL_ID[index] = CELL_IDENTIFICATION[index]

    def enable(self, value: int) -> None:
        """A write of IMSC."""
        self.IMSC = value
        self.refresh_irq()

    def signal(self, bits: int) -> None:
        """Raw interrupts happen."""
        self.RIS |= bits
        self.refresh_irq()

    def acknowledge(self, bits: int) -> None:
        """A write of ICR, or what has the same effect."""
        self.RIS &= ~bits
        self.refresh_irq()

    def refresh_irq(self) -> None:
        """Puts MIS and the line where RIS and IMSC say."""
        self.MIS = self.RIS & self.IMSC
        if self.MIS:
            self.ctx.raise_irq()
        else:
            self.ctx.lower_irq()
