"""What the vectors leave out: the door, errors with their counts, limits, and custom peers."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from collections.abc import Callable

import pytest

import supervisor.memory
from supervisor.errors import InternalError, LocalError, TubevisorError
from supervisor.memory import (
    AddrRange,
    AddrRangeSeq,
    BlockSeq,
    BytesMemory,
    EndOfData,
    EndOfSpace,
    FromReader,
    FromWriter,
    IOSequence,
    MemoryFault,
    copy_in_vec,
    copy_int32_string_in_vec,
    copy_int32_strings_in_vec,
    copy_seq,
    copy_string_in,
    done_of,
    read_full_to_blocks,
    to_range,
    write_full_from_blocks,
    zero_seq,
)
from supervisor.memory.io import MAX_INT32_TEXT_BYTES
from tests.memory.conftest import DEADLINE_S
from tests.memory.peers import Recording


def test_given_the_door_the_fence_alone_loads_no_more() -> None:
    """The users of the journal come through it, and need neither mmap's mappings nor ctypes."""
    code = "import sys; from supervisor.memory.fence import FENCE; print(*sorted(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    loaded = done.stdout.split()
    assert "ctypes" not in loaded
    ours = [name for name in loaded if name.startswith("supervisor.memory.")]
    assert ours == ["supervisor.memory.fence"]


def test_given_the_door_it_has_every_name_and_no_other() -> None:
    """A name that is not there is an AttributeError that says what is."""
    for name in supervisor.memory.__all__:
        assert getattr(supervisor.memory, name) is not None or name == "FENCE"
    with pytest.raises(AttributeError, match="GuestMemory"):
        supervisor.memory.Nothing  # noqa: B018


def test_given_a_fault_it_is_an_oserror_with_errno_and_count() -> None:
    """Who knows nothing of this room catches an OSError."""
    with pytest.raises(OSError, match="not there") as caught:
        BytesMemory(b"abc").copy_in(1, bytearray(9))
    fault = caught.value
    assert isinstance(fault, MemoryFault)
    assert isinstance(fault, TubevisorError)
    assert (fault.errno, fault.done, fault.data, done_of(fault)) == (errno.EFAULT, 2, b"", 2)
    assert done_of(KeyError()) == 0


def test_given_streams_of_the_library_they_read_and_write_blocks() -> None:
    """An ordinary binary stream is a peer through its adapter."""
    memory = bytearray(b"--------")
    ranges = AddrRangeSeq([(4, 7), (1, 4)])
    assert BytesMemory(memory).copy_out_from(ranges, FromReader(io.BytesIO(b"barfoo"))) == 6
    assert memory == b"-foobar-"
    out = io.BytesIO()
    assert BytesMemory(memory).copy_in_to(ranges, FromWriter(out)) == 6
    assert out.getvalue() == b"barfoo"


def test_given_a_sequence_as_a_stream_it_feeds_another_memory() -> None:
    """Its reader says the end with the last bytes; as the last block's that is no error."""
    source = IOSequence(BytesMemory(b"abcdef"), AddrRangeSeq([(3, 6), (0, 3)]))
    memory = bytearray(8)
    assert BytesMemory(memory).copy_out_from(AddrRangeSeq([(0, 2), (4, 8)]), FromReader(source.reader())) == 6
    assert memory == b"de\0\0fabc"
    with pytest.raises(EndOfData) as caught:
        BytesMemory(memory).copy_out_from(AddrRangeSeq([(0, 6), (6, 8)]), FromReader(source.reader()))
    assert caught.value.done == 6
    target = IOSequence(BytesMemory(memory), AddrRangeSeq([(0, 4)]))
    with pytest.raises(EndOfSpace) as full:
        BytesMemory(b"abcdef").copy_in_to(AddrRangeSeq([(0, 3), (3, 6)]), FromWriter(target.writer()))
    assert (full.value.done, bytes(memory[:4])) == (4, b"abcd")


def test_given_a_fault_within_a_sequence_cursors_stand_behind_what_was_copied() -> None:
    """The count is that of the whole copy, over all its ranges."""
    sequence = IOSequence(BytesMemory(bytearray(b"abcd")), AddrRangeSeq([(0, 2), (2, 9)]))
    reader, writer = sequence.reader(), sequence.writer()
    calls: tuple[Callable[[], int], ...] = (
        lambda: reader.readinto(bytearray(9)),
        lambda: writer.write(bytes(9)),
        lambda: sequence.zero_out(9),
        lambda: sequence.copy_in(bytearray(9)),
    )
    for call in calls:
        with pytest.raises(MemoryFault) as caught:
            call()
        assert caught.value.done == 4
    assert (reader.num_bytes, writer.num_bytes) == (5, 5)


class Failing:
    """A stream that takes or gives ``n`` bytes a call, and after ``calls`` of them fails or has nothing."""

    def __init__(self, n: int, calls: int, error: Exception | None) -> None:
        self.n, self.calls, self.error = n, calls, error

    def readinto(self, buffer: memoryview, /) -> int:
        if not self.calls:
            if self.error:
                raise self.error
            return 0
        self.calls -= 1
        buffer[: self.n] = b"x" * len(buffer[: self.n])
        return len(buffer[: self.n])

    write = readinto


