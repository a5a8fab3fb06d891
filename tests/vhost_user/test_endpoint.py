"""Endpoints: each operation at both ends, deadlines, and what the kernel loses or the peer overdoes."""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.tube.descriptor import Eventfd
from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import (
    DescriptorsLost,
    Disconnected,
    EndpointClosed,
    IncorrectFds,
    InvalidMessage,
    OversizedMessage,
    PartialMessage,
    SocketBroken,
    SocketConnect,
    Unsendable,
    VhostUserError,
    WireTimeout,
)
from supervisor.vhost_user.messages import U64, Empty, Header, Opaque, VringFd, VringState
from supervisor.vhost_user.requests import MAX_FDS, MAX_PAYLOAD_BYTES, FrontEndRequest
from supervisor.vhost_user.wire import SocketWire
from tests.tube.conftest import Fork
from tests.vhost_user.wires import TIMEOUT_S, count_open, ends, eventfds, pair, put, send_for_ever

pytestmark = pytest.mark.usefixtures("census")

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "scm.json").read_text())
F = FrontEndRequest


def test_given_iovec_it_arrives_in_scattered_buffers() -> None:
    """Gather on one side, scatter on the other; empty slices are nothing."""
    with ends() as (a, b), eventfds(2) as fds:
        assert a.send_iovec([b"ab", b"", memoryview(b"cde")], fds) == 5
        buffers = [bytearray(1), bytearray(0), bytearray(3), bytearray(4)]
        count, descriptors = b.recv_into_bufs(buffers, allow_fds=True)
        assert (count, buffers, len(descriptors)) == (
            5,
            [bytearray(b"a"), bytearray(), bytearray(b"bcd"), bytearray(b"e\0\0\0")],
            2,
        )
        for each in descriptors:
            assert not os.get_inheritable(each.fileno())
            each.close()
        assert a.send_slice(b"xyz") == 3
        assert a.send_iovec_all([]) == 0
        assert b.recv_data(2) == b"xy"
        assert b.recv_into_buf(99) == (b"z", [])


def test_given_pieces_recv_all_takes_them_to_the_last_byte() -> None:
    """The descriptors are those of the first byte; the end of the stream inside is a partial message."""
    with pair() as (peer, sock), Endpoint(sock, timeout=TIMEOUT_S) as end:
        put(peer, b"ab", 1)
        put(peer, b"cdef")
        buffers = [bytearray(3), bytearray(2)]
        count, descriptors = end.recv_into_bufs_all(buffers)
        assert (count, buffers, len(descriptors)) == (5, [bytearray(b"abc"), bytearray(b"de")], 1)
        descriptors[0].close()
        peer.close()
        with pytest.raises(PartialMessage):
            end.recv_into_bufs_all([bytearray(2)])
        with pytest.raises(Disconnected):
            end.recv_into_bufs_all([bytearray(2)])


def test_given_descriptors_behind_the_first_byte_recv_all_closes_them() -> None:
    """They would be another message's, or nobody's."""
    with pair() as (peer, sock), Endpoint(sock, timeout=TIMEOUT_S) as end:
        before = count_open()
        put(peer, b"ab", 1)
        put(peer, b"cd", 1)
        with pytest.raises(IncorrectFds):
            end.recv_into_bufs_all([bytearray(4)])
        assert count_open() == before


def test_given_message_each_way_of_receiving_takes_exactly_it() -> None:
    """Header, header with body, body into a buffer, body with payload: the next message is left alone."""
    with ends() as (a, b), eventfds(1) as fds:
        ring = VringState(1, 256)
        for _ in range(4):
            a.send_message(Header(F.SET_VRING_NUM, 8, need_reply=True), ring)
        a.send_header(Header(F.SET_LOG_FD), fds)
        assert b.recv_body(VringState) == (Header(8, 8, need_reply=True), ring, [])
        buffer = bytearray(20)
        assert b.recv_body_into_buf(buffer) == (Header(8, 8, need_reply=True), 8, [])
        assert buffer == ring.pack() + bytes(12)
        assert b.recv_payload_into_buf(4) == (
            Header(8, 8, need_reply=True),
            ring.pack()[:4],
            ring.pack()[4:],
            [],
        )
        assert b.recv_message_with_payload() == (Header(8, 8, need_reply=True), ring, [])
        with b.recv_message() as message:
            assert message.decode() == Empty()
            assert len(message.descriptors) == 1


