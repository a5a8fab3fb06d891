"""``GuestMemory``: a guest's address space, mapped from the descriptors that a VMM passed.

What a guest sees as memory is a few regions of a few files, with holes between. Every access comes down to
slices of the regions' mappings, so a copy is one memmove a region, and ``readable_views`` and
``writable_views`` hand the slices themselves to ``os.pwritev`` and ``os.preadv``: data moves between a file
and the guest without a copy here.

Rules:

- Adjacent regions are one piece of memory to every copy. Views are split where regions meet, since the host's
  addresses need not be adjacent. An atomic does not work across two regions.
- A range that wraps or leaves the address space (``max_addr``) faults as a whole, before a byte is copied and
  even if it is empty. At a hole, or where a permission is missing, a copy stops with what it has done.
- ``copy_out_from`` and ``copy_in_to`` check all ranges before they call the other side, and do not call it if
  there is nothing that it could do. Reader and writer work on the guest's memory directly.
- Views for reading are read-only. A view must be dropped before its region can be unmapped (ViewsAlive).

The guest writes while we read: what was checked must have been copied first, and a copy is not a snapshot.
Ring indices want ``view.cast("H")`` or ``cast("I")``, one load or store each; slices may tear.

What it costs: ``python -m benchmarks.memory``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING

from supervisor.memory.access import READ_BIT, WRITE_BIT
from supervisor.memory.address_space import AddressSpace
from supervisor.memory.atomics import WORD_BYTES, check_word, true_atomics
from supervisor.memory.blocks import BlockSeq, zero
from supervisor.memory.errors import MemoryFault
from supervisor.memory.ranges import MAX_INT, AddrRangeSeq
from supervisor.memory.segments import NOWHERE

if TYPE_CHECKING:
    from supervisor.memory.blocks import BlockReader, BlockWriter
    from supervisor.memory.io import ReadableBuffer, WritableBuffer

__all__ = ["GuestMemory"]


class GuestMemory(AddressSpace):
    """An ``IO`` over mapped regions. How they come and go: ``AddressSpace``."""

    # -- views -----------------------------------------------------------------------------------------------

    def readable_views(self, buffers: Iterable[tuple[int, int]]) -> list[memoryview]:
        """Return read-only views of ``buffers``, each (guest address, bytes): for ``os.pwritev``, to a file.

        More than one view for a buffer that spans regions, none for one of 0 bytes. One system call takes
        1024 (IOV_MAX). Raises MemoryFault for a buffer with a byte that is not there or must not be read
        (``done`` is how many bytes of all buffers come before it), MemoryClosed.
        """
        hit = self._hit
        start, size, view = hit.start, hit.size if hit.allowed & READ_BIT else -1, hit.read_only
        views = []
        for addr, n in buffers:
            offset = addr - start
            if offset >= 0 and 0 < n <= size - offset:
                views.append(view[offset : offset + n])
            elif n:
                views += self._split(addr, n, READ_BIT, views)
                hit = self._hit
                start, size, view = hit.start, hit.size if hit.allowed & READ_BIT else -1, hit.read_only
        return views

    def writable_views(self, buffers: Iterable[tuple[int, int]]) -> list[memoryview]:
        """Return views of ``buffers``, each (guest address, bytes): for ``os.preadv``, from a file.

        As ``readable_views``, for bytes that may be written.
        """
        hit = self._hit
        start, size, view = hit.start, hit.size if hit.allowed & WRITE_BIT else -1, hit.view
        views = []
        for addr, n in buffers:
            offset = addr - start
            if offset >= 0 and 0 < n <= size - offset:
                views.append(view[offset : offset + n])
            elif n:
                views += self._split(addr, n, WRITE_BIT, views)
                hit = self._hit
                start, size, view = hit.start, hit.size if hit.allowed & WRITE_BIT else -1, hit.view
        return views

    def readable_view(self, addr: int, n: int) -> memoryview:
        """Return a read-only view of ``n`` bytes in one region. Raises MemoryFault, MemoryClosed."""
        return _one(self.readable_views(((addr, n),)))

    def writable_view(self, addr: int, n: int) -> memoryview:
        """Return a view of ``n`` bytes in one region, such as a ring. Raises MemoryFault, MemoryClosed."""
        return _one(self.writable_views(((addr, n),)))

    def _split(self, addr: int, n: int, need: int, before: list[memoryview]) -> list[memoryview]:
        pieces, done = self._walk(addr, n, need, ignore=False)
        if done < n:
            raise MemoryFault(errno.EFAULT, done + sum(map(len, before)), f"{n} bytes at {addr:#x}")
        return pieces

    def _walk(self, addr: int, n: int, need: int, *, ignore: bool) -> tuple[list[memoryview], int]:
        """Return the pieces of a range and their length. Raises MemoryFault for one that cannot be."""
        self._check_open()
        if not 0 <= n <= MAX_INT:
            raise MemoryFault(errno.EINVAL, 0, f"{n} bytes")
        if addr < 0 or addr + n > self._max_addr:
            raise MemoryFault(errno.EFAULT, 0, f"{n} bytes at {addr:#x} leave the address space")
        hit = self._table.find(addr)
        if hit is not NOWHERE:
            self._hit = hit
        return self._table.walk(addr, n, need, ignore=ignore)

    # -- copies ----------------------------------------------------------------------------------------------

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        data = memoryview(src).cast("B")
        size = len(data)
        hit = self._hit
        offset = addr - hit.start
        if offset >= 0 and size <= hit.size - offset and hit.allowed & WRITE_BIT:
            hit.view[offset : offset + size] = data
            return size
        pieces, there = self._walk(addr, size, WRITE_BIT, ignore=ignore_permissions)
        done = 0
        for piece in pieces:
            piece[:] = data[done : done + len(piece)]
            done += len(piece)
        return _complete(there, size)

    def copy_in(self, addr: int, dst: WritableBuffer, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        room = memoryview(dst).cast("B")
        size = len(room)
        hit = self._hit
        offset = addr - hit.start
        if offset >= 0 and size <= hit.size - offset and hit.allowed & READ_BIT:
            room[:] = hit.view[offset : offset + size]
            return size
        pieces, there = self._walk(addr, size, READ_BIT, ignore=ignore_permissions)
        done = 0
        for piece in pieces:
            room[done : done + len(piece)] = piece
            done += len(piece)
        return _complete(there, size)

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        pieces, there = self._walk(addr, n, WRITE_BIT, ignore=ignore_permissions)
        for piece in pieces:
            zero(piece)
        return _complete(there, n)

    def copy_out_from(
        self, ranges: AddrRangeSeq, reader: BlockReader, *, ignore_permissions: bool = False
    ) -> int:
        """See ``IO``."""
        blocks = self._blocks(ranges, WRITE_BIT, ignore=ignore_permissions)
        n = 0 if blocks.is_empty else reader.read_to_blocks(blocks)
        return n if blocks.num_bytes == ranges.num_bytes else _complete(n, ranges.num_bytes)

    def copy_in_to(
        self, ranges: AddrRangeSeq, writer: BlockWriter, *, ignore_permissions: bool = False
    ) -> int:
        """See ``IO``."""
        blocks = self._blocks(ranges, READ_BIT, ignore=ignore_permissions)
        n = 0 if blocks.is_empty else writer.write_from_blocks(blocks)
        return n if blocks.num_bytes == ranges.num_bytes else _complete(n, ranges.num_bytes)

    def _blocks(self, ranges: AddrRangeSeq, need: int, *, ignore: bool) -> BlockSeq:
        """Return the blocks up to the first byte that is not there. Raises as ``_walk`` does."""
        walks = [self._walk(start, end - start, need, ignore=ignore) for start, end in ranges]
        blocks: list[memoryview] = []
        for (start, end), (pieces, there) in zip(ranges, walks, strict=True):
            blocks += pieces
            if there < end - start:
                break
        return BlockSeq(blocks)

    # -- atomics ---------------------------------------------------------------------------------------------

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        check_word(new)
        return true_atomics().swap_uint32(self._word(addr, WRITE_BIT, ignore_permissions), new)

    def compare_and_swap_uint32(
        self, addr: int, old: int, new: int, *, ignore_permissions: bool = False
    ) -> int:
        """See ``IO``."""
        check_word(old)
        check_word(new)
        word = self._word(addr, WRITE_BIT, ignore_permissions)
        return true_atomics().compare_and_swap_uint32(word, old, new)

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        return true_atomics().load_uint32(self._word(addr, READ_BIT, ignore_permissions))

    def _word(self, addr: int, need: int, ignore: bool) -> int:
        """Return the host address of an aligned word within one region. Raises MemoryFault, MemoryClosed."""
        hit = self._hit
        if not 0 <= addr - hit.start <= hit.size - WORD_BYTES:
            self._check_open()
            hit = self._table.find(addr)
        offset = addr - hit.start
        permitted = (hit.backed if ignore else hit.allowed) & need
        if not permitted or offset > hit.size - WORD_BYTES or addr % WORD_BYTES:
            raise MemoryFault(errno.EFAULT, 0, f"a word at {addr:#x}")
        self._hit = hit
        address = hit.mapping.address + hit.offset + offset
        if address % WORD_BYTES:
            raise MemoryFault(errno.EFAULT, 0, "the region itself is not aligned")
        return address


def _complete(n: int, asked: int) -> int:
    if n < asked:
        raise MemoryFault(errno.EFAULT, n)
    return n


def _one(views: list[memoryview]) -> memoryview:
    if len(views) != 1:
        raise MemoryFault(errno.EFAULT, 0, "not in one region")
    return views[0]
