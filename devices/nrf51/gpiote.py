"""GPIOTE: tasks and events of the pins (nRF51 Reference Manual, chapter "GPIOTE").

The pins of this board do not move by themselves, so nothing signals IN or PORT; OUT tasks are taken and
drive nothing.
"""

from __future__ import annotations

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Register


class Gpiote(Block):
    """Four channels and the common PORT event."""

    OUT = task(0x000, count=4)
    IN = Event(0x100, count=4)
    PORT = Event(0x17C)
    CONFIG = Register(0x510, count=4, write=POSTED)


DEVICE = Gpiote
