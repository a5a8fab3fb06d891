"""Where an address leads: segments, and the table that finds them. No system calls; its views are given.

A segment is a run of guest addresses with one permission inside one region; usually it is the whole region.
The table is immutable: whoever changes regions or permissions makes a new one, so a reader in another thread
sees the old or the new and nothing in between.

Permissions are small integers here, ``allowed`` with and ``backed`` without what was set on the addresses.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING

from supervisor.memory.access import WRITE_BIT, AccessType

if TYPE_CHECKING:
    from supervisor.memory.mapping import Mapping

__all__ = ["NOWHERE", "Protection", "Segment", "Table", "protect", "release"]

Protection = tuple[int, int, AccessType]
"""(first byte, byte behind the last, access), counted from the start of a region."""


class Segment:
    """A run of guest addresses: ``size`` bytes from ``start`` on, which are ``view``."""

    __slots__ = ("allowed", "backed", "mapping", "read_only", "size", "start", "view")

    def __init__(self, mapping: Mapping, first: int, last: int, access: AccessType) -> None:
        self.mapping = mapping
        self.start = mapping.region.guest_addr + first
        self.size = last - first
        self.view = mapping.view[first:last]
        self.read_only = mapping.read_only[first:last]
        backed = AccessType.ANY if mapping.region.writable else AccessType.READ | AccessType.EXECUTE
        self.backed: int = backed.value
        self.allowed: int = access.effective().value & self.backed

    def release(self) -> None:
        """Let go of the region: whoever still refers to this, such as a kept traceback, holds nothing."""
        self.view.release()
        self.read_only.release()


class _Nowhere(Segment):
    """No address is in it: even 0 bytes are more than its size."""

    def __init__(self) -> None:
        self.start = self.allowed = self.backed = 0
        self.size = -1
        self.view = self.read_only = memoryview(b"")


NOWHERE = _Nowhere()


class Table:
    """Segments in the order of their addresses, none overlapping."""

    __slots__ = ("_segments", "_starts")

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        self._segments = sorted(segments, key=lambda segment: segment.start)
        self._starts = [segment.start for segment in self._segments]

    def find(self, addr: int) -> Segment:
        """Return the segment that ``addr`` is in, or NOWHERE."""
        index = bisect_right(self._starts, addr) - 1
        if index >= 0:
            segment = self._segments[index]
            if addr < segment.start + segment.size:
                return segment
        return NOWHERE

    def walk(self, addr: int, size: int, need: int, *, ignore: bool) -> tuple[list[memoryview], int]:
        """Return the pieces of memory behind ``size`` bytes at ``addr`` and their length in bytes.

        It is less than ``size`` where the next byte is not mapped or lacks a permission in ``need``. The
        pieces can be written if ``need`` says so.
        """
        pieces: list[memoryview] = []
        done = 0
        while done < size:
            segment = self.find(addr + done)
            if (segment.backed if ignore else segment.allowed) & need != need:
                break
            offset = addr + done - segment.start
            view = segment.view if need & WRITE_BIT else segment.read_only
            piece = view[offset : offset + size - done]
            pieces.append(piece)
            done += len(piece)
        return pieces, done


def release(pieces: list[memoryview]) -> None:
    """Release pieces and forget them, so that no frame of a traceback keeps a region from being unmapped.

    One that somebody has exported further is left to whoever did.
    """
    for piece in pieces:
        with contextlib.suppress(BufferError):
            piece.release()
    pieces.clear()


def protect(protections: list[Protection], first: int, last: int, access: AccessType) -> list[Protection]:
    """Return ``protections`` with the bytes from ``first`` up to ``last`` set to ``access``."""
    changed: list[Protection] = []
    for start, end, was in protections:
        low, high = max(start, first), min(end, last)
        if low >= high:
            changed.append((start, end, was))
            continue
        changed += [
            part for part in ((start, low, was), (low, high, access), (high, end, was)) if part[0] < part[1]
        ]
    return changed
