"""Where front-ends connect: a stream socket at a path.

Rules of this file:
- A socket file whose owner is dead is replaced; one whose owner lives, and anything else, is left alone. The
  test is a connect of another socket type, which the kernel refuses in one way for a dead owner and in
  another for a living one, and of which the living one notices nothing.
- Testing and binding are one step among listeners: the directory is locked meanwhile (flock(2)).
- The mode is set after bind and before listen: until then nobody can connect, so nobody does too early.
- ``close`` unlinks the file only while it is the one that was bound here.
- One listener for the whole life of a device: one that is closed and bound again between two connections can
  be missed by a front-end that reconnects.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from supervisor.tube.waiting import deadline_after, seconds_left, wait_for
from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import EndpointClosed, PathTaken, SocketConnect, SocketError, WireTimeout
from supervisor.vhost_user.rules import FRONT_END_RULES, Rules

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Listener"]

BACKLOG = 8
"""A device has one front-end; a few more may knock while it goes away. QEMU waits for none."""

LOCK_TIMEOUT_S = 2.0
"""How long another listener may hold the directory: it makes four system calls meanwhile."""

LOCK_RETRY_MS = 5


class Listener:
    """Listens at ``path``, for ``mode`` (of the file; connecting needs the right to write to it).

    Raises PathTaken, SocketConnect.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mode: int = 0o600,
        nonblocking: bool = False,
        rules: Rules = FRONT_END_RULES,
    ) -> None:
        self.path = os.fspath(path)
        self._rules = rules
        self._nonblocking = nonblocking
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Always: who was seen knocking may be gone when we open.
            self._sock.setblocking(False)
            with _directory_locked(os.path.dirname(self.path) or "."):
                self._file = self._bind(mode)
        except OSError as error:
            self._sock.close()
            raise SocketConnect(f"cannot listen at {self.path}") from error
        except BaseException:
            self._sock.close()
            raise

    def _bind(self, mode: int) -> tuple[int, int]:
        try:
            self._sock.bind(self.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_dead(self.path)
            self._sock.bind(self.path)
        file = _identity(self.path)
        try:
            os.chmod(self.path, mode)
            self._sock.listen(BACKLOG)
        except BaseException:
            _unlink_own(self.path, file)
            raise
        return file

    def fileno(self) -> int:
        """The descriptor, readable when somebody knocks. Raises EndpointClosed."""
        number = self._sock.fileno()
        if number < 0:
            raise EndpointClosed("this listener was closed")
        return number

    def set_nonblocking(self, nonblocking: bool) -> None:
        """Say whether ``accept`` waits. Only ours does or does not: nobody else's open file changes."""
        self._nonblocking = nonblocking

    def accept(self, *, timeout: float | None = None) -> Endpoint | None:
        """Return the next connection; None when nobody is there and the listener is non-blocking.

        ``timeout`` is in seconds and for waiting listeners. Raises WireTimeout, EndpointClosed, SocketError.
        """
        deadline = 0 if self._nonblocking else deadline_after(timeout)
        while True:
            number = self.fileno()
            try:
                sock, _address = self._sock.accept()
                return Endpoint(sock, rules=self._rules)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue  # it has gone again
                raise SocketError("accept failed") from error
            if self._nonblocking:
                return None
            if not wait_for(number, select.POLLIN, deadline):
                raise WireTimeout(f"nobody connects to {self.path}")

    def close(self) -> None:
        """Stop listening and remove the file, if it is still the one that was bound here."""
        if self._sock.fileno() < 0:
            return
        # First the file: whoever still finds it can still connect.
        _unlink_own(self.path, self._file)
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _unlink_own(path: str, file: tuple[int, int]) -> None:
    with contextlib.suppress(FileNotFoundError):
        if _identity(path) == file:
            os.unlink(path)


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody has open. Raises PathTaken, OSError."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise PathTaken(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        number = probe.connect_ex(path)
    if number == errno.ECONNREFUSED:
        os.unlink(path)
    elif number not in (0, errno.EPROTOTYPE):
        raise OSError(number, os.strerror(number), path)
    else:
        raise PathTaken(f"somebody listens at {path}")


@contextlib.contextmanager
def _directory_locked(directory: str) -> Iterator[None]:
    """Keep other listeners out. A directory that may not be read cannot be locked, and is not."""
    try:
        number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        yield
        return
    try:
        deadline = deadline_after(LOCK_TIMEOUT_S)
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not seconds_left(deadline):
                    raise
                select.poll().poll(LOCK_RETRY_MS)
        yield
    finally:
        os.close(number)
