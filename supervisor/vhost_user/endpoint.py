"""One end of a vhost-user connection: whole messages, sent and awaited.

The blocking face of the wire, for front-ends, for tests and for programs that have nothing else to do. A
back-end in an event loop uses ``assembler`` and ``wire`` and never waits.

Rules of this file:
- One message is one ``sendmsg``, its descriptors with its first byte. If it is cut short the rest follows
  without descriptors: they are never sent twice.
- Reads are exact: never a byte beyond the message's end, for that byte may carry the next one's descriptors.
- A size is bounded before anything is allocated for it.
- ``timeout`` (float seconds, None for ever, 0 for not at all) holds for each call as a whole. A call that
  gives up in the middle of a message closes the endpoint: its place in the stream is lost.
- Not for several threads at a time: a message in two halves with another one between them is two messages
  lost.

Every call raises EndpointClosed, SocketBroken, SocketError and WireTimeout besides what stands with it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import TypeVar

from supervisor.tube.descriptor import Descriptor, close_all
from supervisor.tube.waiting import deadline_after
from supervisor.vhost_user.assembler import Assembler, Message, message_bytes
from supervisor.vhost_user.errors import IncorrectFds, InvalidMessage, OversizedMessage
from supervisor.vhost_user.messages import HEADER_BYTES, Header, Payload
from supervisor.vhost_user.requests import MAX_PAYLOAD_BYTES
from supervisor.vhost_user.rules import BACK_END_RULES, request_name
from supervisor.vhost_user.stream import Fd, StreamEnd
from supervisor.vhost_user.wire import PipeWire, is_pipe, receive_message

__all__ = ["Endpoint"]

P = TypeVar("P", bound=Payload)


class Endpoint(StreamEnd):
    """A connection, taken over from a socket. ``rules`` say which requests travel over it."""

    # -- sending -----------------------------------------------------------------------------------

    def send_header(self, header: Header, fds: Sequence[Fd] = ()) -> None:
        """Send a message that has no payload, or a header that its payload follows. Raises Unsendable."""
        self.send_iovec_all([header.pack()], fds)

    def send_message(self, header: Header, body: Payload, fds: Sequence[Fd] = ()) -> None:
        """Send a message. Raises Unsendable, also when the header's size is not that of ``body``."""
        self.send_message_with_payload(header, body, b"", fds)

    def send_message_with_payload(
        self, header: Header, body: Payload, payload: bytes, fds: Sequence[Fd] = ()
    ) -> None:
        """Send a message whose ``body`` has bytes of its own behind it. Raises Unsendable."""
        self.send_iovec_all([message_bytes(header, body.pack() + payload, len(fds))], fds)

    # -- receiving ---------------------------------------------------------------------------------

    def recv_header(self) -> tuple[Header, list[Descriptor]]:
        """Return the next header; what it announces is still to be read, and nothing else.

        Raises Disconnected, PartialMessage, InvalidMessage, OversizedMessage, IncorrectFds.
        """
        return self._header(deadline_after(self.timeout))

    def recv_body(self, kind: type[P]) -> tuple[Header, P, list[Descriptor]]:
        """Return a message that has to have a payload of this kind. Raises like ``recv_header``."""
        deadline = deadline_after(self.timeout)
        header, descriptors = self._header(deadline)
        try:
            if header.size not in kind.sizes:
                raise InvalidMessage(
                    f"{header.size} bytes announced", request_name(header.request, self._rules)
                )
            return header, kind.unpack(self._rest(header.size, deadline)), descriptors
        except BaseException:
            close_all(descriptors)
            raise

    def recv_body_into_buf(self, buffer: bytearray | memoryview) -> tuple[Header, int, list[Descriptor]]:
        """Fill ``buffer`` with a message's payload; return its header, the payload's size, the descriptors.

        Raises like ``recv_header``; OversizedMessage when ``buffer`` is too small.
        """
        deadline = deadline_after(self.timeout)
        header, descriptors = self._header(deadline)
        try:
            if header.size > len(buffer):
                raise OversizedMessage(
                    f"{header.size} bytes for a buffer of {len(buffer)}", str(header.request)
                )
            self._fill([memoryview(buffer)[: header.size]], deadline, is_inside=True)
        except BaseException:
            close_all(descriptors)
            raise
        return header, header.size, descriptors

    def recv_payload_into_buf(self, body_bytes: int) -> tuple[Header, bytes, bytes, list[Descriptor]]:
        """Return a message's header, the first ``body_bytes`` of its payload, the rest, the descriptors.

        Raises like ``recv_header``; InvalidMessage when the payload is shorter than ``body_bytes``.
        """
        deadline = deadline_after(self.timeout)
        header, descriptors = self._header(deadline)
        try:
            if header.size < body_bytes:
                raise InvalidMessage(f"{header.size} bytes announced, not {body_bytes}", str(header.request))
            data = self._rest(header.size, deadline)
        except BaseException:
            close_all(descriptors)
            raise
        return header, data[:body_bytes], data[body_bytes:], descriptors

    def recv_message(self) -> Message:
        """Return the next request whole, with its descriptors; its ``decode`` judges what it says.

        Raises Disconnected, PartialMessage, InvalidMessage and its kin.
        """
        return self._assemble(Assembler(self._rules))

    def recv_message_with_payload(self) -> tuple[Header, Payload, list[Descriptor]]:
        """Return the next request as a value that was checked. Raises like ``recv_message``."""
        message = self.recv_message()
        return message.header, message.decode(self._rules), message.take()

    def recv_reply(self, request: Header) -> Message:
        """Return the reply to ``request``, which must be the next message. Raises like ``recv_message``."""
        return self._assemble(Assembler(self._rules, awaited=request))

    def create_backend_request_endpoint(self, descriptors: Sequence[Descriptor]) -> Endpoint:
        """Make an endpoint of what SET_BACKEND_REQ_FD brought: a socket, or a pipe to be written to.

        The descriptors are taken over, also on errors. Raises IncorrectFds, Unsendable.
        """
        owned = list(descriptors)
        if len(owned) != 1:
            close_all(owned)
            raise IncorrectFds(f"{len(owned)} descriptors where there must be 1", "SET_BACKEND_REQ_FD")
        if is_pipe(owned[0].fileno()):
            return Endpoint(PipeWire(owned[0]), rules=BACK_END_RULES, timeout=self.timeout)
        sock = socket.socket(fileno=owned[0].detach())
        try:
            return Endpoint(sock, rules=BACK_END_RULES, timeout=self.timeout)
        except BaseException:
            sock.close()
            raise

    def _assemble(self, assembler: Assembler) -> Message:
        deadline = deadline_after(self.timeout)
        try:
            while (message := receive_message(self._wire, assembler)) is None:
                self._wait(select.POLLIN, deadline, "no message came in time", is_inside=assembler.is_inside)
        except BaseException:
            assembler.close()
            raise
        return message

    def _header(self, deadline: int | None) -> tuple[Header, list[Descriptor]]:
        data = bytearray(HEADER_BYTES)
        _count, descriptors = self._fill([memoryview(data)], deadline, is_inside=False)
        try:
            header = Header.unpack(data)
            name = request_name(header.request, self._rules)
            if header.request not in self._rules:
                raise InvalidMessage("nobody knows it", name)
            if header.size > MAX_PAYLOAD_BYTES:
                raise OversizedMessage(
                    f"{header.size} bytes announced, the limit is {MAX_PAYLOAD_BYTES}", name
                )
        except BaseException:
            close_all(descriptors)
            raise
        return header, descriptors

    def _rest(self, size: int, deadline: int | None) -> bytes:
        data = bytearray(size)
        self._fill([memoryview(data)], deadline, is_inside=True)
        return bytes(data)
