"""The page of promises names tests that there are, and leaves no file of kills out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.pages import DOCS, ROOT

PAGE = (DOCS / "promises.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
ROWS = [
    [cell.strip() for cell in row.split("|")[1:-1]]
    for row in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)
    if not row.startswith(("| ---", "| promise |"))
]


def _tests_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def _kills(path: Path) -> bool:
    """True if something in the file is marked ``pytest.mark.chaos``."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == "chaos" and ast.unparse(node.value) == "pytest.mark"
        for node in ast.walk(ast.parse(path.read_text()))
    )


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_given_promise_the_test_behind_it_exists(file: str, name: str) -> None:
    """Each file is there, and has the test, or some test."""
    tests = _tests_in(ROOT / file)
    assert name in tests if name else tests


def test_given_rows_each_has_a_promise_and_a_test() -> None:
    """Nothing is promised without a test; limits may be none."""
    assert len(ROWS) > 20
    for promise, _limits, tests in ROWS:
        assert len(promise) > 20
        assert re.search(r"`tests/", tests), promise


def test_given_files_that_kill_each_is_named() -> None:
    """Who adds a test under chaos says here what it is good for."""
    killing = {
        str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py")) if _kills(path)
    }
    assert killing
    assert killing <= {file for file, _name in NAMED}
