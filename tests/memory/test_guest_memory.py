"""Access to mapped regions: over joints and holes, by the VMM's addresses, with permissions, by views."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from supervisor.memory import (
    AccessType,
    AddrRangeSeq,
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    BytesMemory,
    FromReader,
    FromWriter,
    GuestMemory,
    MemoryFault,
    copy_in_vec,
    copy_out_vec,
)
from tests.memory.conftest import PAGE, file_of, memory_of, region

TOP = 2**64 - 1


def test_given_adjacent_regions_a_copy_goes_on_and_a_hole_stops_it() -> None:
    """Three regions of a file in another order, one hole: joined where they touch."""
    with memory_of(
        region(0x1000, offset_bytes=2 * PAGE), region(0x2000, offset_bytes=0), region(0x4000)
    ) as memory:
        assert memory.copy_out(0x1FFE, b"join") == 4
        room = bytearray(4)
        assert memory.copy_in(0x1FFE, room) == 4
        assert room == b"join"
        assert memory.zero_out(0x1FFF, 2) == 2
        memory.copy_in(0x1FFE, room)
        assert room == b"j\0\0n"
        with pytest.raises(MemoryFault) as caught:
            memory.copy_out(0x2FFD, b"hole")
        assert (caught.value.errno, caught.value.done) == (errno.EFAULT, 3)


@pytest.mark.parametrize("addr", [TOP, TOP - 1, TOP + 1, 2**65, -1, -PAGE])
def test_given_the_end_of_the_address_space_a_range_beyond_it_faults_as_a_whole(addr: int) -> None:
    """No byte is copied, no reader is called; an empty range is judged by its address alone."""
    with memory_of(region(TOP - PAGE)) as memory:
        for call in (
            lambda: memory.copy_out(addr, b"abc"),
            lambda: memory.copy_in(addr, bytearray(3)),
            lambda: memory.zero_out(addr, 3),
            lambda: memory.writable_views([(addr, 3)]),
        ):
            with pytest.raises(MemoryFault) as caught:
                call()
            assert (caught.value.errno, caught.value.done) == (errno.EFAULT, 0)
        if 0 <= addr <= TOP:
            assert memory.copy_out(addr, b"") == 0
        else:
            with pytest.raises(MemoryFault):
                memory.copy_out(addr, b"")
        assert memory.copy_out(TOP - 3, b"top") == 3


@pytest.mark.parametrize("n", [-1, 2**63])
def test_given_an_impossible_count_it_is_invalid(n: int) -> None:
    """EINVAL, not EFAULT: no memory could satisfy it."""
    with memory_of(region(0)) as memory:
        with pytest.raises(MemoryFault) as caught:
            memory.zero_out(0, n)
        assert (caught.value.errno, caught.value.done) == (errno.EINVAL, 0)


def test_given_the_vmms_addresses_they_are_translated_within_a_region() -> None:
    """The last byte is in, one more is out; a region without such an address is in nobody's way."""
    with memory_of(region(0x1000, user_addr=0x7F0000000000), region(0x2000)) as memory:
        assert memory.guest_address(0x7F0000000000) == 0x1000
        assert memory.guest_address(0x7F0000000FFF) == 0x1FFF
        assert memory.guest_address(0x7F0000000010, 0xFF0) == 0x1010
        for user_addr, n in ((0x7F0000000010, 0xFF1), (0x7F0000001000, 1), (0x7EFFFFFFFFFF, 2), (0, 1)):
            with pytest.raises(MemoryFault):
                memory.guest_address(user_addr, n)


def test_given_permissions_they_are_asked_byte_by_byte_and_can_be_passed_over() -> None:
    """Protecting splits a region; ``ignore_permissions`` passes over that, not over a read-only mapping."""
    with memory_of(region(0), region(PAGE, offset_bytes=PAGE, writable=False)) as memory:
        memory.protect(10, 5, AccessType.READ)
        memory.protect(12, 1, AccessType.NONE)
        for size, addr, done in ((20, 0, 10), (5, 13, 0), (9, PAGE - 4, 4)):
            with pytest.raises(MemoryFault) as caught:
                memory.copy_out(addr, bytes(size))
            assert caught.value.done == done
        with pytest.raises(MemoryFault) as caught:
            memory.copy_in(10, bytearray(10))
        assert caught.value.done == 2
        assert memory.copy_out(0, bytes(20), ignore_permissions=True) == 20
        with pytest.raises(MemoryFault) as caught:
            memory.zero_out(0, 2 * PAGE, ignore_permissions=True)
        assert caught.value.done == PAGE
        with pytest.raises(MemoryFault):
            memory.load_uint32(12)
        assert memory.load_uint32(12, ignore_permissions=True) == 0
        memory.protect(0, PAGE, AccessType.WRITE)
        assert memory.copy_in(0, bytearray(PAGE)) == PAGE


