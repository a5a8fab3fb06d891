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
- A fault holds nothing, neither views of the guest's memory nor of the caller's buffer, however long its
  traceback is kept. The blocks that a reader or writer gets are released when its call is over.
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
from supervisor.memory.segments import NOWHERE, Segment, release

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
        return self._views(buffers, READ_BIT)

    def writable_views(self, buffers: Iterable[tuple[int, int]]) -> list[memoryview]:
        """Return views of ``buffers``, each (guest address, bytes): for ``os.preadv``, from a file.

        As ``readable_views``, for bytes that may be written.
        """
        return self._views(buffers, WRITE_BIT)

    def _views(self, buffers: Iterable[tuple[int, int]], need: int) -> list[memoryview]:
        hit = self._hit
        views: list[memoryview] = []
        # What is looked at for each buffer is local: this loop runs for every request of a device.
        start, view = hit.start, hit.view if need == WRITE_BIT else hit.read_only
        size = hit.size if hit.allowed & need else -1
        for addr, n in buffers:
            offset = addr - start
            if offset >= 0 and 0 < n <= size - offset:
                views.append(view[offset : offset + n])
            elif n:
                hit = self._seek(addr)
                start, view = hit.start, hit.view if need == WRITE_BIT else hit.read_only
                size = hit.size if hit.allowed & need else -1
                offset = addr - start
                if offset >= 0 and 0 < n <= size - offset:
                    views.append(view[offset : offset + n])
                else:
                    self._split(addr, n, need, views)
        return views

    def _seek(self, addr: int) -> Segment:
        """Return the segment that ``addr`` is in, or NOWHERE, and look there first the next time."""
        hit = self._table.find(addr)
        if hit is not NOWHERE:
            self._hit = hit
        return hit

    def readable_view(self, addr: int, n: int) -> memoryview:
        """Return a read-only view of ``n`` bytes in one region. Raises MemoryFault, MemoryClosed."""
        return _one(self.readable_views(((addr, n),)))

    def writable_view(self, addr: int, n: int) -> memoryview:
        """Return a view of ``n`` bytes in one region, such as a ring. Raises MemoryFault, MemoryClosed."""
        return _one(self.writable_views(((addr, n),)))

    def _split(self, addr: int, n: int, need: int, views: list[memoryview]) -> None:
        """Add the views of one buffer to ``views``, or raise MemoryFault and release them all."""
        done, why = 0, None
        try:
            pieces, done = self._walk(addr, n, need, ignore=False)
        except MemoryFault as fault:
            why = fault
        else:
            views += pieces
            del pieces
        if done < n:
            done = sum(map(len, views))
            release(views)
            number = errno.EFAULT if why is None else why.errno or errno.EFAULT
            raise MemoryFault(number, done, f"{n} bytes at {addr:#x}") from why

    def _walk(self, addr: int, n: int, need: int, *, ignore: bool) -> tuple[list[memoryview], int]:
        """Return the pieces of a range and their length. Raises MemoryFault for one that cannot be."""
        self._check_open()
        self._check_range(addr, n)
        return self._table.walk(addr, n, need, ignore=ignore)

    def _check_range(self, addr: int, n: int) -> None:
        if not 0 <= n <= MAX_INT:
            raise MemoryFault(errno.EINVAL, 0, f"{n} bytes")
        if addr < 0 or addr + n > self._max_addr:
            raise MemoryFault(errno.EFAULT, 0, f"{n} bytes at {addr:#x} leave the address space")

    # -- copies ----------------------------------------------------------------------------------------------

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        data = memoryview(src).cast("B")
        size = len(data)
        hit = self._hit
        if not 0 <= addr - hit.start <= hit.size - size:
            hit = self._seek(addr)
        offset = addr - hit.start
        if size <= hit.size - offset and hit.allowed & WRITE_BIT:
            hit.view[offset : offset + size] = data
            return size
        with data:
            pieces, there = self._walk(addr, size, WRITE_BIT, ignore=ignore_permissions)
            done = 0
            for piece in pieces:
                piece[:] = data[done : done + len(piece)]
                done += len(piece)
        release(pieces)
        return _complete(there, size)

    def copy_in(self, addr: int, dst: WritableBuffer, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        room = memoryview(dst).cast("B")
        size = len(room)
        hit = self._hit
        if not 0 <= addr - hit.start <= hit.size - size:
            hit = self._seek(addr)
        offset = addr - hit.start
        if size <= hit.size - offset and hit.allowed & READ_BIT:
            room[:] = hit.view[offset : offset + size]
            return size
        with room:
            pieces, there = self._walk(addr, size, READ_BIT, ignore=ignore_permissions)
            done = 0
            for piece in pieces:
                room[done : done + len(piece)] = piece
                done += len(piece)
        release(pieces)
        return _complete(there, size)

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        """See ``IO``."""
        pieces, there = self._walk(addr, n, WRITE_BIT, ignore=ignore_permissions)
        for piece in pieces:
            zero(piece)
        release(pieces)
        return _complete(there, n)

    def copy_out_from(
        self, ranges: AddrRangeSeq, reader: BlockReader, *, ignore_permissions: bool = False
    ) -> int:
        """See ``IO``."""
        pieces = self._pieces(ranges, WRITE_BIT, ignore=ignore_permissions)
        offered = sum(map(len, pieces))
        try:
            n = reader.read_to_blocks(BlockSeq(pieces)) if pieces else 0
        finally:
            release(pieces)
        return n if offered == ranges.num_bytes else _complete(n, ranges.num_bytes)

    def copy_in_to(
        self, ranges: AddrRangeSeq, writer: BlockWriter, *, ignore_permissions: bool = False
    ) -> int:
        """See ``IO``."""
        pieces = self._pieces(ranges, READ_BIT, ignore=ignore_permissions)
        offered = sum(map(len, pieces))
        try:
            n = writer.write_from_blocks(BlockSeq(pieces)) if pieces else 0
        finally:
            release(pieces)
        return n if offered == ranges.num_bytes else _complete(n, ranges.num_bytes)

    def _pieces(self, ranges: AddrRangeSeq, need: int, *, ignore: bool) -> list[memoryview]:
        """Return the pieces up to the first byte that is not there. Raises as ``_walk`` does."""
        self._check_open()
        for start, end in ranges:
            self._check_range(start, end - start)
        found: list[memoryview] = []
        for start, end in ranges:
            pieces, there = self._walk(start, end - start, need, ignore=ignore)
            found += pieces
            if there < end - start:
                break
        return found

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
        """Return the host address of an aligned word in one region. Raises MemoryFault, MemoryClosed."""
        hit = self._hit
        offset = addr - hit.start
        if not 0 <= offset <= hit.size - WORD_BYTES:
            hit = self._seek(addr)
            offset = addr - hit.start
        permitted = hit.allowed & need and 0 <= offset <= hit.size - WORD_BYTES
        if not permitted:
            # The permission of each byte counts, wherever its segment ends; but a word is in one mapping.
            pieces, there = self._walk(addr, WORD_BYTES, need, ignore=ignore)
            release(pieces)
            last = self._table.find(addr + WORD_BYTES - 1)
            permitted = there == WORD_BYTES and hit.mapping is last.mapping
        if not permitted or addr % WORD_BYTES:
            raise MemoryFault(errno.EFAULT, 0, f"a word at {addr:#x}")
        address = hit.mapping.address + (addr - hit.mapping.region.guest_addr)
        if address % WORD_BYTES:
            raise MemoryFault(errno.EFAULT, 0, "the region itself is not aligned")
        return address


def _complete(n: int, asked: int) -> int:
    if n < asked:
        raise MemoryFault(errno.EFAULT, n)
    return n


def _one(views: list[memoryview]) -> memoryview:
    if len(views) != 1:
        release(views)
        raise MemoryFault(errno.EFAULT, 0, "not in one region")
    return views[0]
