"""A data sheet as a value: what a supervisor knows of registers, and what it can answer itself. Pure.

The worker sends it with Ready, since the supervisor never imports device code. From it the handles compile by
offset what needs no round trip: plain registers, counters, captures, posted writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from supervisor.errors import LocalError

__all__ = [
    "Access",
    "AccessTable",
    "RegisterEntry",
    "RegisterMap",
    "check_register_map",
    "evaluate_counter",
]

WORD_MASK = 2**64 - 1
MOST_OFFSETS = 65536  # of a device: 256 KiB of registers of 32 bits
POSTED_WAY = -1  # in ``AccessTable.writes``; any other number is an index into ``captures``


class Access(IntEnum):
    """How a read or a write of a register reaches the device."""

    REQUEST = 0  # a round trip to the worker
    PLAIN = 1  # read: straight from shared memory
    COUNTER = 2  # read: evaluated by the machine
    POSTED = 4  # write: queued
    CAPTURE = 5  # write: queued, and latched by the machine at once


@dataclass(frozen=True, slots=True)
class RegisterEntry:
    """One line of a data sheet; ``offset`` -1: not readable by the guest. Slots are indices of words."""

    name: str
    offset: int
    count: int
    stride: int
    width: int
    slot: int
    read: int
    write: int
    counter_slot: int = -1
    into_slot: int = -1
    mask: int = WORD_MASK


@dataclass(frozen=True, slots=True)
class RegisterMap:
    """All lines of a data sheet. ``words``: how many 64-bit words the device publishes."""

    entries: tuple[RegisterEntry, ...]
    words: int


COUNTER_WORDS = 5  # base, since (guest ns), ticks, per (ns), mask


def check_register_map(register_map: RegisterMap, *, capacity: int) -> None:
    """Raises ``LocalError`` for a map that cannot be: it comes from a worker, and workers are not trusted.

    Every slot that it names must lie within ``register_map.words``, and those within ``capacity``; an entry
    for each of its offsets is what is made of it.
    """
    offsets = sum(max(0, entry.count) for entry in register_map.entries)
    if offsets > MOST_OFFSETS:
        raise LocalError(f"a map of {offsets} registers; the limit is {MOST_OFFSETS}")
    words = register_map.words
    if not 0 <= words <= capacity:
        raise LocalError(f"{words} register words in a journal with room for {capacity}")
    for entry in register_map.entries:
        slots = COUNTER_WORDS if entry.read == Access.COUNTER else entry.count
        reached = [(entry.slot, slots)]
        if entry.write == Access.CAPTURE:
            reached += [(entry.counter_slot, COUNTER_WORDS), (entry.into_slot, entry.count)]
        fits = all(slot >= 0 and slot + length <= words for slot, length in reached)
        if not fits or not 1 <= entry.count <= words or not 0 <= entry.stride < 2**32 or entry.offset < -1:
            raise LocalError(f"register {entry.name[:40]!r} reaches beyond its {words} words")


class AccessTable:
    """What of a data sheet can be answered without the device, by offset.

    ``plain``: slot; ``captured``: slot of a plain register that captures write into; ``counters``: slot and
    mask; ``writes``: ``POSTED_WAY`` or an index into ``captures``: (counter's slot, target's slot, mask).
    """

    __slots__ = ("captured", "captures", "counters", "plain", "writes")

    def __init__(self, register_map: RegisterMap) -> None:
        self.plain: dict[int, int] = {}
        self.captured: dict[int, int] = {}
        self.counters: dict[int, tuple[int, int]] = {}
        self.writes: dict[int, int] = {}
        self.captures: list[tuple[int, int, int]] = []
        for entry in register_map.entries:
            if entry.offset >= 0:
                for index in range(entry.count):
                    self._add(entry, index)
        targets = {into_slot for _counter, into_slot, _mask in self.captures}
        for offset in [offset for offset, slot in self.plain.items() if slot in targets]:
            self.captured[offset] = self.plain.pop(offset)

    def _add(self, entry: RegisterEntry, index: int) -> None:
        offset = entry.offset + index * entry.stride
        if entry.read == Access.PLAIN:
            self.plain[offset] = entry.slot + index
        elif entry.read == Access.COUNTER:
            self.counters[offset] = (entry.slot, entry.mask)
        if entry.write == Access.POSTED:
            self.writes[offset] = POSTED_WAY
        elif entry.write == Access.CAPTURE:
            self.writes[offset] = len(self.captures)
            self.captures.append((entry.counter_slot, entry.into_slot + index, entry.mask))


def evaluate_counter(base: int, since_ns: int, ticks: int, per_ns: int, now_ns: int, mask: int) -> int:
    """The value of a counter at ``now_ns``: ``base`` plus ``ticks`` per ``per_ns`` of guest time."""
    return (base + (now_ns - since_ns) * ticks // per_ns) & mask
