"""The assembler: encodings of the ARMv6-M Architecture Reference Manual, and errors with a place."""

from __future__ import annotations

import struct

import pytest

from machines.demo import demo_guest
from machines.thumb import assemble
from supervisor.errors import LocalError


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("movs r3, #0x7F", 0x237F),
        ("movs r1, r2", 0x0011),
        ("mov r8, r1", 0x4688),
        ("mov sp, r3", 0x469D),
        ("adds r1, r2, r3", 0x18D1),
        ("adds r1, r2, #7", 0x1DD1),
        ("adds r4, #200", 0x34C8),
        ("subs r1, r2, r3", 0x1AD1),
        ("subs r5, #1", 0x3D01),
        ("cmp r2, #'A'", 0x2A41),
        ("cmp r2, r7", 0x42BA),
        ("lsls r1, r2, #4", 0x0111),
        ("lsrs r1, r2, #31", 0x0FD1),
        ("lsrs r1, r2", 0x40D1),
        ("ands r1, r2", 0x4011),
        ("orrs r6, r7", 0x433E),
        ("eors r0, r1", 0x4048),
        ("bics r0, r1", 0x4388),
        ("mvns r0, r1", 0x43C8),
        ("muls r0, r1", 0x4348),
        ("tst r0, r1", 0x4208),
        ("ldr r1, [r2]", 0x6811),
        ("ldr r1, [r2, #124]", 0x6FD1),
        ("ldr r1, [r2, r3]", 0x58D1),
        ("str r1, [r2, #8]", 0x6091),
        ("ldrb r1, [r2, #31]", 0x7FD1),
        ("strb r1, [r2, r3]", 0x54D1),
        ("push {r0, r4, lr}", 0xB511),
        ("pop {r7, pc}", 0xBD80),
        ("bx lr", 0x4770),
        ("blx r3", 0x4798),
        ("cpsid i", 0xB672),
        ("cpsie i", 0xB662),
        ("wfi", 0xBF30),
        ("nop", 0xBF00),
    ],
)
def test_given_instruction_its_encoding_is_the_manuals(source: str, code: int) -> None:
    """One halfword each."""
    assert assemble(source, "t") == struct.pack("<H", code)


def test_given_branches_offsets_count_from_four_bytes_ahead() -> None:
    """Conditional, unconditional and long branches, forwards and backwards."""
    source = "top: b top\nbeq top\nbhs end\nbl end\nbl top\nend: nop"
    halves = struct.unpack("<8H", assemble(source, "t"))
    assert halves == (0xE7FE, 0xD0FD, 0xD203, 0xF000, 0xF802, 0xF7FF, 0xFFF9, 0xBF00)


def test_given_constants_pool_holds_them_aligned_and_code_addresses_are_odd() -> None:
    """``ldr =`` reads from the pool; the address of code has bit 0 set, that of data has not."""
    source = ".equ BASE, 0x40000000\nldr r1, =BASE+8\nldr r2, =code\nldr r3, =data\n.thumb_func\ncode: nop\n"
    source += ".pool\ndata: .word 1, code"
    out = assemble(source, "t")
    assert out[:8] == struct.pack("<4H", 0x4901, 0x4A02, 0x4B02, 0xBF00)
    assert struct.unpack("<5I", out[8:]) == (0x4000_0008, 7, 20, 1, 7)


def test_given_text_it_ends_in_zero_and_align_pads() -> None:
    """Strings know escapes; what follows code must be aligned by hand."""
    assert assemble('.asciz "a\\r\\n"\n.align\n.word 2', "t") == b"a\r\n\0" + struct.pack("<I", 2)
    assert assemble('.asciz "ab"\n.align\n.word 2', "t") == b"ab\0\0" + struct.pack("<I", 2)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("frob r1", "there is no 'frob' here"),
        ("movs r1, #256", "256 does not fit"),
        ("ldr r1, [r2, #3]", "3 does not fit: a multiple of 4 up to 124"),
        ("movs r9, #1", "movs takes r0 to r7, not r9"),
        ("b nowhere", "'nowhere' is no number and no symbol"),
        ("adds r1", "adds cannot take 'r1'"),
        ("push {r0, r9}", "push takes r0 to r7 and lr, not 'r9'"),
        (".asciz hello", "a string is written in quotes"),
        ("here: nop\nhere: nop", "here is there already"),
    ],
)
def test_given_mistake_error_names_file_line_and_reason(line: str, what: str) -> None:
    """Mistakes are told with their place."""
    with pytest.raises(LocalError) as caught:
        assemble(f"nop\n{line}", "guest.s")
    assert str(caught.value).startswith("guest.s:")
    assert what in str(caught.value)


def test_given_far_target_a_branch_is_refused() -> None:
    """A conditional branch reaches 256 bytes."""
    with pytest.raises(LocalError, match="too far"):
        assemble("beq end\n" + "nop\n" * 200 + "end: nop", "t")


def test_given_demo_guest_it_assembles_and_its_vectors_are_thumb_code() -> None:
    """The guest that ships is the source that ships."""
    code = demo_guest()
    vectors = struct.unpack("<18I", code[:72])
    assert vectors[0] == 0x2000_4000
    used = [vector for vector in vectors[1:] if vector]
    assert len(used) >= 6
    assert all(vector & 1 and vector < len(code) for vector in used)
