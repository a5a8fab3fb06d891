"""Every row of vectors/usermem.json: what usermem and what it stands on do, to the count and the error.

Each group of rows has one runner. What a row says is compared where it says it; the last test counts the
rows, so that a group without a runner, or a row with a word that no runner knows, is noticed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.memory import (
    IO,
    AccessType,
    BytesMemory,
    GuestMemory,
    IOReadWriter,
    IOSequence,
    MemoryFault,
    Region,
    copy_in_vec,
    copy_int32_strings_in_vec,
    copy_out_vec,
    copy_string_in,
    zero_out_vec,
)
from tests.memory import test_vectors_values
from tests.memory.conftest import file_of, seq
from tests.memory.peers import Recording, Sink, Source
from tests.memory.rows import VECTORS, Row, expected, outcome, raw, rows

ROWS = 146


def check_call(row: Row, io: IO, memory: bytearray) -> None:
    """Run one copy of any kind, and compare everything that the row says of it."""
    op, dst = row["op"], bytearray(raw(row.get("dst", "")))
    source = Source(row["reader"]) if "reader" in row else None
    sink = Sink(row["writer"]) if "writer" in row else None
    ranges = seq(row.get("ranges", []))
    calls: dict[str, Callable[[], int]] = {
        "copy_out": lambda: io.copy_out(row["addr"], raw(row["src"])),
        "copy_in": lambda: io.copy_in(row["addr"], dst),
        "zero_out": lambda: io.zero_out(row["addr"], row["to_zero"]),
        "copy_out_from": lambda: io.copy_out_from(ranges, source),  # type: ignore[arg-type]
        "copy_in_to": lambda: io.copy_in_to(ranges, sink),  # type: ignore[arg-type]
        "copy_out_vec": lambda: copy_out_vec(io, ranges, raw(row["src"])),
        "copy_in_vec": lambda: copy_in_vec(io, ranges, dst),
        "zero_out_vec": lambda: zero_out_vec(io, ranges, row["to_zero"]),
    }
    assert outcome(calls[op]) == expected(row)
    assert bytes(memory) == raw(row["mem_after"] if "mem_after" in row else row["mem"])
    if "out" in row:
        assert bytes(dst if sink is None else sink.taken) == raw(row["out"])
    if source is not None:
        assert source.calls == row.get("reader_calls", 1)
        assert source.offered == row.get("reader_offered_bytes", source.offered)


@rows("bytes_io")
def test_bytes_io(row: Row) -> None:
    """Copies over plain bytes: prefix, count, error, and whose error wins."""
    memory = bytearray(raw(row["mem"]))
    check_call(row, BytesMemory(memory), memory)


@rows("vec")
def test_vec(row: Row) -> None:
    """Copies over several ranges, and which accesses they make."""
    memory = bytearray(raw(row["mem"]))
    io = Recording(BytesMemory(memory))
    check_call(row, io, memory)
    assert io.calls == row.get("calls", io.calls)


@rows("atomics")
@pytest.mark.parametrize("guest", [False, True], ids=["bytes", "guest"])
def test_atomics(row: Row, guest: bool) -> None:
    """The word before, and nothing changed by a fault; the same over bytes and over mapped memory."""
    memory = bytearray(raw(row["mem"]))

    def run(io: IO) -> tuple[int, str | None]:
        if row["op"] == "load_u32":
            return outcome(io.load_uint32, row["addr"])
        if row["op"] == "swap_u32":
            return outcome(io.swap_uint32, row["addr"], row["new"])
        assert row["op"] == "cas_u32"
        return outcome(io.compare_and_swap_uint32, row["addr"], row["old"], row["new"])

    if guest:
        with file_of(len(memory), bytes(memory)) as fd, GuestMemory() as mapped:
            mapped.map(Region(guest_addr=0, size_bytes=len(memory)), fd)
            assert run(mapped) == (row["value"], row["err"])
            mapped.copy_in(0, memory)
    else:
        assert run(BytesMemory(memory)) == (row["value"], row["err"])
    assert bytes(memory) == raw(row["mem_after"])


@rows("copy_string_in")
def test_copy_string_in(row: Row) -> None:
    """Up to the NUL, the limit or the end of memory, page by page."""
    io = Recording(BytesMemory(raw(row["mem"]), base=row["mem_base"]))
    if row["err"] is None:
        assert copy_string_in(io, row["addr"], row["maxlen"]) == raw(row["value"])
    else:
        with pytest.raises(MemoryFault) as caught:
            copy_string_in(io, row["addr"], row["maxlen"])
        assert errno.errorcode[caught.value.errno or 0] == row["err"]
        assert caught.value.data == raw(row["value"])
        assert caught.value.done == len(caught.value.data)
    assert io.calls == row.get("copy_in_calls", io.calls)


@rows("copy_int32_strings_in_vec")
def test_copy_int32_strings_in_vec(row: Row) -> None:
    """Numbers, whitespace, and the order in which errors count."""
    text, dsts = raw(row["text"]), list(row["initial"])
    ranges = seq(row.get("ranges", [[0, len(text)]]))
    n, error = outcome(copy_int32_strings_in_vec, BytesMemory(text), ranges, dsts)
    assert (error, dsts) == (row["err"], row["final"])
    assert row.get("n_unasserted") or n == row["n"]


@rows("io_sequence")
def test_io_sequence(row: Row) -> None:
    """Steps on a sequence, its reader and its writer."""
    memory = bytearray(raw(row["mem"]))
    dst = bytearray(raw(row.get("dst", "")))
    sequence = IOSequence(BytesMemory(memory), seq(row.get("ranges", [[0, len(memory)]])))
    cursor: Any = None
    for step in row["steps"]:
        op = step["op"]
        if op == "copy_out":
            assert outcome(sequence.copy_out, raw(step["src"])) == expected(step)
        elif op == "copy_in":
            low, high = step["dst_slice"]
            part = memoryview(dst)[low:high]
            assert outcome(sequence.copy_in, part) == expected(step)
        elif op == "copy_out_from":
            source = Source(step["reader"])
            assert outcome(sequence.copy_out_from, source) == expected(step)
        elif op == "drop_first":
            sequence = sequence.drop_first(step["n"])
        elif op == "take_first":
            sequence = sequence.take_first(step["n"])
        elif op in ("reader", "writer"):
            cursor = getattr(sequence, op)()
        elif op == "read":
            data = bytearray(step["size"])
            assert outcome(cursor.readinto, data) == expected(step)
            assert bytes(data[: step["n"]]) == raw(step["data"])
        elif op == "write":
            assert outcome(cursor.write, raw(step["src"])) == expected(step)
        elif op == "len":
            assert cursor.num_bytes == step["value"]
        else:
            assert op == "num_bytes"
        assert sequence.num_bytes == step.get("num_bytes", sequence.num_bytes)
        assert bytes(memory) == raw(step.get("mem_after", memory.decode("latin-1")))
        assert bytes(dst) == raw(step.get("dst_after", dst.decode("latin-1")))


@rows("io_read_writer")
def test_io_read_writer(row: Row) -> None:
    """A cursor that moves by what was copied and never wraps."""
    memory = bytearray(raw(row["mem"]))
    cursor = IOReadWriter(BytesMemory(memory, base=row["mem_base"]), row["addr"])
    for step in row["steps"]:
        data = bytearray(step.get("size", 0))
        if step["op"] == "read":
            assert outcome(cursor.readinto, data) == expected(step)
            assert bytes(data[: step["n"]]) == raw(step["data"])
        else:
            assert outcome(cursor.write, raw(step["src"])) == expected(step)
            assert bytes(memory) == raw(step["mem_after"])
        assert cursor.addr == step["addr_after"]


@rows("permissions")
def test_permissions(row: Row) -> None:
    """Mapped memory: permissions, holes, the end of the space, two mappings."""
    pieces: list[list[int]] = row.get("mapped") or row.get("mapped_separately") or [[0, 4096]]
    memory = GuestMemory(max_addr=row["max_addr"]) if "max_addr" in row else GuestMemory()
    with file_of(pieces[-1][1]) as fd, memory:
        for start, end in pieces:
            access = AccessType.parse(row.get("page_perm", "rw"))
            region = Region(guest_addr=start, size_bytes=end - start, offset_bytes=start, access=access)
            memory.map(region, fd)
        for step in row["steps"]:
            addr, n = step.get("addr", pieces[0][0]), step.get("len", 0)
            ignore = step.get("ignore_permissions", False)
            if step["op"] == "protect":
                memory.protect(addr, end - start, AccessType.parse(step["perm"]))
            elif step["op"] == "copy_out":
                assert outcome(memory.copy_out, addr, bytes(n), ignore_permissions=ignore) == expected(step)
            elif step["op"] == "copy_in":
                assert outcome(lambda: memory.copy_in(addr, bytearray(n))) == expected(step)  # noqa: B023
            elif step["op"] == "load_u32":
                assert outcome(lambda: memory.load_uint32(addr)) == (step["value"], step["err"])  # noqa: B023
            else:
                assert step["op"] == "copy_out_from"
                source, ranges = Source(step["reader"]), seq(step["ranges"])
                assert outcome(lambda: memory.copy_out_from(ranges, source)) == expected(step)  # noqa: B023
                assert source.calls == step["reader_calls"]


def test_given_all_vectors_none_is_left_out() -> None:
    """Every group has a runner here, whose rows are all of it; a changed number of rows is noticed."""
    runners = {
        name.removeprefix("test_"): value
        for name, value in {**vars(test_vectors_values), **globals()}.items()
        if name.startswith("test_") and any(m.args[0] == "row" for m in getattr(value, "pytestmark", []))
    }
    groups = {
        name if inner is None else f"{name}_{inner}": found
        for name, group in VECTORS.items()
        if name != "meta"
        for inner, found in (group.items() if isinstance(group, dict) else [(None, group)])
    }
    assert set(runners) == set(groups)
    counted = 0
    for name, group in groups.items():
        (mark,) = [m for m in runners[name].pytestmark if m.args[0] == "row"]
        assert [parameter.values[0] for parameter in mark.args[1]] == group
        counted += len(group)
    assert counted == ROWS
