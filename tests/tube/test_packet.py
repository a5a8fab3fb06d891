"""The pure parts, by property: no bytes make anything but a TubeError, and nothing leaks."""

from __future__ import annotations

import os
import socket
import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.messages_pb2 import WorkerMessage
from supervisor.tube import BadDescriptor, Descriptor, Eventfd, MalformedMessage, Tube, TubeError, WrongPeer
from supervisor.tube.codec import EXT_OWNER
from supervisor.tube.packet import (
    HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    EndEntry,
    Header,
    Kind,
    Ref,
    Shape,
    pack_head,
    unpack,
)
from supervisor.tube.peer import PeerView, Process, Roles
from supervisor.tube.proto import ProtoTube
from tests.tube.conftest import open_fds

RELAXED = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

refs = st.builds(Ref, st.sampled_from([Ref.SENDER, Ref.BY_UNIQUE, Ref.OPEN, 4, 5]), st.integers(0, 2**64 - 1))


@st.composite
def headers(draw: st.DrawFn) -> tuple[Header, bytes]:
    indexes = draw(st.lists(st.integers(0, 3), unique=True))
    ends = tuple(
        EndEntry(i, draw(st.sampled_from(Shape)), draw(refs), draw(refs), draw(refs), draw(refs))
        for i in indexes
    )
    body = draw(st.binary(max_size=50))
    out_of_line = draw(st.booleans())
    header = Header(draw(st.sampled_from(Kind)), len(body), 4, 2, out_of_line, ends)
    return header, b"" if out_of_line else body


@RELAXED
@given(headers())
def test_given_any_header_when_packed_then_it_unpacks_to_itself(made: tuple[Header, bytes]) -> None:
    """unpack is the inverse of pack_head, and every packet is longer than nothing."""
    header, body = made
    data = pack_head(header) + body
    assert len(data) >= HEADER_BYTES > 0
    got, got_body = unpack(data)
    assert (got, bytes(got_body)) == (header, body)


@RELAXED
@given(st.one_of(st.binary(max_size=100), headers().map(lambda made: pack_head(made[0]))), st.data())
def test_given_any_bytes_when_unpacked_then_a_header_or_malformed(data: bytes, draw: st.DataObject) -> None:
    """No bytes make unpack raise anything else, not even a good packet with one byte changed."""
    if data:
        at = draw.draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([draw.draw(st.integers(0, 255))]) + data[at + 1 :]
    try:
        header, _ = unpack(data)
    except MalformedMessage:
        return
    assert header.body_bytes <= MAX_MESSAGE_BYTES


bodies = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda data: msgspec.msgpack.encode(msgspec.msgpack.Ext(EXT_OWNER, data)), st.binary(max_size=5)
    ),
    st.builds(
        lambda items: msgspec.msgpack.encode([msgspec.msgpack.Ext(EXT_OWNER, bytes(i)) for i in items]),
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from(b"rw+tub")), max_size=4),
    ),
)


