"""Blocks: the pieces that guest memory is made of, and who reads into and writes from them.

``IO.copy_out_from`` finds the blocks behind a list of guest addresses and hands them, at most once, to a
``BlockReader``, which reads *into* them; ``copy_in_to`` hands them to a ``BlockWriter``, which writes *from*
them. So data moves between a file and the guest without a buffer between.

A block is a memoryview of bytes. A ``BlockSeq`` holds none of length zero, other than a sequence of address
ranges: an empty block has no address that could be checked.

A read or write that comes short without an error is no error: it returns a smaller count. An exception
carries the count as ``done`` (see ``errors``). Pure: nothing here knows where the blocks come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from supervisor.errors import LocalError
from supervisor.memory.errors import EndOfData, EndOfSpace, done_of, set_done

__all__ = [
    "BlockReader",
    "BlockSeq",
    "BlockSeqReader",
    "BlockSeqWriter",
    "BlockWriter",
    "FromReader",
    "FromWriter",
    "copy_seq",
    "read_full_to_blocks",
    "write_full_from_blocks",
    "zero",
    "zero_seq",
]

_ZEROES = memoryview(bytes(65536))  # one assignment for all but the longest; slices of it cost no allocation


class BlockSeq:
    """An immutable sequence of non-empty blocks; iterates over them."""

    __slots__ = ("_blocks", "_num_bytes")

    def __init__(self, blocks: Iterable[memoryview] = ()) -> None:
        self._blocks = tuple([block for block in blocks if len(block)])
        self._num_bytes = sum([len(block) for block in self._blocks])

    @property
    def is_empty(self) -> bool:
        return not self._blocks

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def head(self) -> memoryview:
        """Return the first block. Raises LocalError if there is none."""
        if not self._blocks:
            raise LocalError("the head of an empty sequence")
        return self._blocks[0]

    def tail(self) -> BlockSeq:
        """Return everything behind the first block. Raises LocalError if there is none."""
        self.head()
        return BlockSeq(self._blocks[1:])

    def drop_first(self, n: int) -> BlockSeq:
        """Return this without its first ``n`` bytes; empty if it has no more. Raises LocalError if n < 0."""
        if n < 0:
            raise LocalError(f"{n} bytes cannot be dropped")
        rest = n
        for index, block in enumerate(self._blocks):
            if rest < len(block):
                return BlockSeq((block[rest:], *self._blocks[index + 1 :]))
            rest -= len(block)
        return BlockSeq()

    def take_first(self, n: int) -> BlockSeq:
        """Return the first ``n`` bytes of this. Raises LocalError if n < 0."""
        if n < 0:
            raise LocalError(f"{n} bytes cannot be taken")
        taken, rest = [], n
        for block in self._blocks:
            if not rest:
                break
            taken.append(block[:rest])
            rest -= min(rest, len(block))
        return BlockSeq(taken)

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._blocks)

    def __repr__(self) -> str:
        return f"<BlockSeq of {self.num_blocks} blocks, {self._num_bytes} bytes>"


class BlockReader(Protocol):
    """Something that reads into blocks, front to back."""

    def read_to_blocks(self, blocks: BlockSeq) -> int:
        """Return how many bytes were read. What it raises carries ``done``."""


class BlockWriter(Protocol):
    """Something that writes from blocks, front to back."""

    def write_from_blocks(self, blocks: BlockSeq) -> int:
        """Return how many bytes were written. What it raises carries ``done``."""


class Reader(Protocol):
    """The half of a raw stream that reads: an unbuffered file, ``io.BytesIO``, a sequence's reader."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Return the count: 0 at the end, None for nothing yet. EndOfData may come with the last bytes."""


class Writer(Protocol):
    """The half of a raw stream that writes."""

    def write(self, data: memoryview, /) -> int | None:
        """Return the count, or None if nothing can be taken now."""


def copy_seq(dsts: BlockSeq, srcs: BlockSeq) -> int:
    """Copy from ``srcs`` to ``dsts`` until one of them ends; return the number of bytes."""
    done = 0
    while not dsts.is_empty and not srcs.is_empty:
        dst, src = dsts.head(), srcs.head()
        n = min(len(dst), len(src))
        dst[:n] = src[:n]
        dsts, srcs = dsts.drop_first(n), srcs.drop_first(n)
        done += n
    return done


