"""Intel HEX: the text form of a memory image, as firmware is shipped.

Each line is a record ``:LLAAAATT<data>CC``: length, 16-bit address, type, data, and a checksum that makes the
sum of all bytes zero. Types 02 and 04 set the upper part of the address, 01 ends the file, 03 and 05 name a
start address, which a microcontroller does not use. Pure apart from ``load_hex``, which reads a file.
"""

from __future__ import annotations

from pathlib import Path

from supervisor.errors import LocalError

__all__ = ["load_hex", "parse_hex"]

DATA, END, SEGMENT, SEGMENT_START, LINEAR, LINEAR_START = range(6)
UPPER_SHIFT = {SEGMENT: 4, LINEAR: 16}
HEADER_BYTES, CHECKSUM_BYTES = 4, 1


def load_hex(path: Path) -> list[tuple[int, bytes]]:
    """The pieces of memory (address, bytes) in the file at ``path``, those that touch joined.

    Raises :class:`LocalError` that names file and line.
    """
    try:
        text = path.read_text("ascii")
    except UnicodeDecodeError as error:
        raise LocalError(f"{path}: no Intel HEX file: byte {error.start} is not ASCII") from error
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from error
    return parse_hex(text, str(path))


def parse_hex(text: str, name: str) -> list[tuple[int, bytes]]:
    """The pieces of memory in ``text``; ``name`` is what errors call it."""
    pieces: list[tuple[int, bytearray]] = []
    upper = 0
    ended = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if ended:
            raise LocalError(f"{name}:{number}: something after the end-of-file record of line {ended}")
        kind, address, data = _record(line.strip(), f"{name}:{number}")
        if kind == DATA:
            _append(pieces, upper + address, data)
        elif kind in UPPER_SHIFT:
            if len(data) != 2:
                raise LocalError(f"{name}:{number}: an address record of {len(data)} bytes instead of 2")
            upper = int.from_bytes(data, "big") << UPPER_SHIFT[kind]
        elif kind == END:
            ended = number
    if not ended:
        raise LocalError(f"{name}: no end-of-file record; the file is cut short")
    return [(address, bytes(data)) for address, data in pieces]


def _append(pieces: list[tuple[int, bytearray]], address: int, data: bytes) -> None:
    if pieces and pieces[-1][0] + len(pieces[-1][1]) == address:
        pieces[-1][1].extend(data)
    else:
        pieces.append((address, bytearray(data)))


def _record(line: str, where: str) -> tuple[int, int, bytes]:
    if not line.startswith(":"):
        raise LocalError(f"{where}: a record begins with ':', not {line[:1]!r}")
    try:
        raw = bytes.fromhex(line[1:])
    except ValueError:
        raise LocalError(f"{where}: not hexadecimal digits in pairs") from None
    if len(raw) < HEADER_BYTES + CHECKSUM_BYTES:
        raise LocalError(f"{where}: a record of {len(raw)} bytes; the shortest has 5")
    length = len(raw) - HEADER_BYTES - CHECKSUM_BYTES
    if raw[0] != length:
        raise LocalError(f"{where}: the record says {raw[0]} bytes of data and has {length}")
    if sum(raw) & 0xFF:
        right = -sum(raw[:-1]) & 0xFF
        raise LocalError(f"{where}: checksum {raw[-1]:02X}; it would have to be {right:02X}")
    if raw[3] > LINEAR_START:
        raise LocalError(f"{where}: record type {raw[3]:02X}; there are 00 to 05")
    return raw[3], int.from_bytes(raw[1:3], "big"), raw[4:-1]
