"""Random schedules: whatever happens, in whatever order, the policy keeps its promises.

A fake world of processes answers the policy's orders at random and mixes in events that make no sense. The
``Rig`` checks at every step that no second process is spawned and that every step is one the table knows; the
tests below check what holds over a whole run. Hypothesis prints the failing run and its seed.
"""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import HealthCheck, event, example, given, note, settings
from hypothesis import strategies as st

from supervisor.policy import (
    ROOT,
    AutoShutdown,
    BackoffSpec,
    ChildSpec,
    ChildState,
    OnGiveUp,
    Phase,
    Restart,
    Strategy,
    SupervisorSpec,
    child,
    initial,
    next_deadline_ns,
    step,
)
from supervisor.policy.actions import Action, AskStop, Finished, Kill, Report
from supervisor.policy.draft import State
from supervisor.policy.events import (
    AddChild,
    Event,
    ExitKind,
    ExitReason,
    Forked,
    Gone,
    Hello,
    Ignored,
    Ready,
    Refused,
    Reload,
    RemoveChild,
    RestartChild,
    Silent,
    SpawnFailed,
    Start,
    StartChild,
    Stop,
    StopChild,
    Tick,
)
from supervisor.policy.records import DeviceDied, DeviceStopped, GroupEnded
from supervisor.policy.states import ALIVE
from tests.policy.fake import CLEAN, MS, Rig, S

STATIC = [one for one in Strategy if one is not Strategy.SIMPLE_ONE_FOR_ONE]
SLOWLY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


LEVELS = 3


def _template(name: str, intensity: int) -> ChildSpec:
    """A group of devices of one template."""
    inner = SupervisorSpec(strategy=Strategy.SIMPLE_ONE_FOR_ONE, intensity=intensity, period_ns=10 * S)
    return ChildSpec(
        name,
        hello_timeout_ns=MS,
        start_timeout_ns=MS,
        stop_timeout_ns=None,
        supervisor=inner,
        restart=Restart.PERMANENT,
    )


TWO_TEMPLATES = SupervisorSpec(
    strategy=Strategy.ONE_FOR_ONE,
    intensity=0,
    period_ns=10 * S,
    children=(_template("a", 2), _template("b", 0)),
)


@st.composite
def specs(draw: st.DrawFn, letters: str = "abcdef", level: int = 0) -> SupervisorSpec:
    """Up to six children with random rules, some of them groups with children of their own."""
    names = [f"{letter}{level or ''}" for letter in draw(st.permutations(letters))]
    names = names[: draw(st.integers(1, 6 - 2 * level))]
    if level and draw(st.integers(0, 4)) == 0:
        return SupervisorSpec(strategy=Strategy.SIMPLE_ONE_FOR_ONE, intensity=draw(st.integers(0, 6)))
    auto = draw(st.sampled_from(AutoShutdown))
    children = []
    for index, name in enumerate(names):
        restart = draw(st.sampled_from(Restart))
        may_matter = restart is not Restart.PERMANENT and auto is not AutoShutdown.NEVER
        inner = None
        if level + 1 < LEVELS and draw(st.integers(0, 3)) == 0:
            inner = draw(specs([f"{name}{letter}" for letter in "abcdef"], level + 1))  # type: ignore[arg-type]
        children.append(
            ChildSpec(
                name,
                restart=restart,
                depends_on=tuple(draw(st.sets(st.sampled_from(names[:index]), max_size=2))) if index else (),
                hello_timeout_ns=draw(st.sampled_from([MS, S])),
                start_timeout_ns=draw(st.sampled_from([MS, S])),
                stop_timeout_ns=draw(st.sampled_from([None, 0, MS, S])),
                significant=may_matter and draw(st.booleans()),
                backoff=draw(
                    st.sampled_from([BackoffSpec(), BackoffSpec(max_ns=0), BackoffSpec(first_ns=5 * MS)])
                ),
                force_restart=draw(st.sampled_from([frozenset[int](), frozenset({0}), frozenset({-9})])),
                prevent_restart=draw(st.sampled_from([frozenset[int](), frozenset({1})])),
                supervisor=inner,
            )
        )
    return SupervisorSpec(
        strategy=draw(st.sampled_from(STATIC)),
        intensity=draw(st.integers(0, 6)),
        period_ns=draw(st.sampled_from([20 * MS, 10 * S])),
        on_give_up=draw(st.sampled_from(OnGiveUp)),
        auto_shutdown=auto,
        children=tuple(draw(st.permutations(children))),
    )


