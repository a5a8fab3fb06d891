"""Every row of vectors/scm.json: what AF_UNIX does, so that a kernel which does otherwise is noticed here."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import termios
from pathlib import Path
from typing import Any

import pytest

from supervisor.tube.descriptor import Descriptor
from supervisor.tube.errors import BadDescriptor, TooManyFds, WouldBlock
from supervisor.tube.scm import (
    Broken,
    cmsg_len,
    cmsg_space,
    next_packet_bytes,
    outstanding_bytes,
    receive_packet,
    send_packet,
)
from tests.tube.conftest import DEADLINE_S, Fork

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "scm.json").read_text())
CROSVM = {row["test"]: row for row in VECTORS["crosvm"]}
QUEUE = VECTORS["observed_queue"]
FLAGS = {
    "IN": select.POLLIN,
    "OUT": select.POLLOUT,
    "RDHUP": select.POLLRDHUP,
    "HUP": select.POLLHUP,
    "ERR": select.POLLERR,
}


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, getattr(socket, f"SOCK_{kind}"))


@pytest.mark.parametrize(
    ("fds", "size"), [(int(k), v) for k, v in VECTORS["cmsg_space_by_fds_64bit"].items()]
)
def test_buffer_len(fds: int, size: int) -> None:
    """CMSG_SPACE of a number of descriptors is what libc says."""
    assert cmsg_space(4 * fds) == size == socket.CMSG_SPACE(4 * fds)


@pytest.mark.parametrize(("fds", "size"), [(int(k), v) for k, v in VECTORS["cmsg_len_by_fds_64bit"].items()])
def test_control_header_and_payload_len(fds: int, size: int) -> None:
    """CMSG_LEN of a number of descriptors is what libc says."""
    assert cmsg_len(4 * fds) == size == socket.CMSG_LEN(4 * fds)


@pytest.mark.parametrize("test", ["send_recv_no_fd", "send_recv_only_fd", "send_recv_with_fd"])
def test_send_recv_fds(test: str) -> None:
    """Bytes and descriptors arrive in their numbers; a descriptor is a new one of the same object."""
    row = CROSVM[test]
    for _ in range(row.get("repeat", 1)):
        one, two = pair(row["type"])
        event = os.eventfd(0, os.EFD_CLOEXEC)
        with one, two, Descriptor(event):
            data = bytes(row["send"])
            assert send_packet(one, [data], [event] * row["fds"]) == row["n_sent"]
            got, control, flags, _ = two.recvmsg(row["recv_buf"], socket.CMSG_LEN(4 * row["max_fds"]))
            assert (got, len(got)) == (data, row["n_recv"])
            assert not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
            fds = array.array("i")
            for _, _, payload in control:
                fds.frombytes(payload)
            assert len(fds) == row["fds_recv"]
            for fd in fds:
                assert fd not in (one.fileno(), two.fileno(), event)
                with Descriptor(fd):
                    os.write(fd, struct.pack("=Q", 1203))
                    assert os.eventfd_read(event) == 1203


def test_unix_seqpacket_send_fragments() -> None:
    """Packets are never merged."""
    row = CROSVM["unix_seqpacket_send_fragments"]
    one, two = pair(row["type"])
    with one, two:
        for data in row["sends"]:
            send_packet(one, [bytes(data)], [])
        for data, size in zip(row["sends"], row["recv_sizes"], strict=True):
            arrival = receive_packet(two, row["recv_buf"])
            assert arrival is not None
            assert (arrival.data, len(arrival.data)) == (bytes(data), size)


def test_unix_seqpacket_get_readable_bytes() -> None:
    """FIONREAD counts on the receiving side only."""
    row = CROSVM["unix_seqpacket_get_readable_bytes"]
    one, two = pair(row["type"])

    def fionread(sock: socket.socket) -> int:
        return int(struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0])

    with one, two:
        one.send(b"x" * row["send_len"])
        assert (fionread(one), fionread(two)) == (row["sender_FIONREAD"], row["receiver_FIONREAD"])
        two.recv(100)
        assert [fionread(one), fionread(two)] == row["after_recv"]


def test_unix_seqpacket_next_packet_size() -> None:
    """The next packet's size is known without taking it; the peer's death with unread data shows once."""
    row = CROSVM["unix_seqpacket_next_packet_size"]
    one, two = pair(row["type"])
    with one, two:
        one.send(b"x" * row["send_len"])
        assert next_packet_bytes(two) == row["peek"]
        assert next_packet_bytes(one) is None
        two.close()
        with pytest.raises(Broken) as caught:
            next_packet_bytes(one)
        assert isinstance(caught.value.__cause__, OSError)
        assert errno.errorcode[caught.value.__cause__.errno or 0] == row["after_peer_closed_with_unread"]
        assert next_packet_bytes(one) == 0


def test_listener_path() -> None:
    """A bound path is the socket's name; that is all of a listener that the Tube needs."""
    assert CROSVM["listener path"]["bind_then_path"] == "same path"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # an abstract name of the kernel's choice
        listener.listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockname() == listener.getsockname()


