"""Random copies against a plain model: a dictionary of bytes, one entry for each address that is mapped.

The model knows nothing of regions, pieces or blocks; it goes byte by byte. Hypothesis prints what failed.
"""

from __future__ import annotations

import errno
from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st

from supervisor.memory import (
    AccessType,
    AddrRange,
    AddrRangeSeq,
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    GuestMemory,
    IOSequence,
    MemoryFault,
    Region,
    copy_in_vec,
    copy_out_vec,
    zero_out_vec,
)
from supervisor.memory.regions import window
from tests.memory.conftest import file_of
from tests.memory.rows import outcome

SPACE = 160  # guest addresses, few enough that most copies touch an edge
FILE_BYTES = 3 * 4096
FILL = bytes(range(256)) * (FILE_BYTES // 256)


@st.composite
def region_lists(draw: st.DrawFn) -> list[Region]:
    """Regions in order, some adjacent, at odd offsets of a file; none overlap there either."""
    found, addr, offset = [], 0, draw(st.integers(0, 4096))
    for _ in range(draw(st.integers(0, 5))):
        addr += draw(st.sampled_from([0, 0, 1, 7, 20]))
        size = draw(st.integers(1, 24))
        access = draw(st.sampled_from([AccessType.READ_WRITE, AccessType.READ_WRITE, AccessType.READ]))
        writable = draw(st.sampled_from([True, True, True, False]))
        found.append(
            Region(guest_addr=addr, size_bytes=size, offset_bytes=offset, access=access, writable=writable)
        )
        addr += size
        offset += size + draw(st.integers(0, 700))
    return found


addresses = st.integers(0, SPACE + 8)
range_lists = st.lists(st.tuples(addresses, st.integers(0, 40)), max_size=5)
copies = st.tuples(
    st.sampled_from(["copy_out", "copy_in", "zero_out", "copy_out_from", "copy_in_to", "vec_out", "vec_in"]),
    range_lists.filter(bool),
    st.integers(0, 60),
    st.booleans(),
)
protections = st.tuples(
    addresses, st.integers(0, 30), st.sampled_from([AccessType.NONE, AccessType.READ, AccessType.WRITE])
)


class Model:
    """The same memory by address: the byte, its permissions, whether it is backed for writing."""

    def __init__(self, regions: list[Region]) -> None:
        self.bytes: dict[int, int] = {}
        self.access: dict[int, AccessType] = {}
        self.backed: dict[int, bool] = {}
        for region in regions:
            for index in range(region.size_bytes):
                self.bytes[region.guest_addr + index] = FILL[region.offset_bytes + index]
                self.access[region.guest_addr + index] = region.access
                self.backed[region.guest_addr + index] = region.writable

    def reach(self, addr: int, n: int, write: bool, ignore: bool) -> int:
        """How many of ``n`` bytes at ``addr`` can be accessed before one that cannot."""
        need = AccessType.WRITE if write else AccessType.READ
        for index in range(n):
            at = addr + index
            if at not in self.bytes or (write and not self.backed[at]):
                return index
            if not ignore and not self.access[at].effective() & need:
                return index
        return n

    def out(self, ranges: list[tuple[int, int]], data: bytes, ignore: bool) -> tuple[int, str | None]:
        done = 0
        for addr, n in ranges:
            n = min(n, len(data) - done)
            there = self.reach(addr, n, True, ignore)
            self.bytes.update(zip(range(addr, addr + there), data[done:], strict=False))
            done += there
            if there < n:
                return done, "EFAULT"
        return done, None

    def in_(self, ranges: list[tuple[int, int]], limit: int, ignore: bool) -> tuple[bytes, str | None]:
        data = b""
        for addr, n in ranges:
            n = min(n, limit - len(data))
            there = self.reach(addr, n, False, ignore)
            data += bytes(self.bytes[at] for at in range(addr, addr + there))
            if there < n:
                return data, "EFAULT"
        return data, None


def _run(memory: GuestMemory, model: Model, copy: tuple[str, list[tuple[int, int]], int, bool]) -> None:
    """One copy on both; they must agree on count, error and data."""
    op, ranges, n, ignore = copy
    options: dict[str, Any] = {"ignore_permissions": ignore}
    sequence = AddrRangeSeq((addr, addr + length) for addr, length in ranges)
    (addr, _), data = ranges[0], bytes((7 * index + n) % 251 + 1 for index in range(max(n, 200)))
    room = bytearray(b"\xee" * (n if op != "copy_in_to" else sequence.num_bytes))
    if op == "copy_out":
        assert outcome(memory.copy_out, addr, data[:n], **options) == model.out([(addr, n)], data[:n], ignore)
    elif op == "zero_out":
        assert outcome(memory.zero_out, addr, n, **options) == model.out([(addr, n)], bytes(n), ignore)
    elif op == "vec_out":
        assert outcome(copy_out_vec, memory, sequence, data[:n], **options) == model.out(
            ranges, data[:n], ignore
        )
    elif op == "copy_out_from":
        reader = BlockSeqReader(BlockSeq([memoryview(data)]))
        total = min(sequence.num_bytes, len(data))
        assert outcome(memory.copy_out_from, sequence, reader, **options) == model.out(
            ranges, data[:total], ignore
        )
    else:
        if op == "copy_in":
            found = outcome(memory.copy_in, addr, room, **options)
            want = model.in_([(addr, n)], n, ignore)
        elif op == "vec_in":
            found = outcome(copy_in_vec, memory, sequence, room, **options)
            want = model.in_(ranges, n, ignore)
        else:
            writer = BlockSeqWriter(BlockSeq([memoryview(room)]))
            found = outcome(memory.copy_in_to, sequence, writer, **options)
            want = model.in_(ranges, len(room), ignore)
        assert found == (len(want[0]), want[1])
        assert bytes(room) == want[0] + b"\xee" * (len(room) - len(want[0]))


@settings(deadline=None)
@given(
    regions=region_lists(),
    shields=st.lists(protections, max_size=3),
    work=st.lists(copies, max_size=12),
)
def test_given_any_regions_any_copies_do_what_single_bytes_do(
    regions: list[Region], shields: list[Any], work: list[Any]
) -> None:
    """Counts, errors and every byte of memory and buffer, over holes, joints and permissions."""
    note(f"{regions}")
    model = Model(regions)
    with file_of(FILE_BYTES, FILL) as fd, GuestMemory() as memory:
        memory.map_all([(region, fd) for region in regions])
        for addr, n, access in shields:
            memory.protect(addr, n, access)
            model.access.update(dict.fromkeys(set(range(addr, addr + n)) & set(model.access), access))
        for copy in work:
            _run(memory, model, copy)
        for addr, value in model.bytes.items():
            one = bytearray(1)
            memory.copy_in(addr, one, ignore_permissions=True)
            assert one[0] == value


@settings(deadline=None)
@given(regions=region_lists(), buffers=range_lists)
def test_given_any_regions_views_are_the_bytes_of_copies(
    regions: list[Region], buffers: list[tuple[int, int]]
) -> None:
    """Views hold what copies would, in order, none of them empty; or the fault has its count."""
    model = Model(regions)
    with file_of(FILE_BYTES, FILL) as fd, GuestMemory() as memory:
        memory.map_all([(region, fd) for region in regions])
        for write, call in ((False, memory.readable_views), (True, memory.writable_views)):
            faults = [(addr, n) for addr, n in buffers if model.reach(addr, n, write, False) < n]
            if faults:
                before = buffers[: buffers.index(faults[0])]
                count = sum(n for _, n in before) + model.reach(*faults[0], write, False)
                try:
                    call(buffers)
                except MemoryFault as fault:
                    found = (fault.errno, fault.done)
                assert found == (errno.EFAULT, count)
                continue
            views = call(buffers)
            assert b"".join(views) == model.in_(buffers, SPACE * 9, True)[0]
            assert all(len(view) and view.readonly is not write for view in views)
            for view in views:
                view.release()


def _flat(ranges: AddrRangeSeq) -> list[int]:
    return [addr for start, end in ranges for addr in range(start, end)]


pairs = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4)), max_size=6)


