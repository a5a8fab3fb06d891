"""SP804: the dual timer (Arm Dual-Timer Module SP804 Technical Reference Manual, DDI 0271).

Two counters that run down to zero, raise an interrupt and start over: free-running from the top, periodic
from LOAD, one-shot not at all. Both share one interrupt line. VALUE is worked out when it is read, which is a
round trip; a guest that waits uses the interrupt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from devices.arm._primecell import Fixed, PrimeCell
from supervisor.registers import POSTED, Register

TIMERS, STRIDE = 2, 0x20
ONE_SHOT, WIDE, INT_ENABLE, PERIODIC, ENABLE = 1 << 0, 1 << 1, 1 << 5, 1 << 6, 1 << 7
PRESCALE_AT, PRESCALE_STEPS = 2, (1, 16, 256, 256)
NANOSECONDS = 1_000_000_000


class Sp804(PrimeCell):
    """Timer n lies at 0x20 n."""

    @dataclass(frozen=True)
    class Options:
        """``hertz``: TIMCLK, before the prescaler."""

        hertz: int = 1_000_000

    part = 0x804
    state = ("since_ns", "begun_at")

    LOAD = Register(0x00, count=TIMERS, stride=STRIDE, write=POSTED)
    VALUE = Register(0x04, reset=0xFFFF_FFFF, count=TIMERS, stride=STRIDE, write=POSTED)
    CONTROL = Register(0x08, reset=INT_ENABLE, mask=0xEF, count=TIMERS, stride=STRIDE, write=POSTED)
    INTCLR = Register(0x0C, count=TIMERS, stride=STRIDE, write=POSTED)
    RIS = Fixed(0x10, count=TIMERS, stride=STRIDE)
    MIS = Fixed(0x14, count=TIMERS, stride=STRIDE)
    BGLOAD = Register(0x18, count=TIMERS, stride=STRIDE, write=POSTED)

    def __init__(self) -> None:
        self.since_ns = [0] * TIMERS  # when the counter stood at begun_at
        self.begun_at = [0xFFFF_FFFF] * TIMERS

    @VALUE.on_read
    def _value(self, timer: int) -> int:
        if self.CONTROL[timer] & ENABLE:
            return self.begun_at[timer] - self._ticks_since(timer) & self._top(timer)
        return self.begun_at[timer]

    @VALUE.on_write
    def _value_ignored(self, timer: int, value: int) -> None:
        """VALUE is read-only."""

    @LOAD.on_write
    def _load(self, timer: int, value: int) -> None:
        self.LOAD[timer] = self.BGLOAD[timer] = value
        self._begin(timer, value)

    @BGLOAD.on_write
    def _load_later(self, timer: int, value: int) -> None:
        self.LOAD[timer] = self.BGLOAD[timer] = value

    @CONTROL.on_write
    def _control(self, timer: int, value: int) -> None:
        standing_at = self._value(timer)
        self.CONTROL[timer] = value
        self._begin(timer, standing_at)
        self._refresh()

    @INTCLR.on_write
    def _clear(self, timer: int, _value: int) -> None:
        self.RIS[timer] = 0
        self._refresh()

    def alarm(self, token: int) -> None:
        self.RIS[token] = 1
        control = self.CONTROL[token]
        if control & ONE_SHOT:
            self.CONTROL[token] = control & ~ENABLE
            self._begin(token, 0)
        else:
            self._begin(token, self.LOAD[token] if control & PERIODIC else self._top(token))
        self._refresh()

    def _begin(self, timer: int, value: int) -> None:
        """The counter stands at ``value`` now; it is woken when it will have reached zero."""
        self.begun_at[timer] = value  # all 32 bits: the guest may choose the width after the load
        self.since_ns[timer] = self.ctx.now_ns
        if self.CONTROL[timer] & ENABLE:
            ticks = value & self._top(timer) or self._top(timer) + 1
            per_second = self.ctx.options.hertz
            wait_ns = -(-ticks * self._prescale(timer) * NANOSECONDS // per_second)
            self.ctx.set_alarm(self.ctx.now_ns + wait_ns, timer)
        else:
            self.ctx.cancel_alarm(timer)

    def _ticks_since(self, timer: int) -> int:
        passed_ns = self.ctx.now_ns - self.since_ns[timer]
        return int(passed_ns * self.ctx.options.hertz // (NANOSECONDS * self._prescale(timer)))

    def _prescale(self, timer: int) -> int:
        return PRESCALE_STEPS[self.CONTROL[timer] >> PRESCALE_AT & 0x3]

    def _top(self, timer: int) -> int:
        return 0xFFFF_FFFF if self.CONTROL[timer] & WIDE else 0xFFFF

    def _refresh(self) -> None:
        raised: Any = False
        for timer in range(TIMERS):
            self.MIS[timer] = self.RIS[timer] if self.CONTROL[timer] & INT_ENABLE else 0
            raised = raised or self.MIS[timer]
        if raised:
            self.ctx.raise_irq()
        else:
            self.ctx.lower_irq()


DEVICE = Sp804
