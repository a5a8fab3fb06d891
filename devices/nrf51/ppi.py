"""PPI: the programmable peripheral interconnect (nRF51 Reference Manual, chapter "PPI").

Channels can be set up and read back, but they carry nothing: an event of one device reaching a task of
another without the CPU needs wires between processes, and no firmware that runs here depends on it.
"""

from __future__ import annotations

from supervisor.device import Device
from supervisor.registers import POSTED, Register, Task

CHANNELS = 16
GROUPS = 4


class Ppi(Device):
    """Channel enables, end points, groups."""

    GROUP_EN = Task(0x000, count=GROUPS, stride=8, write=POSTED)
    GROUP_DIS = Task(0x004, count=GROUPS, stride=8, write=POSTED)
    CHEN = Register(0x500, write=POSTED)
    CHENSET = Register(0x504, write=POSTED)
    CHENCLR = Register(0x508, write=POSTED)
    EEP = Register(0x510, count=CHANNELS, stride=8, write=POSTED)
    TEP = Register(0x514, count=CHANNELS, stride=8, write=POSTED)
    CHG = Register(0x800, count=GROUPS, write=POSTED)

    @CHEN.on_write
    def _enable_exactly(self, value: int) -> None:
        self._set_enabled(value)

    @CHENSET.on_write
    def _enable(self, value: int) -> None:
        self._set_enabled(self.CHEN | value)

    @CHENCLR.on_write
    def _disable(self, value: int) -> None:
        self._set_enabled(self.CHEN & ~value)

    @GROUP_EN.on_write
    def _enable_group(self, group: int, _value: int) -> None:
        self._set_enabled(self.CHEN | self.CHG[group])

    @GROUP_DIS.on_write
    def _disable_group(self, group: int, _value: int) -> None:
        self._set_enabled(self.CHEN & ~self.CHG[group])

    def _set_enabled(self, value: int) -> None:
        self.CHEN = self.CHENSET = self.CHENCLR = value


DEVICE = Ppi
