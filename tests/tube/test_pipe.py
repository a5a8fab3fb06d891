"""PipeTube: the same messages over pipes, named pipes and stream sockets."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from supervisor.tube import (
    Closed,
    Disconnected,
    Eventfd,
    MalformedMessage,
    MessageTooLarge,
    NotSendable,
    PipeTube,
    TruncatedMessage,
    TubeSystemError,
)
from supervisor.tube.packet import HEADER_BYTES, MAX_MESSAGE_BYTES, Header, Kind, pack_head
from tests.tube.conftest import DEADLINE_S, Fork


class Point(msgspec.Struct):
    x: int
    y: list[str]


def pipes() -> tuple[PipeTube, PipeTube]:
    there, back = os.pipe(), os.pipe()
    return PipeTube(there[0], back[1]), PipeTube(back[0], there[1])


def sockets() -> tuple[PipeTube, PipeTube]:
    one, two = socket.socketpair()
    return PipeTube.from_socket(one), PipeTube.from_socket(two)


both = pytest.mark.parametrize("make", [pipes, sockets])
Make = Callable[[], tuple[PipeTube, PipeTube]]


@both
def test_given_a_stream_when_messages_are_sent_then_they_arrive_whole(make: Make) -> None:
    """Frames keep messages apart on a stream that does not."""
    one, two = make()
    with one, two:
        one.send(Point(1, ["a"]))
        one.send(None)
        assert two.recv(Point) == Point(1, ["a"])
        assert two.recv() is None
        two.send([1])
        assert one.recv() == [1]


@both
def test_given_a_large_message_when_sent_then_the_reader_gets_it_in_pieces(make: Make) -> None:
    """A message beyond what the stream holds waits for its reader."""
    one, two = make()
    with one, two:
        sender = threading.Thread(target=one.send, args=(b"x" * 3_000_000,))
        sender.start()
        assert two.recv(bytes) == b"x" * 3_000_000
        sender.join(DEADLINE_S)


@both
def test_std_io_read_eof(make: Make) -> None:
    """What was written is read, then the end is Disconnected, again and again."""
    one, two = make()
    with two:
        one.send("abc")
        one.close()
        one.close()
        assert two.recv() == "abc"
        for _ in range(2):
            with pytest.raises(Disconnected):
                two.recv()


@both
def test_std_io_write_eof(make: Make) -> None:
    """Writing to nobody is Disconnected."""
    one, two = make()
    with two:
        one.close()
        with pytest.raises(Disconnected):
            two.send("x")


@both
@pytest.mark.parametrize("cut", [1, HEADER_BYTES, HEADER_BYTES + 3])
def test_given_a_stream_that_ends_within_a_message_then_truncated(make: Make, cut: int) -> None:
    """The end within a frame is a loss, not a quiet end."""
    one, two = make()
    with two:
        assert one._writer is not None
        os.write(one._writer.fileno(), (pack_head(Header(Kind.MESSAGE, 10)) + b"0123456789")[:cut])
        one.close()
        with pytest.raises(TruncatedMessage):
            two.recv()


@pytest.mark.parametrize(
    "head",
    [
        b"\x00" * HEADER_BYTES,
        pack_head(Header(Kind.MESSAGE, 0, 1)),
        pack_head(Header(Kind.MESSAGE, 0, 0, 1, True)),
        pack_head(Header(Kind.HANDOVER, 0)),
        struct.pack("<BBBBBBHI", 1, 1, 0, 0, 0, 0, 0, MAX_MESSAGE_BYTES + 1),
        pack_head(Header(Kind.PROTO, 0)),
        pack_head(Header(Kind.MESSAGE, 1)) + b"\xc1",
        pack_head(Header(Kind.MESSAGE, 4)) + b"\xd5\x01\x00\x00",
    ],
)
def test_given_a_wrong_frame_when_received_then_malformed(head: bytes) -> None:
    """Frames that claim descriptors, too much, or are no message are refused before anything is allocated."""
    one, two = sockets()
    with one, two:
        assert one._writer is not None
        os.write(one._writer.fileno(), head)
        with pytest.raises(MalformedMessage):
            two.recv()


def test_given_an_owner_of_a_descriptor_when_sent_then_refused() -> None:
    """No descriptor travels over a byte stream; nothing is sent."""
    one, two = sockets()
    with one, two, Eventfd() as event:
        with pytest.raises(NotSendable):
            one.send({"event": event})
        with pytest.raises(MessageTooLarge):
            one.send(bytes(MAX_MESSAGE_BYTES))
        one.send(1)
        with pytest.raises(MalformedMessage):
            two.recv(Eventfd)
        one.send(2)
        assert two.recv() == 2


def test_given_named_pipes_when_both_sides_open_then_they_talk(tmp_path: Path, fork: Fork) -> None:
    """Two processes open a pair of FIFOs in any order, without a deadlock and without a false end."""
    there, back = tmp_path / "there", tmp_path / "back"
    os.mkfifo(there)
    os.mkfifo(back)

    def work() -> None:
        with PipeTube.from_named_pipes(read=there, write=back) as tube:
            tube.send(["echo", tube.recv()])

    child = fork(work)
    with PipeTube.from_named_pipes(read=back, write=there) as tube:
        tube.send("hello")
        assert tube.recv() == ["echo", "hello"]
        assert child.wait() == 0
        with pytest.raises(Disconnected):
            tube.recv()


def test_given_no_such_pipe_when_opened_then_the_system_is_to_blame(tmp_path: Path) -> None:
    """The OSError is the cause, and nothing stays open."""
    os.mkfifo(tmp_path / "there")
    for read in ("missing", "there"):
        with pytest.raises(TubeSystemError) as refused:
            PipeTube.from_named_pipes(read=tmp_path / read, write=tmp_path / "gone")
        assert isinstance(refused.value.__cause__, FileNotFoundError)


def test_given_a_non_blocking_stream_when_used_then_it_still_waits() -> None:
    """Somebody else's O_NONBLOCK changes nothing for us."""
    there, back = os.pipe(), os.pipe()
    for fd in (*there, *back):
        os.set_blocking(fd, False)
    with PipeTube(there[0], back[1]) as one, PipeTube(back[0], there[1]) as two:
        sender = threading.Thread(target=one.send, args=(b"x" * 300_000,))
        sender.start()
        assert len(two.recv(bytes)) == 300_000
        sender.join(DEADLINE_S)


def test_given_a_closed_pipe_tube_when_used_then_closed() -> None:
    """Each use after close is a local error."""
    one, two = sockets()
    two.close()
    one.close()
    with pytest.raises(Closed):
        one.send(1)
    with pytest.raises(Closed):
        one.recv()
