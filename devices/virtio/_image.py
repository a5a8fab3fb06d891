"""Opening a disk's image, and keeping others away from it.

The locks are those of QEMU, so that each notices the other: a byte of the file for each thing that one does
with an image (from 100 on), and one for each thing that one cannot bear others to do (from 200 on), which is
read-locked by whoever it is true of. They belong to the open file (F_OFD_SETLK, fcntl(2)), which the
supervisor keeps from process to process: a successor has them at once, and they go when the supervisor has
gone and all of its processes.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import time

from supervisor.errors import LocalError

__all__ = ["is_still", "open_image"]

READS, WRITES, RESIZES = 0, 1, 3  # what one does with an image
DOES_AT, BARS_AT = 100, 200  # bytes of the file
GETLK, SETLK = fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK
PATIENCE_S = 2.0  # a supervisor that was killed takes its workers with it, each GiB of memory in 50 ms
AGAIN_S = 0.01
UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid


def is_still(fd: int, path: str, *, read_only: bool) -> bool:
    """True unless there is another file at ``path`` by now, or ``fd`` was opened in another way."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != _mode(read_only):
        return False
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return True  # an image that was removed or moved away is still the guest's disk


def open_image(path: str, *, read_only: bool, locks: bool, logger: logging.Logger) -> int:
    """A descriptor of the image at ``path``.

    Raises :class:`LocalError` where it cannot be opened, or somebody else has it for ``PATIENCE_S`` on end.
    """
    try:
        fd = os.open(path, _mode(read_only) | os.O_CLOEXEC)
    except OSError as error:
        raise LocalError(f"image {path}: {error.strerror}") from error
    if locks:
        try:
            _lock(fd, path, read_only=read_only)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                os.close(fd)
                raise LocalError(f"image {path}: it cannot be locked: {error.strerror}") from error
            logger.warning("image %s is not locked: its file system has no locks", path)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _mode(read_only: bool) -> int:
    return os.O_RDONLY if read_only else os.O_RDWR


def _lock(fd: int, path: str, *, read_only: bool) -> None:
    does = (READS,) if read_only else (READS, WRITES)
    bars = (WRITES, RESIZES)
    ours = [DOES_AT + one for one in does] + [BARS_AT + one for one in bars]
    others = [BARS_AT + one for one in does] + [DOES_AT + one for one in bars]
    until = time.monotonic() + PATIENCE_S
    while True:
        for byte in ours:
            fcntl.fcntl(fd, SETLK, _flock(fcntl.F_RDLCK, byte))
        if not any(_is_locked(fd, byte) for byte in others):
            return
        fcntl.fcntl(fd, SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
        if time.monotonic() > until:
            raise LocalError(
                f"image {path} is in use by another process; if both may use it at the same time, "
                f"give both locks: false (QEMU: file.locking=off)"
            )
        time.sleep(AGAIN_S)


def _is_locked(fd: int, byte: int) -> bool:
    """True if somebody else holds a lock there."""
    answer = fcntl.fcntl(fd, GETLK, _flock(fcntl.F_WRLCK, byte))
    kind: int = struct.unpack_from("h", answer)[0]
    return kind != fcntl.F_UNLCK


def _flock(kind: int, byte: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)
