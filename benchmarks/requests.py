"""Registers and requests of a device in a process of its own, beside one in the caller's process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.board import board
from benchmarks.lamp import ASK, PLAIN, PUT
from benchmarks.measure import Contender, Plan, Subject, Table, measure
from benchmarks.peers import Peers
from supervisor.handle import DeviceHandle

__all__ = ["tables"]

PAUSE_S = 0.003  # after which a worker sleeps: it spins for a fraction of a millisecond at most
POSTED_BATCH = 200  # fewer than an input ring holds, so that nobody waits for room
OURS, FLOOR = "a process for each device", "in the caller's process"

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
            "request",
            "request, one after the other",
            _asks(plan, 0),
            "A read that must reach the device, timed alone.",
        ),
        (
            "request-asleep",
            "request after a pause",
            _asks(plan, PAUSE_S),
            f"The same after {1000 * PAUSE_S:g} ms in which its process falls asleep and has to be woken.",
        ),
    ):
        subject = Subject(key=f"requests.{key}", title=title, ours=(OURS,), floor=FLOOR, how=how)
        yield _table(subject, take, plan)


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
            took_ns.append(_mean_ns(lambda _count: answers.append(lamp.read(ASK, 4)), 1))
        _check(answers)
        return took_ns

    return take


def _check(answers: Sequence[int]) -> None:
    assert list(answers) == list(range(answers[0], answers[0] + len(answers))), answers


def _mean_ns(work: Callable[[int], object], count: int) -> int:
    began_ns = time.perf_counter_ns()
    work(count)
    return (time.perf_counter_ns() - began_ns) // count
