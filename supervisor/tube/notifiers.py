"""What an event loop watches: ``read_notifier`` and ``close_notifier`` of an end.

Both only have a ``fileno()``; select, poll and epoll all work. The read notifier is the socket itself:
readable while a packet waits (also a hand-over, which ``recv`` takes in silence, so a woken loop must be
ready for WouldBlock) and when the peer is gone. The close notifier is an epoll descriptor (epoll(7): it can
itself be polled) that watches the socket for hang-up only: data does not wake it, and unread data does not
hide the peer's end.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

__all__ = ["CloseNotifier", "ReadNotifier"]


class ReadNotifier:
    """Readable when there is something to receive. Valid as long as its Tube."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Return the descriptor to poll for reading; -1 after the Tube was closed."""
        return self._sock.fileno()


class CloseNotifier:
    """Readable when the peer is gone, and only then. Level-triggered. Valid as long as its Tube."""

    __slots__ = ("_epoll",)

    def __init__(self, sock: socket.socket) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        # EPOLLHUP and EPOLLERR are always reported; EPOLLRDHUP adds a peer that only shut down its sending
        # side.
        self._epoll.register(sock.fileno(), select.EPOLLRDHUP)

    def fileno(self) -> int:
        """Return the descriptor to poll for reading; -1 after the Tube was closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def is_set(self) -> bool:
        """Tell whether the peer is gone, without waiting."""
        return bool(self._epoll.poll(0, 1))

    def close(self) -> None:
        self._epoll.close()
