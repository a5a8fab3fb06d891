"""The rows of vectors/usermem.json as parameters, and what a call came to in their words."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.memory import EndOfData, EndOfSpace, done_of

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "usermem.json").read_text())
Row = dict[str, Any]


def rows(*path: str) -> pytest.MarkDecorator:
    """The rows of a group, each a parameter named after it."""
    group: Any = VECTORS
    for part in path:
        group = group[part]
    return pytest.mark.parametrize(
        "row",
        [pytest.param(row, id=f"{n}-{row.get('name', row.get('op', ''))}") for n, row in enumerate(group)],
    )


def raw(text: str) -> bytes:
    return text.encode("latin-1")


def outcome(call: Callable[..., int], *args: Any, **options: Any) -> tuple[int, str | None]:
    """Call; return the count, and the error's name in the vectors."""
    try:
        return call(*args, **options), None
    except EndOfData as error:
        return error.done, "EOF"
    except EndOfSpace as error:
        return error.done, "end"
    except OSError as error:
        return done_of(error), errno.errorcode[error.errno or 0]


def expected(row: Row) -> tuple[int, str | None]:
    return row["n"], "end" if str(row["err"]).startswith("ErrEnd") else row["err"]
