"""The README is true: its files are extracted as they stand there, and run; its commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import CLAIMS_BEGIN, CLAIMS_END, with_claims
from benchmarks.aims import CLAIMS
from benchmarks.measure import read_result
from supervisor.exit_codes import ExitCode

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMAND = Path(sys.executable).parent / "tubevisor"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("select_loop.py", "under_asyncio.py", "blocking.py", "coming_and_going.py")


def _files() -> dict[str, str]:
    """Every block whose first line is a comment with its file's name."""
    named = (
        re.match(r"# ([\w.]+)\n", text) and (text.split()[1], text) for _kind, text in BLOCK.findall(README)
    )
    return dict(found for found in named if found)


def _printed_after(name: str) -> str:
    """The first block of output behind the file ``name``."""
    blocks = [text for _kind, text in BLOCK.findall(README[README.index(f"# {name}\n") :])]
    return str(blocks[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all files of the README."""
    for name, text in _files().items():
        (tmp_path / name).write_text(text)
    return tmp_path


def _run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def test_given_readme_it_has_the_files_that_it_speaks_of() -> None:
    """A device, a board, a machine, and programs that embed."""
    assert set(_files()) == {"blinker.py", "board.yaml", "watcher.py", *PROGRAMS}
    assert 20 <= len(_files()["blinker.py"].splitlines()) <= 40


@pytest.mark.parametrize(
    "chaos", [(), ("--chaos", "kill=lamp,every=15ms"), ("--set", "supervisor.in_process=true")]
)
def test_given_board_of_the_readme_run_prints_what_is_promised(folder: Path, chaos: tuple[str, ...]) -> None:
    """Undisturbed, while the lamp is being killed, and in one process."""
    assert _run(folder, COMMAND, "check", "board.yaml").returncode == 0
    done = _run(folder, COMMAND, "run", "board.yaml", *chaos)
    assert (done.returncode, done.stdout) == (0, _printed_after("watcher.py")), done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_given_program_of_the_readme_it_prints_what_is_promised(folder: Path, name: str) -> None:
    """Each way to embed, from the block as it stands there."""
    done = _run(folder, sys.executable, name)
    assert (done.returncode, done.stdout, done.stderr) == (0, _printed_after(name), "")


def test_given_commands_of_the_readme_they_exist() -> None:
    """Each row of the table is a sub-command, and there is no other."""
    rows = set(re.findall(r"^\| `tubevisor (\w+)", README, re.MULTILINE))
    shown = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  (\w+)  ", shown.partition("Commands:")[2], re.MULTILINE)) == rows


def test_given_options_of_the_readme_each_command_line_is_accepted(folder: Path) -> None:
    """What ``--set`` and ``--chaos`` are shown with is valid for the board of the README."""
    overrides = set(re.findall(r"`--set ([\w.]+=\w+)`", README)) - {"PATH=VALUE"}
    assert len(overrides) == 2
    for override in overrides:
        assert _run(folder, COMMAND, "check", "board.yaml", "--set", override).returncode == 0


def test_given_exit_codes_of_the_readme_they_are_those_in_use() -> None:
    """All but the one for commands that are still to come."""
    line = README[README.index("Exit codes:") :].partition(". ")[0]
    assert {int(code) for code in re.findall(r"\d+", line)} == set(ExitCode) - {ExitCode.UNREACHABLE}


def test_given_links_of_the_readme_they_lead_somewhere() -> None:
    """Files that are named are there."""
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert os.path.exists(ROOT / target), target
    for target in re.findall(r"`((?:supervisor|config|docs)/[\w./]+)`", README):
        assert os.path.exists(ROOT / target), target


def test_given_make_targets_of_the_readme_they_exist() -> None:
    """Each ``make`` that is named is a target."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)`", README)) <= targets


def test_given_figures_of_the_readme_they_are_those_of_the_benchmarks() -> None:
    """The table of what it costs is part of the page, line by line, and made of the same file."""
    result = read_result(ROOT / "docs" / "benchmarks.json")
    assert with_claims(README, result) == README
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    lines = README.split(CLAIMS_BEGIN)[1].split(CLAIMS_END)[0].strip().splitlines()
    assert len(lines) == 2 + len(CLAIMS)
    for line in lines:
        assert line in page
