"""One end of a byte stream with descriptors: pieces sent and received, waited for up to a deadline.

What ``Endpoint`` makes messages of. Rules of this file:
- Descriptors go with the first byte of what they are sent with. If a send is cut short the rest follows
  without them: they are never sent twice.
- ``timeout`` (float seconds, None for ever, 0 for not at all) holds for each call as a whole. A call that
  gives up when it has begun what it cannot leave half done closes the end: its place in the stream is lost.
- Not for several threads at a time.

Every call raises EndpointClosed, SocketBroken, SocketError and WireTimeout besides what stands with it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from supervisor.tube.descriptor import Descriptor, close_all, number_of
from supervisor.tube.errors import Closed
from supervisor.tube.waiting import deadline_after, seconds_left, wait_for
from supervisor.vhost_user.errors import (
    Disconnected,
    IncorrectFds,
    PartialMessage,
    SocketConnect,
    Unsendable,
    WireTimeout,
)
from supervisor.vhost_user.messages import HEADER_BYTES
from supervisor.vhost_user.requests import MAX_FDS, MAX_PAYLOAD_BYTES
from supervisor.vhost_user.rules import FRONT_END_RULES, Rules
from supervisor.vhost_user.wire import PipeWire, SocketWire

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Fd", "StreamEnd", "advance_slices"]

MAX_READ_BYTES = HEADER_BYTES + MAX_PAYLOAD_BYTES
"""What one read may ask for: no message is longer."""

PAUSE_MS = 20
"""Between two tries when the kernel is short of memory, which no descriptor announces the end of."""

Fd = object  # a number, or what has ``fileno()``


def advance_slices(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return what is left of ``buffers`` behind their first ``count`` bytes; empty ones in front go. Pure."""
    left = list(buffers)
    while left and count >= len(left[0]):
        count -= len(left.pop(0))
    if left and count:
        left[0] = left[0][count:]
    return left


