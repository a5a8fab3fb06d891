"""The pages under docs/ as something that can be run: their blocks, files and commands.

The rules for whoever writes a page:

- A ``python`` or ``yaml`` block whose first line is a comment with a file's name (``# board.yaml``) is that
  file, from there on. A ``yaml`` block without a name is a whole configuration.
- A ``console`` block is what a shell shows: ``$ command`` is run in the page's folder, and must end with code
  0 and print what stands below it. ``...`` stands for anything within a line, and alone for any lines.
- Anything else, and what is only a part of something, has ``fragment`` behind the language. A test counts
  them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```([^\n`]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")
COMMAND_TIMEOUT_S = 60


@dataclass(frozen=True)
class Block:
    """One block of a page, and the line of the page on which it begins."""

    language: str
    fragment: bool
    text: str
    line: int

    @property
    def name(self) -> str | None:
        """The file that it is, if it is one."""
        found = NAME.match(self.text)
        return found[1] if found and self.language in ("python", "yaml") else None

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Each command with what it should print."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        assert not parts[0], f"line {self.line}: output before the first command"
        return [(command, shown) for command, _newline, shown in (part.partition("\n") for part in parts[1:])]


def blocks_of(page: Path) -> Iterator[Block]:
    """Every fenced block, but for Sphinx's own directives."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        language, *rest = found[1].split()
        if not language.startswith("{"):
            assert rest in ([], ["fragment"]), f"{page.name}: {found[1]}"
            yield Block(language, bool(rest), found[2], text.count("\n", 0, found.start()) + 1)


def shell(command: str, folder: Path) -> tuple[int, str]:
    """Exit code and output, both streams together, of a command in ``folder``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",  # files are replaced faster than a clock of seconds can tell
        "COLUMNS": "80",
        "PY_COLORS": "0",
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=COMMAND_TIMEOUT_S,
    )
    return done.returncode, done.stdout


def matches(shown: str, printed: str) -> bool:
    """True if ``printed`` is what a page shows, where ``...`` stands for anything (see above)."""
    pattern = ""
    for line in shown.splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r"[^\n]*".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ ]*\n"
    return (
        re.fullmatch(pattern, printed if printed.endswith("\n") or not printed else printed + "\n")
        is not None
    )