def test_given_views_data_moves_between_file_and_guest_without_a_copy() -> None:
    """preadv fills the guest's memory over a joint, pwritev writes it out again."""
    with memory_of(region(0x1000, offset_bytes=5), region(0x2000, offset_bytes=PAGE + 5)) as memory:
        with file_of(PAGE, b"from the file to the guest") as disk:
            views = memory.writable_views([(0x1100, 4), (0x1FFC, 9), (0x2800, 13)])
            assert [len(view) for view in views] == [4, 4, 5, 13]
            assert os.preadv(disk, views, 0) == 26
            views = memory.readable_views([(0x1100, 4), (0x1FFC, 9), (0x2800, 0), (0x2800, 13)])
            assert os.pwritev(disk, views, 100) == 26
            assert os.pread(disk, 26, 100) == b"from the file to the guest"
            with pytest.raises(TypeError, match="read-only"):
                views[0][0] = 1
            del views
        ring = memory.writable_view(0x1003, 6).cast("H")
        ring[2] = 0x1234
        assert ring[2] == 0x1234
        ring.release()
        with pytest.raises(MemoryFault, match="one region"):
            memory.writable_view(0x1FFF, 2)
        with pytest.raises(MemoryFault):
            memory.readable_view(0x1FFF, 0)


def test_given_an_impossible_range_nobody_is_called_and_an_empty_one_is_nothing() -> None:
    """All ranges are judged before a byte moves; with nothing to move the other side is left alone."""
    reader = BlockSeqReader(BlockSeq([memoryview(b"abcdefgh")]))
    writer = BlockSeqWriter(BlockSeq([memoryview(bytearray(8))]))
    with file_of(PAGE) as fd, GuestMemory(max_addr=0x8000) as memory:
        memory.map(region(0), fd)
        for pairs in ([(0x7000, 0x7004), (0, 4)], [(0, 4), (0x7FFF, 0x8001)], [(0, 4), (TOP - 1, TOP)]):
            ranges = AddrRangeSeq(pairs)
            with pytest.raises(MemoryFault) as caught:
                memory.copy_out_from(ranges, reader)
            assert caught.value.done == 0
            with pytest.raises(MemoryFault) as caught:
                memory.copy_in_to(ranges, writer)
            assert caught.value.done == 0
        assert memory.copy_out_from(AddrRangeSeq([(0x5000, 0x5000)]), reader) == 0
        assert memory.copy_in_to(AddrRangeSeq(), writer) == 0
    assert (reader.blocks.num_bytes, writer.blocks.num_bytes) == (8, 8)


def test_given_any_buffer_of_bytes_it_can_be_copied() -> None:
    """Wider items, slices of views, empty ones: what counts is the bytes."""
    with memory_of(region(0)) as memory:
        assert memory.copy_out(0, memoryview(b"abcdefgh").cast("I")) == 8
        room = bytearray(8)
        assert memory.copy_in(0, memoryview(room).cast("H")) == 8
        assert room == b"abcdefgh"
        assert memory.copy_in(2, memoryview(room)[6:]) == 2
        assert room == b"abcdefcd"


def test_given_a_fault_that_is_kept_nothing_is_held() -> None:
    """With the exception and its traceback alive the caller's buffer can shrink, and the memory be closed."""
    with file_of(PAGE) as fd:
        memory = GuestMemory()
        memory.map(region(0), fd)
    room, ranges = bytearray(8), AddrRangeSeq([(0, 2), (PAGE - 2, PAGE + 8)])
    kept: list[BaseException] = []
    for io in (memory, BytesMemory(bytearray(PAGE))):
        calls: tuple[Callable[[], object], ...] = (
            lambda: io.copy_out(PAGE - 2, room),  # noqa: B023
            lambda: io.copy_in(PAGE - 2, room),  # noqa: B023
            lambda: copy_out_vec(io, ranges, room),  # noqa: B023
            lambda: copy_in_vec(io, ranges, room),  # noqa: B023
            lambda: io.zero_out(PAGE - 2, 8),  # noqa: B023
            lambda: io.copy_out_from(ranges, FromReader(Failing())),  # noqa: B023
            lambda: io.copy_in_to(ranges, FromWriter(Failing())),  # noqa: B023
            lambda: io.swap_uint32(PAGE - 2, 1),  # noqa: B023
            lambda: memory.readable_views([(0, 5), (PAGE - 2, 3)]),
            lambda: memory.writable_views([(0, 5), (TOP, 3)]),
            lambda: memory.writable_view(0, 0),
        )
        for call in calls:
            with pytest.raises(OSError) as caught:  # each has its own errno
                call()
            kept.append(caught.value)
            room.append(0)
            del room[8:]
    memory.close()
    assert len(kept) == 22
    assert all(error.__traceback__ is not None for error in kept)


class Failing:
    """A stream that fails at once."""

    def readinto(self, buffer: memoryview, /) -> int:
        raise OSError(errno.EIO, "told to")

    write = readinto
