"""Messages out of any pieces: cut anywhere, with descriptors anywhere, half sent and never finished."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.tube.descriptor import Descriptor, Eventfd
from supervisor.vhost_user.areas import MemoryTable, Region
from supervisor.vhost_user.assembler import MAX_OUTBOX_BYTES, Assembler, Message, Outbox
from supervisor.vhost_user.errors import (
    Backlogged,
    Disconnected,
    EndpointClosed,
    IncorrectFds,
    InvalidMessage,
    OversizedMessage,
    PartialMessage,
    SocketBroken,
    Unsendable,
)
from supervisor.vhost_user.messages import HEADER_BYTES, U64, Header
from supervisor.vhost_user.requests import MAX_FDS, MAX_PAYLOAD_BYTES, FrontEndRequest
from supervisor.vhost_user.wire import SocketWire, receive_message
from tests.vhost_user.wires import Recorder, count_open, pair, put

pytestmark = pytest.mark.usefixtures("census")

F = FrontEndRequest
SET_FEATURES = Header(F.SET_FEATURES, 8).pack() + U64(5).pack()
SET_OWNER = Header(F.SET_OWNER).pack()
TABLE = MemoryTable(tuple(Region(index << 20, 4096, 0) for index in range(3))).pack()
SET_MEM_TABLE = Header(F.SET_MEM_TABLE, len(TABLE), need_reply=True).pack() + TABLE

WORDS = st.sampled_from([SET_FEATURES, SET_OWNER, SET_MEM_TABLE, Header(12, 8).pack() + bytes(8)])
NOISE = st.binary(min_size=1, max_size=40)
PIECES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 3)), max_size=12)


def drain(wire: SocketWire, assembler: Assembler) -> list[Message]:
    """Everything that is there."""
    messages = []
    while (message := receive_message(wire, assembler)) is not None:
        messages.append(message)
    return messages


@settings(deadline=None)
@given(st.lists(WORDS | NOISE, max_size=6).map(b"".join), PIECES)
def test_given_any_stream_cut_anywhere_it_gives_messages_or_one_error(
    stream: bytes, pieces: list[tuple[int, int]]
) -> None:
    """Nothing waits, nothing leaks, and never more is kept than a message may have."""
    before = count_open()
    with pair() as (peer, sock):
        wire, assembler = SocketWire(sock), Assembler(unknown_pass=bool(len(stream) % 2))
        is_over = False
        while stream and not is_over:
            size, fd_count = pieces.pop() if pieces else (len(stream), 0)
            put(peer, stream[:size], fd_count)
            stream = stream[size:]
            try:
                for message in drain(wire, assembler):
                    with message:
                        message.decode()
                assert 0 < assembler.wanted_bytes <= MAX_PAYLOAD_BYTES
            except InvalidMessage:  # of our tree, and nothing else: the peer is still there
                is_over = True
        assembler.close()
    assert count_open() == before


@given(st.lists(WORDS, min_size=1, max_size=5), st.data())
def test_given_whole_messages_cut_anywhere_they_come_out_as_they_were(
    words: list[bytes], data: st.DataObject
) -> None:
    """What the pieces were does not matter, as long as none is larger than what was asked for."""
    stream, assembler, out = b"".join(words), Assembler(), []
    while stream:
        size = data.draw(st.integers(1, assembler.wanted_bytes))
        message = assembler.feed(stream[:size])
        stream = stream[size:]
        if message is not None:
            out.append(message.header.pack() + message.payload)
    assert out == words
    assert not assembler.is_inside


def test_given_header_assembler_asks_for_exactly_the_rest() -> None:
    """First a header, then what it announced, and never a byte of the next message."""
    assembler = Assembler()
    assert assembler.wanted_bytes == HEADER_BYTES
    assert assembler.feed(SET_FEATURES[:5]) is None
    assert (assembler.wanted_bytes, assembler.is_inside) == (7, True)
    assert assembler.feed(SET_FEATURES[5:12]) is None
    assert assembler.wanted_bytes == 8
    message = assembler.feed(SET_FEATURES[12:])
    assert message is not None
    assert message.decode() == U64(5)
    with pytest.raises(Unsendable):
        assembler.feed(SET_FEATURES)


def test_given_oversized_header_nothing_is_asked_for() -> None:
    """256 MiB announced are refused with the header, not waited for."""
    assembler = Assembler()
    with pytest.raises(OversizedMessage):
        assembler.feed(Header(F.SET_CONFIG, 0x10000000).pack())
    with pytest.raises(EndpointClosed):
        _ = assembler.wanted_bytes


@pytest.mark.parametrize("cut", [1, 11, 12, 15])
def test_given_half_a_message_it_is_seen_as_begun_and_its_descriptors_are_not_lost(cut: int) -> None:
    """A slow peer is the caller's to time out; giving up closes what had come."""
    event = Eventfd()
    assembler = Assembler()
    kick = Header(F.SET_VRING_KICK, 8).pack() + bytes(8)
    assert assembler.feed(kick[: min(cut, 12)], [event]) is None
    if cut > 12:
        assert assembler.feed(kick[12:cut]) is None
    assert assembler.is_inside
    assert not event.closed
    assembler.close()
    assert event.closed


