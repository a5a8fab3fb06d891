"""``ProtoTube``: protobuf messages between the supervisor, its zygote and its workers.

The receiver names the type. An all-default message has no bytes and is a message all the same (packet.py's
header). Descriptors go beside the message, in a list whose order the message gives a meaning to; a receiver
that expects none refuses them. protobuf is imported by whoever has a message type to send: not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from supervisor.tube.codec_fds import check_max_fds, gather
from supervisor.tube.end import end_pair
from supervisor.tube.errors import MalformedMessage, NotSendable, UnexpectedFds
from supervisor.tube.face import Face
from supervisor.tube.packet import MAX_FDS_DEFAULT, Kind, Shape
from supervisor.tube.waiting import deadline_after

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from google.protobuf.message import Message

    from supervisor.tube.descriptor import Descriptor
    from supervisor.tube.parcel import Arrived

__all__ = ["ProtoTube", "Received"]

M = TypeVar("M", bound="Message")


@dataclass(slots=True)
class Received(Generic[M]):
    """A message, its descriptors in the sender's order, and who sent it, as the kernel says.

    ``pid`` is numbered as in our pid namespace, 0 for a process that has none there, None when not recorded.
    ``pidfd`` is None before Linux 6.5. The receiver owns all of them; ``close`` closes what was not detached.
    """

    message: M
    descriptors: list[Descriptor]
    pid: int | None
    pidfd: Descriptor | None

    def close(self) -> None:
        for descriptor in self.descriptors:
            descriptor.close()
        if self.pidfd is not None:
            self.pidfd.close()


class ProtoTube(Face):
    """One end of a connected pair that carries protobuf messages."""

    shape = Shape.PROTO_TUBE

    @classmethod
    def pair(cls, buffer_size: int | None = None) -> tuple[Self, Self]:
        """Return both ends of a new connection. ``buffer_size``: bytes the kernel queues in each direction.

        Raises TubeSystemError.
        """
        ours, theirs = end_pair(buffer_size)
        return cls(ours), cls(theirs)

    def send_proto(
        self,
        message: Message,
        fds: Iterable[object] = (),
        *,
        timeout: float | None = None,
        max_fds: int = MAX_FDS_DEFAULT,
    ) -> None:
        """Send one message with descriptors: numbers, or objects with ``fileno()``, which stay the caller's.

        A Tube among them is handed over (its far side and its receiver learn of each other, see peer.py); the
        bare number of one is not. Waits at most ``timeout`` seconds for room in the peer's queue (None: for
        ever, 0: not at all). Raises QueueFull, Disconnected, MessageTooLarge, TooManyFds, BadDescriptor,
        NotSendable, Closed; then nothing was sent.
        """
        from google.protobuf.message import EncodeError

        try:
            body = message.SerializeToString()
        except (EncodeError, ValueError) as error:
            raise NotSendable(f"a {type(message).__name__} cannot be serialised") from error
        self.end.send(gather(Kind.PROTO, body, fds, max_fds), deadline_after(timeout))

    def send_proto_nowait(self, message: Message, fds: Iterable[object] = ()) -> None:
        """Send one message without waiting.

        For event loops. Raises as ``send_proto``; QueueFull when there is no room.
        """
        self.send_proto(message, fds, timeout=0)

    def recv_proto(self, type: type[M], *, timeout: float | None = None) -> M:
        """Return the next message, which must not carry descriptors.

        Waits at most ``timeout`` seconds (None: for ever, 0: not at all). Raises WouldBlock, TubeTimeout,
        Disconnected, MalformedMessage, UnexpectedFds, TruncatedMessage, WrongPeer, Closed.
        """
        arrived = self.end.receive(deadline_after(timeout))
        try:
            return _parse(arrived, type, 0)
        finally:
            arrived.close()

    def recv_proto_with_fds(
        self, type: type[M], *, timeout: float | None = None, max_fds: int = MAX_FDS_DEFAULT
    ) -> Received[M]:
        """Return the next message with its descriptors (at most ``max_fds``) and its sender.

        Raises as ``recv_proto``.
        """
        check_max_fds(max_fds)
        arrived = self.end.receive(deadline_after(timeout))
        try:
            message = _parse(arrived, type, max_fds)
        except BaseException:
            arrived.close()
            raise
        pid = None if arrived.sender is None else arrived.sender.pid
        return Received(message, arrived.descriptors, pid, arrived.pidfd)


def _parse(arrived: Arrived, type: type[M], max_fds: int) -> M:
    from google.protobuf.message import DecodeError

    if arrived.kind != Kind.PROTO:
        raise MalformedMessage("not a protobuf message")
    if len(arrived.descriptors) > max_fds:
        raise UnexpectedFds(f"{len(arrived.descriptors)} descriptors, at most {max_fds} are expected")
    message = type()
    try:
        message.ParseFromString(bytes(arrived.body))
    except DecodeError as error:
        raise MalformedMessage(f"not a {type.__name__}") from error
    return message
