"""The peer's end: last words, notifiers, flush, and the errors of sending to somebody who is gone."""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import threading
import time

import pytest

from supervisor.messages_pb2 import Hello
from supervisor.tube import (
    Closed,
    Disconnected,
    Eventfd,
    FlushOnDropTube,
    ProtoTube,
    Tube,
    TubeTimeout,
    Undelivered,
    WouldBlock,
)
from tests.tube.conftest import DEADLINE_S, Fork, readable


@pytest.mark.parametrize("unread", [False, True])
def test_given_last_words_when_the_peer_is_killed_then_they_are_received(fork: Fork, unread: bool) -> None:
    """With and without ECONNRESET in between, what was sent before SIGKILL arrives.

    Then Disconnected, each time.
    """
    ours, theirs = Tube.pair()
    said = Eventfd()
    with ours, said:
        if unread:
            ours.send("never read")

        def work() -> None:
            theirs.send("one")
            theirs.send("two")
            said.signal()
            signal.pause()

        child = fork(work)
        theirs.close()
        said.wait(DEADLINE_S)
        assert ours.recv(timeout=DEADLINE_S) == "one"
        child.kill()
        assert readable(ours.close_notifier, DEADLINE_S)
        assert ours.recv(timeout=DEADLINE_S) == "two"
        for _ in range(2):
            with pytest.raises(Disconnected):
                ours.recv(timeout=DEADLINE_S)


def test_given_last_words_when_target_pid_is_read_first_then_they_are_received(fork: Fork) -> None:
    """Looking for hand-overs uses up the kernel's one report of the reset, not the words behind it."""
    ours, theirs = Tube.pair()
    with ours:
        ours.send("never read")
        child = fork(lambda: theirs.send("words"))
        theirs.close()
        child.wait()
        assert ours.target_pid is None
        assert ours.recv(timeout=0) == "words"
        with pytest.raises(Undelivered):
            ours.flush(0)


@pytest.mark.parametrize("unread", [False, True])
def test_given_a_dead_peer_when_sent_to_then_disconnected(unread: bool) -> None:
    """EPIPE and ECONNRESET are both Disconnected, with the OSError as the cause."""
    ours, theirs = Tube.pair()
    with ours:
        if unread:
            ours.send("never read")
        theirs.close()
        for _ in range(2):
            with pytest.raises(Disconnected) as gone:
                ours.send("x")
            assert isinstance(gone.value.__cause__, OSError)


def test_given_a_blocked_sender_when_the_peer_dies_then_disconnected() -> None:
    """A sender that waits for room wakes up when there never will be any."""
    ours, theirs = Tube.pair()
    with ours:
        threading.Timer(0.02, theirs.close).start()
        with pytest.raises(Disconnected):  # noqa: PT012
            while True:
                ours.send("x", timeout=DEADLINE_S)


def test_given_sigpipe_at_its_default_when_sent_to_the_dead_then_no_signal(fork: Fork) -> None:
    """MSG_NOSIGNAL is always there."""
    ours, theirs = Tube.pair()
    theirs.close()

    def work() -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        with pytest.raises(Disconnected):
            ours.send("x")

    with ours:
        assert fork(work).wait() == 0


@pytest.mark.parametrize("how", ["select", "poll", "epoll"])
def test_given_close_notifier_when_polled_then_it_wakes_for_the_end_only(how: str) -> None:
    """Data does not wake it, unread data does not hide the end; select, poll and epoll agree."""

    def woken(notifier: object) -> bool:
        fd = notifier.fileno()  # type: ignore[attr-defined]
        if how == "select":
            return bool(select.select([fd], [], [], 0)[0])
        if how == "poll":
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(0))
        with select.epoll() as epoll:
            epoll.register(fd, select.EPOLLIN)
            return bool(epoll.poll(0))

    ours, theirs = Tube.pair()
    with ours:
        notifier = ours.close_notifier
        assert ours.close_notifier is notifier
        assert not woken(notifier)
        theirs.send("unread")
        ours.send("unread too")
        assert not woken(notifier)
        theirs.close()
        assert woken(notifier)
        assert notifier.is_set()
        assert ours.recv(timeout=0) == "unread"
        assert woken(notifier)
    assert notifier.fileno() == -1


