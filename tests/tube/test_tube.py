"""Typed messages: the tests of crosvm's Tube by their names, and what they leave out."""

from __future__ import annotations

import io
import os
import select
import socket
import threading
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from supervisor.tube import (
    BadDescriptor,
    Closed,
    Descriptor,
    Disconnected,
    Eventfd,
    MalformedMessage,
    MessageTooLarge,
    NotSendable,
    ProtoTube,
    QueueFull,
    RecvTube,
    SendTube,
    TooManyFds,
    Tube,
    TubeTimeout,
    UnexpectedFds,
    WouldBlock,
)
from tests.tube.conftest import DEADLINE_S, readable


class DataStruct(msgspec.Struct):
    x: int
    event: Eventfd


def same_object(one: Eventfd, other: Eventfd) -> bool:
    one.signal(7)
    return other.take() == 7


def test_send_recv_no_fd() -> None:
    """A value without descriptors arrives as it was."""
    one, two = Tube.pair()
    with one, two:
        one.send("hello world")
        assert two.recv(str, timeout=DEADLINE_S) == "hello world"


def test_send_recv_one_fd() -> None:
    """A struct with an event arrives with an event of the same kernel object."""
    one, two = Tube.pair()
    with one, two, Eventfd() as event:
        one.send(DataStruct(100, event))
        got = two.recv(DataStruct, timeout=DEADLINE_S)
        with got.event:
            assert got.x == 100
            assert got.event.fileno() != event.fileno()
            assert not os.get_inheritable(got.event.fileno())
            event.signal()
            assert got.event.wait(1) == 1


def test_send_recv_event() -> None:
    """A bare event can be sent, in either direction."""
    one, two = Tube.pair()
    with one, two, Eventfd() as event:
        two.send(event)
        with one.recv(Eventfd, timeout=DEADLINE_S) as got:
            got.signal()
            assert event.wait(1) == 1


def test_serialize_tube_pair() -> None:
    """A Tube that travelled through a Tube still reaches its other end, whose read notifier alone wakes."""
    one, two = Tube.pair()
    carrier, far = Tube.pair()
    with one, two, carrier, far:
        carrier.send([one, "beside"])
        arrived, beside = far.recv(tuple[Tube, str], timeout=DEADLINE_S)
        with arrived:
            one.close()
            assert beside == "beside"
            arrived.send("hi")
            with select.epoll() as epoll:
                epoll.register(two.read_notifier, select.EPOLLIN)
                epoll.register(two.close_notifier, select.EPOLLIN)
                assert epoll.poll(10) == [(two.read_notifier.fileno(), select.EPOLLIN)]
            assert two.recv(str, timeout=DEADLINE_S) == "hi"


def test_send_recv_from_seqpacket() -> None:
    """Both ends of a bare socketpair become Tubes."""
    raw_one, raw_two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Tube(raw_one) as one, Tube.from_fd(raw_two.detach()) as two:
        assert raw_one.fileno() == -1
        one.send([1, 2])
        assert two.recv(list[int], timeout=DEADLINE_S) == [1, 2]


def test_send_recv_mpsc() -> None:
    """Two threads with clones of one SendTube: each message arrives once and whole."""
    sender, receiver = Tube.directional_pair()
    barrier = threading.Barrier(3)

    def produce(tube: SendTube, magic: int) -> None:
        with tube:
            barrier.wait(DEADLINE_S)
            for _ in range(100):
                tube.send({"id": magic, "body": "x" * magic})

    with sender, receiver:
        threads = [threading.Thread(target=produce, args=(sender.clone(), magic)) for magic in (17, 4242)]
        for thread in threads:
            thread.start()
        barrier.wait(DEADLINE_S)
        got = [receiver.recv(timeout=DEADLINE_S) for _ in range(200)]
        for thread in threads:
            thread.join(DEADLINE_S)
        for magic in (17, 4242):
            assert got.count({"id": magic, "body": "x" * magic}) == 100
        with pytest.raises(WouldBlock):
            receiver.recv(timeout=0)


