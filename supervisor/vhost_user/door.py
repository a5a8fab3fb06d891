"""How a VMM and a device come together: we listen for it, or it listens for us.

A door hands each connection to its owner. One that listens is there for the life of the device. One that
dials tries again as long as nobody listens, and after each connection that has ended: so a VMM that is the
server of the socket (QEMU's ``server=on``) gets its device back within ``REDIAL_NS``, whoever of the two was
away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import SocketConnect, VhostUserError, WireTimeout
from supervisor.vhost_user.listener import Listener

__all__ = ["DialingDoor", "Door", "ListeningDoor", "Loop"]

REDIAL_NS = 50_000_000  # a VMM that is not there yet: it costs a system call each time
_log = logging.getLogger("tubevisor")
Welcome = Callable[[Endpoint], None]


class Loop(Protocol):
    """What a door needs of the reactor."""

    def watch(self, fd: int, callback: Callable[[int], None]) -> None:
        """Calls back while ``fd`` is readable."""

    def unwatch(self, fd: int) -> None:
        """Stops that."""

    def call_at(self, at_ns: int, callback: Callable[[], None]) -> Any:
        """Calls back once; what is returned can be cancelled (``cancel``)."""


class Door(Protocol):
    """Where connections come from."""

    def left(self) -> None:
        """The connection has ended, or was not wanted."""

    def close(self) -> None:
        """No more connections."""


class ListeningDoor:
    """Listens at ``path``. Raises what ``Listener`` does."""

    def __init__(self, path: str, loop: Loop, welcome: Welcome) -> None:
        self._loop = loop
        self._welcome = welcome
        self._listener = Listener(path, nonblocking=True)
        loop.watch(self._listener.fileno(), self._on_knock)

    def _on_knock(self, _mask: int) -> None:
        try:
            end = self._listener.accept()
        except VhostUserError as error:
            _log.warning("%s", error)
            return
        if end is not None:
            self._welcome(end)

    def left(self) -> None:
        """The next one will knock."""

    def close(self) -> None:
        """Gives the socket back."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()


class DialingDoor:
    """Connects to whoever listens at ``path``, as soon as somebody does."""

    def __init__(self, path: str, loop: Loop, now_ns: Callable[[], int], welcome: Welcome) -> None:
        self._path = path
        self._loop = loop
        self._now_ns = now_ns
        self._welcome = welcome
        self._timer: Any = None
        self._closed = False
        self._redial(0)

    def _redial(self, delay_ns: int) -> None:
        if not self._closed and self._timer is None:
            self._timer = self._loop.call_at(self._now_ns() + delay_ns, self._dial)

    def _dial(self) -> None:
        self._timer = None
        try:
            end = Endpoint.connect(self._path, timeout=0)
        except (SocketConnect, WireTimeout):
            self._redial(REDIAL_NS)
        else:
            self._welcome(end)

    def left(self) -> None:
        """Whoever was there may come back."""
        self._redial(REDIAL_NS)

    def close(self) -> None:
        """Dials no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
