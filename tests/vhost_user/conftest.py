"""What the tests of the connection share: a census around a test, processes that always end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from supervisor.census import Census
from tests.tube.conftest import fork

__all__ = ["fork"]


@pytest.fixture
def census() -> Iterator[None]:
    """Descriptors and processes before and after a test must agree."""
    before = Census.take()
    yield
    assert before.leaks() == []
