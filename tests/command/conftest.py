"""A board for each test, and the census after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command.board import Board


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """A user's directory; afterwards nothing of the command is left."""
    made = Board(tmp_path)
    yield made
    made.check_nothing_is_left()