class World:
    """Processes that live, talk and die as a seeded generator wills; some of what is said is nonsense."""

    def __init__(self, spec: SupervisorSpec, seed: int, *, nonsense: float = 0.1) -> None:
        self.luck = random.Random(seed)
        self.rig = Rig(spec, chance=self.luck.random)
        self.spec = spec
        self.nonsense = nonsense

    @property
    def names(self) -> list[str]:
        """Who is there just now, devices and groups of all levels."""
        return list(self.rig.tree.group_of)

    def run(self, steps: int) -> None:
        """Starts, lets ``steps`` things happen, and then stops and lets everything end."""
        rig = self.rig
        rig.send(Start())
        for _ in range(steps):
            rig.now_ns += self.luck.choice([0, 0, 100, MS, 30 * MS, 2 * S])
            rig.send(self._anything())

    def stop(self) -> None:
        """Stops, and lets processes end one by one; deadlines pass, nothing else is said."""
        rig = self.rig
        rig.send(Stop())
        for _ in range(30 * len(self.names) + 30):
            if rig.outcome is not None:
                return
            leaving = [name for name in rig.processes if not self._may_stay(name)]
            if leaving and self.luck.random() < 0.7:
                rig.gone(self.luck.choice(leaving), self._reason())
            elif next_deadline_ns(rig.tree) is not None:
                rig.until_deadline()

    def _may_stay(self, name: str) -> bool:
        return child(self.rig.tree, name).state not in (ChildState.STOPPING, ChildState.KILLING)

    def _reason(self) -> ExitReason:
        kind = self.luck.choice(list(ExitKind))
        return CLEAN if self.luck.random() < 0.3 else ExitReason(kind, self.luck.choice([1, 9, None]))

    def _anything(self) -> Event:
        if self.luck.random() < 0.04 or not self.names:
            return self._addition()
        name = self.luck.choice(self.names)
        generation = self.rig.processes.get(name, self.rig.generation(name))
        if self.luck.random() < self.nonsense:
            return self._nonsense(name, generation)
        view = child(self.rig.tree, name)
        if self.luck.random() < 0.08:
            asks: list[Event] = [StartChild(name), StopChild(name), RestartChild(name), RemoveChild(name)]
            return self.luck.choice(asks)
        if view.is_group:
            return Tick()
        charged = self.luck.random() < 0.7
        said: dict[ChildState, list[Event]] = {
            ChildState.SPAWNING: [
                *[Forked(name, generation)] * 3,
                *[Hello(name, generation)] * 6,
                Gone(name, generation, self._reason(), charged),
                SpawnFailed(name, generation, "no room"),
            ],
            ChildState.BUILDING: [
                Forked(name, generation),
                *[Ready(name, generation)] * 6,
                Gone(name, generation, self._reason(), charged),
                Refused(name, generation, "no"),
                Ignored(name, generation),
            ],
            ChildState.READY: [
                *[Gone(name, generation, self._reason(), charged)] * 3,
                Silent(name, generation),
                Tick(),
            ],
            ChildState.STOPPING: [Gone(name, generation, self._reason(), charged), Tick()],
            ChildState.KILLING: [Gone(name, generation, self._reason(), charged), Tick()],
        }
        return self.luck.choice(said.get(view.state, [Tick()]))

    def _addition(self) -> Event:
        """A child like one of those at the beginning, under a name that may be taken, in any group."""
        if self.luck.random() < 0.2:
            return Reload(self.spec)
        like = self.luck.choice(self.spec.children)
        group = self.luck.choice(list(self.rig.tree.nodes))
        there = list(self.rig.tree.nodes[group].plan.order)
        return AddChild(
            replace(
                like,
                name=self.luck.choice([*"abcdefgh", *"abcdefgh".upper()]),
                depends_on=tuple(self.luck.sample(there, min(len(there), self.luck.randrange(3)))),
                supervisor=None,
            ),
            group,
        )

    def _nonsense(self, name: str, generation: int) -> Event:
        """Late, early, doubled or unknown; but never the false news that a process is gone."""
        other = max(0, generation + self.luck.choice([-2, -1, 1]))
        any_of = self.luck.choice([generation, other])
        lies: list[Event] = [
            Start(),
            Forked(name, any_of),
            Ignored(name, other),
            Hello(name, any_of),
            Ready(name, any_of),
            Silent(name, any_of),
            Gone(name, other, self._reason()),
            SpawnFailed(name, other, "late"),
            Refused(name, other, "late"),
            RestartChild("nobody"),
            RemoveChild("nobody"),
            Hello("nobody", 1),
        ]
        return self.luck.choice(lies)


@SLOWLY
@given(spec=specs(), seed=st.integers(0, 2**32), steps=st.integers(0, 120))
def test_any_schedule_then_stop_ends_with_nobody_left(spec: SupervisorSpec, seed: int, steps: int) -> None:
    """Every run can be stopped: each process ends, Finished comes once, and nothing after it."""
    world = World(spec, seed)
    note(f"seed {seed}")
    world.run(steps)
    world.stop()
    rig = world.rig
    assert rig.outcome is not None
    event(rig.outcome.kind.value)
    assert sum(isinstance(action, Finished) for action in rig.history) == 1
    assert not rig.alive()
    assert next_deadline_ns(rig.tree) is None
    for name in world.names:
        rig.send(Gone(name, rig.generation(name) + 1, CLEAN))
        rig.send(StartChild(name))
    rig.send(Start())
    rig.send(Tick())


