"""The rows of vectors/usermem.json about values: addresses, ranges, blocks, permissions. See test_vectors."""

from __future__ import annotations

import pytest

from supervisor.errors import LocalError
from supervisor.memory import (
    AccessType,
    AddrRangeSeq,
    BlockSeq,
    BlockSeqReader,
    BlockSeqWriter,
    FromReader,
    FromWriter,
    add_length,
    cache_line_round_up,
    page_round_down,
    page_round_up,
)
from tests.memory.conftest import seq
from tests.memory.peers import Sink, Source
from tests.memory.rows import Row, expected, outcome, raw, rows


@rows("addr_range_seq", "tail_iteration")
def test_addr_range_seq_tail_iteration(row: Row) -> None:
    """Head by head to the end."""
    ranges = seq(row["ranges"])
    for step in row["steps"]:
        assert not ranges.is_empty
        assert (ranges.num_bytes, ranges.num_ranges) == (step["num_bytes"], step["num_ranges"])
        assert list(ranges.head()) == step["head"]
        ranges = ranges.tail()
    found = {"is_empty": ranges.is_empty, "num_bytes": ranges.num_bytes, "num_ranges": ranges.num_ranges}
    assert found == row["final"]


@rows("addr_range_seq", "drop_single_byte_iteration")
def test_addr_range_seq_drop_single_byte_iteration(row: Row) -> None:
    """Byte by byte to the end; an empty range goes for no byte."""
    ranges = seq(row["ranges"])
    for step in row["steps"]:
        assert not ranges.is_empty
        assert (ranges.num_bytes, list(ranges.head())) == (step["num_bytes"], step["head"])
        ranges = ranges.drop_first(step["drop"])
    assert {"is_empty": ranges.is_empty, "num_bytes": ranges.num_bytes} == row["final"]


@rows("addr_range_seq", "ops")
def test_addr_range_seq_ops(row: Row) -> None:
    """Single steps, and what a caller must not ask for."""
    if row["op"] == "construct":
        with pytest.raises(LocalError):
            seq(row["ranges"])
        return
    ranges = seq(row["ranges"])
    for op, n in row.get("pre", []):
        ranges = getattr(ranges, op)(n)
    if "raises" in row:
        for op in ("head", "tail") if row["op"] == "head" else (row["op"],):
            with pytest.raises(LocalError):
                getattr(ranges, op)(*[row["n"]] if "n" in row else [])
        return
    found = [list(r) for r in getattr(ranges, row["op"])(row["n"])]
    assert found in [row["result"], *row.get("accept_also", [])]
    _drops_to_the_end(ranges)


def _drops_to_the_end(ranges: AddrRangeSeq) -> None:
    for _ in range(ranges.num_ranges + 1):
        if ranges.is_empty:
            return
        ranges = ranges.drop_first(ranges.head().length)
    raise AssertionError("head after head, and no end")


@rows("addr")
def test_addr(row: Row) -> None:
    """Sums and roundings of addresses, and when they wrap."""
    if row["op"] == "add_length":
        assert add_length(row["addr"], row["length"]) == (row["end"], row["ok"])
    elif row["op"] == "page_round_down":
        assert page_round_down(row["addr"]) == row["value"]
    else:
        call = {"page_round_up": page_round_up, "cache_line_round_up": cache_line_round_up}[row["op"]]
        assert call(row["addr"]) == (row["value"], row["ok"])


@rows("block_seq", "iteration")
def test_block_seq_iteration(row: Row) -> None:
    """What is visited after dropping and taking."""
    blocks = BlockSeq(memoryview(raw(piece)) for piece in row["pieces"])
    if row["drop_first"] is not None:
        blocks = blocks.drop_first(row["drop_first"])
    if row["take_first"] is not None:
        blocks = blocks.take_first(row["take_first"])
    assert blocks.num_bytes == row["num_bytes"]
    assert [bytes(block) for block in blocks] == [raw(block) for block in row["blocks"]]
    assert b"".join(blocks) == raw(row["bytes"])


@rows("block_seq", "ops")
def test_block_seq_ops(row: Row) -> None:
    """Empty blocks are never there."""
    blocks = BlockSeq(memoryview(raw(piece)) for piece in row["pieces"])
    assert blocks.is_empty == row.get("is_empty", blocks.is_empty)
    if "tail_is_empty" in row:
        assert blocks.tail().is_empty == row["tail_is_empty"]
    assert [bytes(b) for b in blocks] == [
        raw(b) for b in row.get("blocks", [bytes(b).decode() for b in blocks])
    ]
    for step in row.get("steps", []):
        assert step["op"] == "take_first"
        blocks = blocks.take_first(step["n"])
        assert (blocks.num_bytes, blocks.is_empty) == (step["num_bytes"], step["is_empty"])


@rows("safemem_io")
def test_safemem_io(row: Row) -> None:
    """Streams as readers and writers of blocks, and blocks as either."""
    adapter = row["adapter"]
    if "dst_lens" in row:
        dsts = [bytearray(length) for length in row["dst_lens"]]
        blocks = BlockSeq(memoryview(dst) for dst in dsts)
        source = Source(row["reader"]) if "reader" in row else None
        reader = FromReader(source) if source is not None else None
        if adapter == "block_seq_reader":
            pieces = BlockSeq(memoryview(raw(piece)) for piece in row["source"])
            assert outcome(BlockSeqReader(pieces).read_to_blocks, blocks) == expected(row)
        else:
            assert adapter == "from_io_reader"
            assert reader is not None
            assert outcome(reader.read_to_blocks, blocks) == expected(row)
            assert source is not None
            assert source.reads == row.get("reader_calls", source.reads)
        assert [bytes(dst) for dst in dsts] == [raw(dst) for dst in row["dsts"]]
        return
    blocks = BlockSeq(memoryview(raw(src)) for src in row["srcs"])
    if adapter == "block_seq_writer":
        sinks = [bytearray(length) for length in row["sink_lens"]]
        writer = BlockSeqWriter(BlockSeq(memoryview(sink) for sink in sinks))
        assert outcome(writer.write_from_blocks, blocks) == expected(row)
        assert [bytes(sink) for sink in sinks] == [raw(sink) for sink in row["sinks"]]
    else:
        assert adapter == "from_io_writer"
        sink = Sink(row["writer"])
        assert outcome(FromWriter(sink).write_from_blocks, blocks) == expected(row)
        assert bytes(sink.taken) == raw(row["out"])


@rows("access_type")
def test_access_type(row: Row) -> None:
    """What a permission implies, and what two have in common."""
    one = AccessType.parse(row["a"])
    if "b" in row:
        two = AccessType.parse(row["b"])
        assert one.superset_of(two) == row["superset"]
        assert str(one.intersect(two)) == row["intersect"]
        assert str(one.union(two)) == row["union"]
    else:
        assert str(one.effective()) == row["effective"]
