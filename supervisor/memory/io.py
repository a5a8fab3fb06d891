"""``IO``: access to the memory of somebody else by its addresses, and what can be built on it.

Nothing here touches memory itself: ``BytesMemory`` and ``GuestMemory`` are the two that do, and every
function below works on either, or on a third one. Direction is seen from us: *out* is from our buffer to
their memory, *in* from their memory to our buffer.

The rules of all copies:

- They return the number of bytes copied. Fewer than asked for never come without an exception; it is a
  ``MemoryFault`` if their memory is the reason, and carries the count as ``done``.
- A copy that falls short has copied a prefix. Bytes behind it are untouched, in memory and in the buffer.
- No buffer is kept beyond the call, nor by an exception that ends it.
- Over a *sequence* of ranges the sequence's length is a limit, and reaching it is no error.

Atomics are 32-bit words in the byte order of the machine, at addresses that are multiples of 4. They are
true: no other thread, process or virtual CPU sees or makes a change in between (see ``atomics``, also for
what is a fence).

``ignore_permissions`` passes over permissions that were set on addresses; never over those of what is mapped
there.
"""

from __future__ import annotations

import errno
import re
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Protocol

from supervisor.errors import InternalError, LocalError
from supervisor.memory.errors import MemoryFault
from supervisor.memory.ranges import ADDRESS_MASK, AddrRangeSeq, add_length, page_round_down

if TYPE_CHECKING:
    from typing import TypeAlias

    from supervisor.memory.blocks import BlockReader, BlockWriter

    ReadableBuffer: TypeAlias = bytes | bytearray | memoryview
    WritableBuffer: TypeAlias = bytearray | memoryview

__all__ = [
    "IO",
    "MAX_INT32_TEXT_BYTES",
    "STRING_CHUNK_BYTES",
    "IOReadWriter",
    "copy_in_vec",
    "copy_int32_string_in_vec",
    "copy_int32_strings_in_vec",
    "copy_out_vec",
    "copy_string_in",
    "zero_out_vec",
]

STRING_CHUNK_BYTES = 64
"""A string is read in pieces: most are short, and reading far beyond their end touches pages for nothing."""

MAX_INT32_TEXT_BYTES = 1 << 20
"""The most text to be read for a list of numbers: the ranges are the guest's, the buffer is ours."""

_WHITESPACE = b"\t\n\v\f\r "
_TOKEN = re.compile(rb"[^\t\n\v\f\r ]+")
_NUMBER = re.compile(rb"([+-]?)0*([0-9]+)\Z")
_INT32_DIGITS = 10  # more do not fit, and need not be converted to know it


class IO(Protocol):
    """Access to a memory by its addresses. Each method raises MemoryFault, and MemoryClosed after a close."""

    def copy_out(self, addr: int, src: ReadableBuffer, *, ignore_permissions: bool = False) -> int:
        """Copy all of ``src`` to ``addr``; return its length in bytes."""

    def copy_in(self, addr: int, dst: WritableBuffer, *, ignore_permissions: bool = False) -> int:
        """Fill ``dst`` from ``addr``; return its length in bytes."""

    def zero_out(self, addr: int, n: int, *, ignore_permissions: bool = False) -> int:
        """Set ``n`` bytes at ``addr`` to 0; return ``n``. EINVAL if n < 0 or n > 2**63 - 1."""

    def copy_out_from(
        self, ranges: AddrRangeSeq, reader: BlockReader, *, ignore_permissions: bool = False
    ) -> int:
        """Let ``reader`` read into the memory at ``ranges``, in one call at most; return its count.

        That may be less than ``ranges`` without an exception, if the reader came short without one. What the
        reader raises is passed through.
        """

    def copy_in_to(
        self, ranges: AddrRangeSeq, writer: BlockWriter, *, ignore_permissions: bool = False
    ) -> int:
        """Let ``writer`` write from the memory at ``ranges``, in one call at most; return its count.

        That may be less than ``ranges`` without an exception, if the writer came short without one. What the
        writer raises is passed through.
        """

    def swap_uint32(self, addr: int, new: int, *, ignore_permissions: bool = False) -> int:
        """Set the word at ``addr``; return what was there before. Also raises NoTrueAtomics, LocalError."""

    def compare_and_swap_uint32(
        self, addr: int, old: int, new: int, *, ignore_permissions: bool = False
    ) -> int:
        """Set the word at ``addr`` to ``new`` if it is ``old``; return what was there before, in either case.

        So it was set if, and only if, the result is ``old``. Also raises NoTrueAtomics, LocalError.
        """

    def load_uint32(self, addr: int, *, ignore_permissions: bool = False) -> int:
        """Return the word at ``addr``. Also raises NoTrueAtomics."""


