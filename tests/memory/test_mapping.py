"""Regions: mapped from descriptors that somebody passed, refused by name, given back exactly."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys

import pytest

from supervisor.memory import (
    MAX_REGIONS,
    AccessType,
    BadRegion,
    GuestMemory,
    MappingFailed,
    MemoryClosed,
    MemoryFault,
    Region,
    ViewsAlive,
)
from tests.memory.conftest import PAGE, file_of, holdings, memory_of, region

TOP = 2**64 - 1


@pytest.mark.parametrize("offset", [0, 1, 4095, PAGE, PAGE + 17, 3 * PAGE - 1])
def test_given_any_offset_a_region_is_those_bytes_of_the_file(offset: int) -> None:
    """Aligned or not, the first and the last byte are the file's, and what is written arrives there."""
    content = bytes(index % 251 for index in range(8 * PAGE))
    with file_of(len(content), content) as fd, GuestMemory() as memory:
        memory.map(region(0x1000, 2 * PAGE, offset), fd)
        found = bytearray(2 * PAGE)
        assert memory.copy_in(0x1000, found) == len(found)
        assert found == content[offset : offset + 2 * PAGE]
        memory.copy_out(0x1000 + 2 * PAGE - 3, b"end")
        end = offset + 2 * PAGE
        assert os.pread(fd, 5, end - 4) == content[end - 4 : end - 3] + b"end" + content[end : end + 1]


def test_given_a_closed_descriptor_the_memory_lives_and_ends_at_close() -> None:
    """The descriptor is needed for the call only; close gives back the mapping and whatever else was held."""
    memory = GuestMemory()
    with file_of(PAGE, b"alive") as fd:
        memory.map(region(0), fd)
    room = bytearray(5)
    memory.copy_in(0, room)
    assert room == b"alive"
    descriptors, mappings = holdings()
    assert len(mappings) == 1
    assert len(descriptors) == (0 if sys.version_info >= (3, 13) else 1)
    memory.close()
    assert holdings() == ([], [])
    memory.close()
    with pytest.raises(MemoryClosed):
        memory.copy_in(0, room)
    for call in (memory.readable_views, memory.writable_views):
        with pytest.raises(MemoryClosed):
            call([(0, 1)])
    with pytest.raises(MemoryClosed):
        memory.guest_address(0)
    with pytest.raises(MemoryClosed):
        memory.load_uint32(0)


@pytest.mark.parametrize(
    ("guest_addr", "size", "offset", "user"),
    [
        (0, 0, 0, None),
        (0, -1, 0, None),
        (-1, 1, 0, None),
        (0, 1, -1, None),
        (0, 1, 0, -1),
        (TOP - PAGE + 1, PAGE, 0, None),
        (TOP, 1, 0, None),
        (0, PAGE, 0, TOP - PAGE + 1),
        (0, PAGE, 2**63 - PAGE, None),
        (0, 2**64, 0, None),
    ],
)
def test_given_impossible_numbers_a_region_is_refused(
    guest_addr: int, size: int, offset: int, user: int | None
) -> None:
    """Empty, negative, or an end that no address reaches: in the guest, in the VMM, in the file."""
    with pytest.raises(BadRegion):
        Region(guest_addr=guest_addr, size_bytes=size, offset_bytes=offset, user_addr=user)


@pytest.mark.parametrize(("size", "offset"), [(PAGE + 1, 0), (PAGE, 1), (1, PAGE), (1 << 40, 0)])
def test_given_a_file_that_is_too_short_nothing_is_mapped(size: int, offset: int) -> None:
    """The pages behind its end could be mapped, and would kill who touches them."""
    with file_of(PAGE) as fd, GuestMemory() as memory:
        with pytest.raises(BadRegion, match="of a file of 0x1000 bytes"):
            memory.map(region(0, size, offset), fd)
        assert holdings()[1] == []


def test_given_a_file_that_ends_within_a_page_its_last_byte_is_mapped() -> None:
    """The window ends with the file, not with the page."""
    with memory_of(region(0, 10, PAGE), file_bytes=PAGE + 10) as memory:
        assert memory.copy_out(0, b"0123456789") == 10
        with pytest.raises(MemoryFault) as caught:
            memory.copy_out(0, b"0123456789A")
        assert caught.value.done == 10


def test_given_what_is_no_file_it_is_refused() -> None:
    """A pipe has no size, a closed number nothing at all, and a descriptor for reading cannot be written."""
    readable, writable = os.pipe()
    try:
        with GuestMemory() as memory, pytest.raises(BadRegion, match="not a file"):
            memory.map(region(0), readable)
    finally:
        os.close(readable)
        os.close(writable)
    with file_of(PAGE) as fd, GuestMemory() as memory:
        with pytest.raises(MappingFailed) as caught:
            memory.map(region(0), 1 << 20)
        assert isinstance(caught.value.__cause__, OSError)
        only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with pytest.raises(MappingFailed) as caught:
                memory.map(region(0), only)
            assert isinstance(caught.value.__cause__, OSError)
            memory.map(region(0, writable=False), only)
        finally:
            os.close(only)


