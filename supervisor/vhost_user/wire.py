"""The system calls of a vhost-user connection: one send, one receive, never waiting.

``SocketWire`` is over the packet calls of ``supervisor.tube.scm``: a stream socket takes the same flags, and
what arrives is owned before anything can raise. ``PipeWire`` is for a channel of the back-end's requests that
is the write end of a pipe: such requests need no answers, so a front-end may hand over as little as that.
``receive_message`` drains a wire into an assembler.

On a stream the kernel reports ECONNRESET after the last byte that the peer had sent, so by then there is
nothing left to drain. ENOBUFS and ENOMEM pass: they count as "not now", up to MAX_SCARCE times in a row.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from supervisor.tube.errors import (
    BadDescriptor,
    MalformedMessage,
    QueueFull,
    TooManyFds,
    TruncatedMessage,
    TubeError,
)
from supervisor.tube.errors import Disconnected as TubeDisconnected
from supervisor.tube.scm import Broken, receive_packet, restore_blocking, send_packet
from supervisor.vhost_user.errors import (
    RETRIED,
    DescriptorsLost,
    EndpointClosed,
    InvalidMessage,
    PartialMessage,
    SocketBroken,
    SocketError,
    Unsendable,
    VhostUserError,
    blame,
)

if TYPE_CHECKING:
    from supervisor.tube.descriptor import Descriptor
    from supervisor.vhost_user.assembler import Assembler, Message, Wire

__all__ = ["MAX_SCARCE", "PipeWire", "SocketWire", "is_pipe", "receive_message"]

MAX_SCARCE = 100
"""Times in a row that the kernel may be short of memory: with the pauses between, about two seconds."""


class SocketWire:
    """A connected stream socket, taken over. ``scarce`` counts in a row how often the kernel was short."""

    def __init__(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise Unsendable("vhost-user needs a stream socket of AF_UNIX")
        # A timeout of its own would make this socket's calls wait, whatever their flags say.
        restore_blocking(sock)
        self._sock = sock
        self.scarce = 0

    def fileno(self) -> int:
        """Raises EndpointClosed."""
        return _open_number(self._sock.fileno())

    def send_some(self, buffers: Sequence[bytes | memoryview], fds: Sequence[int]) -> int:
        """One sendmsg. Return the bytes it took, 0 when there is no room now.

        Raises EndpointClosed, SocketBroken, SocketError, Unsendable (a descriptor that is not open).
        """
        self.fileno()
        try:
            sent = send_packet(self._sock, buffers, fds)
        except QueueFull:
            return 0
        except TubeDisconnected as error:
            raise SocketBroken("the peer is gone") from error.__cause__
        except (BadDescriptor, TooManyFds) as error:
            raise Unsendable(str(error)) from error
        except TubeError as error:
            self._pass_or_raise(error, "sendmsg")
            return 0
        self.scarce = 0
        return sent

    def receive_some(self, max_bytes: int) -> tuple[bytes, list[Descriptor]] | None:
        """One recvmsg. Return what came, None when there is nothing now, no bytes at the end of the stream.

        Raises EndpointClosed, SocketBroken, DescriptorsLost, InvalidMessage, SocketError.
        """
        self.fileno()
        try:
            arrival = receive_packet(self._sock, max_bytes)
        except Broken as error:
            raise SocketBroken("the peer is gone, and has not read everything") from error.__cause__
        except TruncatedMessage as error:
            raise DescriptorsLost("descriptors were lost (MSG_CTRUNC): our table of them is full") from error
        except MalformedMessage as error:
            raise InvalidMessage(str(error)) from error
        except TubeError as error:
            self._pass_or_raise(error, "recvmsg")
            return None
        self.scarce = 0
        return None if arrival is None else (arrival.data, arrival.descriptors)

    def _pass_or_raise(self, error: TubeError, doing: str) -> None:
        cause = error.__cause__
        if not isinstance(cause, OSError):
            raise SocketError(f"{doing} failed") from error
        self.scarce += 1
        if cause.errno not in RETRIED or self.scarce > MAX_SCARCE:
            raise blame(cause, doing) from cause

    def close(self) -> None:
        self._sock.close()


class PipeWire:
    """The write end of a pipe, taken over: no descriptors, no answers."""

    scarce = 0

    def __init__(self, pipe: Descriptor) -> None:
        self._pipe = pipe

    def fileno(self) -> int:
        """Raises EndpointClosed."""
        return _open_number(-1 if self._pipe.closed else self._pipe.fileno())

    def send_some(self, buffers: Sequence[bytes | memoryview], fds: Sequence[int]) -> int:
        """One write. Raises EndpointClosed, SocketBroken, SocketError, Unsendable."""
        if fds:
            raise Unsendable("a pipe carries no descriptors")
        number = self.fileno()
        # The pipe may be a blocking one. One that can be written to has room for PIPE_BUF bytes at least.
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        if not poll.poll(0):
            return 0
        try:
            return os.write(number, b"".join(buffers)[: select.PIPE_BUF])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise blame(error, "write") from error

    def receive_some(self, max_bytes: int) -> tuple[bytes, list[Descriptor]] | None:
        """Raises Unsendable: nothing ever comes out of this end."""
        raise Unsendable("the peer's channel is a pipe: it gives no answers")

    def close(self) -> None:
        self._pipe.close()


def _open_number(number: int) -> int:
    if number < 0:
        raise EndpointClosed("this end was closed")
    return number


def receive_message(wire: Wire, assembler: Assembler) -> Message | None:
    """Receive until a message is whole, or nothing more is there (None). Never waits.

    Raises what the wire and the assembler raise; the assembler is closed then. Some more pieces may have
    arrived even where None is returned: ``assembler.is_inside`` tells.
    """
    while True:
        try:
            came = wire.receive_some(assembler.wanted_bytes)
        except SocketBroken as error:
            was_inside = assembler.is_inside
            assembler.close()
            if was_inside:
                raise PartialMessage("the peer went away inside a message") from error
            raise
        except VhostUserError:
            assembler.close()
            raise
        if came is None:
            return None
        message = assembler.feed(*came)
        if message is not None:
            return message


def is_pipe(number: int) -> bool:
    """Tell whether a descriptor can be written to but is no socket."""
    try:
        socket.socket(fileno=number).detach()
    except OSError as error:
        return error.errno == errno.ENOTSOCK
    return False
