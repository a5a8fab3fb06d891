"""The guides under docs/ are true: every block is written out and run, in the order of its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.config import load_config, parse_config
from tests.pages import DOCS, Block, blocks_of, matches, shell

FRAGMENTS = {
    "index": 0,
    "getting-started": 1,
    "writing-a-device": 0,
    "embedding": 0,
    "configuration": 0,
    "restart-policy": 0,
    "promises": 0,
    "testing-with-chaos": 0,
    "vhost-user": 5,
    "architecture": 0,
    "states": 0,
}
"""How many blocks of each page cannot be run. Each is one too many."""


def _blocks(page: str) -> list[Block]:
    return list(blocks_of(DOCS / f"{page}.md"))


@pytest.mark.parametrize("page", FRAGMENTS)
def test_given_page_all_but_its_fragments_is_something_that_can_be_run(page: str) -> None:
    """No block is skipped in silence: fragments are marked, and these are all."""
    blocks = _blocks(page)
    assert sum(block.fragment for block in blocks) == FRAGMENTS[page]
    for block in blocks:
        if not block.fragment:
            assert block.language in ("python", "yaml", "console"), f"{page}, line {block.line}"
            assert block.language != "python" or block.name, f"{page}, line {block.line}: without a name"


@pytest.mark.parametrize("page", FRAGMENTS)
def test_given_page_every_program_on_it_is_used_by_it(page: str) -> None:
    """A file that no command and no other file names would have been written only."""
    blocks = [block for block in _blocks(page) if not block.fragment]
    for block in blocks:
        if block.language == "python" and block.name:
            stem = Path(block.name).stem
            others = "".join(other.text for other in blocks if other.name != block.name)
            assert stem in others, f"{page}, line {block.line}: nothing uses {block.name}"


@pytest.mark.timeout(300)  # a dozen commands one after the other, on a machine that may be busy
@pytest.mark.parametrize("page", FRAGMENTS)
def test_given_page_its_blocks_do_what_it_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are written, configurations checked, commands run and what they print compared."""
    monkeypatch.syspath_prepend(tmp_path)  # configurations name modules beside them
    for block in _blocks(page):
        where = f"{page}, line {block.line}"
        if block.fragment:
            continue
        if block.name:
            (tmp_path / block.name).write_text(block.text)
        if block.language == "yaml":
            load_config(tmp_path / block.name) if block.name else parse_config(block.text, source=where)
        if block.language == "console":
            for command, shown in block.commands:
                code, printed = shell(command, tmp_path)
                assert matches(shown, printed), f"{where}: {command}\nshown:\n{shown}\nprinted:\n{printed}"
                assert code == 0, f"{where}: {command}: exit code {code}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\nb", True),
        ("a\n", "a\nb\n", False),
        ("a\nb\n", "a\n", False),
        ("a...c\n", "a b c\n", True),
        ("a...c\n", "a\nc\n", False),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nd\n", True),
        ("a\n...\nd\n", "a\nb\n", False),
        ("", "", True),
        ("", "a\n", False),
    ],
)
def test_given_output_only_what_is_left_open_may_differ(shown: str, printed: str, same: bool) -> None:
    """The comparison is tolerant where the page says so, and nowhere else."""
    assert matches(shown, printed) is same
