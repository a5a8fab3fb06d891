"""Handing a descriptor to another device through the supervisor."""

from __future__ import annotations

import os
import threading

import pytest

from supervisor.tube import (
    Descriptor,
    DescriptorBroker,
    Disconnected,
    DuplicateHandleTube,
    DuplicateRequest,
    Eventfd,
    HandedDescriptor,
    MalformedMessage,
    NotHandedOn,
    QueueFull,
    Tube,
    TubeTimeout,
    UnknownProcess,
)
from supervisor.tube.broker import Outcome, decide
from tests.tube.conftest import DEADLINE_S, Fork, open_fds, readable


def test_given_two_workers_when_one_hands_a_descriptor_to_the_other_then_it_arrives(fork: Fork) -> None:
    """The whole way with real processes: worker, supervisor, other worker."""
    broker = DescriptorBroker()
    asking, asking_far = Tube.pair()
    taking, taking_far = Tube.pair()
    go = Eventfd()

    def receiver() -> None:
        taking_far.send("hello")
        handed = taking_far.recv(HandedDescriptor, timeout=DEADLINE_S)
        with handed.descriptor:
            os.eventfd_write(handed.descriptor.fileno(), handed.from_pid)

    def sender() -> None:
        target = asking_far.recv(int, timeout=DEADLINE_S)
        line = DuplicateHandleTube(asking_far)
        with pytest.raises(UnknownProcess):
            line.request_duplicate(2, go, timeout=DEADLINE_S)
        line.request_duplicate(target, go, timeout=DEADLINE_S)

    with asking, asking_far, taking, taking_far, go:
        other = fork(receiver)
        assert taking.recv(timeout=DEADLINE_S) == "hello"
        broker.register(other.pid, lambda handed: taking.send(handed, timeout=0))
        worker = fork(sender)
        asking.send(other.pid)
        for _ in range(2):
            assert readable(asking.read_notifier, DEADLINE_S)
            assert broker.serve(asking)
        assert go.wait(DEADLINE_S) == worker.pid
        assert not broker.serve(asking)
        assert (worker.wait(), other.wait()) == (0, 0)
        asking_far.close()
        with pytest.raises(Disconnected):
            broker.serve(asking)


@pytest.mark.parametrize(
    ("error", "outcome"), [(QueueFull("full"), Outcome.BUSY), (Disconnected("gone"), Outcome.GONE)]
)
def test_given_a_target_that_takes_nothing_when_asked_then_an_answer(
    error: Exception, outcome: Outcome
) -> None:
    """What goes wrong on the way to the target is the answer; the descriptor is closed."""
    broker = DescriptorBroker()

    def deliver(handed: HandedDescriptor) -> None:
        raise error

    broker.register(77, deliver)
    with Eventfd() as event:
        request = DuplicateRequest(1, 77, Descriptor.duplicate(event))
        assert broker.handle(request, 5).outcome == outcome
        assert request.descriptor.closed
        broker.unregister(77)
        broker.unregister(77)
        request = DuplicateRequest(2, 77, Descriptor.duplicate(event))
        assert broker.handle(request, 5).outcome == Outcome.UNKNOWN_PROCESS
        assert request.descriptor.closed


def test_given_pids_when_decided_then_only_served_ones_are_known() -> None:
    """The decision is a look-up and nothing else."""
    assert decide({5: "five"}, 5) == "five"
    for pid in (0, -1, 6, 2**40):
        assert decide({5: "five"}, pid) is Outcome.UNKNOWN_PROCESS


def test_given_a_refusal_when_requested_then_named_errors() -> None:
    """Gone and busy become NotHandedOn; an answer to an older request is skipped; silence is a timeout."""
    ours, theirs = Tube.pair()
    broker = DescriptorBroker()

    def refuse(handed: HandedDescriptor) -> None:
        raise QueueFull("full")

    broker.register(9, refuse)
    with ours, theirs, Eventfd() as event:
        line = DuplicateHandleTube(theirs)
        assert line.fileno() == theirs.fileno()
        with pytest.raises(TubeTimeout):
            line.request_duplicate(9, event, timeout=0.01)

        def serve() -> None:
            for _ in range(2):
                assert readable(ours, DEADLINE_S)
                broker.serve(ours)

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(NotHandedOn, match="busy"):
            line.request_duplicate(9, event, timeout=DEADLINE_S)
        server.join(DEADLINE_S)
        line.close()


def test_given_a_wrong_request_when_served_then_the_worker_is_to_blame() -> None:
    """A malformed request is a PeerError of the Tube; nothing leaks and the broker goes on."""
    ours, theirs = Tube.pair()
    with ours, theirs, Eventfd() as event:
        before = open_fds()
        theirs.send({"number": 1, "target_pid": "x", "descriptor": event})
        with pytest.raises(MalformedMessage):
            DescriptorBroker().serve(ours)
        assert open_fds() == before
        theirs.send({"number": 1, "target_pid": 4, "descriptor": event})
        theirs_died = DescriptorBroker()
        assert theirs_died.serve(ours)
