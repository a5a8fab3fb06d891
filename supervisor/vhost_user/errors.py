"""What can go wrong on a vhost-user connection, sorted by blame (the tree in ``supervisor.errors``).

    VhostUserError
    ├── our caller (also LocalError, a ValueError)
    │   ├── EndpointClosed     this end was closed by us, or has lost its place in the stream
    │   ├── Unsendable         the message cannot go out: too large, too many descriptors, a number too big
    │   └── PathTaken          somebody living listens there, or what is there is no socket
    ├── the peer (also PeerError)
    │   ├── Disconnected       it is gone, between two messages
    │   │   └── SocketBroken       ... and has not read everything that we sent
    │   ├── PartialMessage     it is gone, inside a message
    │   ├── InvalidMessage     it sent what the specification does not allow
    │   │   ├── OversizedMessage   more bytes than any message has
    │   │   └── IncorrectFds       another number of descriptors than the request has, or in the wrong place
    │   ├── BackEndRefused     the answer to a request was "no"
    │   └── Backlogged         it sends requests and does not read the replies
    ├── nobody
    │   └── WireTimeout        the time is up (also a TimeoutError)
    └── the system (also EnvironmentFault)
        ├── SocketConnect      a path cannot be connected to, or listened at
        ├── DescriptorsLost    our own table of descriptors is full (also an InvalidMessage)
        └── SocketError        an OSError that is none of these; it is the ``__cause__``

After InvalidMessage the connection can only be closed: where the next message begins is the peer's word, and
that has just proved wrong. Every descriptor that came with the refused message is closed by then. Pure.
"""

from __future__ import annotations

import errno

from supervisor.errors import EnvironmentFault, LocalError, PeerError, TubevisorError

__all__ = [
    "BackEndRefused",
    "Backlogged",
    "Disconnected",
    "DescriptorsLost",
    "EndpointClosed",
    "IncorrectFds",
    "InvalidMessage",
    "OversizedMessage",
    "PartialMessage",
    "PathTaken",
    "RETRIED",
    "SocketBroken",
    "SocketConnect",
    "SocketError",
    "Unsendable",
    "VhostUserError",
    "WireTimeout",
    "blame",
]


class VhostUserError(TubevisorError):
    """Root of everything that a vhost-user connection raises on purpose."""


class EndpointClosed(VhostUserError, LocalError):
    """This end was closed by us, or gave up in the middle of a message and has lost its place."""


class Unsendable(VhostUserError, LocalError):
    """The message cannot be sent as it is. Nothing was sent."""


class PathTaken(VhostUserError, LocalError):
    """The path belongs to a living listener, or to something that is no socket. It was left alone."""


class Disconnected(VhostUserError, PeerError):
    """The peer is gone, and what it sent before was received."""


class SocketBroken(Disconnected):
    """The peer is gone and has left unread what we had sent (ECONNRESET, EPIPE)."""


class PartialMessage(VhostUserError, PeerError):
    """The peer went away in the middle of a message."""


class InvalidMessage(VhostUserError, PeerError):
    """The peer sent what the specification does not allow. ``request`` names the message, if it is known."""

    def __init__(self, what: str, request: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.request = request

    def __str__(self) -> str:
        return f"{self.request}: {self.what}" if self.request else self.what


class OversizedMessage(InvalidMessage):
    """A header announces more bytes than any message has. They were neither waited for nor allocated."""


class IncorrectFds(InvalidMessage):
    """Another number of descriptors than the request has, or descriptors behind the message's first byte."""


class BackEndRefused(VhostUserError, PeerError):
    """The back-end answered with an error. ``code`` is what it said, where it said something."""

    def __init__(self, request: str, code: int | None = None) -> None:
        super().__init__(
            f"{request} was refused" if code is None else f"{request} was refused with {code:#x}"
        )
        self.request = request
        self.code = code


class Backlogged(VhostUserError, PeerError):
    """The peer keeps asking and does not read the answers."""


class WireTimeout(VhostUserError, TimeoutError):
    """The time is up."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.ETIMEDOUT, what)


class SocketConnect(VhostUserError, EnvironmentFault):
    """A path cannot be connected to or listened at. The ``OSError`` is the cause."""


class DescriptorsLost(InvalidMessage, EnvironmentFault):
    """Descriptors of a message were lost (MSG_CTRUNC): our own table of them is full."""


class SocketError(VhostUserError, EnvironmentFault):
    """The system refused. The ``OSError`` is the cause."""


RETRIED = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS, errno.ENOMEM})
"""Nobody's fault and soon over: waited out up to the deadline, never spun on."""

_BLAME: dict[int, type[VhostUserError]] = {
    errno.ECONNRESET: SocketBroken,
    errno.EPIPE: SocketBroken,
    errno.EACCES: SocketConnect,
}


def blame(error: OSError, doing: str) -> VhostUserError:
    """Return what to raise, from ``error``, when ``doing`` failed. Not for those of RETRIED."""
    return _BLAME.get(error.errno or 0, SocketError)(f"{doing} failed")