def test_given_close_notifier_in_a_waiting_loop_when_the_peer_is_killed_then_it_wakes(fork: Fork) -> None:
    """The notifier wakes a loop that is already waiting, although data lies unread."""
    ours, theirs = Tube.pair()
    with ours:

        def work() -> None:
            theirs.send("unread")
            signal.pause()

        child = fork(work)
        theirs.close()
        assert readable(ours, DEADLINE_S)
        with select.epoll() as epoll:
            epoll.register(ours.close_notifier, select.EPOLLIN)
            assert epoll.poll(0) == []
            child.kill()
            assert epoll.poll(DEADLINE_S) == [(ours.close_notifier.fileno(), select.EPOLLIN)]


def test_given_a_sibling_with_a_copy_when_the_worker_dies_then_there_is_no_end(fork: Fork) -> None:
    """The end of a Tube means that nobody holds the far end; a witness of death it is not."""
    ours, theirs = Tube.pair()
    gate = Eventfd()
    with ours, gate:
        sibling = fork(lambda: gate.wait(DEADLINE_S))
        fork(lambda: None).wait()
        theirs.close()
        assert not readable(ours.close_notifier)
        gate.signal()
        sibling.wait()
        assert readable(ours.close_notifier, DEADLINE_S)


def test_given_an_end_inside_an_unread_message_then_the_connection_lives() -> None:
    """An end that travels is held by the message; when the message is dropped, so is the end."""
    ours, theirs = Tube.pair()
    carrier, far = Tube.pair()
    with ours, carrier:
        carrier.send(theirs)
        theirs.close()
        assert not readable(ours.close_notifier)
        far.close()
        assert readable(ours.close_notifier, DEADLINE_S)


# -- flush ---------------------------------------------------------------------------------------


def test_given_everything_taken_when_flushed_then_it_returns_at_once() -> None:
    """Nothing outstanding: flush does not wait, not even with a timeout of 0."""
    ours, theirs = Tube.pair()
    with ours, theirs:
        ours.flush(0)
        ours.send(1)
        with pytest.raises(TubeTimeout):
            ours.flush(0)
        with pytest.raises(TubeTimeout):
            ours.flush(0.02)
        theirs.recv(timeout=0)
        ours.flush(0)


@pytest.mark.parametrize("count", [1, 50, 270])
def test_given_a_reader_when_flushed_then_it_returns_when_all_is_taken(fork: Fork, count: int) -> None:
    """flush waits exactly as long as the peer needs, however full the queue was."""
    ours, theirs = Tube.pair()
    go = Eventfd()

    def work() -> None:
        ours.close()
        go.wait(DEADLINE_S)
        for _ in range(count):
            theirs.recv(timeout=DEADLINE_S)
        go.wait(DEADLINE_S)

    with ours, go:
        child = fork(work)
        theirs.close()
        for i in range(count):
            ours.send(i, timeout=0)
        go.signal()
        ours.flush(DEADLINE_S)
        go.signal()
        assert child.wait() == 0


def test_given_a_peer_that_read_all_and_left_when_flushed_then_delivered() -> None:
    """A peer that is gone after reading is no loss."""
    ours, theirs = Tube.pair()
    with ours:
        ours.send(1)
        theirs.recv(timeout=0)
        theirs.close()
        ours.flush(DEADLINE_S)


def test_given_a_peer_that_dies_while_flushing_then_undelivered(fork: Fork) -> None:
    """SIOCOUTQ drops to 0 as well when the peer dies; that is not "delivered"."""
    ours, theirs = Tube.pair()
    with ours:
        child = fork(signal.pause)
        theirs.close()
        ours.send("unread")
        threading.Timer(0.02, os.kill, (child.pid, signal.SIGKILL)).start()
        with pytest.raises(Undelivered):
            ours.flush(DEADLINE_S)
        with pytest.raises(Undelivered):
            ours.flush(DEADLINE_S)


def test_given_flush_on_drop_when_closed_undelivered_then_it_says_so_and_is_closed() -> None:
    """close() reports what was not delivered, once, and the Tube is closed all the same."""
    ours, theirs = Tube.pair()
    with theirs:
        flushing = FlushOnDropTube(ours, timeout=0.02)
        assert flushing.fileno() == ours.fileno()
        assert flushing.tube is ours
        ours.send("unread")
        with pytest.raises(TubeTimeout):
            flushing.flush()
        started = time.monotonic()
        with pytest.raises(TubeTimeout):
            flushing.close()
        assert time.monotonic() - started < DEADLINE_S
        assert ours.closed
        flushing.close()
        with pytest.raises(Closed):
            flushing.fileno()


