"""The pages under docs/ say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from supervisor.worker import journal
from tests.test_architecture import RANKS, ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_given_table_of_rooms_it_has_their_ranks() -> None:
    """Every room with its rank, in the order of ranks."""
    rows = [
        (f"supervisor.{room}", int(rank))
        for rank, room in re.findall(r"^\| (\d+) \| `(\w+)` \| \S.*\|$", PAGE, re.MULTILINE)
    ]
    assert dict(rows) == RANKS
    assert [rank for _room, rank in rows] == sorted(RANKS.values())


def test_given_parts_of_the_journal_they_are_in_the_order_of_its_docstring() -> None:
    """One drawing of the journal, in two places."""
    drawing = re.search(r"^    (header \|.*)$", PAGE, re.MULTILINE)
    assert drawing is not None
    assert journal.__doc__ is not None
    assert drawing[1] in journal.__doc__


def test_given_links_of_the_pages_they_lead_somewhere() -> None:
    """No page points at nothing."""
    for page in Path(ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^):]+)\)", page.read_text()):
            file, _, _heading = target.partition("#")
            assert (page.parent / file).exists(), f"{page.name}: {target}"
