"""Addresses, ranges of them, and sequences of ranges. Pure values.

An address is an unsigned 64-bit number, a range is half open. 2**64 itself is no address: a length that ends
there wraps to 0 in the arithmetic of the machine, and counts as a wrap.

A sequence of ranges is immutable. Ranges of length zero in it are significant: they are visited, because a
system call checks even the address of an empty buffer. So ``is_empty`` (no ranges) is not ``num_bytes == 0``.
The two ways to shorten one are not symmetric:

- ``take_first`` keeps every range and cuts the later ones to length zero at their own start;
- ``drop_first`` removes what it passes, and one leading range of length zero even for 0 bytes; it stops as
  soon as nothing is left to drop, so ranges of length zero behind the cut stay. Repeating "use the head, drop
  as many bytes as were used" therefore always comes to the end of a sequence.

Sequences are plain tuples of ranges, cut anew each time, and not windows over a shared array. The ranges of
one I/O are few; and in a window a range that ``take_first`` has emptied can look unemptied to ``drop_first``,
and the loop above spins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from supervisor.errors import LocalError

__all__ = [
    "ADDRESS_MASK",
    "CACHE_LINE_BYTES",
    "MAX_INT",
    "PAGE_BYTES",
    "AddrRange",
    "AddrRangeSeq",
    "add_length",
    "cache_line_round_up",
    "page_round_down",
    "page_round_up",
    "to_range",
]

ADDRESS_MASK = 2**64 - 1
"""The highest address: addresses are 64 bits wide."""

MAX_INT = 2**63 - 1
"""The most bytes of one I/O: counts are signed 64-bit numbers."""

PAGE_BYTES = 4096
"""The guest's page. The host's may be larger; what depends on that asks the host."""

CACHE_LINE_BYTES = 64


def add_length(addr: int, length_bytes: int) -> tuple[int, bool]:
    """Return the address ``length_bytes`` further on, modulo 2**64, and whether it did not wrap."""
    end = (addr + length_bytes) & ADDRESS_MASK
    return end, end >= addr


def page_round_down(addr: int) -> int:
    """Return the start of the page that ``addr`` is in."""
    return addr & ~(PAGE_BYTES - 1)


def page_round_up(addr: int) -> tuple[int, bool]:
    """Return the start of the next page, or ``addr`` if it is one, and whether it did not wrap."""
    return _round_up(addr, PAGE_BYTES)


def cache_line_round_up(addr: int) -> tuple[int, bool]:
    """Return the start of the next cache line, or ``addr`` if it is one, and whether it did not wrap."""
    return _round_up(addr, CACHE_LINE_BYTES)


def _round_up(addr: int, unit: int) -> tuple[int, bool]:
    up = (addr + unit - 1) & ~(unit - 1) & ADDRESS_MASK
    return up, up >= addr


class _Bounds(NamedTuple):
    start: int
    end: int


class AddrRange(_Bounds):
    """The addresses from ``start`` up to, not including, ``end``. Equal to the tuple of the two."""

    __slots__ = ()

    def __new__(cls, start: int, end: int) -> AddrRange:
        """Raises LocalError unless 0 <= start <= end < 2**64."""
        if not 0 <= start <= end <= ADDRESS_MASK:
            raise LocalError(f"not a range of addresses: [{start:#x}, {end:#x})")
        return super().__new__(cls, start, end)

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.end - self.start

    def contains(self, addr: int) -> bool:
        """Return whether ``addr`` is in this range."""
        return self.start <= addr < self.end

    def overlaps(self, other: AddrRange) -> bool:
        """Return whether there is an address in both; an empty range strictly inside counts as one."""
        return self.start < other.end and other.start < self.end

    def is_superset_of(self, other: AddrRange) -> bool:
        """Return whether ``other`` lies within this range."""
        return self.start <= other.start and other.end <= self.end

    def intersect(self, other: AddrRange) -> AddrRange:
        """Return the addresses in both; an empty range at the later start if there is none."""
        start = max(self.start, other.start)
        return AddrRange(start, max(start, min(self.end, other.end)))

    def can_split_at(self, addr: int) -> bool:
        """Return whether ``addr`` is strictly inside, so that both parts are non-empty."""
        return self.start < addr < self.end

    def is_page_aligned(self) -> bool:
        """Return whether both ends are starts of pages."""
        return self.start % PAGE_BYTES == 0 and self.end % PAGE_BYTES == 0

    def __repr__(self) -> str:
        return f"AddrRange({self.start:#x}, {self.end:#x})"


def to_range(addr: int, length_bytes: int) -> AddrRange | None:
    """Return the range of ``length_bytes`` from ``addr`` on, or None if it would wrap."""
    end, ok = add_length(addr, length_bytes)
    return AddrRange(addr, end) if ok else None


class AddrRangeSeq:
    """An immutable sequence of ranges; iterates over them, those of length zero too."""

    __slots__ = ("_num_bytes", "_ranges")

    def __init__(self, ranges: Iterable[AddrRange | tuple[int, int]] = ()) -> None:
        """Raises LocalError when the lengths add up to more than 2**63 - 1 bytes, or for what is no range."""
        self._ranges = tuple(r if isinstance(r, AddrRange) else AddrRange(*r) for r in ranges)
        self._num_bytes = sum([r.end - r.start for r in self._ranges])
        if self._num_bytes > MAX_INT:
            raise LocalError(f"a sequence of {self._num_bytes} bytes is longer than any I/O")

    @classmethod
    def _made(cls, ranges: tuple[AddrRange, ...], num_bytes: int) -> AddrRangeSeq:
        seq = cls.__new__(cls)
        seq._ranges = ranges
        seq._num_bytes = num_bytes
        return seq

    @property
    def is_empty(self) -> bool:
        """Whether there are no ranges; ranges of length zero are ranges."""
        return not self._ranges

    @property
    def num_ranges(self) -> int:
        return len(self._ranges)

    @property
    def num_bytes(self) -> int:
        """The sum of the lengths."""
        return self._num_bytes

    def head(self) -> AddrRange:
        """Return the first range. Raises LocalError if there is none."""
        if not self._ranges:
            raise LocalError("the head of an empty sequence")
        return self._ranges[0]

    def tail(self) -> AddrRangeSeq:
        """Return everything behind the first range. Raises LocalError if there is none."""
        head = self.head()
        return self._made(self._ranges[1:], self._num_bytes - (head.end - head.start))

    def drop_first(self, n: int) -> AddrRangeSeq:
        """Return this without its first ``n`` bytes; empty if it has fewer. Raises LocalError if n < 0."""
        if n < 0:
            raise LocalError(f"{n} bytes cannot be dropped")
        if n > self._num_bytes or not self._ranges:
            return _EMPTY
        ranges = self._ranges
        first, rest = 0, n
        if ranges[0].start == ranges[0].end:
            first = 1
        while rest:
            start, end = ranges[first]
            if rest < end - start:
                cut = (AddrRange(start + rest, end), *ranges[first + 1 :])
                return self._made(cut, self._num_bytes - n)
            rest -= end - start
            first += 1
        return self._made(ranges[first:], self._num_bytes - n)

    def take_first(self, n: int) -> AddrRangeSeq:
        """Return this with every range, cut to ``n`` bytes in all. Raises LocalError if n < 0."""
        if n < 0:
            raise LocalError(f"{n} bytes cannot be taken")
        if n >= self._num_bytes:
            return self
        taken, rest = [], n
        for start, end in self._ranges:
            length = min(rest, end - start)
            taken.append(AddrRange(start, start + length))
            rest -= length
        return self._made(tuple(taken), n)

    def __iter__(self) -> Iterator[AddrRange]:
        return iter(self._ranges)

    def __eq__(self, other: object) -> bool:
        return self._ranges == other._ranges if isinstance(other, AddrRangeSeq) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._ranges)

    def __repr__(self) -> str:
        return f"AddrRangeSeq({', '.join(f'[{r.start:#x}, {r.end:#x})' for r in self._ranges)})"


_EMPTY = AddrRangeSeq()