def test_send_recv_hash_map() -> None:
    """Events as values of a dict: keys are equal, each pair is one kernel object."""
    one, two = Tube.pair()
    with one, two:
        events = {f"event{i}": Eventfd() for i in range(5)}
        one.send(events)
        got = two.recv(dict[str, Eventfd], timeout=DEADLINE_S)
        assert got.keys() == events.keys()
        for key, event in events.items():
            with event, got[key]:
                assert same_object(event, got[key])


@dataclass
class Everything:
    """One of each owner, at different depths."""

    maybe: Descriptor | None
    sock: socket.socket
    nested: list[dict[str, DataStruct]]
    reader: io.BufferedReader
    half: SendTube
    other_half: RecvTube
    proto: ProtoTube
    none: Eventfd | None = None


def test_given_owners_at_any_depth_when_sent_then_each_arrives_as_its_kind() -> None:
    """Files, sockets, events and Tubes travel from optional fields, dict values and nested structs."""
    one, two = Tube.pair()
    sender, receiver = Tube.directional_pair()
    proto, proto_far = ProtoTube.pair()
    read_fd, write_fd = os.pipe()
    stream, stream_far = socket.socketpair()
    with one, two, sender, receiver, proto, proto_far, stream, stream_far, Descriptor(write_fd):
        event = Eventfd()
        reader = os.fdopen(read_fd, "rb")
        with event, reader:
            one.send(
                Everything(
                    Descriptor.duplicate(write_fd),
                    stream,
                    [{"deep": DataStruct(1, event)}],
                    reader,
                    sender,
                    receiver,
                    proto,
                )
            )
            got = two.recv(Everything, timeout=DEADLINE_S)
        with got.sock, got.reader, got.half, got.other_half, got.proto, got.nested[0]["deep"].event:
            assert got.none is None
            assert got.maybe is not None
            with got.maybe:
                os.write(got.maybe.fileno(), b"abc")
            assert got.reader.read1(3) == b"abc"
            stream_far.send(b"s")
            assert got.sock.recv(1) == b"s"
            got.half.send("through the halves")
            assert got.other_half.recv(timeout=DEADLINE_S) == "through the halves"


@pytest.mark.parametrize("mode", ["r", "rb", "w", "wb", "r+b", "ab"])
def test_given_a_file_when_sent_then_it_arrives_with_its_direction(mode: str) -> None:
    """A file keeps whether it reads, writes, and is text or bytes; writes made before are in it."""
    one, two = Tube.pair()
    with one, two, Descriptor(os.memfd_create("file")) as memory:
        os.write(memory.fileno(), b"content")
        os.lseek(memory.fileno(), 0, os.SEEK_SET)
        with os.fdopen(memory.fileno(), mode, closefd=False) as file:
            one.send(file)
            with two.recv(timeout=DEADLINE_S) as got:
                assert (got.readable(), got.writable()) == (file.readable(), file.writable())
                assert isinstance(got, io.TextIOBase) == isinstance(file, io.TextIOBase)
                if got.readable():
                    assert got.read() in ("content", b"content")


def test_given_unbuffered_file_when_sent_then_it_arrives_unbuffered() -> None:
    """A raw file arrives as a raw file."""
    one, two = Tube.pair()
    with one, two, open("/dev/zero", "rb", buffering=0) as file:
        one.send(file)
        with two.recv(timeout=DEADLINE_S) as got:
            assert isinstance(got, io.RawIOBase)


def test_given_type_descriptor_when_a_socket_arrives_then_it_is_one() -> None:
    """The receiver's type may ask for a Descriptor in place of what was sent, and for more where it fits."""
    one, two = Tube.pair()
    with one, two, socket.socket() as sock, open("/dev/null", "rb") as file, Eventfd() as event:
        one.send([sock, file, event])
        for got in two.recv(list[Descriptor], timeout=DEADLINE_S):
            assert isinstance(got, Descriptor)
            got.close()
        one.send([Descriptor.duplicate(event), Descriptor.duplicate(sock)])
        event_got, sock_got = two.recv(tuple[Eventfd, socket.socket], timeout=DEADLINE_S)
        with event_got, sock_got:
            assert same_object(event, event_got)


