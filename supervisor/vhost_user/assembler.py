"""Messages out of a stream that comes in pieces, and replies into one that takes pieces. Pure.

For a back-end in an event loop, which can never wait for the rest of a message. ``Assembler``: ask it how
many bytes it wants, receive at most that many, feed it what came. First that is a header, then exactly what
the header announced: so a message's descriptors, which ride on its first byte, can never be taken for those
of its neighbour. ``Outbox``: what is still to be sent; a send that is cut short goes on from the cut, without
the descriptors, which went with the first byte.

How long a half message may take is the caller's: ``is_inside`` says that one is under way. Descriptors belong
to whoever holds the message; on every error, those that had arrived are closed before it is raised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from supervisor.vhost_user.errors import (
    Backlogged,
    Disconnected,
    EndpointClosed,
    IncorrectFds,
    PartialMessage,
    Unsendable,
)
from supervisor.vhost_user.messages import HEADER_BYTES, Header
from supervisor.vhost_user.requests import MAX_FDS, MAX_PAYLOAD_BYTES
from supervisor.vhost_user.rules import (
    FRONT_END_RULES,
    Rule,
    Rules,
    check_header,
    check_reply_header,
    decode,
    decode_reply,
    request_name,
)

if TYPE_CHECKING:
    from typing import Self

    from supervisor.tube.descriptor import Descriptor

__all__ = ["Assembler", "Message", "Outbox", "Wire"]

MAX_OUTBOX_BYTES = 64 * 1024
"""Replies that a peer may leave unread: some hundred more than any front-end asks for at a time."""


class Wire(Protocol):
    """A byte stream that carries descriptors and never waits."""

    def send_some(self, buffers: Sequence[bytes | memoryview], fds: Sequence[int]) -> int:
        """Return how many bytes were taken, 0 when there is no room now."""

    def receive_some(self, max_bytes: int) -> tuple[bytes, list[Descriptor]] | None:
        """Return what came, None when there is nothing now, no bytes at the end of the stream."""


@dataclass(slots=True)
class Message:
    """One whole message. Owns its descriptors until they are taken; a context manager closes the rest."""

    header: Header
    payload: bytes = b""
    descriptors: list[Descriptor] = field(default_factory=list)

    def decode(self, rules: Rules = FRONT_END_RULES) -> Any:
        """Return a request's payload as a value, and see to it that it has its descriptors.

        Raises IncorrectFds, InvalidMessage; the descriptors are closed then.
        """
        try:
            return decode(self.header, self.payload, len(self.descriptors), rules)
        except BaseException:
            self.close()
            raise

    def decode_reply(self, request: Header, rules: Rules = FRONT_END_RULES) -> Any:
        """Return a reply's payload as a value. Raises like ``decode``, and BackEndRefused."""
        try:
            return decode_reply(self.header, self.payload, len(self.descriptors), request, rules)
        except BaseException:
            self.close()
            raise

    def take(self) -> list[Descriptor]:
        """Return the descriptors; they are the caller's from here on."""
        taken, self.descriptors = self.descriptors, []
        return taken

    def close(self) -> None:
        """Close the descriptors that nobody has taken."""
        for descriptor in self.take():
            descriptor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Assembler:
    """Makes messages of pieces. ``rules`` say which requests there are.

    With ``awaited``, the next message must be the reply to that request. With ``unknown_pass``, a request
    that nobody knows comes out like the others, so that its sender can be told no; otherwise it is refused.
    """

    def __init__(
        self, rules: Rules = FRONT_END_RULES, *, awaited: Header | None = None, unknown_pass: bool = False
    ) -> None:
        self._rules = rules
        self._awaited = awaited
        self._unknown_pass = unknown_pass
        self._bytes = bytearray()
        self._header: Header | None = None
        self._descriptors: list[Descriptor] = []
        self._is_over = False

    @property
    def wanted_bytes(self) -> int:
        """How many bytes to ask for next, never more than are left of the message. Raises EndpointClosed."""
        if self._is_over:
            raise EndpointClosed("the stream has ended, or has lost its place")
        size = HEADER_BYTES if self._header is None else self._header.size
        return size - len(self._bytes)

    @property
    def is_inside(self) -> bool:
        """Tell whether a message has begun and is not whole: its sender owes us the rest."""
        return self._header is not None or bool(self._bytes)

    def feed(self, data: bytes, descriptors: Sequence[Descriptor] = ()) -> Message | None:
        """Add what was received; return the message if it is whole now.

        No bytes mean the end of the stream. Raises Disconnected, PartialMessage, InvalidMessage and its kin;
        EndpointClosed after any of them; Unsendable when it was fed more than it wanted.
        """
        is_first = not self.is_inside
        # Owned here before anything can raise: from now on close() finds them.
        self._descriptors.extend(descriptors)
        try:
            if len(data) > self.wanted_bytes:
                raise Unsendable(f"{len(data)} bytes fed, {self.wanted_bytes} were wanted")
            if not data:
                raise self._end()
            if descriptors:
                self._check_fds(is_first)
            self._bytes += data
            return self._advance()
        except BaseException:
            self.close()
            raise

    def _end(self) -> Disconnected | PartialMessage:
        if not self.is_inside:
            return Disconnected("the peer is gone")
        return PartialMessage(
            f"the peer went away {self.wanted_bytes} bytes before the end of {self._name()}"
        )

    def _name(self) -> str:
        return "a header" if self._header is None else request_name(self._header.request, self._rules)

    def _check_fds(self, is_first: bool) -> None:
        count = len(self._descriptors)
        if not is_first:
            raise IncorrectFds("descriptors behind the first byte of the message", self._name())
        if count > MAX_FDS:
            raise IncorrectFds(f"{count} descriptors, the limit is {MAX_FDS}", self._name())

    def _advance(self) -> Message | None:
        if self.wanted_bytes:
            return None
        if self._header is None:
            self._header = self._judge(Header.unpack(self._bytes))
            self._bytes.clear()
            if self._header.size:
                return None
        message = Message(self._header, bytes(self._bytes), self._descriptors)
        self._header, self._descriptors = None, []
        self._bytes.clear()
        return message

    def _judge(self, header: Header) -> Header:
        if self._awaited is not None:
            check_reply_header(header, self._awaited, self._rules)
            return header
        rule = check_header(header, self._rules, unknown_pass=self._unknown_pass)
        if self._descriptors and not _may_have_fds(rule):
            name = request_name(header.request, self._rules)
            raise IncorrectFds(f"{len(self._descriptors)} descriptors where there must be none", name)
        return header

    def close(self) -> None:
        """Forget what has arrived, close its descriptors, and take no more."""
        self._is_over = True
        for descriptor in self._descriptors:
            descriptor.close()
        self._descriptors.clear()
        self._bytes.clear()
        self._header = None


