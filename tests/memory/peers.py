"""Who stands at the other side of a copy in the tests: readers, writers and a recorder that keep count."""

from __future__ import annotations

import errno
from typing import Any

from supervisor.memory import (
    IO,
    AddrRangeSeq,
    BlockReader,
    BlockSeq,
    BlockWriter,
    EndOfData,
    FromReader,
    FromWriter,
)

Spec = dict[str, Any]


class Source:
    """A stream and a reader of blocks over it, of one of the kinds that the vectors name.

    buffer: 0 bytes at its end. eof_hiding_buffer, short: a read that comes short, and no word of an end.
    eof_with_last: the end comes together with the last bytes. error_after: an error, with what was read.
    """

    def __init__(self, spec: Spec) -> None:
        self.kind = spec["kind"]
        self.data = spec["data"].encode("latin-1")
        self.error: str = spec.get("err", "")
        self.calls = self.reads = self.offered = 0
        assert self.kind in ("buffer", "eof_hiding_buffer", "eof_with_last", "error_after", "short")

    def readinto(self, buffer: memoryview, /) -> int | None:
        self.reads += 1
        n = min(len(buffer), len(self.data))
        buffer[:n] = self.data[:n]
        self.data = self.data[n:]
        if self.kind == "error_after" and not self.data:
            error = OSError(getattr(errno, self.error), "told to")
            error.done = n  # type: ignore[attr-defined]  # as any stream of ours would say it
            raise error
        if self.kind == "eof_with_last" and not self.data:
            raise EndOfData(n)
        return n or (None if self.kind == "eof_hiding_buffer" else 0)

    def read_to_blocks(self, blocks: BlockSeq) -> int:
        self.calls += 1
        self.offered += blocks.num_bytes
        return FromReader(self).read_to_blocks(blocks)


class Sink:
    """A stream and a writer of blocks over it. single_byte takes one byte a call, error_after then fails."""

    def __init__(self, spec: Spec) -> None:
        self.kind = spec["kind"]
        self.limit: int = {"single_byte": 1, "error_after": spec.get("limit", 0)}.get(self.kind, 1 << 30)
        self.error: str = spec.get("err", "")
        self.taken = bytearray()
        self.calls = 0
        assert self.kind in ("buffer", "error_after", "single_byte")

    def write(self, data: memoryview, /) -> int | None:
        n = min(len(data), self.limit)
        self.taken += data[:n]
        if self.error and n < len(data):
            error = OSError(getattr(errno, self.error), "told to")
            error.done = n  # type: ignore[attr-defined]
            raise error
        return n

    def write_from_blocks(self, blocks: BlockSeq) -> int:
        self.calls += 1
        return FromWriter(self).write_from_blocks(blocks)


class Recording:
    """An ``IO`` that notes the address and length of each access, and passes it on."""

    def __init__(self, io: IO) -> None:
        self.io = io
        self.calls: list[list[int]] = []

    def copy_out(self, addr: int, src: Any, *, ignore_permissions: bool = False) -> int:
        self.calls.append([addr, len(src)])
        return self.io.copy_out(addr, src, ignore_permissions=ignore_permissions)

    def copy_in(self, addr: int, dst: Any, *, ignore_permissions: bool = False) -> int:
        self.calls.append([addr, len(dst)])
        return self.io.copy_in(addr, dst, ignore_permissions=ignore_permissions)

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        self.calls.append([addr, n])
        return self.io.zero_out(addr, n, ignore_permissions=ignore_permissions)

    def copy_out_from(
        self, ranges: AddrRangeSeq, reader: BlockReader, *, ignore_permissions: bool = False
    ) -> int:
        return self.io.copy_out_from(ranges, reader, ignore_permissions=ignore_permissions)

    def copy_in_to(
        self, ranges: AddrRangeSeq, writer: BlockWriter, *, ignore_permissions: bool = False
    ) -> int:
        return self.io.copy_in_to(ranges, writer, ignore_permissions=ignore_permissions)

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        return self.io.swap_uint32(addr, new, ignore_permissions=ignore_permissions)

    def compare_and_swap_uint32(
        self, addr: int, old: int, new: int, *, ignore_permissions: bool = False
    ) -> int:
        return self.io.compare_and_swap_uint32(addr, old, new, ignore_permissions=ignore_permissions)

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        return self.io.load_uint32(addr, ignore_permissions=ignore_permissions)
