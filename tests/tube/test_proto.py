"""ProtoTube: protobuf messages, the descriptors beside them, and what is refused."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct

import pytest

from supervisor.messages_pb2 import Assign, Hello, Payload
from supervisor.tube import (
    BadDescriptor,
    Descriptor,
    Eventfd,
    MalformedMessage,
    NotSendable,
    ProtoTube,
    QueueFull,
    TooManyFds,
    TruncatedMessage,
    Tube,
    UnexpectedFds,
    WouldBlock,
)
from supervisor.tube.packet import MAX_MESSAGE_BYTES, Header, Kind, pack_head
from tests.tube.conftest import DEADLINE_S, Fork, open_fds


def test_tube_serializes_and_deserializes() -> None:
    """A protobuf message makes the round trip."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs:
        sent = Assign(name="disk0", device_class="a:B", umask=99)
        ours.send_proto(sent)
        assert theirs.recv_proto(Assign, timeout=DEADLINE_S) == sent


def test_given_an_all_default_message_when_sent_then_it_is_a_message() -> None:
    """Zero bytes of protobuf are neither the end of the connection nor nothing."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs:
        assert Hello().SerializeToString() == b""
        ours.send_proto(Hello())
        assert theirs.recv_proto(Hello, timeout=0) == Hello()
        with pytest.raises(WouldBlock):
            theirs.recv_proto(Hello, timeout=0)


def test_given_descriptors_when_sent_then_they_arrive_in_order_and_close_on_exec() -> None:
    """Numbers and owners can be mixed; all arrive as Descriptors, with the sender's pid."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs, Eventfd() as event:
        read_fd, write_fd = os.pipe()
        with Descriptor(read_fd), Descriptor(write_fd):
            ours.send_proto(Hello(ticket=7), fds=[event, write_fd])
            got = theirs.recv_proto_with_fds(Hello, timeout=DEADLINE_S)
            assert (got.message.ticket, got.pid) == (7, os.getpid())
            first, second = got.descriptors
            os.eventfd_write(first.fileno(), 3)
            os.write(second.fileno(), b"x")
            assert (event.take(), os.read(read_fd, 1)) == (3, b"x")
            for descriptor in got.descriptors:
                assert fcntl.fcntl(descriptor.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            number = first.detach()
            got.close()
            os.close(number)


def test_given_unexpected_descriptors_when_received_then_refused_and_closed() -> None:
    """recv_proto takes none, recv_proto_with_fds as many as allowed; refused ones are closed."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs, Eventfd() as event:
        before = open_fds()
        ours.send_proto(Hello(), fds=[event])
        with pytest.raises(UnexpectedFds):
            theirs.recv_proto(Hello, timeout=0)
        ours.send_proto(Hello(), fds=[event] * 3)
        with pytest.raises(UnexpectedFds):
            theirs.recv_proto_with_fds(Hello, timeout=0, max_fds=2)
        assert open_fds() == before


@pytest.mark.parametrize("count", [33, 254])
def test_given_too_many_descriptors_when_sent_then_refused_before_any_call(count: int) -> None:
    """32 unless asked for more, 253 whatever is asked for."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs:
        with pytest.raises(TooManyFds):
            ours.send_proto(Hello(), fds=[0] * count)
        with pytest.raises(TooManyFds):
            ours.send_proto(Hello(), fds=[0] * 254, max_fds=254)
        with pytest.raises(TooManyFds):
            theirs.recv_proto_with_fds(Hello, max_fds=-1)


def test_given_a_bad_descriptor_when_sent_then_nothing_is_sent() -> None:
    """A number that is not open, negative or no number at all."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs:
        for fd in (10**6, -1):
            with pytest.raises(BadDescriptor):
                ours.send_proto(Hello(), fds=[fd])
        with pytest.raises(NotSendable):
            ours.send_proto(Hello(), fds=["0"])
        with pytest.raises(WouldBlock):
            theirs.recv_proto(Hello, timeout=0)


def test_given_a_full_queue_when_sent_without_waiting_then_queue_full() -> None:
    """An event loop's send never blocks."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs:
        with pytest.raises(QueueFull):  # noqa: PT012
            while True:
                ours.send_proto_nowait(Hello())
        theirs.recv_proto(Hello, timeout=0)


@pytest.mark.parametrize("size", [70_000, 3_000_000])
def test_given_a_large_message_when_sent_with_descriptors_then_both_arrive(size: int) -> None:
    """A body out of line does not disturb the message's own descriptors, nor count among them."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs, Eventfd() as event:
        ours.send_proto(Payload(number=1, data=b"p" * size), fds=[event])
        got = theirs.recv_proto_with_fds(Payload, timeout=DEADLINE_S, max_fds=1)
        assert len(got.message.data) == size
        assert len(got.descriptors) == 1
        got.close()


def test_given_a_typed_message_when_a_proto_is_expected_then_malformed() -> None:
    """The two kinds do not mix up: not as bytes, not in silence."""
    ours, theirs = Tube.pair()
    with ours, ProtoTube(theirs.end) as proto:
        theirs.close()
        ours.send("text")
        with pytest.raises(MalformedMessage):
            proto.recv_proto(Hello, timeout=0)
        proto.send_proto(Hello())
        with pytest.raises(MalformedMessage):
            ours.recv(timeout=0)


def test_given_bytes_that_are_no_such_message_when_received_then_malformed() -> None:
    """Undecodable protobuf is the peer's fault, with protobuf's own error as the cause."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs:
        ours.end.sock.send(pack_head(Header(Kind.PROTO, 2)) + b"\xff\xff")
        with pytest.raises(MalformedMessage) as refused:
            theirs.recv_proto(Hello, timeout=0)
        assert refused.value.__cause__ is not None


# -- packets that no Tube of ours would send -----------------------------------------------------


def raw_send(tube: ProtoTube, data: bytes, fds: list[int] | None = None) -> None:
    rights = struct.pack(f"={len(fds)}i", *fds) if fds else b""
    tube.end.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])