def _may_have_fds(rule: Rule | None) -> bool:
    return rule is None or rule.may_have_fds


@dataclass(slots=True)
class _Parcel:
    rest: memoryview
    descriptors: list[Descriptor]


class Outbox:
    """Messages on their way out, in order. Owns their descriptors until they are sent."""

    def __init__(self) -> None:
        self._parcels: deque[_Parcel] = deque()
        self.pending_bytes = 0

    def push(self, header: Header, payload: bytes = b"", descriptors: Sequence[Descriptor] = ()) -> None:
        """Add a message; its descriptors are taken over, also when it is refused.

        Raises Unsendable, and Backlogged when the peer has left too much unread.
        """
        owned = list(descriptors)
        try:
            data = message_bytes(header, payload, len(owned))
            if self.pending_bytes + len(data) > MAX_OUTBOX_BYTES:
                raise Backlogged(f"{self.pending_bytes} bytes of answers are unread")
        except BaseException:
            _close(owned)
            raise
        self._parcels.append(_Parcel(memoryview(data), owned))
        self.pending_bytes += len(data)

    def send(self, wire: Wire) -> bool:
        """Send what goes without waiting; tell whether everything is gone. Raises what the wire raises."""
        while self._parcels:
            parcel = self._parcels[0]
            sent = wire.send_some([parcel.rest], [each.fileno() for each in parcel.descriptors])
            if not sent:
                return False
            _close(parcel.descriptors)
            self.pending_bytes -= sent
            parcel.rest = parcel.rest[sent:]
            if not parcel.rest:
                self._parcels.popleft()
        return True

    def close(self) -> None:
        """Drop what was not sent, and close its descriptors."""
        for parcel in self._parcels:
            _close(parcel.descriptors)
        self._parcels.clear()
        self.pending_bytes = 0


def _close(descriptors: list[Descriptor]) -> None:
    for descriptor in descriptors:
        descriptor.close()
    descriptors.clear()


def message_bytes(header: Header, payload: bytes, fd_count: int) -> bytes:
    """Return the bytes of a message. Raises Unsendable when no message may look like this."""
    if header.size != len(payload):
        raise Unsendable(f"a header of {header.size} bytes before a payload of {len(payload)}")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise Unsendable(f"{len(payload)} bytes, the limit is {MAX_PAYLOAD_BYTES}")
    if fd_count > MAX_FDS:
        raise Unsendable(f"{fd_count} descriptors, the limit is {MAX_FDS}")
    return header.pack() + payload
