"""TIMER0, TIMER1, TIMER2 (nRF51 Reference Manual, chapter "TIMER").

A counter at 16 MHz / 2^PRESCALER with four compare registers. The machine evaluates captures itself; what
is left to the device is to know when the counter will next reach a compare register and to have itself woken
then. A compare that nobody would notice (its event is set already, no interrupt, no shortcut) sets no alarm.

TIMER0 counts up to 32 bits, its sisters up to 16 (option ``bits``); BITMODE chooses within that.
"""

from __future__ import annotations

from dataclasses import dataclass

from devices.nrf51._block import Block, Event, task
from supervisor.registers import POSTED, Capture, Counter, Register

BASE_HZ = 16_000_000
PRESCALER_MAX = 9
CHANNELS = 4
MODE_COUNTER = 1
BITS = {0: 16, 1: 8, 2: 24, 3: 32}  # BITMODE
SHORT_CLEAR_AT, SHORT_STOP_AT = 0, 8  # bit of COMPARE0_CLEAR and of COMPARE0_STOP in SHORTS


class _Compare(Event):
    """COMPARE[n]: once the guest has cleared it, the next match matters again."""

    def store(self, device: Timer, index: int, value: int) -> None:
        super().store(device, index, value)
        device.arm(index)


class Timer(Block):
    """One timer; in counter mode COUNT steps it instead of the clock."""

    @dataclass(frozen=True)
    class Options:
        """``bits``: the widest mode of this instance."""

        bits: int = 32

    START = task(0x000)
    STOP = task(0x004)
    COUNT = task(0x008)
    CLEAR = task(0x00C)
    SHUTDOWN = task(0x010)
    COMPARE = _Compare(0x140, count=CHANNELS)
    SHORTS = Register(0x200, mask=0xF0F, write=POSTED)
    MODE = Register(0x504, mask=1, write=POSTED)
    BITMODE = Register(0x508, mask=3, write=POSTED)
    PRESCALER = Register(0x510, reset=4, mask=0xF, write=POSTED)
    CC = Register(0x540, count=CHANNELS, write=POSTED)
    COUNTER = Counter(None, bits=32)
    CAPTURE = Capture(0x040, COUNTER, CC)

    state = ("started",)

    def __init__(self) -> None:
        self.started = False
        self.COUNTER.narrow(BITS[0])

    @START.on_write
    def _start(self, _value: int) -> None:
        self.started = True
        if self.MODE != MODE_COUNTER:
            self.COUNTER.run(BASE_HZ >> min(self.PRESCALER, PRESCALER_MAX))
        self.arm_all()

    @STOP.on_write
    def _stop(self, _value: int) -> None:
        self.started = False
        self.COUNTER.stop()
        self.arm_all()

    @SHUTDOWN.on_write
    def _shut_down(self, _value: int) -> None:
        self._stop(1)
        self.COUNTER.set(0)

    @COUNT.on_write
    def _count(self, _value: int) -> None:
        if not self.started or self.MODE != MODE_COUNTER:
            return
        self.COUNTER.set(self.COUNTER.value + 1)
        self._match_all(self.COUNTER.value)

    @CLEAR.on_write
    def _clear(self, _value: int) -> None:
        self.COUNTER.set(0)
        self.arm_all()

    @BITMODE.on_write
    def _set_width(self, value: int) -> None:
        self.BITMODE = value
        self.COUNTER.narrow(min(BITS[value], self.ctx.options.bits))
        self.arm_all()

    @SHORTS.on_write
    def _set_shortcuts(self, value: int) -> None:
        self.SHORTS = value
        self.arm_all()

    @CC.on_write
    def _compare_with(self, channel: int, value: int) -> None:
        self.CC[channel] = value
        self.arm(channel)

    @CAPTURE.on_write
    def _captured(self, channel: int, _value: int) -> None:
        self.arm(channel)

    def alarm(self, token: int) -> None:
        self._match_all(self.CC[token])

    def _match_all(self, value: int) -> None:
        """The counter has become ``value``: every channel that waits for it is served, then shortcuts act."""
        matching = [channel for channel in range(CHANNELS) if self.CC[channel] == value]
        for channel in matching:
            self.COMPARE[channel] = 1
        self.refresh_irq()
        shortcuts = self.SHORTS
        if any(shortcuts >> SHORT_STOP_AT + channel & 1 for channel in matching):
            self.started = False
            self.COUNTER.stop()
        if any(shortcuts >> SHORT_CLEAR_AT + channel & 1 for channel in matching):
            self.COUNTER.set(0)
        self.arm_all()

    def arm_all(self) -> None:
        """Something has changed for every channel."""
        for channel in range(CHANNELS):
            self.arm(channel)

    def arm(self, channel: int) -> None:
        """Sets the alarm of the channel's next match, if there will be one and anybody would notice it."""
        at_ns = None
        if not self.COMPARE[channel] or self.SHORTS >> channel & 0x101:
            at_ns = self.COUNTER.reaches(self.CC[channel])
        if at_ns is None:
            self.ctx.cancel_alarm(channel)
        else:
            self.ctx.set_alarm(at_ns, channel)


DEVICE = Timer
