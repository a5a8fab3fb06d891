"""Folders that belong to a process: gone with it, or with the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supervisor.scratch import YOUNG_S, ScratchFolder

ROOT = Path(__file__).parent.parent
KILLED = """
import os, pathlib, signal
from supervisor.scratch import ScratchFolder
folder = ScratchFolder("test")
pathlib.Path(folder.path, "socket").touch()
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders are."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def _age(path: Path) -> None:
    then = time.time() - 2 * YOUNG_S
    os.utime(path, (then, then))


def test_given_process_that_was_killed_the_next_one_removes_what_it_left() -> None:
    """As soon as it is not so new that somebody might still be about to take it."""
    told = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    left = Path(told.stdout.strip())
    assert (left / "socket").exists()
    ScratchFolder("test").close()
    assert left.exists(), "it is young"
    _age(left)
    ScratchFolder("other").close()
    assert left.exists(), "it is of another kind"
    ScratchFolder("test").close()
    assert not left.exists()


def test_given_process_that_lives_its_folder_stays_until_it_is_closed(base: Path) -> None:
    """However old it is; and nothing is left behind."""
    before = len(os.listdir("/proc/self/fd"))
    mine = ScratchFolder("test")
    _age(Path(mine.path))
    ScratchFolder("test").close()
    assert Path(mine.path).exists()
    mine.close()
    assert not list(base.iterdir())
    assert len(os.listdir("/proc/self/fd")) == before


def test_given_what_only_looks_like_one_it_is_left_alone(base: Path) -> None:
    """A file, and a link to somebody's folder."""
    elsewhere = base / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    _age(elsewhere)
    (base / "tv-test-link").symlink_to(elsewhere)
    (base / "tv-test-file").touch()
    _age(base / "tv-test-file")
    ScratchFolder("test").close()
    assert sorted(one.name for one in base.iterdir()) == [
        "elsewhere",
        "tv-test-file",
        "tv-test-link",
    ]
    assert (elsewhere / "precious").exists()