@given(pairs=pairs, steps=st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=6))
def test_given_any_sequence_dropping_and_taking_is_that_of_its_bytes(
    pairs: list[tuple[int, int]], steps: list[tuple[bool, int]]
) -> None:
    """The bytes are those of a list, no range is lost by taking, and head by head there is an end."""
    ranges = AddrRangeSeq((start, start + n) for start, n in pairs)
    flat = _flat(ranges)
    for drop, n in steps:
        before = ranges
        ranges = ranges.drop_first(n) if drop else ranges.take_first(n)
        flat = flat[n:] if drop else flat[:n]
        assert (_flat(ranges), ranges.num_bytes) == (flat, len(flat))
        assert drop or ranges.num_ranges == before.num_ranges
        assert ranges == AddrRangeSeq(list(ranges))
    for _ in range(ranges.num_ranges):
        assert not ranges.is_empty
        ranges = ranges.drop_first(ranges.head().length)
    assert ranges.is_empty


@given(
    one=st.tuples(st.integers(0, 9), st.integers(0, 9)), two=st.tuples(st.integers(0, 9), st.integers(0, 9))
)
def test_given_two_ranges_their_relations_are_those_of_sets(
    one: tuple[int, int], two: tuple[int, int]
) -> None:
    """Overlap, containment and intersection of non-empty ranges are those of the sets of their addresses."""
    a, b = AddrRange(*sorted(one)), AddrRange(*sorted(two))
    ours, theirs = set(range(*a)), set(range(*b))
    assert set(range(*a.intersect(b))) == ours & theirs
    if ours and theirs:
        assert a.overlaps(b) == bool(ours & theirs)
        assert a.is_superset_of(b) == (ours >= theirs)
    assert all(a.contains(addr) == (addr in ours) for addr in range(10))


