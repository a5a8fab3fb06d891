"""``Tube`` and its two halves: typed messages between processes.

A Tube carries any value that msgspec knows (structs, dataclasses, containers, numbers, text, bytes) and, at
any place in it, objects that own a descriptor, which arrive as owners of a new descriptor. No pickle: what a
worker sends can do nothing but fail to decode. Sending copies: the sender's object stays open, close it when
the peer should see the end.

Any number of threads may send through one end (``SendTube.clone`` gives each its own handle); one may
receive. Messages never mix or split (SOCK_SEQPACKET, unix(7)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from supervisor.tube.end import end_pair
from supervisor.tube.errors import Closed
from supervisor.tube.face import Face
from supervisor.tube.packet import MAX_FDS_DEFAULT, Shape
from supervisor.tube.waiting import deadline_after

if TYPE_CHECKING:
    from typing import Self

    from supervisor.tube.peer import Process

__all__ = ["RecvTube", "SendTube", "Tube"]

T = TypeVar("T")


class _Sends(Face):
    """The sending half of the interface."""

    def send(self, message: object, *, timeout: float | None = None, max_fds: int = MAX_FDS_DEFAULT) -> None:
        """Send one message; wait at most ``timeout`` seconds for room in the peer's queue (None: for ever, 0:
        not at all).

        Raises QueueFull, Disconnected, MessageTooLarge, TooManyFds (more than ``max_fds`` owners of
        descriptors in it), NotSendable, BadDescriptor, Closed. After an error nothing was sent.
        """
        from supervisor.tube.codec import encode

        end = self.end
        end.send(encode(message, max_fds), deadline_after(timeout))


class _Receives(Face):
    """The receiving half of the interface."""

    @overload
    def recv(self, type: type[T], *, timeout: float | None = None, max_fds: int = MAX_FDS_DEFAULT) -> T: ...
    @overload
    def recv(
        self, type: Any = ..., *, timeout: float | None = None, max_fds: int = MAX_FDS_DEFAULT
    ) -> Any: ...
    def recv(self, type: Any = Any, *, timeout: float | None = None, max_fds: int = MAX_FDS_DEFAULT) -> Any:
        """Return the next message as a ``type`` (any annotation msgspec knows; plain values when not given).

        Waits at most ``timeout`` seconds (None: for ever, 0: not at all). Raises WouldBlock, TubeTimeout,
        Disconnected, MalformedMessage (also: not a ``type``), UnexpectedFds (more than ``max_fds``),
        TruncatedMessage, WrongPeer, TooManyFds (``max_fds`` is beyond the kernel's), Closed.
        """
        from supervisor.tube.codec import check_max_fds, decode

        check_max_fds(max_fds)
        arrived = self.end.receive(deadline_after(timeout))
        try:
            return decode(arrived, type, max_fds)
        finally:
            arrived.close()


class SendTube(_Sends):
    """The sending half of an end."""

    shape = Shape.SEND_TUBE

    def _far_process(self) -> Process | None:
        return self.end.listener()

    def clone(self) -> SendTube:
        """Return another handle of this end, for another sender in this process."""
        return SendTube(self.end)


class RecvTube(_Receives):
    """The receiving half of an end; one reader an end."""

    shape = Shape.RECV_TUBE


class Tube(_Sends, _Receives):
    """One end of a connected pair."""

    shape = Shape.TUBE

    @classmethod
    def pair(cls, buffer_size: int | None = None) -> tuple[Self, Self]:
        """Return both ends of a new connection. ``buffer_size``: bytes the kernel queues in each direction.

        Raises TubeSystemError.
        """
        ours, theirs = end_pair(buffer_size)
        return cls(ours), cls(theirs)

    def split(self) -> tuple[SendTube, RecvTube]:
        """Return the two halves and close this Tube; the connection ends when both are closed."""
        if self._end is None:
            raise Closed("this Tube was closed")
        halves = SendTube(self._end), RecvTube(self._end)
        self.close()
        return halves

    @staticmethod
    def directional_pair(buffer_size: int | None = None) -> tuple[SendTube, RecvTube]:
        """Return the two ends of a connection that is used in one direction only."""
        ours, theirs = end_pair(buffer_size)
        return SendTube(ours), RecvTube(theirs)