def test_limits() -> None:
    """253 descriptors pass, 254 are refused before and by the kernel, a bad one sends nothing."""
    row = VECTORS["limits"]
    one, two = pair("SEQPACKET")
    with one, two:
        ok = row["fds_per_send_ok"]
        send_packet(one, [b"x"], [one.fileno()] * ok)
        arrival = receive_packet(two, 10)
        assert arrival is not None
        assert len(arrival.descriptors) == ok
        assert not any(os.get_inheritable(d.fileno()) for d in arrival.descriptors)
        arrival.close()
        with pytest.raises(TooManyFds):
            send_packet(one, [b"x"], [one.fileno()] * (ok + 1))
        rights = struct.pack(f"={ok + 1}i", *[one.fileno()] * (ok + 1))
        with pytest.raises(OSError, match="Invalid") as refused:
            one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        assert errno.errorcode[refused.value.errno or 0] == row["fds_254"]
        with pytest.raises(BadDescriptor) as bad:
            send_packet(one, [b"x"], [one.fileno(), 10**6])
        assert isinstance(bad.value.__cause__, OSError)
        assert errno.errorcode[bad.value.__cause__.errno or 0] == row["bad_fd"].split(",")[0]
        assert receive_packet(two, 10) is None


def _names(mask: int) -> set[str]:
    return {name for name, bit in FLAGS.items() if mask & bit}


@pytest.mark.parametrize("row", VECTORS["observed_close"], ids=lambda r: "-".join(map(str, r.values()))[:40])
def test_peer_goes_away(row: dict[str, Any], fork: Fork) -> None:
    """What poll, epoll, recv and send say when the peer closed, exited or was killed."""
    ours, theirs = pair(row["type"])
    ready, tell = os.pipe()

    def dying() -> None:
        ours.close()
        for i in range(row["queued_for_survivor"]):
            theirs.send(b"msg%d" % i)
        os.write(tell, b"x")
        if row["how"] == "SIGKILL":
            signal.pause()
        elif row["how"] == "close":
            theirs.close()

    with Descriptor(ready), Descriptor(tell), ours:
        if row["unread_in_dying"]:
            ours.send(b"never read")
        child = fork(dying)
        theirs.close()
        assert os.read(ready, 1) == b"x"
        if row["how"] == "SIGKILL":
            child.kill()
        else:
            child.wait()
        poll = select.poll()
        mask = select.POLLIN | select.POLLOUT | select.POLLRDHUP
        poll.register(ours, mask)
        assert _names(poll.poll(DEADLINE_S * 1000)[0][1]) == set(row["poll"].split("|"))
        with select.epoll() as epoll:
            epoll.register(ours, select.EPOLLIN | select.EPOLLRDHUP)
            assert _names(epoll.poll(DEADLINE_S)[0][1]) == set(row["epoll"].split("|"))
        assert [_recv(ours) for _ in row["recvs"]] == row["recvs"]
        assert _names(poll.poll(DEADLINE_S * 1000)[0][1]) == set(row["poll_after"].split("|"))
        with pytest.raises(OSError, match=r"Broken|Errno") as broken:
            ours.send(b"x", socket.MSG_NOSIGNAL)
        assert errno.errorcode[broken.value.errno or 0] == row["send"]


def _recv(sock: socket.socket) -> str:
    try:
        return repr(sock.recv(100, socket.MSG_DONTWAIT))
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _fill(kind: str, size: int) -> int:
    one, two = pair(kind)
    with one, two:
        return _fill_up(one, size)


def _fill_up(sock: socket.socket, size: int) -> int:
    for n in range(10_000):
        try:
            send_packet(sock, [b"x" * size], [])
        except WouldBlock:
            return n
    raise AssertionError("never full")


DEFAULT_BUFFER = VECTORS["observed_queue"][1]["value"]
needs_default_buffer = pytest.mark.skipif(
    int(Path("/proc/sys/net/core/wmem_default").read_text()) != DEFAULT_BUFFER,
    reason="another default buffer",
)