@RELAXED
@given(bodies, st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_given_any_packet_when_received_then_a_tube_error_or_a_message_and_no_leak(
    body: bytes, claimed: int, attached: int, whole: bool
) -> None:
    """Whatever arrives at a real Tube, nothing but a TubeError comes out and each descriptor has an owner."""
    ours, theirs = Tube.pair()
    with ours, theirs, open("/dev/null", "rb") as null:
        before = open_fds()
        data = pack_head(Header(Kind.MESSAGE, len(body), claimed)) + body if whole else body
        rights = struct.pack(f"={attached}i", *[null.fileno()] * attached)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if attached else []
        theirs.end.sock.sendmsg([data or b"\0"], control)
        try:
            message = ours.recv(timeout=0)
        except TubeError:
            pass
        else:
            del message
        assert open_fds() == before
        theirs.send("next")
        assert ours.recv(timeout=0) == "next"


@RELAXED
@given(st.binary(max_size=100))
def test_given_any_protobuf_bytes_when_received_then_a_tube_error_or_a_message(body: bytes) -> None:
    """protobuf's own errors do not get out."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs:
        theirs.end.sock.send(pack_head(Header(Kind.PROTO, len(body))) + body)
        try:
            ours.recv_proto(WorkerMessage, timeout=0)
        except TubeError:
            pass


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1 items
        b"\xdf\xff\xff\xff\xff",  # a map of as many
        b"\xc6\xff\xff\xff\xff",  # bytes of that size
        b"\x91" * 60_000,  # nested beyond any stack
        b"\xa1\xff",  # no UTF-8
        b"\x81\x80\xc0",  # a dict as a key
        b"\xc1",  # never used
        b"\xc0\xc0",  # two values
        b"",
    ],
)
def test_given_hostile_msgpack_when_received_then_malformed(body: bytes) -> None:
    """Bytes that promise the world cost nothing but a refusal."""
    ours, theirs = Tube.pair()
    with ours, theirs:
        theirs.end.sock.send(pack_head(Header(Kind.MESSAGE, len(body))) + body)
        with pytest.raises(MalformedMessage):
            ours.recv(timeout=0)


def test_given_one_descriptor_named_twice_when_received_then_malformed() -> None:
    """No number ever gets two owners."""
    ours, theirs = Tube.pair()
    ext = msgspec.msgpack.Ext(EXT_OWNER, b"\x00\x00")
    body = msgspec.msgpack.encode([ext, ext])
    with ours, theirs, Eventfd() as event:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", event.fileno()))]
        theirs.end.sock.sendmsg([pack_head(Header(Kind.MESSAGE, len(body), 1)), body], rights)
        with pytest.raises(MalformedMessage):
            ours.recv(timeout=0)


@pytest.mark.parametrize("target", ["directory", "pipe", "memfd"])
@pytest.mark.parametrize("mode", [b"rb", b"wb", b"+b", b"+t", b"xx", b"r"])
def test_given_a_descriptor_under_a_false_name_when_received_then_no_leak(target: str, mode: bytes) -> None:
    """A directory that claims to be a file, a pipe that claims to seek.

    An object or a refusal, never a leak.
    """
    ours, theirs = Tube.pair()
    fds = {"directory": lambda: [os.open("/", os.O_RDONLY)], "pipe": lambda: list(os.pipe())}
    made = fds.get(target, lambda: [os.memfd_create("x")])()
    body = msgspec.msgpack.encode(msgspec.msgpack.Ext(EXT_OWNER, b"\x00\x03" + mode))
    try:
        with ours, theirs:
            before = open_fds()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", made[0]))]
            theirs.end.sock.sendmsg([pack_head(Header(Kind.MESSAGE, len(body), 1)), body], rights)
            try:
                ours.recv(timeout=0).close()
            except MalformedMessage:
                pass
            assert open_fds() == before
    finally:
        for fd in made:
            os.close(fd)


def test_given_a_false_end_when_received_then_malformed() -> None:
    """A descriptor that is said to be an end must be a SOCK_SEQPACKET socket, its peer's name a pidfd."""
    ours, theirs = Tube.pair()
    open_ref = Ref(Ref.OPEN)
    ext = msgspec.msgpack.encode(msgspec.msgpack.Ext(EXT_OWNER, b"\x00\x04"))

    def send(entry: EndEntry, *fds: int) -> None:
        head = pack_head(Header(Kind.MESSAGE, len(ext), 1, len(fds) - 1, False, (entry,)))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))]
        theirs.end.sock.sendmsg([head, ext], rights)

    with ours, theirs, Eventfd() as event:
        before = open_fds()
        send(EndEntry(0, Shape.TUBE, open_ref, open_ref, open_ref), event.fileno())
        with pytest.raises(MalformedMessage, match="no SOCK_SEQPACKET"):
            ours.recv(timeout=0)
        send(EndEntry(0, Shape.TUBE, Ref(1), open_ref, open_ref), ours.fileno(), event.fileno())
        with pytest.raises(MalformedMessage, match="no pidfd"):
            ours.recv(timeout=0)
        assert open_fds() == before


