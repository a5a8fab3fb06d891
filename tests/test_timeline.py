"""Where the time of a restart goes: instants of supervisor and worker in one row."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise

import pytest

from supervisor.events import RestartTimeline
from supervisor.host import Supervisor
from supervisor.timeline import INSTANTS
from tests.chaos import COUNTING, board, census

NEXT = 0x04


def _instants(timeline: RestartTimeline) -> list[int]:
    return [getattr(timeline, f"{name}_ns") for name in INSTANTS]


@pytest.mark.chaos
@pytest.mark.parametrize("spares", [0, 1])
def test_given_kill_its_instants_are_told_in_order(spares: int) -> None:
    """From the kill to Ready, each after the one before, and all within what the caller saw."""
    with census(), Supervisor(board(COUNTING, supervisor=f"spares: {spares}")) as sup:
        counter = sup["counter"]
        before = counter.last_restart
        assert before is None
        for asked in range(1, 4):
            list(sup.events())
            before_ns = time.monotonic_ns()
            assert sup.kill("counter", charged=False) is not None
            assert counter.read(NEXT, 4) == asked
            while counter.state != "ready":
                sup.dispatch(1)
            timeline = counter.last_restart
            assert timeline is not None
            instants = [before_ns, *_instants(timeline), time.monotonic_ns()]
            assert instants == sorted(instants)
            assert [one for one in sup.events() if isinstance(one, RestartTimeline)] == [timeline]
            assert timeline.generation == counter.generation == asked + 1
            steps = timeline.steps()
            assert list(steps) == list(INSTANTS[1:])
            assert sum(steps.values()) == timeline.ready_ns - timeline.killed_ns


def test_given_death_of_its_own_it_begins_when_it_was_noticed() -> None:
    """Nobody in here knows when somebody else has killed it."""
    with census(), Supervisor(board(COUNTING)) as sup:
        counter = sup["counter"]
        assert counter.pid is not None
        os.kill(counter.pid, signal.SIGKILL)
        assert counter.read(NEXT, 4) == 1
        while counter.state != "ready":
            sup.dispatch(1)
        timeline = counter.last_restart
        assert timeline is not None
        assert timeline.killed_ns == 0
        assert list(timeline.steps()) == list(INSTANTS[2:])
        assert all(before <= after for before, after in pairwise(_instants(timeline)[1:]))