def test_given_end_inside_or_between_it_is_partial_or_clean() -> None:
    """The end of a stream is a goodbye only between two messages."""
    with pytest.raises(Disconnected):
        Assembler().feed(b"")
    assembler = Assembler()
    assembler.feed(SET_FEATURES[:12])
    with pytest.raises(PartialMessage, match="SET_FEATURES"):
        assembler.feed(b"")


@pytest.mark.parametrize(
    ("first", "fd_count", "second", "more"),
    [
        pytest.param(SET_OWNER, 1, b"", 0, id="a request without any"),
        pytest.param(Header(12, 8).pack(), 0, bytes(8), 1, id="with the payload"),
        pytest.param(Header(12, 8).pack()[:3], 0, Header(12, 8).pack()[3:], 1, id="with the header's rest"),
        pytest.param(SET_MEM_TABLE[:12], MAX_FDS + 1, b"", 0, id="more than any message has"),
    ],
)
def test_given_descriptors_in_the_wrong_place_they_are_closed_and_the_peer_is_blamed(
    first: bytes, fd_count: int, second: bytes, more: int
) -> None:
    """Descriptors ride on a message's first byte, and only where there may be some."""
    with pair() as (peer, sock):
        before = count_open()
        wire, assembler = SocketWire(sock), Assembler()
        put(peer, first, fd_count)
        if second:
            assert drain(wire, assembler) == []
            put(peer, second, more)
        with pytest.raises(IncorrectFds):
            drain(wire, assembler)
        assert count_open() == before


def test_given_unknown_request_it_passes_if_wanted() -> None:
    """A keeper that wants to say no gets it whole; by default the connection ends."""
    unknown = Header(999, 4, need_reply=True).pack() + b"what"
    with pytest.raises(InvalidMessage, match="request 999"):
        Assembler().feed(unknown[:12])
    with pair() as (peer, sock):
        put(peer, unknown, 2)
        (message,) = drain(SocketWire(sock), Assembler(unknown_pass=True))
        with message:
            assert (message.payload, len(message.descriptors)) == (b"what", 2)
            with pytest.raises(InvalidMessage):
                message.decode()
        assert message.descriptors == []


def test_given_reset_inside_a_message_it_is_partial() -> None:
    """The peer died with our bytes unread: a reset between two messages, half a message inside one."""
    for data, kind in ((SET_FEATURES[:12], PartialMessage), (b"", SocketBroken)):
        with pair() as (peer, sock):
            sock.send(b"never read")
            if data:
                put(peer, data)
            peer.close()
            with pytest.raises(kind):
                drain(SocketWire(sock), Assembler())


def test_given_outbox_and_a_full_socket_it_goes_on_from_the_cut() -> None:
    """Every reply arrives once and whole, its descriptor with it, however little the socket takes."""
    with pair() as (peer, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        wire, outbox, reader = SocketWire(sock), Outbox(), SocketWire(peer)
        assembler = Assembler(awaited=Header(F.GET_CONFIG, 16))
        expected: list[tuple[bytes, int]] = []
        got: list[tuple[bytes, int]] = []
        for index in range(12):
            payload = bytes([index]) * 4000
            outbox.push(Header(F.GET_CONFIG).reply(len(payload)), payload, [Eventfd()])
            expected.append((payload, 1))
        assert not outbox.send(wire)
        assert 0 < outbox.pending_bytes < 12 * 4012
        while outbox.pending_bytes or len(got) < 12:
            outbox.send(wire)
            for message in drain(reader, assembler):
                got.append((message.payload, len(message.descriptors)))
                message.close()
        assert got == expected


def test_given_outbox_whose_sends_are_cut_short_descriptors_go_once() -> None:
    """With the first byte of their message, and never again."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with Recorder(fileno=one.detach()) as sock, other:
        sock.calls, sock.limit = [], 9
        outbox, assembler = Outbox(), Assembler(awaited=Header(F.GET_CONFIG, 16))
        for _ in range(2):
            outbox.push(Header(F.GET_CONFIG).reply(16), bytes(16), [Eventfd()])
        assert outbox.send(SocketWire(sock))
        assert sock.calls == [(28, 1), (19, 0), (10, 0), (1, 0)] * 2
        for message in drain(SocketWire(other), assembler):
            with message:
                assert len(message.descriptors) == 1


def test_given_peer_that_does_not_read_outbox_is_bounded() -> None:
    """Asking without reading the answers ends the connection, not our memory; descriptors are closed."""
    outbox, event = Outbox(), Eventfd()
    payload = bytes(4096)
    for _ in range(MAX_OUTBOX_BYTES // (4096 + HEADER_BYTES)):
        outbox.push(Header(F.GET_CONFIG).reply(4096), payload)
    outbox.push(Header(F.GET_INFLIGHT_FD).reply(0), b"", [last := Eventfd()])
    with pytest.raises(Backlogged):
        outbox.push(Header(F.GET_CONFIG).reply(4096), payload, [event])
    assert event.closed
    outbox.close()
    assert last.closed
    assert outbox.pending_bytes == 0


def test_given_outbox_whose_peer_is_gone_it_says_so() -> None:
    """EPIPE is the peer's going, with something unread."""
    with pair() as (peer, sock):
        peer.close()
        outbox = Outbox()
        outbox.push(Header(F.GET_FEATURES).reply(8), U64(1).pack(), [Descriptor(os.dup(sock.fileno()))])
        with pytest.raises(SocketBroken):
            outbox.send(SocketWire(sock))
        outbox.close()
