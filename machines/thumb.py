"""A small assembler for the Thumb instructions that our own demo guest is written in.

The guest ships as source and is assembled when it is loaded, so what a reader sees is what runs, and no
toolchain is needed. The language is a subset of the GNU assembler's (unified syntax, ARMv6-M); encodings are
those of the ARMv6-M Architecture Reference Manual, section A6.7.

Two passes: the first gives each line an address and each label its value, the second encodes. A line is
``label:``, an instruction or a directive, and a comment after ``@``. Directives: ``.equ NAME, value``,
``.word a, b``, ``.asciz "text"``, ``.align``, ``.pool`` (constants of ``ldr rX, =value`` go here) and
``.thumb_func`` (the next label is code: its address, where it is taken, has bit 0 set).

Every mistake is a :class:`LocalError` that names file and line. Pure.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from supervisor.errors import LocalError

__all__ = ["assemble"]

CONDITIONS = ["eq", "ne", "cs", "cc", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le"]
ALIASES = {"bhs": "bcs", "blo": "bcc"}
PC_AHEAD = 4  # the PC reads as the instruction's address plus this
WORD = 4

Values = tuple[int, ...]  # the operands: register numbers and immediates, in the order written


@dataclass(frozen=True)
class _Form:
    """One way to write an instruction: the pattern of its operands, and how to encode their values."""

    pattern: re.Pattern[str]
    encode: Callable[[Values, int], int]
    bytes: int = 2


@dataclass
class _Line:
    number: int
    address: int
    mnemonic: str
    operands: str
    literal: int = 0  # the address of its constant


@dataclass
class _Assembly:
    lines: list[_Line] = field(default_factory=list)
    symbols: dict[str, int] = field(default_factory=dict)
    thumb: set[str] = field(default_factory=set)


def _limited(value: int, bits: int, unit: int = 1) -> int:
    if value % unit or not 0 <= value // unit < 1 << bits:
        raise ValueError(f"{value} does not fit: a multiple of {unit} up to {unit * ((1 << bits) - 1)} does")
    return value // unit


def _offset(target: int, address: int, bits: int) -> int:
    """A branch's signed offset in halfwords, as ``bits`` bits."""
    halfwords = (target - address - PC_AHEAD) // 2
    if not -(1 << bits - 1) <= halfwords < 1 << bits - 1:
        raise ValueError(f"the target is {target - address} bytes away, too far for this branch")
    return halfwords & (1 << bits) - 1


def _long_branch(values: Values, address: int) -> int:
    offset = _offset(values[0], address, 24)
    sign, upper, lower = offset >> 23 & 1, offset >> 11 & 0x3FF, offset & 0x7FF
    j1, j2 = (~(offset >> 22) ^ sign) & 1, (~(offset >> 21) ^ sign) & 1
    first = 0xF000 | sign << 10 | upper
    return first | (0xD000 | j1 << 13 | j2 << 11 | lower) << 16


def _literal_load(values: Values, address: int) -> int:
    base = address + PC_AHEAD & ~3
    return 0x4800 | values[0] << 8 | _limited(values[1] - base, 8, WORD)


_R, _I, _E = r"(r\d+|sp|lr|pc)", r"#(.+)", r"([^#=\[\]{}]+)"


def _form(operands: str, encode: Callable[[Values, int], int], size: int = 2) -> _Form:
    """``operands``: R a register, I an immediate, E an expression, the rest as it stands."""
    pattern = re.escape(operands).replace(r"\ ", r"\s*")
    for letter, group in (("R", _R), ("I", _I), ("E", _E)):
        pattern = re.sub(rf"(?<![A-Za-z(]){letter}(?![A-Za-z])", group.replace("\\", r"\\"), pattern)
    return _Form(re.compile(pattern), encode, size)


def _three(opcode: int) -> _Form:
    return _form("R, R, R", lambda v, _a: opcode | v[2] << 6 | v[1] << 3 | v[0])


def _two(opcode: int) -> _Form:
    return _form("R, R", lambda v, _a: opcode | v[1] << 3 | v[0])


def _fixed(opcode: int, operands: str = "") -> list[_Form]:
    return [_form(operands, lambda _v, _a: opcode)]


def _short(opcode: int, bits: int) -> _Form:
    return _form("R, R, I", lambda v, _a: opcode | _limited(v[2], bits) << 6 | v[1] << 3 | v[0])


