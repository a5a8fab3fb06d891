"""Registers and requests of a device in a process of its own, beside one in the caller's process."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.board import board
from benchmarks.lamp import ASK, PLAIN, PUT
from benchmarks.measure import Contender, Plan, Subject, Table, measure
from benchmarks.peers import Peers
from benchmarks.tube import Echo
from supervisor.handle import DeviceHandle
from supervisor.worker.mailbox import PURE

__all__ = ["tables"]

PAUSE_S = 0.003  # after which a worker sleeps: it spins for a fraction of a millisecond at most
POSTED_BATCH = 200  # fewer than an input ring holds, so that nobody waits for room
WARM_UP = 300  # requests before those that count: the aim is a device that is busy
OURS, FLOOR = "a process for each device", "in the caller's process"
PYTHON = "a process for each device, mailbox not compiled"
PIPE, PACKETS = "a round trip of multiprocessing.Pipe", "a round trip of bare SEQPACKET"

Take = Callable[[DeviceHandle], list[int]]


def tables(plan: Plan, _peers: Peers) -> Iterator[Table]:
    """A table for each way to reach a register."""
    batch = min(plan.effort.batch, POSTED_BATCH)
    for key, title, take, how in (
        ("polled", "polled register", _polls(plan), _timed_together(plan.effort.batch, "reads")),
        ("posted", "posted write", _writes(plan, batch, settled=False), _timed_together(batch, "writes")),
        (
            "posted-settled",
            "posted write, until it has happened",
            _writes(plan, batch, settled=True),
            f"{_timed_together(batch, 'writes')} The time until the device has committed all is in it.",
        ),
        (
            "request-asleep",
            "request after a pause",
            _asks(plan, PAUSE_S),
            f"A read that must reach the device, after {1000 * PAUSE_S:g} ms in which its process falls "
            "asleep and has to be woken.",
        ),
    ):
        subject = Subject(key=f"requests.{key}", title=title, ours=(OURS,), floor=FLOOR, how=how)
        yield _table(subject, take, plan)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        yield _requests(plan, cores[:2], "request", "each pinned to a core of its own")
    yield _requests(plan, [cores[0]] * 2, "request-one-core", "both pinned to the same core")


def _requests(plan: Plan, cores: Sequence[int], key: str, placed: str) -> Table:
    """Requests one after the other, beside bare round trips of 64 bytes in which nothing is done."""
    subject = Subject(
        key=f"requests.{key}",
        title="request, one after the other" + ", one core" * (cores[0] == cores[1]),
        ours=(OURS,),
        floor=FLOOR,
        how=f"A read that must reach the device, which is busy with {WARM_UP} of them before; each is timed "
        f"alone. Caller and worker: {placed}. The bare round trips move 64 bytes and do nothing else.",
    )
    where, take = f"{cores[0]},{cores[1]}", _asks(plan, 0)
    ask = (sys.executable, "-m", "benchmarks.echo")
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(board(1))
        with _without_compiled():
            pure = stack.enter_context(board(1))
        here = stack.enter_context(board(1, in_process=True))
        contenders = [
            Contender(OURS, lambda: _pinned(take, there["lamp0"], cores)),
            Contender(PYTHON, lambda: _pinned(take, pure["lamp0"], cores)),
            Contender(FLOOR, lambda: take(here["lamp0"])),
        ]
        for name, way in ((PACKETS, "packets"), (PIPE, "pipe")):
            echo = stack.enter_context(Echo([*ask, way, where], plan.effort.trips))
            contenders.append(Contender(name, echo.take))
        return measure(subject, contenders, plan.effort.rounds, plan)


@contextlib.contextmanager
def _without_compiled() -> Iterator[None]:
    before = os.environ.get(PURE)
    os.environ[PURE] = "1"
    try:
        yield
    finally:
        del os.environ[PURE]
        if before is not None:
            os.environ[PURE] = before


def _pinned(take: Take, lamp: DeviceHandle, cores: Sequence[int]) -> list[int]:
    """A turn with the caller on the first of the cores and the worker on the second."""
    before = os.sched_getaffinity(0)
    assert lamp.pid is not None
    os.sched_setaffinity(lamp.pid, {cores[1]})
    os.sched_setaffinity(0, {cores[0]})
    try:
        for _ in range(WARM_UP):
            lamp.read(ASK, 4)
        return take(lamp)
    finally:
        os.sched_setaffinity(0, before)


def _timed_together(batch: int, what: str) -> str:
    return f"{batch} {what} are timed together, a sample is their mean: p95 is that of the means."


def _table(subject: Subject, take: Take, plan: Plan) -> Table:
    with board(1) as there, board(1, in_process=True) as here:
        contenders = [
            Contender(OURS, lambda: take(there["lamp0"])),
            Contender(FLOOR, lambda: take(here["lamp0"])),
        ]
        return measure(subject, contenders, plan.effort.rounds, plan)


def _polls(plan: Plan) -> Take:
    def take(lamp: DeviceHandle) -> list[int]:
        def polls(count: int) -> None:
            for _ in range(count):
                lamp.read(PLAIN, 4)

        return [_mean_ns(polls, plan.effort.batch) for _ in range(plan.effort.trips)]

    return take


def _writes(plan: Plan, batch: int, *, settled: bool) -> Take:
    def take(lamp: DeviceHandle) -> list[int]:
        def writes(count: int) -> None:
            for _ in range(count):
                lamp.write(PUT, 4, 1)
            if settled:
                lamp.flush()

        took_ns = []
        for _ in range(plan.effort.trips):
            lamp.flush()
            took_ns.append(_mean_ns(writes, batch))
        return took_ns

    return take


def _asks(plan: Plan, pause_s: float) -> Take:
    def take(lamp: DeviceHandle) -> list[int]:
        answers: list[int] = []
        took_ns = []
        lamp.read(ASK, 4)
        for _ in range(plan.effort.trips):
            if pause_s:
                time.sleep(pause_s)
            began_ns = time.perf_counter_ns()  # in line: a call more would be a tenth of what is measured
            answer = lamp.read(ASK, 4)
            took_ns.append(time.perf_counter_ns() - began_ns)
            answers.append(answer)
        _check(answers)
        return took_ns

    return take


def _check(answers: Sequence[int]) -> None:
    assert list(answers) == list(range(answers[0], answers[0] + len(answers))), answers


def _mean_ns(work: Callable[[int], object], count: int) -> int:
    began_ns = time.perf_counter_ns()
    work(count)
    return (time.perf_counter_ns() - began_ns) // count