class StreamEnd:
    """A connection, taken over from a socket. ``rules`` say which requests travel over it."""

    def __init__(
        self,
        source: socket.socket | SocketWire | PipeWire,
        *,
        rules: Rules = FRONT_END_RULES,
        timeout: float | None = None,
    ) -> None:
        self._wire = SocketWire(source) if isinstance(source, socket.socket) else source
        self._rules = rules
        self.timeout = timeout

    @classmethod
    def connect(cls, path: str, *, rules: Rules = FRONT_END_RULES, timeout: float | None = None) -> Self:
        """Connect to a listener. Raises SocketConnect, WireTimeout."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = deadline_after(timeout)
        try:
            # Only a full backlog makes connecting wait, and a socket that must not wait is told so.
            sock.setblocking(False)
            while True:
                try:
                    sock.connect(path)
                    break
                except BlockingIOError as error:
                    if not _pause(deadline):
                        raise WireTimeout(f"nobody accepts at {path}") from error
            return cls(sock, rules=rules, timeout=timeout)
        except OSError as error:
            sock.close()
            if isinstance(error, WireTimeout):
                raise
            raise SocketConnect(f"cannot connect to {path}") from error
        except BaseException:
            sock.close()
            raise

    @property
    def wire(self) -> SocketWire | PipeWire:
        """What is below, for those who never wait: ``receive_message`` and ``Outbox`` take it."""
        return self._wire

    def fileno(self) -> int:
        """The descriptor, to be polled. Raises EndpointClosed."""
        return self._wire.fileno()

    def close(self) -> None:
        """Close the connection; nothing happens the second time."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- sending -----------------------------------------------------------------------------------

    def send_iovec(self, buffers: Sequence[bytes | memoryview], fds: Sequence[Fd] = ()) -> int:
        """Send what one call takes of ``buffers``; return how many bytes that were. Raises Unsendable."""
        return self._send(buffers, fds, deadline_after(self.timeout))

    def send_iovec_all(self, buffers: Sequence[bytes | memoryview], fds: Sequence[Fd] = ()) -> int:
        """Send all of ``buffers``, the descriptors with their first byte. Raises Unsendable."""
        deadline = deadline_after(self.timeout)
        left = advance_slices([memoryview(each) for each in buffers], 0)
        total = 0
        while left or (fds and not total):
            try:
                sent = self._send(left, () if total else fds, deadline)
            except WireTimeout:
                if total:
                    self.close()
                raise
            total += sent
            left = advance_slices(left, sent)
        return total

    def _send(self, buffers: Sequence[bytes | memoryview], fds: Sequence[Fd], deadline: int | None) -> int:
        try:
            numbers = [number_of(fd) for fd in fds]
        except Closed as error:
            raise Unsendable(str(error)) from error
        if len(numbers) > MAX_FDS:
            raise Unsendable(f"{len(numbers)} descriptors, the limit is {MAX_FDS}")
        if not any(len(each) for each in buffers):
            if numbers:
                raise Unsendable("descriptors without a byte to ride on: a stream would lose them")
            return 0
        while True:
            if sent := self._wire.send_some(buffers, numbers):
                return sent
            self._wait(select.POLLOUT, deadline, "the peer does not read")

    def send_slice(self, data: bytes | memoryview, fds: Sequence[Fd] = ()) -> int:
        """Send what one call takes of ``data``; return how many bytes that were. Raises Unsendable."""
        return self.send_iovec([data], fds)

    # -- receiving ---------------------------------------------------------------------------------

    def recv_data(self, max_bytes: int) -> bytes:
        """Return what one read gives, at most ``max_bytes``; descriptors are closed. Raises Disconnected."""
        data, descriptors = self._receive(max_bytes, deadline_after(self.timeout))
        close_all(descriptors)
        return data

    def recv_into_buf(self, max_bytes: int) -> tuple[bytes, list[Descriptor]]:
        """Return what one read gives, at most ``max_bytes``. Raises Disconnected, IncorrectFds."""
        return self._receive(max_bytes, deadline_after(self.timeout))

    def recv_into_bufs(
        self, buffers: Sequence[bytearray | memoryview], *, allow_fds: bool
    ) -> tuple[int, list[Descriptor]]:
        """Fill ``buffers`` with what one read gives; return how many bytes, and the descriptors.

        Without ``allow_fds`` they are closed. Raises Disconnected, IncorrectFds.
        """
        return self._scatter([memoryview(each) for each in buffers], allow_fds, deadline_after(self.timeout))

    def recv_into_bufs_all(self, buffers: Sequence[bytearray | memoryview]) -> tuple[int, list[Descriptor]]:
        """Fill ``buffers`` to the last byte; return how many bytes those are, and the descriptors.

        Raises Disconnected, PartialMessage, IncorrectFds (those that did not come with the first byte).
        """
        return self._fill(
            [memoryview(each) for each in buffers], deadline_after(self.timeout), is_inside=False
        )

    def _fill(
        self, left: list[memoryview], deadline: int | None, *, is_inside: bool
    ) -> tuple[int, list[Descriptor]]:
        """Fill ``left``. ``is_inside``: some of the message has been read before, with its descriptors."""
        total = 0
        owned: list[Descriptor] = []
        left = advance_slices(left, 0)
        try:
            while left:
                count, came = self._scatter(left, True, deadline, is_inside=is_inside or total > 0)
                owned += came
                if came and (is_inside or total):
                    raise IncorrectFds("descriptors behind the first byte of the message")
                total += count
                left = advance_slices(left, count)
        except BaseException as error:
            close_all(owned)
            if isinstance(error, Disconnected) and (is_inside or total):
                raise PartialMessage("the peer went away inside a message") from error
            raise
        return total, owned

    def _scatter(
        self, buffers: list[memoryview], allow_fds: bool, deadline: int | None, *, is_inside: bool = False
    ) -> tuple[int, list[Descriptor]]:
        size = sum(len(each) for each in buffers)
        if not size:
            return 0, []
        data, descriptors = self._receive(size, deadline, is_inside=is_inside)
        rest = memoryview(data)
        for each in buffers:
            taken = min(len(each), len(rest))
            each[:taken] = rest[:taken]
            rest = rest[taken:]
        if not allow_fds:
            close_all(descriptors)
            descriptors = []
        return len(data), descriptors

    def _receive(
        self, max_bytes: int, deadline: int | None, *, is_inside: bool = False
    ) -> tuple[bytes, list[Descriptor]]:
        if max_bytes <= 0:
            return b"", []
        while (came := self._wire.receive_some(min(max_bytes, MAX_READ_BYTES))) is None:
            self._wait(select.POLLIN, deadline, "nothing came in time", is_inside=is_inside)
        data, descriptors = came
        if not data:
            raise Disconnected("the peer is gone")
        if len(descriptors) > MAX_FDS:
            close_all(descriptors)
            raise IncorrectFds(f"{len(descriptors)} descriptors, the limit is {MAX_FDS}")
        return data, descriptors

    def _wait(self, events: int, deadline: int | None, what: str, *, is_inside: bool = False) -> None:
        number = self._wire.fileno()
        is_ready = _pause(deadline) if self._wire.scarce else wait_for(number, events, deadline)
        if not is_ready:
            if is_inside:
                self.close()
            raise WireTimeout(what)


def _pause(deadline: int | None) -> bool:
    """Wait for PAUSE_MS, where no descriptor says when it is worth trying again; False when time is up."""
    if deadline == 0:
        return False
    select.poll().poll(PAUSE_MS)
    return seconds_left(deadline) != 0