@pytest.mark.parametrize("wanted", [Eventfd, socket.socket, Tube, int, list[str]])
def test_given_another_type_expected_when_a_message_arrives_then_it_is_refused(wanted: Any) -> None:
    """A message that is not of the expected type is refused, and the Tube is usable afterwards."""
    one, two = Tube.pair()
    with one, two, open("/dev/null", "rb") as file:
        one.send(file)
        with pytest.raises(MalformedMessage):
            two.recv(wanted, timeout=DEADLINE_S)
        one.send("next")
        assert two.recv(timeout=DEADLINE_S) == "next"


@pytest.mark.parametrize("message", [object(), 2**70, {"a": lambda: 0}, Eventfd, {1j: 1}])
def test_given_a_value_that_is_no_data_when_sent_then_the_caller_is_to_blame(message: object) -> None:
    """What msgpack cannot express is a local error, and nothing is sent."""
    one, two = Tube.pair()
    with one, two:
        with pytest.raises(NotSendable):
            one.send(message)
        with pytest.raises(WouldBlock):
            two.recv(timeout=0)


def test_given_a_number_when_sent_then_it_is_a_number() -> None:
    """A plain int is never a descriptor."""
    one, two = Tube.pair()
    with one, two:
        one.send([one.fileno(), 0, True])
        assert two.recv(timeout=DEADLINE_S) == [one.fileno(), 0, True]


def test_given_a_closed_owner_when_sent_then_it_is_refused() -> None:
    """A closed file, event or Tube in a message is a local error."""
    one, two = Tube.pair()
    with one, two:
        event = Eventfd()
        event.close()
        sock = socket.socket()
        sock.close()
        file = open("/dev/null", "rb")  # noqa: SIM115
        file.close()
        for owner in (event, sock, file):
            with pytest.raises(BadDescriptor):
                one.send([owner])
        left, right = Tube.pair()
        left.close()
        right.close()
        with pytest.raises((Closed, BadDescriptor)):
            one.send([left])


def test_given_33_descriptors_when_sent_then_only_on_request() -> None:
    """32 descriptors are the default on both sides; 253 the most that can be asked for."""
    one, two = Tube.pair()
    with one, two, Eventfd() as event:
        with pytest.raises(TooManyFds):
            one.send([event] * 33)
        with pytest.raises(TooManyFds):
            one.send([event] * 254, max_fds=254)
        with pytest.raises(TooManyFds):
            two.recv(timeout=0, max_fds=254)
        one.send([event] * 33, max_fds=33)
        with pytest.raises(UnexpectedFds):
            two.recv(timeout=DEADLINE_S)
        one.send([event] * 253, max_fds=253)
        got = two.recv(list[Eventfd], timeout=DEADLINE_S, max_fds=253)
        assert len({e.fileno() for e in got}) == 253
        for each in got:
            each.close()


def test_given_no_message_when_received_in_time_then_a_timeout_says_so() -> None:
    """timeout=0 raises WouldBlock, which is a BlockingIOError; a later deadline raises a TimeoutError."""
    one, two = Tube.pair()
    with one, two:
        with pytest.raises(BlockingIOError) as now:
            one.recv(timeout=0)
        assert isinstance(now.value, WouldBlock)
        with pytest.raises(TimeoutError) as later:
            one.recv(timeout=0.02)
        assert isinstance(later.value, TubeTimeout)
        assert not isinstance(later.value, WouldBlock)


def test_given_a_full_queue_when_sent_then_queue_full() -> None:
    """A peer that does not read is a named error, at once or in time; nothing of the message was sent."""
    one, two = Tube.pair()
    with one, two:
        sent = 0
        with pytest.raises(QueueFull):  # noqa: PT012
            while True:
                one.send(sent, timeout=0)
                sent += 1
        assert sent == 278
        with pytest.raises(QueueFull):
            one.send("late", timeout=0.02)
        assert [two.recv(timeout=0) for _ in range(sent)] == list(range(sent))
        with pytest.raises(WouldBlock):
            two.recv(timeout=0)


