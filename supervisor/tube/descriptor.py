"""Owners of descriptors: ``Descriptor`` (any), ``Eventfd``.

A plain int owns nothing: a received descriptor that is only an int leaks as soon as anything raises. So what
arrives is wrapped at once, and the wrapper closes it on ``close``, at the end of a ``with``, and on garbage
collection. All are close-on-exec. Safe to close twice; not safe to close in one thread while another uses the
number.
"""

from __future__ import annotations

import errno
import os
import select
from types import TracebackType
from typing import TYPE_CHECKING

from supervisor.tube.errors import BadDescriptor, Closed, TubeSystemError, TubeTimeout
from supervisor.tube.spawning import reduce_descriptor

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Descriptor", "Eventfd", "close_all"]


class Descriptor:
    """Owns one descriptor. ``Descriptor(fd)`` takes it over and makes it close-on-exec.

    Raises BadDescriptor when the number is not open.
    """

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = -1
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise BadDescriptor(f"descriptor {fd} is not open") from error
        self._fd = fd

    @classmethod
    def duplicate(cls, source: object) -> Self:
        """Own a new descriptor of what ``source`` (a number, or an object with ``fileno()``) refers to.

        Raises BadDescriptor, TubeSystemError, Closed.
        """
        number = number_of(source)
        try:
            return cls(os.dup(number))
        except OSError as error:
            if error.errno == errno.EBADF:
                raise BadDescriptor(f"descriptor {number} is not open") from error
            raise TubeSystemError("dup failed") from error

    def fileno(self) -> int:
        """Return the number. Raises Closed after ``close`` or ``detach``."""
        if self._fd < 0:
            raise Closed("this descriptor was closed or detached")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def detach(self) -> int:
        """Return the number and own it no longer. Raises Closed."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def close(self) -> None:
        """Close the descriptor; nothing happens the second time."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The slot is not there when __init__ was never reached.
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return reduce_descriptor(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else self._fd}>"


class Eventfd(Descriptor):
    """A counter that can be polled (eventfd(2)): ``signal`` adds, ``wait`` takes. Non-blocking descriptor."""

    __slots__ = ()

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            try:
                fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError as error:
                raise TubeSystemError("eventfd failed") from error
        super().__init__(fd)

    def signal(self, count: int = 1) -> None:
        """Add ``count``; whoever polls becomes ready."""
        os.eventfd_write(self.fileno(), count)

    def take(self) -> int:
        """Return what was signalled since the last time and start at 0 again; 0 when nothing was."""
        # The eventfd may be anybody's and blocking: ask first instead of relying on O_NONBLOCK.
        if not _readable(self.fileno(), 0):
            return 0
        try:
            return os.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0

    def wait(self, timeout: float | None = None) -> int:
        """Wait for a signal, at most ``timeout`` seconds (None.

        For ever), and take it. Raises TubeTimeout.
        """
        if not _readable(self.fileno(), timeout):
            raise TubeTimeout("nothing was signalled in time")
        return os.eventfd_read(self.fileno())


def _readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def number_of(source: object) -> int:
    """Return the descriptor's number of an int or of an object with ``fileno()``."""
    if isinstance(source, int):
        return source
    return int(source.fileno())  # type: ignore[attr-defined]


def close_all(descriptors: list[Descriptor]) -> None:
    """Close every one of them."""
    for descriptor in descriptors:
        descriptor.close()
