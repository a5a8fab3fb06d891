"""A fault waits at a point of one process while a device and its twin are given the same inputs.

See ``tests.steps`` for the points and ``tests.twins`` for the comparison.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from supervisor.tube import Closed
from supervisor.worker.mailbox import PURE
from tests import steps
from tests.steps import SIGNALS, Control, Point, StepTracer, choose, trace_here
from tests.twins import Act, Twins

__all__ = ["Strikes", "shared_control", "strike_from_here"]

RECORDINGS = 5
TRIES = 12  # some points are passed on the way to sleep or out of it only


@contextlib.contextmanager
def shared_control(folder: Path) -> Iterator[Control]:
    """The file through which processes that are born from now on are told where they are struck."""
    path = folder / "steps"
    control = Control(str(path))
    os.environ[steps.CONTROL] = str(path)
    os.environ[PURE] = "1"  # a step is a line; the compiled half has its own fuse (test_mailbox.py)
    try:
        yield control
    finally:
        del os.environ[steps.CONTROL], os.environ[PURE]
        control.close()


def strike_from_here(control: Control, pair: Twins) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What traces this process, the supervisor's, and strikes the worker when it comes to the point."""
    tracer = StepTracer(
        control.words,
        steps.SUPERVISOR_FILES,
        lambda number: _strike_worker(pair, number),
        role=steps.SUPERVISOR,
    )
    return lambda: trace_here(tracer)


def _strike_worker(pair: Twins, number: int) -> bool:
    """Signals the process that sits in the device's seat, if there is one; returns when a kill has worked."""
    worker = pair.seat().worker
    if worker is None or worker.pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(worker.pidfd.fileno(), number)
    except (ProcessLookupError, Closed):
        return False  # it is being put away just now
    if number == signal.SIGKILL:
        poller = select.poll()
        poller.register(worker.pidfd.fileno(), select.POLLIN)
        poller.poll()
    return True


class Strikes:
    """Has both twins do the same, again and again, while a fault waits at a point of one process.

    ``fresh``: the act happens once in the life of a journal, so each strike needs a new one.
    """

    def __init__(
        self,
        pair: Twins,
        act: Act,
        *,
        fresh: bool = False,
        around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.placed = 0
        self.missed: list[str] = []
        self._pair = pair
        self._act = act
        self._fresh = fresh
        self._around = around

    def undisturbed(self, record: Callable[[], None]) -> None:
        """The act once, from a worker that sleeps to a worker that sleeps."""
        self._pair.both(self._act)
        self._renew()
        self._pair.wait_until_asleep(lambda: False)
        record()
        self._pair.both(self._act, self._around)
        self._pair.wait_until_asleep(lambda: False)

    def strike(self, point: Point, arm: Callable[[Point], None], fired: Callable[[], bool]) -> None:
        """Repeats the act until the fault has happened."""
        self._renew()
        arm(point)
        for attempt in range(1 if self._fresh else TRIES):
            if attempt % 3 == 2:
                self._pair.wait_until_asleep(fired)
            self._pair.both(self._act, self._around)
            if fired():
                self.placed += 1
                return
        self.missed.append(str(point))

    def _renew(self) -> None:
        if self._fresh:
            self._pair.renew()

    def strike_all(
        self,
        control: Control,
        role: int,
        fault: str,
        most: int,
        select: Callable[[Sequence[Point]], Sequence[Point]] = lambda points: points,
    ) -> None:
        """Records what the act makes one side run, and strikes at what ``select`` wants of these points.

        At about ``most`` of them, evenly from a random offset on, unless the run is to be exhaustive.
        """
        seed = random.SystemRandom().randrange(2**32)
        found: list[list[Point]] = []
        for _ in range(RECORDINGS):
            self.undisturbed(lambda: control.record(role))
            points = [point for point in control.recorded() if fault == "killed" or not point.instruction]
            if points:  # on a busy machine a zygote may do its part only when the act is over
                found.append(points)
            if len(found) == 2:
                break
        # On a busy machine a heart may also seem to stand still: what a restart runs is in the longer one.
        wanted = select(min(found, key=len, default=[]))
        for point in choose(wanted, most, random.Random(seed)):
            self.strike(point, lambda point: control.arm(point, role, SIGNALS[fault]), lambda: control.fired)
            control.disarm()
        print(f"seed={seed}: {self.placed} times {fault} at {len(wanted)} points")
        print(f"not reached: {'; '.join(self.missed) or 'none'}")