def test_blocked_writer_wont_deadlock() -> None:
    """A sender that waits for room goes on when the peer reads."""
    one, two = Tube.pair(buffer_size=4608)
    with one, two:

        def produce() -> None:
            for _ in range(50):
                one.send("x" * 1000)

        thread = threading.Thread(target=produce)
        thread.start()
        for _ in range(50):
            assert two.recv(timeout=DEADLINE_S) == "x" * 1000
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_read_notifies_multiple_writes() -> None:
    """The read notifier stays set while messages are left."""
    one, two = Tube.pair()
    with one, two:
        assert not readable(two.read_notifier)
        one.send(1)
        one.send(2)
        for n in (1, 2):
            assert readable(two.read_notifier)
            assert two.recv(timeout=0) == n
        assert not readable(two.read_notifier)


def test_given_split_when_both_halves_are_closed_then_the_peer_sees_the_end() -> None:
    """split() closes the Tube; the halves keep the connection until the last one is closed."""
    one, two = Tube.pair()
    with two:
        sender, receiver = one.split()
        with pytest.raises(Closed):
            one.send(1)
        with pytest.raises(Closed):
            one.split()
        two.send("to the half")
        assert receiver.recv(timeout=DEADLINE_S) == "to the half"
        receiver.close()
        clone = sender.clone()
        sender.close()
        clone.send("still there")
        assert two.recv(timeout=DEADLINE_S) == "still there"
        assert not readable(two.close_notifier)
        clone.close()
        assert readable(two.close_notifier)
        with pytest.raises(Disconnected):
            two.recv(timeout=0)


def test_given_a_closed_tube_when_used_then_closed() -> None:
    """Each use after close is a local error; closing again is none."""
    one, two = Tube.pair()
    two.close()
    one.close()
    one.close()
    for use in (one.fileno, one.recv, lambda: one.send(1), lambda: one.close_notifier, lambda: one.flush(0)):
        with pytest.raises(Closed):
            use()
    assert "closed" in repr(one)


def test_given_no_seqpacket_when_made_a_tube_then_refused_and_not_taken() -> None:
    """Only a SOCK_SEQPACKET socket can become a Tube; anything else stays the caller's."""
    with socket.socket() as sock, pytest.raises(BadDescriptor):
        Tube(sock)
    with Eventfd() as event, pytest.raises(BadDescriptor):
        Tube(event)
    with pytest.raises(BadDescriptor):
        Tube.from_fd(10**6)


def test_given_a_default_timeout_when_paired_then_the_sockets_stay_blocking() -> None:
    """Nothing sets O_NONBLOCK on a description that another process will share."""
    socket.setdefaulttimeout(5)
    try:
        one, two = Tube.pair()
    finally:
        socket.setdefaulttimeout(None)
    with one, two:
        assert os.get_blocking(one.fileno())
        assert os.get_blocking(two.fileno())
        with pytest.raises(WouldBlock):
            one.recv(timeout=0)
        assert os.get_blocking(one.fileno())


@pytest.mark.parametrize("size", [65_000, 65_536, 1_000_000])
def test_given_a_large_message_when_sent_then_it_arrives_with_its_descriptors(size: int) -> None:
    """Bodies beyond a packet go through a sealed memfd, unseen, together with descriptors."""
    one, two = Tube.pair()
    with one, two, Eventfd() as event:
        one.send({"data": b"d" * size, "event": event})
        got = two.recv(timeout=DEADLINE_S)
        with got["event"]:
            assert got["data"] == b"d" * size
            assert same_object(event, got["event"])


def test_given_a_small_buffer_when_a_larger_message_is_sent_then_it_arrives() -> None:
    """A Tube with a small send buffer takes the memfd sooner instead of failing with EMSGSIZE."""
    one, two = Tube.pair(buffer_size=4608)
    with one, two:
        one.send(b"d" * 20_000)
        assert two.recv(bytes, timeout=DEADLINE_S) == b"d" * 20_000


def test_given_64_mib_when_sent_then_it_arrives_and_one_byte_more_does_not() -> None:
    """The limit of a message is 64 MiB of encoded bytes."""
    one, two = Tube.pair()
    body = bytes(64 * 1024 * 1024)
    with one, two:
        one.send(body[:-5])  # msgpack's own header of a bin is 5 bytes
        assert len(two.recv(bytes, timeout=DEADLINE_S)) == len(body) - 5
        with pytest.raises(MessageTooLarge):
            one.send(body)