@pytest.mark.parametrize("roles", [0, 4, 255])
def test_given_a_wrong_hand_over_when_received_then_malformed(roles: int) -> None:
    """A hand-over of unknown roles, of a wrong size, or to what is not a process moves nothing."""
    ours, theirs = Tube.pair()
    with ours, theirs, Eventfd() as event:
        for body in (struct.pack("<BQII", roles, 0, 0, 0), b"", b"\x03" * 10):
            theirs.end.sock.send(pack_head(Header(Kind.HANDOVER, len(body))) + body)
            with pytest.raises(MalformedMessage):
                ours.recv(timeout=0)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", event.fileno()))]
        body = struct.pack("<BQII", 3, 0, 0, 0)
        theirs.end.sock.sendmsg([pack_head(Header(Kind.HANDOVER, len(body), 0, 1)), body], rights)
        with pytest.raises(MalformedMessage):
            ours.recv(timeout=0)
        assert ours.target_pid is None


A, B, C, MAKER = (Process(n, 1000 + n) for n in (1, 2, 3, 4))


def test_given_a_view_when_packets_come_then_only_the_expected_sender_is_admitted() -> None:
    """The first sender is pinned; identity is the pidfd's inode, the number only where that is unknown."""
    view = PeerView(maker=MAKER)
    view.admit_data(A)
    view.admit_data(A)
    with pytest.raises(WrongPeer):
        view.admit_data(B)
    with pytest.raises(WrongPeer):
        view.admit_data(Process(A.pid, 9999))  # the number was used again
    with pytest.raises(WrongPeer):
        view.admit_data(None)
    view.admit_data(Process(0, A.unique))  # the same, seen from another namespace
    assert Process(7).same_as(Process(7, 5))


def test_given_hand_overs_when_judged_then_holder_maker_and_giver_may_and_others_not() -> None:
    """The holder hands on, the maker always may, the giver until the new holder speaks, strangers never."""
    view = PeerView(maker=MAKER)
    view.admit_data(A)
    with pytest.raises(WrongPeer):
        view.admit_handover(C, Roles.BOTH, C)
    view.admit_handover(A, Roles.BOTH, B)
    view.admit_handover(A, Roles.BOTH, A)  # thinks better of it
    view.admit_handover(A, Roles.BOTH, B)
    view.admit_data(B)
    with pytest.raises(WrongPeer):
        view.admit_handover(A, Roles.BOTH, A)  # too late
    view.admit_handover(MAKER, Roles.SPEAK, C)
    view.admit_data(C)
    assert (view.speaker, view.listener) == (C, B)
    with pytest.raises(WrongPeer):
        view.admit_handover(None, Roles.LISTEN, A)
    view.expect(None)
    view.admit_data(None)
    view.admit_data(A)
    assert view.listener == A


def test_given_an_heir_when_it_speaks_then_its_predecessor_is_out() -> None:
    """Packets of the predecessor are accepted until the heir's first one."""
    view = PeerView(maker=MAKER)
    view.far_end_moved(Roles.BOTH, B)
    travelled = view.travelling()
    assert travelled.present_speaker() == B
    travelled.admit_data(MAKER)
    travelled.admit_data(B)
    with pytest.raises(WrongPeer):
        travelled.admit_data(MAKER)
    view.far_end_moved(Roles.BOTH, None)
    assert view.travelling().present_speaker() is None


def test_given_a_descriptor_when_used_as_an_owner_then_it_closes_once() -> None:
    """raw, file, option, map: what crosvm's reflection tests ask of an owner, for Descriptor."""
    read_fd, write_fd = os.pipe()
    owner = Descriptor(read_fd)
    assert owner.fileno() == read_fd
    assert owner.detach() == read_fd
    assert owner.closed
    owner.close()
    os.close(read_fd)
    with Descriptor(write_fd), pytest.raises(BadDescriptor):
        Descriptor(read_fd)
    with pytest.raises(BadDescriptor):
        Descriptor.duplicate(read_fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(write_fd)
