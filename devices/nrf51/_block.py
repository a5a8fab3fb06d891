"""What all nRF51 peripherals have in common: tasks, events, and the interrupt they share.

nRF51 Series Reference Manual, chapter "Peripheral interface". A *task* is a register that starts something
when 1 is written to it; an *event* is a register that the peripheral sets to 1 and the guest sets back to 0.
Bit n of INTEN enables the interrupt of the event at 0x100 + 4 n. Each block has one interrupt line, and the
line is a level: raised as long as any enabled event is set.

Everything here is plain or posted, so a guest that polls an event pays no round trip: a read sees the
guest's own earlier writes, which is all the order that the manual promises.
"""

from __future__ import annotations

from typing import Any, ClassVar

from supervisor.device import Device
from supervisor.registers import POSTED, Register, Task

__all__ = ["Block", "Event", "task"]

EVENTS_AT = 0x100


class Event(Register):
    """An event register, or an array of them. Assigning 1 signals the event; the interrupt follows."""

    def __init__(self, offset: int, *, count: int = 1) -> None:
        super().__init__(offset, count=count, mask=1, write=POSTED)

    @property
    def bit(self) -> int:
        """Its bit in INTEN (that of the first one, in an array)."""
        return (self.offset - EVENTS_AT) // 4

    def __set__(self, device: Any, value: int) -> None:
        super().__set__(device, value)
        device.refresh_irq()

    def store(self, device: Any, index: int, value: int) -> None:
        super().store(device, index, value)
        device.refresh_irq()


def task(offset: int, *, count: int = 1) -> Task:
    """A task register: posted, since the guest sees its effect in events only."""
    return Task(offset, count=count, write=POSTED)


class Block(Device):
    """Base of the nRF51 peripherals: INTEN and the interrupt line, and the power switch at the end."""

    INTENSET = Register(0x304, write=POSTED)
    INTENCLR = Register(0x308, write=POSTED)
    POWER = Register(0xFFC, reset=1, mask=1, write=POSTED)

    _event_bits: ClassVar[tuple[tuple[int, int], ...]] = ()  # (slot of the event, its mask in INTEN)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._event_bits = tuple(
            (register.slot + index, 1 << (register.bit + index))
            for register in cls.sheet.registers
            if isinstance(register, Event)
            for index in range(register.count)
        )

    @INTENSET.on_write
    def _enable(self, value: int) -> None:
        self._set_inten(self.INTENSET | value)

    @INTENCLR.on_write
    def _disable(self, value: int) -> None:
        self._set_inten(self.INTENSET & ~value)

    def _set_inten(self, value: int) -> None:
        self.INTENSET = value  # both registers read as INTEN
        self.INTENCLR = value
        self.refresh_irq()

    def refresh_irq(self) -> None:
        """Puts the interrupt line where events and INTEN say."""
        enabled = self.INTENSET
        if enabled:
            words = self.words
            for slot, mask in self._event_bits:
                if enabled & mask and words[slot]:
                    self.ctx.raise_irq()
                    return
        self.ctx.lower_irq()