@needs_default_buffer
@pytest.mark.parametrize(
    ("kind", "size", "count"),
    [("SEQPACKET", r["size"], r["n"]) for r in QUEUE if r["key"] == "messages until EAGAIN"]
    + [("SEQPACKET", 1, r["n"]) for r in QUEUE if r["key"].startswith("1-byte messages")]
    + [("STREAM", 1, r["n"]) for r in QUEUE if r["key"].startswith("STREAM 1-byte")],
)
def test_queue_is_full_after_so_many_packets(kind: str, size: int, count: int) -> None:
    """A default queue takes a number of packets that depends on their memory, not on their bytes."""
    assert _fill(kind, size) == count


@needs_default_buffer
def test_queue_is_writable_again_after_a_quarter() -> None:
    """POLLOUT comes back only when three quarters of a full queue were read."""
    needed = next(r["k"] for r in QUEUE if r["key"].startswith(" messages the peer must read"))
    one, two = pair("SEQPACKET")
    with one, two:
        _fill_up(one, 1)
        poll = select.poll()
        poll.register(one, select.POLLOUT)
        read = 0
        while not poll.poll(0):
            receive_packet(two, 10)
            read += 1
        assert read == needed


@pytest.mark.parametrize(
    "row",
    [r for r in QUEUE if "r" in r and r["key"].startswith("max SEQPACKET")],
    ids=lambda r: r["key"][23:],
)
def test_largest_packet(row: dict[str, Any]) -> None:
    """A packet may be 32 bytes smaller than the send buffer; the next byte is an error."""
    buffer_bytes, largest, refusal = row["r"]
    one, two = pair("SEQPACKET")
    with one, two:
        force = row.get("force")
        if force is not None:
            if os.geteuid() != 0:
                pytest.skip("SO_SNDBUFFORCE is root's")
            one.setsockopt(socket.SOL_SOCKET, 32, force)
        elif "1<<20" in row["key"]:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) != buffer_bytes:
            pytest.skip("another limit of send buffers here")
        (name, too_large), *_ = refusal.items()
        with pytest.raises(OSError, match="Errno") as refused:
            one.send(b"x" * too_large, socket.MSG_DONTWAIT)
        assert errno.errorcode[refused.value.errno or 0] == name
        assert one.send(b"x" * largest, socket.MSG_DONTWAIT) == largest


def test_receive_buffer_does_not_matter() -> None:
    """The receiver's SO_RCVBUF limits nothing."""
    size = next(r["r"] for r in QUEUE if r["key"].startswith("receiver SO_RCVBUF"))
    one, two = pair("SEQPACKET")
    with one, two:
        two.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        assert one.send(b"x" * size, socket.MSG_DONTWAIT) == size


@pytest.mark.parametrize(
    "row", [r for r in QUEUE if r["key"].startswith("SIOCOUTQ (sender)")], ids=lambda r: r["type"]
)
def test_outstanding_charge(row: dict[str, Any]) -> None:
    """SIOCOUTQ grows by each packet's charge and is 0 when the peer has taken everything."""
    one, two = pair(row["type"])
    charges = [v for v in row["values"] if isinstance(v, int)]
    with one, two:
        assert outstanding_bytes(one) == charges[0]
        for size, charge in zip((1, 1000, 5000), charges[1:], strict=True):
            one.send(b"x" * size)
            assert outstanding_bytes(one) == charge
        for size in (1, 1000, 5000):
            two.recv(size)
        assert outstanding_bytes(one) == row["values"][-1][1] == 0


@pytest.mark.parametrize(
    "row", [r for r in QUEUE if r["key"].startswith("SIOCOUTQ after")], ids=lambda r: r["type"]
)
def test_outstanding_charge_after_peer_closed(row: dict[str, Any]) -> None:
    """SIOCOUTQ drops to 0 too when the peer closes with unread data."""
    one, two = pair(row["type"])
    with one:
        with two:
            one.send(b"x")
            assert outstanding_bytes(one) == row["before"]
        assert outstanding_bytes(one) == row["after"]


def test_constants() -> None:
    """The numbers of the ioctls and of SO_SNDBUF are those that were measured."""
    row = QUEUE[0]
    assert hex(termios.TIOCOUTQ) == row["TIOCOUTQ"]
    assert hex(termios.FIONREAD) == row["FIONREAD"]
    assert row["SO_SNDBUF"] == socket.SO_SNDBUF