@SLOWLY
@given(spec=specs(), seed=st.integers(0, 2**32))
def test_any_schedule_replayed_gives_the_same_actions(spec: SupervisorSpec, seed: int) -> None:
    """The same inputs give the same outputs, whatever objects they are made of."""
    world = World(spec, seed)
    world.run(60)
    state = initial(spec)
    again: list[Action] = []
    for happened, now_ns, chance in world.rig.inputs:
        state, actions = step(state, happened, now_ns, chance)
        again += actions
    assert again == world.rig.history
    assert state == world.rig.tree


@SLOWLY
@example(spec=TWO_TEMPLATES, seed=2)  # a device of one of them dies more often, and is forgotten in the end
@given(spec=specs(), seed=st.integers(0, 2**32))
def test_any_schedule_charged_restarts_stay_within_the_budget(spec: SupervisorSpec, seed: int) -> None:
    """In no period are there more charged restarts than the intensity, of all or of the isolated one."""
    world = World(spec, seed)
    world.run(150)
    died = [
        record
        for record, group in world.rig.reported
        if isinstance(record, DeviceDied | GroupEnded) and record.charged and group == ROOT
    ]
    if spec.on_give_up is OnGiveUp.ISOLATE:
        return  # its budgets are cleared by the operator; test_intensity.py has the rule
    for index, first in enumerate(died):
        within = [record for record in died[index:] if record.at_ns - first.at_ns <= spec.period_ns]
        assert len(within) <= spec.intensity + 1  # the last one is that over which it gave up


@SLOWLY
@given(spec=specs(), seed=st.integers(0, 2**32))
def test_any_schedule_stop_asks_in_reverse_level_by_level(spec: SupervisorSpec, seed: int) -> None:
    """Once everything goes down, nobody is asked before all who depend on it are gone."""
    world = World(spec, seed, nonsense=0)
    world.run(40)
    rig = world.rig
    if rig.state.phase is Phase.STOPPING or rig.outcome is not None:
        return
    before = len(rig.history)
    leaving = {name for name in rig.processes if not world._may_stay(name)}
    world.stop()
    outermost = rig.state.plan.specs
    alive_then = {action.name for action in rig.history[before:] if isinstance(action, AskStop | Kill)}
    ended: set[str] = set()
    for action in rig.history[before:]:
        if isinstance(action, Report) and isinstance(action.record, DeviceStopped):
            ended.add(action.record.name)
        if isinstance(action, AskStop):
            for name in alive_then - {action.name} - leaving:
                if _outermost(rig, action.name) in outermost[_outermost(rig, name)].depends_on:
                    assert name in ended, f"{action.name} was asked before {name} had ended"


def _outermost(rig: Rig, name: str) -> str:
    """The outermost group that a device is in, or the device itself."""
    while rig.tree.group_of[name] != ROOT:
        name = rig.tree.group_of[name]
    return name


@SLOWLY
@given(spec=specs(), seed=st.integers(0, 2**32))
def test_any_schedule_nobody_waits_without_a_reason(spec: SupervisorSpec, seed: int) -> None:
    """A child that has no process is waiting for a deadline, for siblings, or for a dependency."""
    world = World(spec, seed)
    rig = world.rig
    rig.send(Start())
    for _ in range(80):
        rig.now_ns += world.luck.choice([0, 100, MS, 30 * MS])
        rig.send(world._anything())
        if rig.state.phase not in (Phase.STARTING, Phase.RUNNING):
            break
        for state in rig.tree.nodes.values():
            if state.phase in (Phase.STARTING, Phase.RUNNING):
                _nobody_waits_without_a_reason(state)


def _nobody_waits_without_a_reason(state: State) -> None:
    for one in state.plan.specs.values():
        known = state.children[one.name]
        if known.state is ChildState.WAITING and known.deadline_ns is None:
            held = state.sweep is not None and one.name in state.sweep.scope
            there = (ChildState.READY, ChildState.FINISHED)
            assert held or any(state.children[target].state not in there for target in one.depends_on)
        if known.state in ALIVE - {ChildState.READY, ChildState.KILLING}:
            endless = known.state is ChildState.STOPPING and one.stop_timeout_ns is None
            group = known.state is ChildState.BUILDING and one.supervisor is not None
            assert endless or group or known.deadline_ns is not None
        if known.state in (ChildState.DOWN, ChildState.FAILED, ChildState.FINISHED):
            assert known.deadline_ns is None
            assert known.after is None
    if state.sweep is not None:
        alive = {name for name, known in state.children.items() if known.state in ALIVE}
        assert state.sweep.asked <= alive
        assert state.sweep.asked
    awaited = sum(known.awaited for known in state.children.values())
    assert awaited == state.awaited
    deadlines = sorted(
        (known.deadline_ns, state.plan.position[name])
        for name, known in state.children.items()
        if known.deadline_ns is not None
    )
    assert tuple(deadlines) == state.deadlines
