"""Durations and sizes as they are written in YAML: a number and its unit. Pure.

``2s``, ``150ms``, ``1.5m``, ``500us``, ``0s`` are durations; ``512MiB`` is a size. A bare number is refused,
because a reader could not tell seconds from milliseconds. What comes out is an integer of nanoseconds or
bytes.
"""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["LONGEST_NS", "parse_duration_ns", "parse_size_bytes"]

_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

# At most 18 digits: no quantity needs more, and no input may make us calculate with a million of them.
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]+)")

LONGEST_NS = 10 * 365 * 24 * _NS["h"]
"""Ten years: longer is a slip of the keyboard, and it keeps deadlines far from the end of 64 bits."""


def parse_duration_ns(value: object) -> int:
    """Nanoseconds of a duration such as ``150ms``; ValueError says what is wrong and what would be right."""
    if value == "infinity":
        raise ValueError("infinity is possible for stop_timeout only; write a duration such as 10s")
    duration_ns = _quantity(value, _NS, "a duration such as 2s, 150ms or 500us")
    if duration_ns > LONGEST_NS:
        raise ValueError(f"{value!r} is more than ten years")
    return duration_ns


def parse_size_bytes(value: object) -> int:
    """Bytes of a size such as ``512MiB``; ValueError says what is wrong and what would be right."""
    return _quantity(value, _BYTES, "a size such as 512MiB or 4KiB")


def _quantity(value: object, units: dict[str, int], example: str) -> int:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value!r} has no unit; write {example}")
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"must be {example}, not {_shown(value)}")
    number, unit = match.groups()
    if unit not in units:
        raise ValueError(f"unknown unit {unit!r} in {value!r}; units are {', '.join(units)}")
    exact = Decimal(number) * units[unit]
    if exact != int(exact):
        raise ValueError(f"{value!r} is not a whole number of {next(iter(units))}")
    return int(exact)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
