"""The Intel HEX reader: what it takes, and how it names what it does not take."""

from __future__ import annotations

from pathlib import Path

import pytest

from machines.hexfile import load_hex, parse_hex
from supervisor.errors import LocalError

END = ":00000001FF"


def record(kind: int, address: int, data: bytes) -> str:
    """A well-formed record."""
    body = bytes([len(data), address >> 8, address & 0xFF, kind]) + data
    return f":{body.hex().upper()}{-sum(body) & 0xFF:02X}"


def test_given_records_that_touch_they_come_as_one_piece() -> None:
    """Pieces are joined where one ends at the next one's address."""
    text = "\n".join([record(0, 0x10, b"abcd"), record(0, 0x14, b"efgh"), record(0, 0x40, b"z"), END])
    assert parse_hex(text, "x") == [(0x10, b"abcdefgh"), (0x40, b"z")]


def test_given_address_records_they_move_what_follows() -> None:
    """Type 04 sets the upper 16 bits, type 02 a segment; start addresses are ignored."""
    text = "\n".join(
        [
            record(4, 0, b"\x10\x00"),
            record(0, 4, b"a"),
            record(2, 0, b"\x20\x00"),
            record(0, 4, b"b"),
            record(5, 0, b"\0\0\1\1"),
            "",
            END,
        ]
    )
    assert parse_hex(text, "x") == [(0x1000_0004, b"a"), (0x2_0004, b"b")]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("10", "a record begins with ':'"),
        (":0G", "not hexadecimal"),
        (":0000", "the shortest has 5"),
        (":0100000041BF", "checksum BF; it would have to be BE"),
        (":0200000041BE", "says 2 bytes of data and has 1"),
        (record(9, 0, b""), "record type 09"),
        (record(4, 0, b"\1"), "an address record of 1 bytes"),
    ],
)
def test_given_broken_record_error_names_file_line_and_reason(line: str, what: str) -> None:
    """A broken firmware file is told like a broken configuration."""
    with pytest.raises(LocalError) as caught:
        parse_hex(f"{record(0, 0, b'ok')}\n{line}\n{END}", "board.hex")
    assert str(caught.value).startswith("board.hex:2: ")
    assert what in str(caught.value)


def test_given_missing_or_early_end_error_says_so() -> None:
    """A file that was cut short is no firmware; nothing may follow the end."""
    with pytest.raises(LocalError, match="cut short"):
        parse_hex(record(0, 0, b"a"), "x")
    with pytest.raises(LocalError, match="x:2: something after"):
        parse_hex(f"{END}\n{record(0, 0, b'a')}", "x")


def test_given_file_that_is_none_error_names_it(tmp_path: Path) -> None:
    """A missing file and one that is not text."""
    with pytest.raises(LocalError, match="No such file"):
        load_hex(tmp_path / "gone.hex")
    (tmp_path / "binary.hex").write_bytes(b"\xff\xfe")
    with pytest.raises(LocalError, match="not ASCII"):
        load_hex(tmp_path / "binary.hex")
    (tmp_path / "good.hex").write_text(f"{record(0, 2, b'hi')}\r\n{END}\r\n")
    assert load_hex(tmp_path / "good.hex") == [(2, b"hi")]