def test_given_both_roles_request_and_reply_go_round() -> None:
    """A front-end asks with a descriptor and need_reply, the back-end answers just that request."""
    with ends() as (front, back), eventfds(1) as fds:
        request = Header(F.SET_VRING_CALL, 8, need_reply=True)
        front.send_message(request, VringFd(3), fds)
        with back.recv_message() as message:
            assert message.decode() == VringFd(3)
            back.send_message(message.header.reply(8), U64(0))
        with front.recv_reply(request) as reply:
            assert reply.decode_reply(request) == U64(0)
            assert reply.header.flags == 5


@pytest.mark.parametrize(
    ("receive", "kind"),
    [
        (lambda end: end.recv_body(U64), InvalidMessage),
        (lambda end: end.recv_body_into_buf(bytearray(8)), OversizedMessage),
        (lambda end: end.recv_payload_into_buf(17), InvalidMessage),
        (lambda end: end.recv_message(), InvalidMessage),
    ],
)
def test_given_message_of_another_size_it_is_refused_and_its_descriptors_closed(
    receive: Callable[[Endpoint], object], kind: type[VhostUserError]
) -> None:
    """No way of receiving reads past a message, underflows, or leaves descriptors behind."""
    with pair() as (peer, sock), Endpoint(sock, timeout=TIMEOUT_S) as end:
        before = count_open()
        put(peer, Header(F.SET_VRING_KICK, 16).pack() + bytes(16), 2)
        with pytest.raises(kind):
            receive(end)
        assert count_open() == before


@pytest.mark.parametrize(
    ("head", "kind"), [(Header(99), InvalidMessage), (Header(1, 1 << 28), OversizedMessage)]
)
def test_given_header_that_cannot_be_it_is_refused(head: Header, kind: type[VhostUserError]) -> None:
    """An unknown request, and a size that nobody waits for."""
    with pair() as (peer, sock), Endpoint(sock, timeout=TIMEOUT_S) as end:
        put(peer, head.pack(), 1)
        with pytest.raises(kind):
            end.recv_header()


def test_given_messages_that_no_peer_would_take_they_are_not_sent() -> None:
    """Too large, too many descriptors, sizes that disagree, descriptors without a byte, a closed one."""
    closed = Eventfd()
    closed.close()
    with ends() as (a, b), eventfds(1) as fds:
        for send in (
            lambda: a.send_message(Header(1, 4), U64(1)),
            lambda: a.send_message(Header(1, MAX_PAYLOAD_BYTES + 1), Opaque(bytes(MAX_PAYLOAD_BYTES + 1))),
            lambda: a.send_message(Header(1), Empty(), fds * (MAX_FDS + 1)),
            lambda: a.send_header(Header(1), fds * (MAX_FDS + 1)),
            lambda: a.send_iovec_all([b""], fds),
            lambda: a.send_header(Header(1), [987654]),
            lambda: a.send_header(Header(1), [closed]),
        ):
            with pytest.raises(Unsendable):
                send()
        b.timeout = 0
        with pytest.raises(WireTimeout):
            b.recv_data(1)


def test_given_silence_each_call_ends_in_time_and_a_half_message_closes() -> None:
    """Between messages the endpoint stays usable; inside one its place is lost."""
    with pair() as (peer, sock), Endpoint(sock, timeout=0.01) as end:
        with pytest.raises(WireTimeout):
            end.recv_message()
        put(peer, Header(F.SET_FEATURES, 8).pack(), 0)
        with pytest.raises(WireTimeout):
            end.recv_message()
        with pytest.raises(EndpointClosed):
            end.recv_message()


