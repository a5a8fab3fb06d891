"""RTC0 and RTC1: the real-time counters (nRF51 Reference Manual, chapter "RTC").

A 24-bit counter at 32,768 Hz / (PRESCALER + 1). An event happens only where INTEN or EVTEN asks for it, so
an idle counter costs no alarms. The machine evaluates COUNTER itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Counter, Register

CRYSTAL_HZ = 32_768
COUNTER_BITS = 24
TRIGGER_OVERFLOW_AT = 0xFF_FFF0
NANOSECONDS = 1_000_000_000
TOKEN_TICK, TOKEN_OVERFLOW, TOKEN_COMPARE = 0, 1, 16  # of alarms: the bit of the event in INTEN


class Rtc(Block):
    """TICK, OVRFLW and COMPARE events of a slow counter."""

    @dataclass(frozen=True)
    class Options:
        """``channels``: compare registers of this instance (RTC0 has 3, RTC1 has 4)."""

        channels: int = 4

    START = task(0x000)
    STOP = task(0x004)
    CLEAR = task(0x008)
    TRIGOVRFLW = task(0x00C)
    TICK = Event(0x100)
    OVRFLW = Event(0x104)
    COMPARE = Event(0x140, count=4)
    EVTEN = Register(0x340, write=POSTED)
    EVTENSET = Register(0x344, write=POSTED)
    EVTENCLR = Register(0x348, write=POSTED)
    COUNTER = Counter(0x504, bits=COUNTER_BITS)
    PRESCALER = Register(0x508, mask=0xFFF, write=POSTED)
    CC = Register(0x540, count=4, mask=0xFF_FFFF, write=POSTED)

    @START.on_write
    def _start(self, _value: int) -> None:
        self.COUNTER.run(CRYSTAL_HZ, NANOSECONDS * (self.PRESCALER + 1))
        self._arm()

    @STOP.on_write
    def _stop(self, _value: int) -> None:
        self.COUNTER.stop()
        self._arm()

    @CLEAR.on_write
    def _clear(self, _value: int) -> None:
        self.COUNTER.set(0)
        self._arm()

    @TRIGOVRFLW.on_write
    def _trigger_overflow(self, _value: int) -> None:
        self.COUNTER.set(TRIGGER_OVERFLOW_AT)
        self._arm()

    @EVTEN.on_write
    def _route_exactly(self, value: int) -> None:
        self._set_evten(value)

    @EVTENSET.on_write
    def _route(self, value: int) -> None:
        self._set_evten(self.EVTEN | value)

    @EVTENCLR.on_write
    def _unroute(self, value: int) -> None:
        self._set_evten(self.EVTEN & ~value)

    @CC.on_write
    def _compare_with(self, channel: int, value: int) -> None:
        self.CC[channel] = value
        self._arm()

    def _set_evten(self, value: int) -> None:
        self.EVTEN = self.EVTENSET = self.EVTENCLR = value
        self._arm()

    def _set_inten(self, value: int) -> None:
        super()._set_inten(value)
        self._arm()

    def alarm(self, token: int) -> None:
        """The counter has stepped to something that counts: all events of this very tick happen together."""
        value = self.COUNTER.value
        wanted = self.INTENSET | self.EVTEN
        if wanted >> TOKEN_TICK & 1:
            self.TICK = 1
        if wanted >> TOKEN_OVERFLOW & 1 and value == 0:
            self.OVRFLW = 1
        for channel in range(self.ctx.options.channels):
            if wanted >> TOKEN_COMPARE + channel & 1 and self.CC[channel] == value:
                self.COMPARE[channel] = 1
        self.refresh_irq()
        self._arm()

    def _arm(self) -> None:
        wanted = self.INTENSET | self.EVTEN
        self._arm_one(TOKEN_TICK, wanted, self.COUNTER.value + 1)
        self._arm_one(TOKEN_OVERFLOW, wanted, 0)
        for channel in range(self.ctx.options.channels):
            self._arm_one(TOKEN_COMPARE + channel, wanted, self.CC[channel])

    def _arm_one(self, token: int, wanted: int, target: int) -> None:
        at_ns = self.COUNTER.reaches(target & (1 << COUNTER_BITS) - 1) if wanted >> token & 1 else None
        if at_ns is None:
            self.ctx.cancel_alarm(token)
        else:
            self.ctx.set_alarm(at_ns, token)


DEVICE = Rtc
