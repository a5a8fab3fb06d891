"""Who is kept off a core for a moment may use all of its own again afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from supervisor import placement
from supervisor.config import policy_spec
from supervisor.host import Supervisor
from supervisor.placement import avoiding, keep_off_our_core, push_off_our_core
from supervisor.policy.events import Start
from supervisor.reactor import Executor, Reactor
from supervisor.remote import Overdue, Port, RemoteHandle
from supervisor.worker.layout import LIFELINE_WORD, OUTPUT_END, PUBLISHED
from supervisor.worker.lifeline import OWNER_DIED
from supervisor.worker.records import Output, OutputKind
from tests.chaos import COUNTING, board, census

NOBODY = 2**22 + 1  # above every pid
EXCLUSIVE = 'name: holder, device: "tests.devices.holding:Exclusive", options: {how: nothing}'


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The pid of a process that does nothing."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        yield process.pid
        process.kill()


def test_given_process_it_is_moved_and_free_again(sleeper: int) -> None:
    """After a push, and after a wake-up that avoids a core, it may run wherever it might before."""
    allowed = os.sched_getaffinity(sleeper)
    assert push_off_our_core(sleeper) is (len(allowed) > 1)
    assert os.sched_getaffinity(sleeper) == allowed
    core = min(allowed)
    with avoiding(core, sleeper):
        assert os.sched_getaffinity(sleeper) == (allowed - {core} or allowed)
    assert os.sched_getaffinity(sleeper) == allowed
    with avoiding(None, sleeper):
        assert os.sched_getaffinity(sleeper) == allowed


def test_given_process_bound_to_one_core_it_stays_there(sleeper: int) -> None:
    """Where an operator has left a process a single core, nobody takes it away."""
    core = min(os.sched_getaffinity(sleeper))
    os.sched_setaffinity(sleeper, {core})
    keep_off_our_core(sleeper)
    push_off_our_core(sleeper)
    with avoiding(core, sleeper):
        assert os.sched_getaffinity(sleeper) == {core}
    assert os.sched_getaffinity(sleeper) == {core}


def test_given_process_that_is_gone_it_is_no_error() -> None:
    """It may be reaped at any moment."""
    keep_off_our_core(NOBODY)
    assert not push_off_our_core(NOBODY)
    with avoiding(0, NOBODY):
        pass


def test_given_two_who_keep_one_off_a_core_at_once_it_may_run_everywhere_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The witness and the supervisor may both wake a standby, and see its predecessor on different cores."""
    allowed = {7: set(range(4))}
    monkeypatch.setattr(placement, "_everywhere", set(range(4)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed[pid]))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: allowed.update({pid: set(cores)}))
    for first, second in ((0, 1), (1, 0), (2, 2)):
        one, other = contextlib.ExitStack(), contextlib.ExitStack()
        one.enter_context(avoiding(first, 7))
        assert allowed[7] == set(range(4)) - {first}
        other.enter_context(avoiding(second, 7))
        assert first not in allowed[7]
        one.close()
        other.close()
        assert allowed[7] == set(range(4))


@pytest.mark.chaos
def test_given_device_restarted_its_process_may_run_everywhere() -> None:
    """The spare that was woken off a core has all of them when it serves."""
    allowed = os.sched_getaffinity(0)
    with census(), Supervisor(board(COUNTING)) as sup:
        counter = sup["counter"]
        for expected in range(1, 6):
            sup.kill("counter", charged=False)
            assert counter.read(0x04, 4) == expected
            assert counter.pid is not None
            assert os.sched_getaffinity(counter.pid) == allowed


@pytest.mark.chaos
def test_given_answer_of_a_successor_it_can_be_killed_again() -> None:
    """Whoever has its answer can kill again: that it is ready was said before, and has been heard."""
    with census(), Supervisor(board(COUNTING)) as sup:
        counter = sup["counter"]
        for expected in range(1, 61):
            assert sup.kill("counter", charged=False) is not None
            assert counter.read(0x04, 4) == expected


