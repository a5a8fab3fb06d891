"""crosvm's tests of its packet sockets and events, by their names, where a Tube has a counterpart."""

from __future__ import annotations

import os
import resource
import select
import socket
import time

import pytest

from supervisor.tube import (
    BadDescriptor,
    Descriptor,
    Eventfd,
    QueueFull,
    Tube,
    TubeSystemError,
    TubeTimeout,
    WouldBlock,
)
from tests.tube.conftest import DEADLINE_S, Fork, readable


def test_unix_seqpacket_send_recv() -> None:
    """Both directions carry messages."""
    one, two = Tube.pair()
    with one, two:
        one.send(b"hello")
        two.send(b"world")
        assert (two.recv(bytes, timeout=0), one.recv(bytes, timeout=0)) == (b"hello", b"world")


def test_unix_seqpacket_path_listener_accept() -> None:
    """A connection that was accepted on a listening socket becomes a Tube like any other."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")
        listener.listen()
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
    with Tube(client) as one, Tube(accepted) as two:
        one.send("connected")
        assert two.recv(timeout=DEADLINE_S) == "connected"
        assert two.target_pid == os.getpid()


def test_unix_seqpacket_zero_timeout() -> None:
    """A timeout of 0 does not wait, a negative one neither."""
    one, two = Tube.pair()
    with one, two:
        for timeout in (0, 0.0, -1):
            with pytest.raises(WouldBlock):
                one.recv(timeout=timeout)


def test_unix_seqpacket_read_timeout() -> None:
    """A receive waits as long as it was told to, and not shorter."""
    one, two = Tube.pair()
    with one, two:
        started = time.monotonic()
        with pytest.raises(TubeTimeout):
            one.recv(timeout=0.03)
        assert time.monotonic() - started >= 0.03


def test_unix_seqpacket_write_timeout() -> None:
    """A send to a full queue waits as long as it was told to, and not shorter."""
    one, two = Tube.pair()
    with one, two:
        with pytest.raises(QueueFull):  # noqa: PT012
            while True:
                one.send("x" * 1000, timeout=0)
        started = time.monotonic()
        with pytest.raises(QueueFull):
            one.send("x" * 1000, timeout=0.03)
        assert time.monotonic() - started >= 0.03


def test_clone_equality() -> None:
    """A duplicate is another number for the same object, and outlives the original."""
    with Eventfd() as event:
        copy = Eventfd.duplicate(event)
        assert copy.fileno() != event.fileno()
    with copy:
        copy.signal()
        assert copy.take() == 1


def test_event_context_timeout() -> None:
    """A loop with a Tube in it times out while nothing comes."""
    one, two = Tube.pair()
    with one, two, select.epoll() as epoll:
        epoll.register(one, select.EPOLLIN)
        assert epoll.poll(0.01) == []


def test_given_no_descriptors_left_when_used_then_the_system_is_to_blame(fork: Fork) -> None:
    """EMFILE is an environment's fault with the OSError as its cause, wherever it strikes; nothing leaks."""
    one, two = Tube.pair()

    def work() -> None:
        lowest = os.dup(0)
        os.close(lowest)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with pytest.raises(OSError, match="Too many"):  # noqa: PT012
            while True:
                taken.append(os.dup(0))
        for use in (Tube.pair, Eventfd, lambda: Descriptor.duplicate(0), lambda: one.send(b"x" * 100_000)):
            with pytest.raises(TubeSystemError) as refused:
                use()
            assert isinstance(refused.value.__cause__, OSError)
        one.send("needs no descriptor")
        assert two.recv(timeout=DEADLINE_S) == "needs no descriptor"
        assert two.target_pid == os.getpid()
        for fd in taken:
            os.close(fd)
        assert os.dup(0) == lowest

    with one, two:
        assert fork(work).wait() == 0


def test_given_numbers_that_are_not_open_when_owned_then_bad_descriptor() -> None:
    """Owning or duplicating what is not there is the caller's mistake."""
    for use in (Descriptor, Eventfd, Descriptor.duplicate, Tube.from_fd):
        with pytest.raises(BadDescriptor):
            use(10**6)


def test_given_a_tube_that_carries_itself_when_sent_then_refused() -> None:
    """An end cannot travel through itself: its receiver would be its own peer."""
    one, two = Tube.pair()
    with one, two:
        with pytest.raises(ValueError, match="itself"):
            one.send([one])
        one.send("fine")
        assert two.recv(timeout=0) == "fine"
        assert not readable(one)