def _immediate(opcode: int) -> _Form:
    return _form("R, I", lambda v, _a: opcode | v[0] << 8 | _limited(v[1], 8))


def _branch_if(code: int) -> _Form:
    return _form("E", lambda v, a: 0xD000 | code << 8 | _offset(v[0], a, 8))


def _memory(indexed: int, offset: int, unit: int) -> list[_Form]:
    def at(values: Values, displacement: int) -> int:
        return offset | _limited(displacement, 5, unit) << 6 | values[1] << 3 | values[0]

    return [
        _form("R, [R, I]", lambda v, _a: at(v, v[2])),
        _form("R, [R, R]", lambda v, _a: indexed | v[2] << 6 | v[1] << 3 | v[0]),
        _form("R, [R]", lambda v, _a: at(v, 0)),
    ]


_FORMS: dict[str, list[_Form]] = {
    "movs": [_immediate(0x2000), _two(0x0000)],
    "mov": [_form("R, R", lambda v, _a: 0x4600 | (v[0] & 8) << 4 | v[1] << 3 | v[0] & 7)],
    "adds": [_short(0x1C00, 3), _three(0x1800), _immediate(0x3000)],
    "subs": [_short(0x1E00, 3), _three(0x1A00), _immediate(0x3800)],
    "cmp": [_immediate(0x2800), _two(0x4280)],
    "lsls": [_short(0x0000, 5), _two(0x4080)],
    "lsrs": [_short(0x0800, 5), _two(0x40C0)],
    "ldr": [
        _form("R, =E", _literal_load),
        *_memory(0x5800, 0x6800, WORD),
    ],
    "str": _memory(0x5000, 0x6000, WORD),
    "ldrb": _memory(0x5C00, 0x7800, 1),
    "strb": _memory(0x5400, 0x7000, 1),
    "b": [_form("E", lambda v, a: 0xE000 | _offset(v[0], a, 11))],
    "bl": [_form("E", _long_branch, 4)],
    "bx": [_form("R", lambda v, _a: 0x4700 | v[0] << 3)],
    "blx": [_form("R", lambda v, _a: 0x4780 | v[0] << 3)],
    "cpsie": _fixed(0xB662, "i"),
    "cpsid": _fixed(0xB672, "i"),
    "nop": _fixed(0xBF00),
    "wfi": _fixed(0xBF30),
}
for _name, _opcode in {
    "ands": 0x4000, "eors": 0x4040, "tst": 0x4200, "rsbs": 0x4240, "orrs": 0x4300, "muls": 0x4340,
    "bics": 0x4380, "mvns": 0x43C0,
}.items():  # fmt: skip
    _FORMS[_name] = [_two(_opcode)]
for _code, _condition in enumerate(CONDITIONS):
    _FORMS[f"b{_condition}"] = [_branch_if(_code)]
for _alias, _name in ALIASES.items():
    _FORMS[_alias] = _FORMS[_name]


def assemble(text: str, name: str, *, base: int = 0) -> bytes:
    """The machine code of the program ``text``, to be loaded at ``base``; ``name`` is what errors call it."""
    assembly = _Assembly()
    lines = [line.split("@")[0].strip() for line in text.splitlines()]
    number = 0
    try:
        _lay_out(assembly, lines, base)
        out = bytearray()
        for line in assembly.lines:
            number = line.number
            out += bytes(line.address - base - len(out)) + _encode(assembly, line)
    except _Mistake as mistake:
        raise LocalError(f"{name}:{mistake.number}: {mistake}") from None
    except ValueError as error:
        raise LocalError(f"{name}:{number}: {error}") from None
    return bytes(out)


class _Mistake(ValueError):
    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


# -- the first pass: addresses ------------------------------------------------------------------------


def _lay_out(assembly: _Assembly, lines: list[str], base: int) -> None:
    address = base
    code_follows = False
    waiting: list[_Line] = []  # loads whose constants have no place yet
    for number, text in enumerate([*lines, ".pool"], 1):
        label, colon, rest = text.partition(":")
        if colon and label.isidentifier():
            if label in assembly.symbols:
                raise _Mistake(number, f"{label} is there already")
            assembly.symbols[label] = address
            if code_follows:
                assembly.thumb.add(label)
            code_follows = False
            text = rest.strip()
        if not text:
            continue
        mnemonic, _, operands = text.partition(" ")
        line = _Line(number, address, mnemonic, operands.strip())
        if mnemonic == ".equ":
            symbol, _, value = operands.partition(",")
            assembly.symbols[symbol.strip()] = _value(assembly, value)
        elif mnemonic == ".thumb_func":
            code_follows = True
        elif mnemonic == ".pool":
            address = _place_constants(assembly, waiting, number, address)
        elif mnemonic == ".align":
            address = address + WORD - 1 & -WORD
        else:
            if mnemonic == "ldr" and "=" in operands:
                waiting.append(line)
            assembly.lines.append(line)
            address += _size(line)