def test_given_peer_that_does_not_read_sending_ends_in_time() -> None:
    """A full socket is waited for up to the deadline; what was cut there cannot be gone on with."""
    with pair() as (_peer, sock), Endpoint(sock, timeout=0.01) as end:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with pytest.raises(WireTimeout):
            send_for_ever(lambda: end.send_message(Header(F.SET_CONFIG, 4000), Opaque(bytes(4000))))


def test_given_timeout_of_the_socket_it_does_not_matter() -> None:
    """A socket's own timeout would make calls wait that must not."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    one.settimeout(60)
    with other, Endpoint(one, timeout=0) as end, pytest.raises(WireTimeout):
        end.recv_message()


def test_given_other_sockets_they_are_refused() -> None:
    """Only a stream of AF_UNIX carries vhost-user."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other, pytest.raises(Unsendable):
        SocketWire(one)


def test_given_no_listener_connecting_is_the_systems_no(tmp_path: Path) -> None:
    """The OSError is the cause, not a text."""
    with pytest.raises(SocketConnect) as caught:
        Endpoint.connect(str(tmp_path / "nobody"))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_given_full_table_of_descriptors_the_message_is_refused_and_nothing_leaks(fork: Fork) -> None:
    """MSG_CTRUNC: what the kernel could still install is closed, and we are to blame, not the peer alone."""

    def starve() -> None:
        with pair() as (peer, sock), Endpoint(sock, timeout=TIMEOUT_S) as end:
            put(peer, Header(F.SET_VRING_KICK, 8).pack() + bytes(8), 5)
            before = count_open()
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, highest + 2))
            free = [os.dup(0)]
            with contextlib.suppress(OSError):
                while True:
                    free.append(os.dup(0))
            os.close(free.pop())
            with pytest.raises(DescriptorsLost):
                end.recv_message()
            for fd in free:
                os.close(fd)
            assert count_open() == before

    assert fork(starve).wait() == 0


@pytest.mark.parametrize(
    "row", VECTORS["observed_close"], ids=lambda row: f"{row['how']}-{row['poll']}-{row['recvs']}"
)
def test_given_peer_that_goes_what_it_sent_is_received_first(row: dict[str, Any], fork: Fork) -> None:
    """By close, exit or SIGKILL: its bytes, then the reset if it had left something unread, then the end."""
    peer, sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def go() -> None:
        for index in range(row["queued_for_survivor"]):
            peer.send(f"msg{index}".encode())
        if row["how"] == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if row["how"] == "exit":
            os._exit(0)

    with Endpoint(sock, timeout=TIMEOUT_S) as end:
        if row["unread_in_dying"]:
            sock.send(b"never read")
        if row["how"] == "close":
            go()
        else:
            child = fork(go)
        peer.close()
        if row["how"] != "close":
            child.wait()
        for expected in row["recvs"]:
            if expected == "ECONNRESET":
                with pytest.raises(SocketBroken):
                    end.recv_data(99)
            elif expected == "b''":
                with pytest.raises(Disconnected) as caught:
                    end.recv_data(99)
                assert type(caught.value) is Disconnected
            else:
                assert repr(end.recv_data(99)) == expected
        assert select.select([end], [], [], 0)[0]
        with pytest.raises(SocketBroken):
            end.send_slice(b"x")


def test_given_limits_of_the_kernel_ours_are_below() -> None:
    """More than we allow is refused by us, and what the kernel cannot do is not tried."""
    assert VECTORS["limits"]["tube_default_max_fds"] == MAX_FDS < VECTORS["limits"]["fds_per_send_ok"]
    assert VECTORS["limits"]["bad_fd"] == "EBADF, nothing sent"
    with pair() as (peer, sock), Endpoint(sock, timeout=TIMEOUT_S) as end, eventfds(1) as fds:
        rights = array.array("i", fds * VECTORS["limits"]["fds_per_send_ok"])
        peer.sendmsg([SET_OWNER], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        before = count_open()
        with pytest.raises(IncorrectFds):
            end.recv_message()
        assert count_open() == before


SET_OWNER = Header(F.SET_OWNER).pack()
