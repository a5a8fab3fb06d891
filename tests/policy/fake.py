"""A fake of everything around the policy: processes, their deaths and the clock, all in values.

``Rig`` feeds events to the policy and carries out its actions on pretended processes. It checks, at every
step, what must hold whatever happens; tests then only say what they want to see.
"""

from __future__ import annotations

from collections.abc import Callable

from supervisor.policy import (
    ROOT,
    ChildSpec,
    ChildState,
    Phase,
    Restart,
    Strategy,
    SupervisorSpec,
    Tree,
    child,
    devices_in,
    initial,
    next_deadline_ns,
    step,
)
from supervisor.policy.actions import Action, AskStop, Finished, Forget, Kill, Report, Spawn
from supervisor.policy.draft import State
from supervisor.policy.events import (
    Event,
    ExitKind,
    ExitReason,
    Forked,
    Gone,
    Hello,
    Ready,
    Refused,
    Silent,
    SpawnFailed,
    Start,
    Stop,
    Tick,
)
from supervisor.policy.records import Impossible, Outcome, Record
from supervisor.policy.states import ALIVE
from supervisor.policy.table import TABLE

MS = 1_000_000
S = 1_000_000_000
CLEAN = ExitReason(ExitKind.EXITED, 0)
CRASH = ExitReason(ExitKind.EXITED, 1)
KILLED = ExitReason(ExitKind.SIGNALED, 9)