def sealed(content: bytes, seals: int) -> Descriptor:
    memfd = Descriptor(os.memfd_create("forged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.write(memfd.fileno(), content)
    fcntl.fcntl(memfd.fileno(), fcntl.F_ADD_SEALS, seals)
    return memfd


ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


@pytest.mark.parametrize(
    "seals", [0, *(ALL_SEALS & ~one for one in (1, 2, 4, 8)), fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL]
)
def test_given_a_memfd_that_lacks_a_seal_when_received_then_refused(seals: int) -> None:
    """Each of the four seals is needed; without one the sender could change what is being read."""
    ours, theirs = ProtoTube.pair()
    body = Hello(pid=1).SerializeToString()
    with ours, theirs, sealed(body, seals) as memfd:
        head = pack_head(Header(Kind.PROTO, len(body), 0, 1, out_of_line=True))
        raw_send(ours, head, [memfd.fileno()])
        with pytest.raises(MalformedMessage, match="sealed"):
            theirs.recv_proto(Hello, timeout=0)
        with sealed(body, ALL_SEALS) as good:
            raw_send(ours, head, [good.fileno()])
            assert theirs.recv_proto(Hello, timeout=0).pid == 1


def test_given_a_memfd_of_another_size_or_kind_when_received_then_refused() -> None:
    """The size must be what the packet said, and the descriptor a memfd."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs, sealed(b"12345", ALL_SEALS) as memfd, Eventfd() as event:
        for size, fd in ((4, memfd), (6, memfd), (5, event)):
            raw_send(ours, pack_head(Header(Kind.PROTO, size, 0, 1, out_of_line=True)), [fd.fileno()])
            with pytest.raises(MalformedMessage):
                theirs.recv_proto(Hello, timeout=0)


def test_given_a_claim_beyond_64_mib_when_received_then_refused_before_it_is_read() -> None:
    """The limit is checked on the header: nothing is allocated."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs, sealed(b"", ALL_SEALS) as memfd:
        head = pack_head(Header(Kind.PROTO, MAX_MESSAGE_BYTES + 1, 0, 1, out_of_line=True))
        raw_send(ours, head, [memfd.fileno()])
        with pytest.raises(MalformedMessage, match="limit"):
            theirs.recv_proto(Hello, timeout=0)


def test_given_an_empty_packet_when_received_then_it_is_not_the_end() -> None:
    """An empty packet of a stranger to the format is malformed; with a descriptor, that is closed."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs, Eventfd() as event:
        before = open_fds()
        raw_send(ours, b"")
        with pytest.raises(MalformedMessage):
            theirs.recv_proto(Hello, timeout=0)
        raw_send(ours, b"", [event.fileno()])
        with pytest.raises(MalformedMessage):
            theirs.recv_proto(Hello, timeout=0)
        assert open_fds() == before
        ours.send_proto(Hello())
        theirs.recv_proto(Hello, timeout=0)


def test_given_an_oversize_packet_when_received_then_truncated_and_its_descriptors_closed() -> None:
    """A packet beyond 64 KiB is refused whole (MSG_TRUNC), never cut."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs, Eventfd() as event:
        before = open_fds()
        raw_send(ours, pack_head(Header(Kind.PROTO, 100_000, 1)) + b"x" * 100_000, [event.fileno()])
        with pytest.raises(TruncatedMessage):
            theirs.recv_proto(Hello, timeout=0)
        assert open_fds() == before


def test_given_no_room_for_descriptors_when_received_then_truncated_and_closed(fork: Fork) -> None:
    """MSG_CTRUNC, here by RLIMIT_NOFILE: what did arrive is closed, the loss is an error."""
    ours, theirs = ProtoTube.pair()

    def work() -> None:
        before = open_fds()
        free = max(before) + 1
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, hard))
        for fd in range(free):
            if fd not in before:
                os.dup2(0, fd)
        with pytest.raises(TruncatedMessage):
            theirs.recv_proto_with_fds(Hello, timeout=DEADLINE_S)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert max(open_fds()) < free

    with ours, theirs, Eventfd() as event:
        ours.send_proto(Hello(), fds=[event] * 5)
        assert fork(work).wait() == 0


@pytest.mark.parametrize("claimed", [0, 1, 3])
def test_given_another_number_of_descriptors_than_claimed_then_malformed(claimed: int) -> None:
    """The kernel's alignment slack lets an extra descriptor through; the header's count does not."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs, Eventfd() as event:
        raw_send(ours, pack_head(Header(Kind.PROTO, 0, claimed)), [event.fileno()] * 2)
        with pytest.raises(MalformedMessage):
            theirs.recv_proto_with_fds(Hello, timeout=0)