class IOReadWriter:
    """A cursor over a memory: reads and writes at ``addr``, which moves on by what was copied.

    An address space has no end of file: at its end, or at a hole, there is a MemoryFault. The cursor never
    wraps; it stops at the highest address.
    """

    def __init__(self, io: IO, addr: int, *, ignore_permissions: bool = False) -> None:
        self.io = io
        self.addr = addr
        self.ignore_permissions = ignore_permissions

    def readinto(self, dst: WritableBuffer, /) -> int:
        """Fill ``dst``; return its length in bytes. Raises MemoryFault."""
        try:
            n = self.io.copy_in(self.addr, dst, ignore_permissions=self.ignore_permissions)
        except MemoryFault as fault:
            raise self._advanced(fault) from None
        self._advance(n)
        return n

    def write(self, src: ReadableBuffer, /) -> int:
        """Write all of ``src``; return its length in bytes. Raises MemoryFault."""
        try:
            n = self.io.copy_out(self.addr, src, ignore_permissions=self.ignore_permissions)
        except MemoryFault as fault:
            raise self._advanced(fault) from None
        self._advance(n)
        return n

    def _advance(self, n: int) -> bool:
        end, ok = add_length(self.addr, n)
        self.addr = end if ok else ADDRESS_MASK
        return ok

    def _advanced(self, fault: MemoryFault) -> MemoryFault:
        # At the top of the address space whatever went wrong is that there is no more memory.
        return fault if self._advance(fault.done) else MemoryFault(errno.EFAULT, fault.done)


def copy_string_in(io: IO, addr: int, max_bytes: int, *, ignore_permissions: bool = False) -> bytes:
    """Return the bytes at ``addr`` up to, not including, the first NUL. They are not decoded.

    Raises MemoryFault: ENAMETOOLONG if the string with its NUL is longer than ``max_bytes``, EFAULT if the
    memory ends first; ``data`` is what was read of it. Raises LocalError if max_bytes < 0.
    """
    if max_bytes < 0:
        raise LocalError(f"a string of at most {max_bytes} bytes")
    found = bytearray()
    while len(found) < max_bytes:
        size = min(STRING_CHUNK_BYTES, max_bytes - len(found))
        end, ok = add_length(addr, size)
        if not ok:
            raise MemoryFault(errno.EFAULT, len(found), data=bytes(found))
        # Up to the end of a page only: the next one may not be there, and the string need not reach it.
        if page_round_down(addr) != page_round_down(end):
            end = page_round_down(end)
            size = end - addr
        chunk = bytearray(size)
        fault = None
        try:
            io.copy_in(addr, chunk, ignore_permissions=ignore_permissions)
        except MemoryFault as error:
            fault = error
            chunk = chunk[: error.done]  # a new one: the fault's traceback may still export the other
        nul = chunk.find(0)
        if nul >= 0:
            return bytes(found + chunk[:nul])
        found += chunk
        if fault is not None:
            raise MemoryFault(fault.errno or errno.EFAULT, len(found), data=bytes(found)) from fault
        addr = end
    raise MemoryFault(errno.ENAMETOOLONG, len(found), data=bytes(found))


def copy_out_vec(
    io: IO, ranges: AddrRangeSeq, src: ReadableBuffer, *, ignore_permissions: bool = False
) -> int:
    """Copy from ``src`` to ``ranges``, range by range, until one of them ends; return the count in bytes.

    Raises MemoryFault. An empty ``src`` makes no access at all.
    """
    with memoryview(src).cast("B") as view:
        return _copy_vec(io.copy_out, ranges, view, ignore_permissions)


def copy_in_vec(
    io: IO, ranges: AddrRangeSeq, dst: WritableBuffer, *, ignore_permissions: bool = False
) -> int:
    """Copy from ``ranges`` to ``dst``, range by range, until one of them ends; return the count in bytes.

    Raises MemoryFault. An empty ``dst`` makes no access at all.
    """
    with memoryview(dst).cast("B") as view:
        return _copy_vec(io.copy_in, ranges, view, ignore_permissions)


