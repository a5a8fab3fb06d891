"""PL031: the real-time clock (Arm PrimeCell Real Time Clock PL031 Technical Reference Manual, DDI 0224).

Seconds in guest time, from the option ``start`` on; the machine evaluates RTCDR itself. A match of RTCMR
raises the interrupt. Setting the clock (RTCLR) lasts for the life of the board, restarts included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from devices.arm._primecell import Fixed, PrimeCell
from supervisor.registers import POSTED, Counter, Register

INT_MATCH = 1


class Pl031(PrimeCell):
    """A counter of seconds with one match register."""

    @dataclass(frozen=True)
    class Options:
        """``start``: the clock at power-on, in seconds (since 1970, say)."""

        start: int = 0

    part = 0x031

    DR = Counter(0x000, bits=32)
    MR = Register(0x004, write=POSTED)
    LR = Register(0x008, write=POSTED)
    CR = Fixed(0x00C, reset=1)  # once started, which it is, it cannot be stopped
    IMSC = Register(0x010, mask=1, write=POSTED)
    RIS = Fixed(0x014)
    MIS = Fixed(0x018)
    ICR = Register(0x01C, mask=1, write=POSTED)

    def start(self, ctx: Any) -> None:
        super().start(ctx)
        self.DR.set(ctx.options.start)
        self.DR.run(1)

    @MR.on_write
    def _match_at(self, value: int) -> None:
        self.MR = value
        self._arm()

    @LR.on_write
    def _set_clock(self, value: int) -> None:
        self.LR = value
        self.DR.set(value)
        self._arm()

    @IMSC.on_write
    def _mask(self, value: int) -> None:
        self.enable(value)

    @ICR.on_write
    def _clear(self, value: int) -> None:
        self.acknowledge(value)

    def alarm(self, token: int) -> None:
        self.signal(INT_MATCH)
        self._arm()

    def _arm(self) -> None:
        at_ns = self.DR.reaches(self.MR)
        if at_ns is not None:
            self.ctx.set_alarm(at_ns)


DEVICE = Pl031
