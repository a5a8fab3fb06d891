"""Folders for what belongs to a process and to nobody else: its sockets, its VMM's files.

Such a folder is removed when it is closed. What a process that was killed has left is removed by the next one
that makes a folder: each holds a lock (flock(2)) on a file in its own for as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile

__all__ = ["ScratchFolder"]

LOCK = "lock"
YOUNG_S = 10.0  # somebody may just be about to lock it


class ScratchFolder:
    """A new folder at ``path``, for ``kind``. Raises ``OSError`` where there can be none."""

    def __init__(self, kind: str) -> None:
        prefix = f"tv-{kind}-"  # short: the path of a socket has 107 bytes at most
        base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        self.path = tempfile.mkdtemp(prefix=prefix, dir=base)
        try:
            self._fd = os.open(os.path.join(self.path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        _sweep(base, prefix, os.stat(self.path).st_mtime)

    def close(self) -> None:
        """Removes it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._fd)


def _sweep(base: str, prefix: str, now: float) -> None:
    """Removes folders of ours that nobody holds any more; ``now`` is the file system's time."""
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                with contextlib.suppress(OSError):
                    _remove_if_left(entry.path, now)


def _remove_if_left(path: str, now: float) -> None:
    found = os.lstat(path)
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or now - found.st_mtime < YOUNG_S:
        return
    fd = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    finally:
        os.close(fd)