def _place_constants(assembly: _Assembly, waiting: list[_Line], number: int, address: int) -> int:
    if waiting:
        address = address + WORD - 1 & -WORD
    for load in waiting:
        load.literal = address
        assembly.lines.append(_Line(load.number, address, ".word", load.operands.partition("=")[2]))
        address += WORD
    waiting.clear()
    return address


def _size(line: _Line) -> int:
    if line.mnemonic == ".word":
        return WORD * (line.operands.count(",") + 1)
    if line.mnemonic == ".asciz":
        return len(_string(line)) + 1
    if line.mnemonic in ("push", "pop"):
        return 2
    if line.mnemonic not in _FORMS:
        raise _Mistake(line.number, f"there is no {line.mnemonic!r} here")
    return _FORMS[line.mnemonic][0].bytes


# -- the second pass: code ----------------------------------------------------------------------------


def _encode(assembly: _Assembly, line: _Line) -> bytes:
    if line.mnemonic == ".word":
        values = [_value(assembly, part, taken=True) & 0xFFFF_FFFF for part in line.operands.split(",")]
        return struct.pack(f"<{len(values)}I", *values)
    if line.mnemonic == ".asciz":
        return _string(line) + b"\0"
    if line.address % 2:
        raise ValueError("an instruction at an odd address; .align before it")
    if line.mnemonic in ("push", "pop"):
        return _register_list(line).to_bytes(2, "little")
    for form in _FORMS[line.mnemonic]:
        match = form.pattern.fullmatch(line.operands)
        if match is None:
            continue
        values = [_operand(assembly, line, part) for part in match.groups()]
        return form.encode(tuple(values), line.address).to_bytes(form.bytes, "little")
    raise ValueError(f"{line.mnemonic} cannot take {line.operands!r}")


def _operand(assembly: _Assembly, line: _Line, text: str) -> int:
    if line.literal and not re.fullmatch(_R, text):
        return line.literal
    number = _register(text)
    if number is None:
        return _value(assembly, text)
    if number > 7 and line.mnemonic not in ("mov", "bx", "blx"):
        raise ValueError(f"{line.mnemonic} takes r0 to r7, not {text}")
    return number


def _register(text: str) -> int | None:
    named = {"sp": 13, "lr": 14, "pc": 15}
    if text in named:
        return named[text]
    return int(text[1:]) if re.fullmatch(r"r(\d|1[0-5])", text) else None


def _register_list(line: _Line) -> int:
    names = [part.strip() for part in line.operands.strip("{} ").split(",")]
    extra = "lr" if line.mnemonic == "push" else "pc"
    bits = 0
    for part in names:
        number = 8 if part == extra else _register(part)
        if number is None or (number > 7 and part != extra):
            raise ValueError(f"{line.mnemonic} takes r0 to r7 and {extra}, not {part!r}")
        bits |= 1 << number
    return (0xB400 if line.mnemonic == "push" else 0xBC00) | bits


def _string(line: _Line) -> bytes:
    if len(line.operands) < 2 or line.operands[0] != '"' or line.operands[-1] != '"':
        raise _Mistake(line.number, f"a string is written in quotes, not {line.operands}")
    return line.operands[1:-1].encode().decode("unicode_escape").encode("latin-1")


def _value(assembly: _Assembly, text: str, *, taken: bool = False) -> int:
    """A number, a character or a symbol, or a sum of these; ``taken``: an address of code gets bit 0."""
    total = 0
    for part in text.split("+"):
        part = part.strip()
        if part in assembly.symbols:
            total += assembly.symbols[part] | (taken and part in assembly.thumb)
        elif len(part) == 3 and part[0] == part[2] == "'":
            total += ord(part[1])
        else:
            try:
                total += int(part, 0)
            except ValueError:
                raise ValueError(f"{part!r} is no number and no symbol") from None
    return total