def zero_out_vec(io: IO, ranges: AddrRangeSeq, n: int, *, ignore_permissions: bool = False) -> int:
    """Set ``n`` bytes of ``ranges`` to 0, or all of them if they are fewer; return the count in bytes.

    Raises MemoryFault. For n <= 0 there is no access at all.
    """
    done = 0
    for start, end in ranges:
        if done >= n:
            break
        part = min(n - done, end - start)
        try:
            zeroed = io.zero_out(start, part, ignore_permissions=ignore_permissions)
        except MemoryFault as fault:
            fault.done += done
            raise
        done += _whole(zeroed, part)
    return done


def _copy_vec(copy: _Copy, ranges: AddrRangeSeq, view: memoryview, ignore_permissions: bool) -> int:
    done, size = 0, len(view)
    for start, end in ranges:
        if done >= size:
            break
        # Released even by a fault: its traceback must not keep the caller's buffer exported.
        with view[done : done + (end - start)] as part:
            try:
                n = copy(start, part, ignore_permissions=ignore_permissions)
            except MemoryFault as fault:
                fault.done += done
                raise
            done += _whole(n, len(part))
    return done


def _whole(n: int, asked: int) -> int:
    if n != asked:
        # Going on would leave a gap in the data and not say so.
        raise InternalError(f"an IO copied {n} of {asked} bytes and raised nothing")
    return n


class _Copy(Protocol):
    def __call__(self, addr: int, part: memoryview, /, *, ignore_permissions: bool) -> int: ...


def copy_int32_strings_in_vec(
    io: IO, ranges: AddrRangeSeq, dsts: MutableSequence[int], *, ignore_permissions: bool = False
) -> int:
    """Read decimal numbers, separated by whitespace, from ``ranges`` into ``dsts``.

    Returns how many bytes were used: up to the last number, and the whitespace behind it. Fewer numbers than
    ``dsts`` is no error if there is one at least. Whitespace is ASCII's: 9 to 13, and 32.

    Raises MemoryFault: EINVAL for what is no number or does not fit into 32 bits, with ``done`` at its start;
    else what the copy raises; else EINVAL if there is no number. Numbers before stay stored; one that a fault
    has cut is stored, too. Raises LocalError if ``ranges`` are longer than MAX_INT32_TEXT_BYTES: limit them.
    """
    if not dsts:
        return 0
    if ranges.num_bytes > MAX_INT32_TEXT_BYTES:
        raise LocalError(f"{ranges.num_bytes} bytes of numbers: {MAX_INT32_TEXT_BYTES} at most")
    buffer = bytearray(ranges.num_bytes)
    fault, n = None, len(buffer)
    try:
        copy_in_vec(io, ranges, buffer, ignore_permissions=ignore_permissions)
    except MemoryFault as error:
        fault, n = error, error.done
    text = bytes(buffer[:n])
    used, stored = 0, 0
    for token in _TOKEN.finditer(text):
        if stored == len(dsts):
            break
        dsts[stored] = _int32(token)
        stored += 1
        used = token.end()
    used = len(text) - len(text[used:].lstrip(_WHITESPACE))
    if fault is not None:
        fault.done = used
        raise fault
    if not stored:
        raise MemoryFault(errno.EINVAL, used, "no number")
    return used


def copy_int32_string_in_vec(
    io: IO, ranges: AddrRangeSeq, *, ignore_permissions: bool = False
) -> tuple[int, int]:
    """Read one decimal number from ``ranges``; return it and how many bytes were used.

    Raises as ``copy_int32_strings_in_vec`` does.
    """
    value = [0]
    used = copy_int32_strings_in_vec(io, ranges, value, ignore_permissions=ignore_permissions)
    return value[0], used


def _int32(token: re.Match[bytes]) -> int:
    number = _NUMBER.match(token[0])
    if number is not None and len(number[2]) <= _INT32_DIGITS:
        value = int(number[1] + number[2])
        if -(2**31) <= value < 2**31:
            return value
    raise MemoryFault(errno.EINVAL, token.start(), "not a number of 32 bits")