@pytest.mark.chaos
def test_given_answer_while_nobody_looked_its_device_can_be_killed_again() -> None:
    """It may be there before anybody has heard that the successor is ready."""
    with census(), Supervisor(board(COUNTING)) as sup:
        counter = sup["counter"]
        assert sup._workers is not None
        seat = sup._workers.seat("counter")
        sup.kill("counter", charged=False)
        counter.write(0x08, 4, 1)
        while not (seat.generation == 2 and seat.assigned):
            sup._reactor.poll(10**9, lambda: seat.generation == 2 and seat.assigned)
        while seat.handle.ledger.words[PUBLISHED] < seat.handle.ledger.submitted:
            os.sched_yield()
        counter.flush()
        assert not seat.ready
        assert sup.kill("counter", charged=False) is not None
        assert counter.read(0x04, 4) == 2


def test_given_exclusive_device_a_mark_of_death_in_its_journal_is_not_believed() -> None:
    """It holds no mutex, so what stands in its place means nothing, and costs it no life."""
    with census(), Supervisor(board(EXCLUSIVE)) as sup:
        holder = sup["holder"]
        pid = holder.read(0, 4)
        holder.ledger.words[LIFELINE_WORD] = OWNER_DIED  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGSTOP)  # so that the request waits long enough to look
        timer = threading.Timer(0.2, os.kill, (pid, signal.SIGCONT))
        timer.start()
        assert holder.read(0, 4) == pid
        timer.join()
        assert holder.generation == 1


def test_given_round_that_ended_early_a_descriptor_that_is_new_since_is_not_served() -> None:
    """What was ready is of the one that was watched then, not of another that has its number now."""
    reactor = Reactor(policy_spec(board()))
    served: list[str] = []
    bells = [os.eventfd(1, os.EFD_CLOEXEC) for _ in range(2)]
    try:
        for bell in bells:
            reactor.watch(bell, lambda _mask: served.append("old"))
        reactor.poll(0, lambda: bool(served))
        (left,) = [bell for bell in bells if bell in {one[0] for one in reactor._unserved}]
        reactor.unwatch(left)
        os.eventfd_read(left)
        reactor.watch(left, lambda _mask: served.append("new"))
        reactor.poll(0)
        assert served == ["old"]
    finally:
        for bell in bells:
            os.close(bell)
        reactor.close()


def test_given_death_seen_while_waiting_the_journal_may_be_another_afterwards() -> None:
    """The last words of the dead are heard then, and may have asked for a larger one."""
    replaced: list[int] = []

    def died() -> None:
        if not replaced:
            replaced.append(handle.grow(state_bytes=1 << 20, output_bytes=0, register_words=0))
            journal = handle.ledger.journal
            output = Output(OutputKind.VALUE, 0, 0, (7).to_bytes(8, "little"))
            journal.words[OUTPUT_END] = journal.put_output(0, output)
            journal.words[PUBLISHED] = 1

    def never(*_arguments: object) -> None:
        raise AssertionError("it is answered before anybody sleeps")

    port = Port(
        pump=never,
        overdue=lambda: Overdue.NOBODY,
        corrupt=never,
        call_at=never,
        clock=lambda: 0,
        died=died,
    )
    handle = RemoteHandle("device", None, port, request_timeout_ns=10**9, poison=3)
    try:
        handle.ledger.words[LIFELINE_WORD] = OWNER_DIED
        assert handle.read(0x100, 4) == 7
        assert replaced
    finally:
        handle.close()


def test_given_interrupt_before_a_decision_the_next_one_is_made() -> None:
    """Ctrl-C in the host's loop may come at any instruction, and stopping is decided upon after that."""

    class Interrupted:
        def about_to_decide(self) -> None:
            raise KeyboardInterrupt

    class Calm:
        def __getattr__(self, name: str) -> object:
            return lambda *_arguments: None

    reactor = Reactor(policy_spec(board(COUNTING)))
    try:
        reactor.executor = cast(Executor, Interrupted())
        reactor.post(Start())
        with pytest.raises(KeyboardInterrupt):
            reactor.step()
        reactor.executor = cast(Executor, Calm())
        assert reactor.step()
        assert reactor.records
    finally:
        reactor.close()
