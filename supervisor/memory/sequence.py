"""``IOSequence``: a memory and a sequence of ranges in it, as one thing to be copied from and to.

An immutable value: ``drop_first`` and ``take_first`` return others. Its length is a limit: a copy of more is
cut to it without an error, other than with an ``IO``. ``reader()`` and ``writer()`` give cursors over it:

- a reader that has come to the end raises EndOfData *together with* the last bytes (``done`` says how many);
- a writer that is given more than there is room for writes what fits and raises EndOfSpace;
- after a MemoryFault both stand behind the bytes that were copied.

Pure: the accesses are the ``IO``'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from supervisor.memory.errors import EndOfData, EndOfSpace, MemoryFault
from supervisor.memory.io import IO, copy_in_vec, copy_out_vec, zero_out_vec
from supervisor.memory.ranges import AddrRangeSeq

if TYPE_CHECKING:
    from supervisor.memory.blocks import BlockReader, BlockWriter
    from supervisor.memory.io import ReadableBuffer, WritableBuffer

__all__ = ["IOSequence", "SequenceReader", "SequenceWriter"]


@dataclass(frozen=True, slots=True)
class IOSequence:
    """``ranges`` in ``io``. Every copy raises what that ``IO`` raises."""

    io: IO
    ranges: AddrRangeSeq
    ignore_permissions: bool = False

    @property
    def num_bytes(self) -> int:
        """The length in bytes. It can be 0 while there are ranges: those of length zero."""
        return self.ranges.num_bytes

    def drop_first(self, n: int) -> IOSequence:
        """Return this without its first ``n`` bytes. Raises LocalError if n < 0."""
        return replace(self, ranges=self.ranges.drop_first(n))

    def take_first(self, n: int) -> IOSequence:
        """Return this cut to ``n`` bytes. Raises LocalError if n < 0."""
        return replace(self, ranges=self.ranges.take_first(n))

    def copy_out(self, src: ReadableBuffer) -> int:
        """Copy ``src``, or as much of it as there is room for; return the count in bytes."""
        return copy_out_vec(self.io, self.ranges, src, ignore_permissions=self.ignore_permissions)

    def copy_in(self, dst: WritableBuffer) -> int:
        """Fill ``dst``, or as much of it as there is data for; return the count in bytes."""
        return copy_in_vec(self.io, self.ranges, dst, ignore_permissions=self.ignore_permissions)

    def zero_out(self, n: int) -> int:
        """Set ``n`` bytes to 0, or all if they are fewer; return the count in bytes."""
        return zero_out_vec(self.io, self.ranges, n, ignore_permissions=self.ignore_permissions)

    def copy_out_from(self, reader: BlockReader) -> int:
        """Let ``reader`` read into all of it; return its count in bytes."""
        return self.io.copy_out_from(self.ranges, reader, ignore_permissions=self.ignore_permissions)

    def copy_in_to(self, writer: BlockWriter) -> int:
        """Let ``writer`` write from all of it; return its count in bytes."""
        return self.io.copy_in_to(self.ranges, writer, ignore_permissions=self.ignore_permissions)

    def reader(self) -> SequenceReader:
        """Return a cursor that reads from the start on."""
        return SequenceReader(self)

    def writer(self) -> SequenceWriter:
        """Return a cursor that writes from the start on."""
        return SequenceWriter(self)


class _Cursor:
    def __init__(self, rest: IOSequence) -> None:
        self.rest = rest

    @property
    def num_bytes(self) -> int:
        """How many bytes are left."""
        return self.rest.num_bytes

    def _advance(self, n: int) -> None:
        self.rest = self.rest.drop_first(n)


class SequenceReader(_Cursor):
    """Reads on and on from a sequence; ``rest`` is what is left of it."""

    def readinto(self, dst: WritableBuffer, /) -> int:
        """Fill ``dst`` and return its length in bytes. Raises EndOfData with the last bytes, MemoryFault."""
        try:
            n = self.rest.copy_in(dst)
        except MemoryFault as fault:
            self._advance(fault.done)
            raise
        self._advance(n)
        if not self.rest.num_bytes:
            raise EndOfData(n)
        return n


class SequenceWriter(_Cursor):
    """Writes on and on to a sequence; ``rest`` is what is left of it."""

    def write(self, src: ReadableBuffer, /) -> int:
        """Write all of ``src`` and return its length in bytes. Raises EndOfSpace, MemoryFault."""
        size = memoryview(src).nbytes
        try:
            n = self.rest.copy_out(src)
        except MemoryFault as fault:
            self._advance(fault.done)
            raise
        self._advance(n)
        if n < size:
            raise EndOfSpace(n)
        return n
