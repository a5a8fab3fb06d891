"""The records of a journal: what goes into a device and what comes out of it.

An input is one numbered record stamped with guest time; there is no other way into a device, so a replay
sees what the first run saw. An output is one numbered record as well, and a reply is an output. Pure.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

__all__ = ["IRQ_LINES", "Commit", "Input", "InputKind", "Output", "OutputKind"]

IRQ_LINES = 64  # of one device: levels travel as one 64-bit word


class InputKind(IntEnum):
    """What a device is asked to do."""

    READ = 1
    WRITE = 2  # the writer waits for the reply
    POSTED = 3  # a write without a reply
    CALL = 4
    RECEIVE = 5
    ALARM = 6  # guest time has reached the stamp: fire what is due then
    SKIP = 7  # was given up by the supervisor: applied without being handled


class Input(NamedTuple):
    """One input. ``number`` orders it; ``stamp_ns`` is guest time."""

    number: int
    kind: int
    stamp_ns: int
    offset: int
    size: int
    value: int
    payload: bytes


class OutputKind(IntEnum):
    """What comes out of a device."""

    VALUE = 1  # the reply to a READ: ``payload`` is 8 bytes, little-endian
    REPLY = 2  # the reply to a CALL or a WRITE
    BYTES = 3  # emitted
    IRQ = 4  # ``detail`` is line * 2 + level


class Output(NamedTuple):
    """One output. ``number`` is that of the input that caused it."""

    kind: int
    detail: int
    number: int
    payload: bytes


class Commit(NamedTuple):
    """A device's state after the inputs below ``applied``; ``state`` is runtime and device state, packed.

    ``registers`` are their words as bytes.
    """

    applied: int
    output_end: int
    irq_levels: int
    next_alarm_ns: int
    state_version: int
    registers: bytes | memoryview
    state: bytes
