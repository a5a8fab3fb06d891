"""Kill → answer: how long a device is away, beside the floors and beside supervisors that know no devices."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import peers as others
from benchmarks.board import board
from benchmarks.lamp import ASK, HOLD
from benchmarks.measure import Contender, Plan, Row, Subject, Table, measure
from benchmarks.peers import Family, Peers
from supervisor import Supervisor
from supervisor.events import RestartTimeline
from supervisor.timeline import INSTANTS

__all__ = ["tables"]

PAUSE_S = (0.02, 0.05)  # between two kills: spares are filled up again
CHECK_DELAY_S = 5.0  # circus's default
SHORT_CHECK_DELAY_S = 0.01
OURS, FLOOR = "tubevisor", "bare fork loop"
FIRST, LATER, LARGE = "its first kills", "after a hundred kills", "with 1 GB of memory in use"
STANDBY = "tubevisor, standbys"
HOW = """\
From SIGKILL for one serving process, drawn at random. For tubevisor until a request that must reach the
device is answered by the next process: the device restored, its count of requests right. The others know no
requests: for them until the first statement of the next process, which favours them. The bare fork loop is
a lean Python process that waits for a child and forks; `posix_spawn` is the same and starts `python -S`, as
supervisord and circus do. Between two kills there are {0[0]:.0f} to {0[1]:.0f} ms, for circus up to its
check_delay. Restart budgets and delays are switched off everywhere; tubevisor keeps one spare process, its
default, and in one row a standby for each device as well, which is there before the first kill."""

REST_DEADLINE_S = 30.0
AT_ONCE_SPARES = 8
AT_ONCE_REST_S = 2.0  # between two times: all spares are filled up again
AT_ONCE = """\
SIGKILL for all, then a request to each, one after the other, until the last has answered. tubevisor keeps
{0} spare processes, or one for each device, or a standby for each. The bare fork loop has come to the first
statement of the last child."""
ALIKE = """\
As above, with standbys, {0} kills a turn of one of two devices: on a new board, or after {1} kills that are
not measured, or when its worker is told before each kill to hold {2} MiB, which the kernel then has to take
apart. In the other rows it is the other device that holds as much: the caches are as cold, and the pauses as
long."""
STEPS = """\
From instants that supervisor and worker note at each restart (`last_restart` of a device): killed →
*noticed* by the witness or the pidfd → *settled*: what the dead had committed is published → *activated*: a
spare is being told what it is → *assigned*: it has read that → *started*: the device is made → *restored*:
its state is back, and requests are answered from here on → *ready*: the supervisor has heard so. One device,
one spare."""


def tables(plan: Plan, peers: Peers) -> Iterator[Table]:
    """A table for each number of devices."""
    how = HOW.format([1000 * pause_s for pause_s in PAUSE_S])
    for count in plan.effort.devices:
        devices = "1 device" if count == 1 else f"one of {count} devices"
        subject = Subject(
            key=f"restart.{count}",
            title=f"kill → answer, {devices}",
            ours=(STANDBY, OURS),
            floor=FLOOR,
            how=how,
        )
        with contextlib.ExitStack() as stack:
            contenders = [*_ours(stack, plan, count), *_theirs(stack, plan, count, peers)]
            yield measure(subject, contenders, plan.effort.rounds, plan)
    yield _each_time(plan)
    yield _all_at_once(plan, max(plan.effort.devices))
    yield _where_the_time_goes(plan)


def _all_at_once(plan: Plan, count: int) -> Table:
    subject = Subject(
        key="restart.all",
        title=f"{count} devices killed at once → the last one answers",
        ours=(STANDBY, OURS),
        floor=FLOOR,
        how=AT_ONCE.format(AT_ONCE_SPARES),
    )
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        forks = stack.enter_context(others.running(folder / "fork", count))
        others.fork_floor(forks)
        few, many, standbys = (
            _Killer(stack.enter_context(board(count, spares=spares, standby=standby)), plan)
            for spares, standby in ((AT_ONCE_SPARES, False), (count, False), (1, True))
        )
        contenders = [
            Contender(STANDBY, lambda: [standbys.kill_all()]),
            Contender(OURS, lambda: [few.kill_all()]),
            Contender("tubevisor, a spare for each", lambda: [many.kill_all()]),
            Contender(FLOOR, lambda: [forks.kill_all()]),
        ]
        return measure(subject, contenders, plan.effort.rounds, plan)


def _each_time(plan: Plan) -> Table:
    """Whether it takes longer the more often, or the larger what is killed."""
    effort = plan.effort
    subject = Subject(
        key="restart.each",
        title="kill → answer, the first time, the hundredth, and of a large worker",
        ours=(LATER, LARGE),
        floor=FIRST,
        how=ALIKE.format(effort.large_kills, effort.kills_before, effort.held_mib),
    )

    def turn(kills_before: int = 0, *, large: bool = False) -> list[int]:
        with board(2, standby=True) as sup:
            killed, other = sup.devices
            killer = _Killer(sup, plan, [killed])
            for _ in range(kills_before):
                killer.kill_one()
            took_ns = []
            for _ in range(effort.large_kills):
                sup[killed if large else other].write(HOLD, 4, effort.held_mib)
                took_ns.append(killer.kill_one())
                sup[other].write(HOLD, 4, 0)
            return took_ns

    contenders = [
        Contender(LATER, lambda: turn(effort.kills_before)),
        Contender(LARGE, lambda: turn(large=True)),
        Contender(FIRST, turn),
    ]
    return measure(subject, contenders, effort.rounds, plan)


def _where_the_time_goes(plan: Plan) -> Table:
    """What the product itself has noted of each restart, as medians of each step."""
    load_before = os.getloadavg()[0]
    plan.say("where the time of a restart goes")
    samples: dict[str, list[int]] = {name: [] for name in INSTANTS[1:]}
    with board(1) as sup:
        killer = _Killer(sup, plan)
        for _ in range(plan.effort.rounds * plan.effort.kills):
            for name, took_ns in killer.kill_and_tell().steps().items():
                samples[name].append(took_ns)
    subject = Subject(
        key="restart.steps", title="where the time of a restart goes", ours=(), how=STEPS, steps=True
    )
    return Table(
        subject=subject,
        rounds=plan.effort.rounds,
        load=(round(load_before, 2), round(os.getloadavg()[0], 2)),
        rows=[Row(name, taken) for name, taken in samples.items()],
    )


def _ours(stack: contextlib.ExitStack, plan: Plan, count: int) -> Iterator[Contender]:
    for spares, standby, name in (
        (1, True, STANDBY),
        (1, False, OURS),
        (0, False, "tubevisor, no spare kept"),
    ):
        killer = _Killer(stack.enter_context(board(count, spares=spares, standby=standby)), plan)
        yield Contender(name, killer.take)


class _Killer:
    """Kills lamps of one supervisor and asks them at once."""

    def __init__(self, sup: Supervisor, plan: Plan, names: Iterable[str] = ()) -> None:
        self._sup = sup
        self._plan = plan
        self._names = list(names or sup.devices)
        self._asked = dict.fromkeys(self._names, 0)
        self._await_standbys()

    def _await_standbys(self) -> None:
        """The board has come to rest when everybody has the standby that it asks for."""
        asking = {name for name in self._sup.devices if self._sup.device_spec(name).standby}
        deadline = time.monotonic() + REST_DEADLINE_S
        while any(self._sup[name].standby_pid is None for name in asking):
            assert time.monotonic() < deadline, "the standbys do not come"
            self._sup.dispatch(0.05)

    def take(self) -> list[int]:
        """A turn: ns of each kill."""
        return [self.kill_one() for _ in range(self._plan.effort.kills)]

    def kill_one(self) -> int:
        """Kills one; ns until the next process has answered."""
        self._rest(self._plan.chooser.uniform(*PAUSE_S))
        name = self._plan.chooser.choice(self._names)
        lamp = self._sup[name]
        before = lamp.pid
        began_ns = time.monotonic_ns()
        self._sup.kill(name)
        answer = lamp.read(ASK, 4)
        took_ns = time.monotonic_ns() - began_ns
        self._asked[name] += 1
        assert answer == self._asked[name], f"{name} answers {answer}, not {self._asked[name]}"
        assert lamp.pid != before, f"{name} was not killed"
        return took_ns

    def kill_all(self) -> int:
        """Kills all at once; ns until each of them has answered, asked one after the other."""
        self._rest(AT_ONCE_REST_S if self._plan.effort.kills > 2 else 0)
        began_ns = time.monotonic_ns()
        for name in self._names:
            self._sup.kill(name)
        for name in self._names:
            answer = self._sup[name].read(ASK, 4)
            self._asked[name] += 1
            assert answer == self._asked[name], f"{name} answers {answer}, not {self._asked[name]}"
        return time.monotonic_ns() - began_ns

    def kill_and_tell(self) -> RestartTimeline:
        """Kills one; what the supervisor has noted of its restart."""
        self.kill_one()
        lamp = self._sup[self._names[0]]
        while lamp.state != "ready":
            self._sup.dispatch(1)
        assert lamp.last_restart is not None
        return lamp.last_restart

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._sup.dispatch(left)


def _theirs(stack: contextlib.ExitStack, plan: Plan, count: int, peers: Peers) -> Iterator[Contender]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
    kills = plan.effort.kills

    def family(name: str) -> Family:
        return stack.enter_context(others.running(folder / name, count))

    forks, spawns = family("fork"), family("spawn")
    others.fork_floor(forks)
    yield _contender(FLOOR, forks, plan.chooser, kills)
    others.spawn_floor(spawns)
    yield _contender("posix_spawn of python -S", spawns, plan.chooser, kills)
    if peers.has("supervisor"):
        slow = family("supervisord")
        others.supervisord(slow, peers)
        note = "restarts a second late, hence few kills"
        yield _contender("supervisord", slow, plan.chooser, 1, note=note)
    if peers.has("circus"):
        yield from _circus(family("circus"), family("circus-10ms"), plan, peers)


def _circus(usual: Family, short: Family, plan: Plan, peers: Peers) -> Iterator[Contender]:
    others.circus(usual, peers, check_delay_s=CHECK_DELAY_S)
    note = "looks every 5 s, its default, hence few kills"
    yield _contender("circus", usual, plan.chooser, 1, pause_s=(0, CHECK_DELAY_S), note=note)
    others.circus(short, peers, check_delay_s=SHORT_CHECK_DELAY_S)
    short.suspend()
    note = "looks every 10 ms, for which see what it costs when idle; stopped while it is not its turn"

    def take() -> list[int]:
        short.resume()
        try:
            return _kills(short, plan.chooser, 2, (0.1, 0.1 + SHORT_CHECK_DELAY_S))
        finally:
            short.suspend()

    yield Contender("circus, check_delay 10 ms", take, note)


def _contender(
    name: str,
    family: Family,
    chooser: random.Random,
    kills: int,
    *,
    pause_s: tuple[float, float] = PAUSE_S,
    note: str = "",
) -> Contender:
    return Contender(name, lambda: _kills(family, chooser, kills, pause_s), note)


def _kills(family: Family, chooser: random.Random, kills: int, pause_s: tuple[float, float]) -> list[int]:
    took_ns = []
    for _ in range(kills):
        time.sleep(chooser.uniform(*pause_s))
        took_ns.append(family.kill_one(chooser))
    return took_ns