def zero(block: memoryview) -> None:
    """Set every byte of ``block`` to 0."""
    size = len(block)
    for start in range(0, size, len(_ZEROES)):
        part = min(size - start, len(_ZEROES))
        block[start : start + part] = _ZEROES[:part]


def zero_seq(dsts: BlockSeq) -> int:
    """Set every byte of ``dsts`` to 0; return how many there are."""
    for block in dsts:
        zero(block)
    return dsts.num_bytes


class FromReader:
    """A ``BlockReader`` over a stream: one ``readinto`` a block, until one comes short.

    The end of the stream is EndOfData, unless the last block was filled together with it.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def read_to_blocks(self, blocks: BlockSeq) -> int:
        """Return the number of bytes read. Raises EndOfData, and what the stream raises, with ``done``."""
        done = 0
        for block in blocks:
            try:
                n = self._reader.readinto(block)
            except EndOfData as end:
                done += end.done
                if end.done == len(block) and done == blocks.num_bytes:
                    return done
                set_done(end, done)
                raise
            except Exception as error:
                set_done(error, done + done_of(error))
                raise
            if n == 0:
                raise EndOfData(done)
            done += n or 0
            if n is None or n < len(block):
                break
        return done


class FromWriter:
    """A ``BlockWriter`` over a stream: one ``write`` a block, until one comes short."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def write_from_blocks(self, blocks: BlockSeq) -> int:
        """Return the number of bytes written. Raises what the stream raises, with ``done``."""
        done = 0
        for block in blocks:
            try:
                n = self._writer.write(block)
            except Exception as error:
                set_done(error, done + done_of(error))
                raise
            done += n or 0
            if n is None or n < len(block):
                break
        return done


class BlockSeqReader:
    """A ``BlockReader`` that reads out of ``blocks``, which shrinks from the front."""

    def __init__(self, blocks: BlockSeq) -> None:
        self.blocks = blocks

    def read_to_blocks(self, blocks: BlockSeq) -> int:
        """Return the number of bytes read. Raises EndOfData if they do not fill ``blocks``."""
        n = copy_seq(blocks, self.blocks)
        self.blocks = self.blocks.drop_first(n)
        if n < blocks.num_bytes:
            raise EndOfData(n)
        return n


class BlockSeqWriter:
    """A ``BlockWriter`` that writes into ``blocks``, which shrinks from the front."""

    def __init__(self, blocks: BlockSeq) -> None:
        self.blocks = blocks

    def write_from_blocks(self, blocks: BlockSeq) -> int:
        """Return the number of bytes written. Raises EndOfSpace if not all of ``blocks`` fits."""
        n = copy_seq(self.blocks, blocks)
        self.blocks = self.blocks.drop_first(n)
        if n < blocks.num_bytes:
            raise EndOfSpace(n)
        return n


def read_full_to_blocks(reader: BlockReader, blocks: BlockSeq) -> int:
    """Read until ``blocks`` are full; return their length. Raises what the reader raises, with done.

    A reader that returns 0 without an error would be asked for ever: that is EndOfData.
    """
    done, rest = 0, blocks
    while not rest.is_empty:
        try:
            n = reader.read_to_blocks(rest)
        except Exception as error:
            set_done(error, done + done_of(error))
            raise
        if n == 0:
            raise EndOfData(done)
        done += n
        rest = rest.drop_first(n)
    return done


def write_full_from_blocks(writer: BlockWriter, blocks: BlockSeq) -> int:
    """Write until all ``blocks`` are written; return their length. Raises what the writer raises, with done.

    A writer that returns 0 without an error would be asked for ever: that is EndOfSpace.
    """
    done, rest = 0, blocks
    while not rest.is_empty:
        try:
            n = writer.write_from_blocks(rest)
        except Exception as error:
            set_done(error, done + done_of(error))
            raise
        if n == 0:
            raise EndOfSpace(done)
        done += n
        rest = rest.drop_first(n)
    return done