class Rig:
    """The policy, the processes it believes in, and what it has ordered so far."""

    def __init__(self, spec: SupervisorSpec, *, chance: Callable[[], float] = lambda: 0.0) -> None:
        self.spec = spec
        self.tree: Tree = initial(spec)
        self.now_ns = 0
        self.chance = chance
        self.processes: dict[str, int] = {}
        """Generation of each process that is not gone."""
        self.spawned: dict[str, int] = dict.fromkeys(devices_in(self.tree), 0)
        self.actions: list[Action] = []
        """What the last step ordered."""
        self.history: list[Action] = []
        self.reported: list[tuple[Record, str]] = []
        """Each record, and the group in which its subject was then."""
        self.inputs: list[tuple[Event, int, float]] = []
        self.outcome: Outcome | None = None

    @property
    def state(self) -> State:
        """The outermost supervisor."""
        return self.tree.nodes[ROOT]

    def send(self, event: Event) -> list[Action]:
        """One step; returns its actions after having carried them out."""
        chance = self.chance()
        self.inputs.append((event, self.now_ns, chance))
        before = self.tree
        self.tree, actions = step(self.tree, event, self.now_ns, chance)
        assert self.outcome is None or not actions, f"{actions} after Finished"
        self._is_in_table(before, event)
        if isinstance(event, Gone | SpawnFailed) and self.processes.get(event.name) == event.generation:
            del self.processes[event.name]
        for action in actions:
            self._carry_out(action)
            if isinstance(action, Report):
                name = getattr(action.record, "name", "")
                group = self.tree.group_of.get(name, before.group_of.get(name, ROOT))
                self.reported.append((action.record, group))
        self.actions = list(actions)
        self.history += actions
        return self.actions

    def _carry_out(self, action: Action) -> None:
        match action:
            case Spawn(name, generation):
                assert name not in self.processes, f"{name}: a second process while the first is alive"
                assert generation == self.spawned.get(name, 0) + 1, (
                    f"{name}: generation {generation} is out of turn"
                )
                self.spawned[name] = self.processes[name] = generation
            case AskStop(name, generation) | Kill(name, generation, _):
                assert self.processes.get(name) == generation, f"{action}: there is no such process"
            case Finished(outcome):
                assert not self.processes, f"finished with {self.processes} alive"
                self.outcome = outcome
            case Forget(name):
                assert name not in self.processes, f"{name} was forgotten alive"
                self.spawned.pop(name, None)
            case Report():
                pass

    def _is_in_table(self, tree_before: Tree, event: Event) -> None:
        name = getattr(event, "name", "")
        group = tree_before.group_of.get(name, ROOT)
        if group not in self.tree.nodes or name in tree_before.nodes:
            return  # a group may take several steps at once: an empty one is down as soon as it is asked
        if group != ROOT and child(tree_before, group).generation != child(self.tree, group).generation:
            return  # and one that was down may be back
        before, after = tree_before.nodes[group], self.tree.nodes[group]
        if name not in before.children or after.phase not in (before.phase, Phase.RUNNING):
            return  # the end of the supervisor may ask it to go in the same step, and bring it back
        old = before.children[name]
        cell = TABLE[old.state].get(type(event))
        if name not in after.children:
            known = before.children[name]
            of_template = before.plan.spec.strategy is Strategy.SIMPLE_ONE_FOR_ONE
            temporary = before.plan.specs[name].restart is Restart.TEMPORARY
            passing = known.added and (known.new or of_template or temporary)
            assert passing or (cell is not None and not cell.to), f"{event}: {name} was forgotten"
            return
        new = child(self.tree, name)
        if old.state is new.state and old.generation == new.generation:
            return
        assert cell is not None
        assert new.state in cell.to, f"{event} led from {old.state} to {new.state}, not in {cell}"

    # What a test says.

    def start(self) -> None:
        """Starts everything and lets every child become ready."""
        self.send(Start())
        self.settle()

    def settle(self) -> None:
        """Lets every process that is starting become ready, until no other starts."""
        moved = True
        while moved:
            moved = False
            for name in list(self.processes):
                if child(self.tree, name).state is ChildState.SPAWNING:
                    self.forked(name)
                    self.hello(name)
                    self.ready(name)
                    moved = True

    def settle_only(self, name: str) -> None:
        """Lets this one become ready if it is starting."""
        if child(self.tree, name).state is ChildState.SPAWNING:
            self.hello(name)
            self.ready(name)

    def forked(self, name: str) -> list[Action]:
        return self.send(Forked(name, self.generation(name)))

    def hello(self, name: str) -> list[Action]:
        return self.send(Hello(name, self.generation(name)))

    def ready(self, name: str) -> list[Action]:
        return self.send(Ready(name, self.generation(name)))

    def gone(self, name: str, reason: ExitReason = CRASH, *, charged: bool = True) -> list[Action]:
        return self.send(Gone(name, self.generation(name), reason, charged))

    def spawn_failed(self, name: str, why: str = "no room") -> list[Action]:
        return self.send(SpawnFailed(name, self.generation(name), why))

    def refused(self, name: str, why: str = "unknown option 'x'") -> list[Action]:
        return self.send(Refused(name, self.generation(name), why))

    def silent(self, name: str) -> list[Action]:
        return self.send(Silent(name, self.generation(name)))

    def stop(self) -> list[Action]:
        return self.send(Stop())

    def obey(self) -> None:
        """Lets every process that was asked or killed end, until nobody is on the way out."""
        while leaving := [
            name
            for name in self.processes
            if child(self.tree, name).state in (ChildState.STOPPING, ChildState.KILLING)
        ]:
            self.gone(leaving[0], CLEAN)

    def wait(self, ns: int) -> list[Action]:
        """Lets time pass and sends one Tick."""
        self.now_ns += ns
        return self.send(Tick())

    def until_deadline(self) -> list[Action]:
        """Lets time pass until the next deadline, exactly."""
        deadline_ns = next_deadline_ns(self.tree)
        assert deadline_ns is not None, "there is no deadline"
        self.now_ns = max(self.now_ns, deadline_ns)
        return self.send(Tick())

    # What a test sees.

    def generation(self, name: str) -> int:
        return child(self.tree, name).generation

    def state_of(self, name: str) -> ChildState:
        return child(self.tree, name).state

    def states(self) -> dict[str, str]:
        return {name: child(self.tree, name).state.value for name in self.state.plan.order}

    def generations(self) -> dict[str, int]:
        return {name: child(self.tree, name).generation for name in self.state.plan.order}

    def alive(self) -> set[str]:
        """Devices and groups of all levels that are not down."""
        return {name for name in self.tree.group_of if child(self.tree, name).state in ALIVE}

    def impossible(self) -> list[Impossible]:
        return [record for record in records(self.history) if isinstance(record, Impossible)]


def spec_of(*children: ChildSpec | str, **options: object) -> SupervisorSpec:
    """A supervisor of these children; a bare name is an ordinary child."""
    full = tuple(ChildSpec(one) if isinstance(one, str) else one for one in children)
    return SupervisorSpec(children=full, **options)  # type: ignore[arg-type]


def records(actions: list[Action]) -> list[Record]:
    """The records among actions."""
    return [action.record for action in actions if isinstance(action, Report)]


def orders(actions: list[Action]) -> list[Action]:
    """The actions without the records."""
    return [action for action in actions if not isinstance(action, Report)]


def spawns(actions: list[Action]) -> list[str]:
    """The names spawned, in order."""
    return [action.name for action in actions if isinstance(action, Spawn)]


def asked(actions: list[Action]) -> list[str]:
    """The names asked to stop, in order."""
    return [action.name for action in actions if isinstance(action, AskStop)]


def kills(actions: list[Action]) -> list[str]:
    """The names killed, in order."""
    return [action.name for action in actions if isinstance(action, Kill)]