@given(sizes=st.lists(st.integers(0, 5), max_size=6), n=st.integers(0, 30))
def test_given_any_blocks_dropping_and_taking_is_that_of_their_bytes(sizes: list[int], n: int) -> None:
    """As for ranges, without those of length zero."""
    data = memoryview(bytes(range(30)))
    blocks = BlockSeq(data[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes)))
    whole = b"".join(blocks)
    assert b"".join(blocks.drop_first(n)) == whole[n:]
    assert b"".join(blocks.take_first(n)) == whole[:n]
    assert all(len(block) for part in (blocks.drop_first(n), blocks.take_first(n)) for block in part)


@given(
    offset=st.integers(0, 1 << 24),
    size=st.integers(1, 1 << 24),
    slack=st.integers(0, 1 << 22),
    block=st.sampled_from([512, 4096, 65536, 1 << 21, 1 << 30, 3000, 0]),
)
def test_given_any_region_its_window_is_whole_pages_around_it(
    offset: int, size: int, slack: int, block: int
) -> None:
    """It starts at a page, holds the region, and never reaches beyond the file."""
    region = Region(guest_addr=0, size_bytes=size, offset_bytes=offset)
    unit = max(4096, block) if block not in (3000, 0) else 4096
    found = window(region, offset + size + slack, block, 4096)
    assert found.offset_bytes % unit == 0
    assert found.offset_bytes + found.skip_bytes == offset
    end = found.offset_bytes + found.length_bytes
    assert offset + size <= end <= offset + size + slack
    assert end % unit == 0 or end == offset + size + slack


@given(pairs=pairs, cut=st.integers(0, 20), n=st.integers(0, 24))
def test_given_a_cut_sequence_every_copy_over_it_ends(pairs: list[tuple[int, int]], cut: int, n: int) -> None:
    """Ranges emptied by ``take_first`` do not stop a copy; its count is the shorter length."""
    ranges = AddrRangeSeq((start, start + length) for start, length in pairs).take_first(cut)
    with file_of(4096) as fd, GuestMemory() as memory:
        memory.map(Region(guest_addr=0, size_bytes=4096), fd)
        want = min(n, ranges.num_bytes)
        assert copy_out_vec(memory, ranges, bytes(n)) == want
        assert copy_in_vec(memory, ranges, bytearray(n)) == want
        assert zero_out_vec(memory, ranges, n) == want
        assert IOSequence(memory, ranges).drop_first(want).copy_out(bytes(n)) == min(
            n, ranges.num_bytes - want
        )