def test_given_peers_that_fail_their_error_comes_out_with_the_count() -> None:
    """As it is: neither wrapped nor turned into EFAULT."""
    blocks = BlockSeq([memoryview(bytearray(3)), memoryview(bytearray(3))])
    for write in (False, True):
        error = BlockingIOError(errno.EAGAIN, "not now")
        peer = Failing(3, 1, error)
        with pytest.raises(BlockingIOError) as caught:
            FromWriter(peer).write_from_blocks(blocks) if write else FromReader(peer).read_to_blocks(blocks)
        assert caught.value is error
        assert done_of(error) == 3


def test_given_full_transfers_they_go_on_after_short_ones() -> None:
    """To the end, or to the error with the whole count; who moves nothing is at its end."""
    blocks = BlockSeq([memoryview(bytearray(3)), memoryview(bytearray(4))])
    assert read_full_to_blocks(FromReader(Failing(2, 9, None)), blocks) == 7
    assert write_full_from_blocks(FromWriter(Failing(2, 9, None)), blocks) == 7
    with pytest.raises(EndOfData) as end:
        read_full_to_blocks(FromReader(Failing(2, 3, None)), blocks)
    assert end.value.done == 5
    with pytest.raises(EndOfSpace) as full:
        write_full_from_blocks(FromWriter(Failing(2, 3, None)), blocks)
    assert full.value.done == 5
    with pytest.raises(OSError, match="told") as caught:
        write_full_from_blocks(FromWriter(Failing(2, 2, OSError(errno.EIO, "told"))), blocks)
    assert done_of(caught.value) == 3


def test_given_an_io_that_comes_short_in_silence_it_is_a_defect() -> None:
    """Going on would leave a gap in the data."""

    class Short(Recording):
        def copy_in(self, addr: int, dst: bytearray | memoryview, *, ignore_permissions: bool = False) -> int:
            return len(dst) - 1

    with pytest.raises(InternalError):
        copy_in_vec(Short(BytesMemory(b"")), AddrRangeSeq([(0, 4)]), bytearray(4))


def test_given_numbers_of_any_length_only_their_value_counts() -> None:
    """Thousands of zeros are a number, as is a sign; Python's own liberties are not."""
    for text, value in ((b"-" + b"0" * 9000 + b"12 ", -12), (b"+7", 7), (b"-0", 0)):
        found = copy_int32_string_in_vec(BytesMemory(text), AddrRangeSeq([(0, len(text))]))
        assert found == (value, len(text))
    for text in (b"1_0", "٣".encode(), b"0x1", b"1" + b"0" * 9000, b"+-1", b"1\xa02", b"\x851"):
        with pytest.raises(MemoryFault) as caught:
            copy_int32_string_in_vec(BytesMemory(text), AddrRangeSeq([(0, len(text))]))
        assert (caught.value.errno, caught.value.done) == (errno.EINVAL, 0)


def test_given_numbers_cut_by_a_fault_what_was_read_is_stored_and_the_fault_comes_out() -> None:
    """The last one as far as it goes; nothing is read for an empty list; too much text is a mistake."""
    dsts = [0, 0, 0]
    with pytest.raises(MemoryFault) as caught:
        copy_int32_strings_in_vec(BytesMemory(b"1 23"), AddrRangeSeq([(0, 2), (2, 9)]), dsts)
    assert (caught.value.errno, caught.value.done, dsts) == (errno.EFAULT, 4, [1, 23, 0])
    memory = Recording(BytesMemory(b""))
    assert copy_int32_strings_in_vec(memory, AddrRangeSeq([(5, 9)]), []) == 0
    assert memory.calls == []
    with pytest.raises(LocalError):
        copy_int32_strings_in_vec(memory, AddrRangeSeq([(0, MAX_INT32_TEXT_BYTES + 1)]), [0])


def test_given_callers_mistakes_they_are_named() -> None:
    """Ranges that are none, negative counts, heads of nothing, memory beyond the last address."""
    for start, end in ((2, 1), (-1, 1), (0, 2**64)):
        with pytest.raises(LocalError):
            AddrRange(start, end)
    for mistake in (
        lambda: copy_string_in(BytesMemory(b""), 0, -1),
        lambda: BlockSeq().head(),
        lambda: BlockSeq().tail(),
        lambda: BlockSeq().drop_first(-1),
        lambda: BlockSeq().take_first(-1),
        lambda: AddrRangeSeq().drop_first(-1),
        lambda: BytesMemory(b"ab", base=2**64 - 1),
    ):
        with pytest.raises(LocalError):
            mistake()
    assert to_range(2**64 - 1, 1) is None
    assert to_range(5, 3) == AddrRange(5, 8)


def test_given_blocks_of_different_lengths_they_are_copied_and_cleared() -> None:
    """Until the shorter side ends; longer than what is cleared at once."""
    target, source = bytearray(5), [memoryview(b"ab"), memoryview(b"cdefg")]
    assert copy_seq(BlockSeq([memoryview(target)[:3], memoryview(target)[3:]]), BlockSeq(source)) == 5
    assert target == b"abcde"
    large = bytearray(b"x" * 150_000)
    assert zero_seq(BlockSeq([memoryview(large)[1:-1]])) == 149_998
    assert large == b"x" + bytes(149_998) + b"x"