def test_given_flush_on_drop_when_dropped_undelivered_then_it_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Garbage collection can raise nothing; it logs a warning and closes."""
    ours, theirs = Tube.pair()
    with theirs:
        flushing = FlushOnDropTube(ours, timeout=0)
        ours.send("unread")
        with caplog.at_level(logging.WARNING, logger="supervisor.tube.flush"):
            del flushing
            gc.collect()
        assert "dropped before" in caplog.text
        assert ours.closed


def test_smoke(fork: Fork) -> None:
    """100 rounds with two clients one after the other over a Tube that is dropped: no response is lost."""
    for _ in range(100):
        children = []
        for client in range(2):
            ours, theirs = Tube.pair()

            def work(theirs: Tube = theirs, client: int = client) -> None:
                theirs.send(client)
                assert theirs.recv(timeout=DEADLINE_S) == ["response", client]

            with FlushOnDropTube(ours, timeout=DEADLINE_S):
                children.append(fork(work))
                theirs.close()
                ours.send(["response", ours.recv(timeout=DEADLINE_S)])
        assert [child.wait() for child in children] == [0, 0]


# -- event loops ---------------------------------------------------------------------------------


def test_non_blocking_pair_message() -> None:
    """After everything was read, the notifier is quiet."""
    ours, theirs = Tube.pair()
    with ours, theirs:
        ours.send([1, 2, 3])
        assert theirs.recv(timeout=0) == [1, 2, 3]
        assert not readable(theirs.read_notifier)


def test_non_blocking_pair_error_no_data() -> None:
    """Nothing there is WouldBlock, for both kinds of Tube."""
    ours, theirs = Tube.pair()
    proto, proto_far = ProtoTube.pair()
    with ours, theirs, proto, proto_far:
        with pytest.raises(WouldBlock):
            ours.recv(timeout=0)
        with pytest.raises(WouldBlock):
            proto.recv_proto(Hello, timeout=0)


def test_event_context_overflow() -> None:
    """More ready Tubes than one epoll_wait returns are all delivered in the end."""
    pairs = [Tube.pair() for _ in range(20)]
    with select.epoll() as epoll:
        by_fd = {}
        for i, (ours, theirs) in enumerate(pairs):
            epoll.register(ours, select.EPOLLIN)
            by_fd[ours.fileno()] = ours
            theirs.send(i)
        got: list[int] = []
        while len(got) < len(pairs):
            ready = epoll.poll(DEADLINE_S, 16)
            assert 0 < len(ready) <= 16
            got += [by_fd[fd].recv(timeout=0) for fd, _ in ready]
        assert sorted(got) == list(range(20))
        assert epoll.poll(0) == []
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_given_a_hand_over_alone_when_the_loop_wakes_then_would_block() -> None:
    """A woken loop may find a hand-over only; recv takes it and says that no message is there."""
    ours, theirs = Tube.pair()
    carrier, far = Tube.pair()
    with ours, theirs, carrier, far:
        carrier.send(theirs)
        assert readable(ours.read_notifier)
        with pytest.raises(WouldBlock):
            ours.recv(timeout=0)
        assert not readable(ours.read_notifier)
        far.recv(timeout=0).close()


def test_event() -> None:
    """An Eventfd counts, is taken once, times out, and can be polled."""
    with Eventfd() as event:
        assert event.take() == 0
        with pytest.raises(TubeTimeout):
            event.wait(0.01)
        event.signal(2)
        event.signal()
        assert readable(event)
        assert event.wait(0) == 3
        assert not readable(event)
    assert event.closed
    with pytest.raises(Closed):
        event.fileno()
    assert "closed" in repr(event)


def test_given_another_process_reads_when_the_tube_is_used_non_blocking_then_it_may_block(fork: Fork) -> None:
    """recv(timeout=0) leaves the shared description blocking: a plain recv elsewhere still waits."""
    ours, theirs = Tube.pair()
    with ours, theirs:
        with pytest.raises(WouldBlock):
            theirs.recv(timeout=0)
        done = Eventfd()

        def work() -> None:
            done.signal()
            with socket.socket(fileno=os.dup(theirs.fileno())) as plain:
                assert plain.recv(1000)

        with done:
            child = fork(work)
            done.wait(DEADLINE_S)
            ours.send("wake")
            assert child.wait() == 0
