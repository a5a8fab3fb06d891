"""GPIO: the 32 pins (nRF51 Reference Manual, chapter "GPIO").

An input reads as the option ``inputs`` says (all ones by default: buttons are pulled up, so none is pressed);
an output reads back what drives it.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.device import Device
from supervisor.registers import POSTED, Register

ALL_PINS = 0xFFFF_FFFF
PINS = 32
PIN_CNF_DIRECTION = 1
PIN_CNF_RESET = 2  # input buffer disconnected


class Gpio(Device):
    """SET and CLR registers read as the register they belong to."""

    @dataclass(frozen=True)
    class Options:
        """``inputs``: levels at the pins from outside, a bit mask."""

        inputs: int = ALL_PINS

    OUT = Register(0x504, write=POSTED)
    OUTSET = Register(0x508, write=POSTED)
    OUTCLR = Register(0x50C, write=POSTED)
    IN = Register(0x510, write=POSTED)
    DIR = Register(0x514, write=POSTED)
    DIRSET = Register(0x518, write=POSTED)
    DIRCLR = Register(0x51C, write=POSTED)
    PIN_CNF = Register(0x700, count=PINS, reset=PIN_CNF_RESET, write=POSTED)

    def start(self, ctx: object) -> None:
        self._refresh()

    @OUT.on_write
    def _out(self, value: int) -> None:
        self.OUT = value
        self._refresh()

    @OUTSET.on_write
    def _out_set(self, value: int) -> None:
        self.OUT |= value
        self._refresh()

    @OUTCLR.on_write
    def _out_clear(self, value: int) -> None:
        self.OUT &= ~value
        self._refresh()

    @IN.on_write
    def _ignored(self, _value: int) -> None:
        """IN is read-only."""

    @DIR.on_write
    def _dir(self, value: int) -> None:
        self._set_directions(value)

    @DIRSET.on_write
    def _dir_set(self, value: int) -> None:
        self._set_directions(self.DIR | value)

    @DIRCLR.on_write
    def _dir_clear(self, value: int) -> None:
        self._set_directions(self.DIR & ~value)

    @PIN_CNF.on_write
    def _configure(self, pin: int, value: int) -> None:
        self.PIN_CNF[pin] = value
        if value & PIN_CNF_DIRECTION:
            self.DIR |= 1 << pin
        else:
            self.DIR &= ~(1 << pin)
        self._refresh()

    def _set_directions(self, value: int) -> None:
        self.DIR = value
        for pin in range(PINS):  # DIR and the lowest bit of PIN_CNF are the same bit
            self.PIN_CNF[pin] = self.PIN_CNF[pin] & ~PIN_CNF_DIRECTION | value >> pin & PIN_CNF_DIRECTION
        self._refresh()

    def _refresh(self) -> None:
        self.OUTSET = self.OUTCLR = self.OUT
        self.DIRSET = self.DIRCLR = self.DIR
        self.IN = self.OUT & self.DIR | self.ctx.options.inputs & ~self.DIR


DEVICE = Gpio
