"""``PipeTube``: typed messages over a byte stream, for programs that are not our workers.

A stream is a pair of pipes (named ones: fifo(7)) or a stream socket. It has no packets, so each message is a
frame: the header of packet.py, then the body. Blocking, without timeouts and without notifiers, one reader
and one writer. Descriptors cannot travel: on a stream they are glued to bytes of the kernel's choice, and a
pipe has none at all; an owner of one in a message is refused when it is sent. Nobody tells us who is at the
other side.

A body is read in pieces, so a header that lies about its size costs only what is really sent.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from types import TracebackType
from typing import TYPE_CHECKING, Any

from supervisor.tube.descriptor import Descriptor
from supervisor.tube.errors import (
    Closed,
    Disconnected,
    MalformedMessage,
    MessageTooLarge,
    TruncatedMessage,
    TubeSystemError,
)
from supervisor.tube.packet import (
    HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    Header,
    Kind,
    pack_head,
    unpack_frame_head,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = ["PipeTube"]

# What one read may allocate, whatever the header promises.
READ_BYTES = 64 * 1024


class PipeTube:
    """One end of a byte stream that carries messages. Owns its descriptors."""

    def __init__(self, reader: Descriptor | int, writer: Descriptor | int) -> None:
        """Take over the descriptors to read from and to write to; they may be two numbers for one stream."""
        self._reader: Descriptor | None = _own(reader)
        self._writer: Descriptor | None = _own(writer)
        self._socket = stat.S_ISSOCK(os.fstat(self._writer.fileno()).st_mode)

    @classmethod
    def from_socket(cls, sock: socket.socket) -> Self:
        """Take over a connected stream socket."""
        second = Descriptor.duplicate(sock)
        return cls(Descriptor(sock.detach()), second)

    @classmethod
    def from_named_pipes(cls, *, read: str | os.PathLike[str], write: str | os.PathLike[str]) -> Self:
        """Open two existing FIFOs; waits until the other side has opened its reading end.

        Both sides may call this in any order, each with the other's names exchanged. Raises TubeSystemError.
        """
        try:
            # A FIFO opened for reading without O_NONBLOCK waits for its writer, who waits for us: a deadlock.
            reader = Descriptor(os.open(read, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            with reader:
                writer = Descriptor(os.open(write, os.O_WRONLY | os.O_CLOEXEC))
                os.set_blocking(reader.fileno(), True)
                return cls(Descriptor(reader.detach()), writer)
        except OSError as error:
            raise TubeSystemError("a named pipe could not be opened") from error

    def send(self, message: object) -> None:
        """Send one message; waits until the stream has taken all of it.

        Raises NotSendable (also for an owner of a descriptor), MessageTooLarge, Disconnected, Closed.
        """
        from supervisor.tube.codec import pack_plain

        writer = self._open(self._writer)
        body = pack_plain(message)
        if len(body) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"{len(body)} bytes; the limit is {MAX_MESSAGE_BYTES}")
        rest = memoryview(pack_head(Header(Kind.MESSAGE, len(body))) + body)
        while rest:
            rest = rest[self._write(writer, rest) :]

    def _write(self, fd: int, data: memoryview) -> int:
        try:
            if self._socket:
                with socket.socket(fileno=os.dup(fd)) as sock:
                    return sock.send(data, socket.MSG_NOSIGNAL)
            return os.write(fd, data)
        except BlockingIOError:
            # Somebody else made the stream non-blocking; we wait all the same.
            _wait(fd, select.POLLOUT)
            return 0
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Disconnected("the peer is gone") from error
        except OSError as error:
            raise TubeSystemError("write failed") from error

    def recv(self, type: Any = Any) -> Any:
        """Return the next message as a ``type``; waits for it.

        Raises Disconnected (between two messages), TruncatedMessage (within one), MalformedMessage, Closed.
        After MalformedMessage for a wrong header the stream is of no more use: nobody knows where the next
        frame begins.
        """
        from supervisor.tube.codec import unpack_plain

        reader = self._open(self._reader)
        kind, body_bytes = unpack_frame_head(self._read_exactly(reader, HEADER_BYTES, at_boundary=True))
        body = self._read_exactly(reader, body_bytes, at_boundary=False)
        if kind != Kind.MESSAGE:
            raise MalformedMessage("not a typed message")
        return unpack_plain(body, type)

    def _read_exactly(self, fd: int, size_bytes: int, *, at_boundary: bool) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            try:
                # A FIFO that nobody has opened for writing yet reads as ended; poll knows the difference.
                _wait(fd, select.POLLIN)
                piece = os.read(fd, min(size_bytes - len(data), READ_BYTES))
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.ECONNRESET:
                    raise TubeSystemError("read failed") from error
                piece = b""
            if not piece:
                if at_boundary and not data:
                    raise Disconnected("the peer is gone")
                raise TruncatedMessage(f"the stream ended after {len(data)} of {size_bytes} bytes")
            data += piece
        return bytes(data)

    def _open(self, descriptor: Descriptor | None) -> int:
        if descriptor is None:
            raise Closed("this PipeTube was closed")
        return descriptor.fileno()

    def close(self) -> None:
        """Close both directions; nothing happens the second time."""
        for descriptor in (self._reader, self._writer):
            if descriptor is not None:
                descriptor.close()
        self._reader = self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _own(source: Descriptor | int) -> Descriptor:
    return Descriptor(source) if isinstance(source, int) else source


def _wait(fd: int, events: int) -> None:
    poll = select.poll()
    poll.register(fd, events)
    poll.poll()