def test_given_sealed_memory_only_what_cannot_shrink_is_mapped() -> None:
    """With ``sealed``: neither an ordinary file nor a memfd without the seal."""
    with GuestMemory(sealed=True) as memory:
        with file_of(PAGE, seals=fcntl.F_SEAL_GROW) as fd, pytest.raises(BadRegion, match="shrinking"):
            memory.map(region(0), fd)
        with open(__file__, "rb") as file, pytest.raises(BadRegion, match="no memfd"):
            memory.map(region(0, 10), file.fileno())
        with file_of(PAGE, seals=fcntl.F_SEAL_SHRINK) as fd:
            memory.map(region(0), fd)
            with pytest.raises(OSError, match="permitted"):
                os.ftruncate(fd, 0)


def test_given_regions_that_meet_the_second_is_refused() -> None:
    """In the guest's addresses or in the VMM's; touching ends are no meeting."""
    with memory_of(region(PAGE, user_addr=0x70000)) as memory, file_of(8 * PAGE) as fd:
        for other in (
            region(PAGE),
            region(PAGE - 1),
            region(2 * PAGE - 1),
            region(0, 3 * PAGE),
            region(PAGE + 5, 5),
            region(9 * PAGE, user_addr=0x70FFF),
        ):
            with pytest.raises(BadRegion, match="another region"):
                memory.map(other, fd)
        memory.map(region(0, user_addr=0x71000), fd)
        memory.map(region(2 * PAGE, user_addr=0x6F000), fd)
        assert [found.guest_addr for found in memory.regions] == [0, PAGE, 2 * PAGE]


def test_given_a_bad_region_among_several_none_of_them_is_mapped() -> None:
    """All or nothing; what was there before stays."""
    with memory_of(region(0)) as memory, file_of(PAGE) as fd:
        with pytest.raises(BadRegion):
            memory.map_all([(region(PAGE), fd), (region(2 * PAGE), fd), (region(PAGE), fd)])
        assert memory.regions == (region(0),)
        assert len(holdings()[1]) == 1


def test_given_more_regions_than_the_limit_the_next_is_refused() -> None:
    """A peer cannot make us map without end."""
    with memory_of(*[region(index * PAGE) for index in range(MAX_REGIONS)]) as memory, file_of(PAGE) as fd:
        with pytest.raises(BadRegion, match=str(MAX_REGIONS)):
            memory.map(region(MAX_REGIONS * PAGE), fd)
        with pytest.raises(BadRegion, match="space up to"), GuestMemory(max_addr=PAGE) as small:
            small.map(region(1), fd)


def test_given_views_alive_a_region_stays_and_says_so() -> None:
    """Neither unmap nor close pulls memory away from under a view; both work once it is gone."""
    memory = GuestMemory()
    with file_of(2 * PAGE) as fd:
        memory.map_all([(region(0), fd), (region(PAGE, offset_bytes=PAGE), fd)])
    memory.protect(5, 5, AccessType.READ)
    held = memory.writable_view(PAGE + 1, 3)
    with pytest.raises(ViewsAlive, match="0x1000") as caught:
        memory.unmap(PAGE)
    assert isinstance(caught.value.__cause__, BufferError)
    assert memory.copy_out(PAGE, b"still here") == 10
    memory.unmap(0)
    with pytest.raises(BadRegion):
        memory.unmap(0)
    with pytest.raises(ViewsAlive):
        memory.close()
    with pytest.raises(MemoryClosed):
        memory.copy_out(PAGE, b"x")
    held[:] = b"end"
    assert len(holdings()[1]) == 1
    del held
    memory.close()
    assert memory.regions == ()


def test_given_an_error_inside_with_that_error_comes_out() -> None:
    """Views that its traceback holds do not take its place."""
    with file_of(PAGE) as fd:
        memory = GuestMemory()
        memory.map(region(0), fd)
        held: list[memoryview] = []
        with pytest.raises(KeyError), memory:  # noqa: PT012  # the block is what is tested
            held.append(memory.writable_view(0, 8))
            raise KeyError
        assert memory.closed
        del held
        memory.close()


def test_given_memory_that_is_not_forked_a_child_that_writes_there_dies() -> None:
    """By a signal, and nothing has changed; with it, as always, a child shares what is shared."""
    for forked in (False, True):
        with file_of(PAGE) as fd, GuestMemory(forked=forked) as memory:
            memory.map(region(0, PAGE), fd)
            pid = os.fork()
            if not pid:
                with contextlib.suppress(BaseException):
                    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
                    memory.writable_view(0, 1)[0] = 7
                os._exit(0)
            _pid, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == (0 if forked else -signal.SIGSEGV)
            assert os.pread(fd, 1, 0) == (b"\7" if forked else b"\0")
