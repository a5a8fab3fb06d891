"""``BytesMemory``: an ``IO`` over a buffer of this process. Address ``base`` is its first byte.

For tests, and for code that is written against ``IO`` and has a plain buffer. Its edges differ from a mapped
memory's in two points: a copy of no bytes succeeds at any address, and ``copy_out_from`` and ``copy_in_to``
call the other side exactly once, even with nothing.

Holds an export of the buffer, so a bytearray cannot change its length meanwhile. A read-only buffer can be
read.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from supervisor.errors import LocalError
from supervisor.memory.atomics import WORD_BYTES, address_of, check_word, true_atomics
from supervisor.memory.blocks import BlockSeq, zero
from supervisor.memory.errors import MemoryFault
from supervisor.memory.ranges import ADDRESS_MASK, MAX_INT, AddrRangeSeq

if TYPE_CHECKING:
    from supervisor.memory.blocks import BlockReader, BlockWriter
    from supervisor.memory.io import ReadableBuffer, WritableBuffer

__all__ = ["BytesMemory"]


class BytesMemory:
    """An ``IO`` over ``buffer``. There are no permissions to be ignored.

    Raises LocalError if the buffer's end leaves the address space.
    """

    def __init__(self, buffer: ReadableBuffer, *, base: int = 0) -> None:
        self._view = memoryview(buffer).cast("B")
        self._size = len(self._view)
        self._base = base
        if base < 0 or base + self._size > ADDRESS_MASK + 1:
            raise LocalError(f"{self._size} bytes at {base:#x} leave the address space")

    def _span(self, addr: int, size: int, *, write: bool) -> tuple[int, int]:
        """Return the offset of ``addr``, and how many of ``size`` bytes there are. Raises EINVAL."""
        if not 0 <= size <= MAX_INT:
            raise MemoryFault(errno.EINVAL, 0, f"{size} bytes")
        offset = addr - self._base
        if not 0 <= offset < self._size or (write and self._view.readonly):
            return 0, 0
        return offset, min(size, self._size - offset)

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        with memoryview(src).cast("B") as data:
            size = len(data)
            offset, n = self._span(addr, size, write=True)
            if n:
                self._view[offset : offset + n] = data[:n]
        return _complete(n, size)

    def copy_in(self, addr: int, dst: WritableBuffer, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        with memoryview(dst).cast("B") as room:
            size = len(room)
            offset, n = self._span(addr, size, write=False)
            room[:n] = self._view[offset : offset + n]
        return _complete(n, size)

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        offset, there = self._span(addr, n, write=True)
        if there:
            zero(self._view[offset : offset + there])
        return _complete(there, n)

    def copy_out_from(
        self, ranges: AddrRangeSeq, reader: BlockReader, *, ignore_permissions: bool = False
    ) -> int:
        """See ``IO``."""
        blocks, whole = self._blocks(ranges, write=True)
        return _unless_cut(reader.read_to_blocks(blocks), whole)

    def copy_in_to(
        self, ranges: AddrRangeSeq, writer: BlockWriter, *, ignore_permissions: bool = False
    ) -> int:
        """See ``IO``."""
        blocks, whole = self._blocks(ranges, write=False)
        return _unless_cut(writer.write_from_blocks(blocks), whole)

    def _blocks(self, ranges: AddrRangeSeq, *, write: bool) -> tuple[BlockSeq, bool]:
        """Return the blocks up to the first byte that is not there, and whether there is none such."""
        view = self._view if write else self._view.toreadonly()
        blocks = []
        for start, end in ranges:
            offset, n = self._span(start, end - start, write=write)
            blocks.append(view[offset : offset + n])
            if n < end - start:
                return BlockSeq(blocks), False
        return BlockSeq(blocks), True

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        check_word(new)
        return true_atomics().swap_uint32(self._word(addr, write=True), new)

    def compare_and_swap_uint32(
        self, addr: int, old: int, new: int, *, ignore_permissions: bool = False
    ) -> int:
        """See ``IO``."""
        check_word(old)
        check_word(new)
        return true_atomics().compare_and_swap_uint32(self._word(addr, write=True), old, new)

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        return true_atomics().load_uint32(self._word(addr, write=False))

    def _word(self, addr: int, *, write: bool) -> int:
        """Return the host address of a whole, aligned word; it stays, since the export is held."""
        offset, n = self._span(addr, WORD_BYTES, write=write)
        if n < WORD_BYTES or addr % WORD_BYTES:
            raise MemoryFault(errno.EFAULT)
        address = address_of(self._view) + offset
        if address % WORD_BYTES:
            raise MemoryFault(errno.EFAULT, 0, "the buffer itself is not aligned")
        return address


def _complete(n: int, asked: int) -> int:
    if n < asked:
        raise MemoryFault(errno.EFAULT, n)
    return n


def _unless_cut(n: int, whole: bool) -> int:
    # Also if the other side came short before the cut: the memory that was asked for is not all there.
    if not whole:
        raise MemoryFault(errno.EFAULT, n)
    return n
