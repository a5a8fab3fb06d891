"""A seeded world for the policy: it owns the clock, the launcher, and a hostile network of events.

A world is made of a seed alone: the tree of supervisors, what processes do and when, what arrives late or
twice or makes no sense. It checks after each step what must always hold, in its own plain books. A run that
fails says its seed, and can be told again, event by event::

    python -m tests.policy.simulator SEED [DEATHS]
"""

from __future__ import annotations

import random
import sys
from collections import deque
from dataclasses import dataclass, field

from supervisor.policy import (
    ROOT,
    AutoShutdown,
    BackoffSpec,
    ChildSpec,
    OnGiveUp,
    Restart,
    Strategy,
    SupervisorSpec,
    Tree,
    initial,
    next_deadline_ns,
    step,
)
from supervisor.policy.actions import Action, AskStop, Finished, Forget, Kill, Report, Spawn
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
    RemoveChild,
    RestartChild,
    Silent,
    SpawnFailed,
    Start,
    StartChild,
    Stop,
    StopChild,
    Tick,
    WorkerEvent,
)
from supervisor.policy.records import DeviceDied, GroupEnded, GroupStarting, Record
from supervisor.policy.survey import SERVING, groups_in

MS, S = 1_000_000, 1_000_000_000
EXITS = [
    ExitReason(ExitKind.EXITED, 0),
    ExitReason(ExitKind.EXITED, 1),
    ExitReason(ExitKind.EXITED, 1),
    ExitReason(ExitKind.SIGNALED, 9),
    ExitReason(ExitKind.SIGNALED, 9),
    ExitReason(ExitKind.UNKNOWN),
]
LOG_LINES = 40


class Broken(AssertionError):
    """The policy has broken a promise. Says which, in which world, and the last events."""


@dataclass
class Process:
    """A process that the policy has asked for, as the world knows it."""

    generation: int
    said: str = "nothing"  # then hello, then ready
    told: str = ""  # asked to stop, or killed


@dataclass
class World:
    """One seeded life of a tree of supervisors, lived until there were so many deaths."""

    seed: int
    talk: bool = False
    deaths: int = 0
    now_ns: int = 0
    processes: dict[str, Process] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)  # the last generation of each name
    barred: set[str] = field(default_factory=set)  # who must not come back by itself
    charged: dict[tuple[str, int], deque[int]] = field(default_factory=dict)
    log: deque[tuple[int | None, Event | Action]] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    finished: bool = False

    def __post_init__(self) -> None:
        self.luck = random.Random(self.seed)
        self.spec = _supervisor(self.luck, "", 0)
        self.tree: Tree = initial(self.spec)
        self.before = self.tree
        self.configured = list(self.tree.group_of)
        self.specs: dict[str, SupervisorSpec] = {ROOT: self.spec, **dict(groups_in(self.spec))}

    # -- living ----------------------------------------------------------------------------------

    def live(self, deaths: int) -> int:
        """Lives until at least ``deaths`` processes have died, or all is over; returns how many did."""
        self.tell(Start())
        while self.deaths < deaths and not self.finished:
            self.now_ns += self.luck.choice((0, 0, 0, 1, MS, 20 * MS, S))
            self.tell(self._something())
        if not self.finished:
            self.tell(Stop())
        self._end()
        return self.deaths

    def _end(self) -> None:
        """Everything ends: what is asked goes, what is not is killed at its deadline."""
        for _ in range(20 * len(self.last) + 100):
            if self.finished:
                break
            leaving = [name for name, one in self.processes.items() if one.told]
            due_ns = next_deadline_ns(self.tree)
            if leaving and (due_ns is None or self.luck.random() < 0.7):
                self._die(self.luck.choice(leaving))
            elif due_ns is not None:
                self.now_ns = max(self.now_ns, due_ns)
                self.tell(Tick())
        self._must(self.finished, "it ends when it is stopped")
        self._must(next_deadline_ns(self.tree) is None, "nothing waits for time at the end")
        for event in (Start(), Tick(), Stop(), StartChild(self.spec.children[0].name)):
            self.tell(event)

    def _something(self) -> Event:
        luck = self.luck.random()
        due_ns = next_deadline_ns(self.tree)
        if due_ns is not None and (due_ns <= self.now_ns or luck < 0.02 or not self.processes):
            self.now_ns = max(self.now_ns, due_ns)
            return Tick()
        if luck < 0.04 or not self.processes:
            return self._order()
        if luck < 0.08:
            return self._nonsense()
        name = self.luck.choice(list(self.processes))
        process = self.processes[name]
        generation = process.generation
        if process.told or luck < 0.3:
            return self._death(name)
        if process.said == "nothing":
            if luck < 0.4:
                return Forked(name, generation)
            process.said = "hello"
            return Hello(name, generation)
        if process.said == "hello":
            if luck < 0.32:
                return self.luck.choice((Refused(name, generation, "no"), Ignored(name, generation)))
            process.said = "ready"
            return Ready(name, generation)
        return Silent(name, generation) if luck < 0.33 else self._death(name)

    def _order(self) -> Event:
        name = self.luck.choice([*self.tree.group_of, "nobody"])
        if self.luck.random() < 0.2:
            group = self.luck.choice(list(self.tree.nodes))
            # A name of its own, or one of the configuration's, which may have been removed by now.
            name = self.luck.choice([f"{group}x{self.luck.randrange(3)}", *self.configured])
            return AddChild(_child(self.luck, name, may_matter=False), group)
        kind = self.luck.choice((StartChild, StartChild, StopChild, RestartChild, RemoveChild))
        if kind is not RemoveChild:
            self.barred -= {name, *self._inside(name)}
        return kind(name)

    def _nonsense(self) -> Event:
        """Late, early, twice, or about nobody; but never the false news of a death."""
        name = self.luck.choice([*self.tree.group_of, "nobody"])
        generation = max(0, self.last.get(name, 0) + self.luck.choice((-2, -1, 1, 2)))
        kind = self.luck.choice((Forked, Hello, Ready, Silent, Ignored))
        lies: list[Event] = [
            kind(name, generation),
            Gone(name, generation, self.luck.choice(EXITS)),
            SpawnFailed(name, generation, "late"),
            Refused(name, generation, "late"),
            Start(),
        ]
        return self.luck.choice(lies)

    def _die(self, name: str) -> None:
        self.tell(self._death(name))

    def _death(self, name: str) -> Event:
        process = self.processes.pop(name)
        self.deaths += 1
        if process.said == "nothing" and self.luck.random() < 0.2:
            return SpawnFailed(name, process.generation, "no room")
        exit_reason = self.luck.choice(EXITS)
        if not process.told:
            self._bar(name, exit_reason)
        return Gone(name, process.generation, exit_reason, self.luck.random() < 0.8)

    def _bar(self, name: str, exit_reason: ExitReason) -> None:
        """A temporary one that ends by itself stays away until an operator or its group's start wants it."""
        group = self.tree.group_of[name]
        known = self.tree.nodes[group].children[name]
        restart = self.tree.nodes[group].plan.specs[name].restart
        if known.after is None and restart is Restart.TEMPORARY:
            self.barred.add(name)

    # -- checking --------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """One step of the policy, with everything that must hold after it."""
        chance = self.luck.random()
        self._note(self.now_ns, event)
        before = self.before = self.tree
        try:
            self.tree, actions = step(before, event, self.now_ns, chance)
        except Exception as error:
            raise Broken(self._told(f"no event raises, but: {error!r}")) from error
        if self.finished:
            self._must(not actions, "nothing is said after Finished")
        if isinstance(event, WorkerEvent) and event.generation < self.last.get(event.name, 0):
            self._must(not actions and self.tree == before, "an old generation changes nothing")
        for action in actions:
            self._obey(action)
        for name in [action.name for action in actions if isinstance(action, Spawn)]:
            # Who was spawned in the very step in which all goes down has been asked to go in it, too.
            serving = self.tree.nodes[self.tree.group_of[name]].phase in SERVING
            self._must(serving or self.processes[name].told != "", f"{name} is not spawned in vain")
        if isinstance(event, Tick):
            self._nobody_is_waited_for_without_end()

    def _nobody_is_waited_for_without_end(self) -> None:
        """Every spawn ends in ready, gone or kill: until then there is a deadline, and it has not passed."""
        for name, process in self.processes.items():
            if process.said != "ready" and not process.told:
                due_ns = self.tree.nodes[self.tree.group_of[name]].children[name].deadline_ns
                self._must(due_ns is not None and due_ns > self.now_ns, f"{name} has a deadline ahead")

    def _obey(self, action: Action) -> None:
        self._note(None, action)
        match action:
            case Spawn(name, generation):
                self._must(name not in self.processes, f"one process at a time for {name}")
                self._must(generation == self.last.get(name, 0) + 1, f"{name}'s generations rise by one")
                self._must(name not in self.barred, f"{name}, which is temporary, stays away")
                self.processes[name] = Process(generation)
                self.last[name] = generation
            case AskStop(name, generation) | Kill(name, generation, _):
                process = self.processes.get(name)
                self._must(process is not None and process.generation == generation, f"{name} is there")
                if process is not None:
                    process.told = "kill" if isinstance(action, Kill) else process.told or "stop"
            case Forget(name):
                self._must(name not in self.processes, f"{name} is not forgotten alive")
                self.last.pop(name, None)
                self.barred.discard(name)
            case Finished():
                self._must(not self.processes, "all are gone before Finished")
                self.finished = True
            case Report(record):
                self._hear(record)

    def _hear(self, record: Record) -> None:
        """Charges a death to the supervisor above, as it was before this step: a group has a budget a run."""
        if isinstance(record, GroupStarting):
            self.barred -= set(self._inside(record.name))
        if not isinstance(record, DeviceDied | GroupEnded) or not record.charged:
            return
        group = self.before.group_of.get(record.name, ROOT)
        spec = self.specs.get(group)
        if spec is None or spec.on_give_up is OnGiveUp.ISOLATE:
            return  # each one's own, and cleared by an operator: the rule itself is tested in test_rules
        run = _run_of(self.before, group)
        window = self.charged.setdefault((group, run), deque())
        window.append(self.now_ns)
        while self.now_ns - window[0] > spec.period_ns:
            window.popleft()
        self._must(len(window) <= spec.intensity + 1, f"the budget of {group or ROOT!r} holds")
        if len(window) > spec.intensity:
            over = self.tree.nodes[group].phase not in SERVING or _run_of(self.tree, group) > run
            self._must(over, f"{group!r} gives up when its budget is spent")

    def _inside(self, name: str) -> list[str]:
        if name not in self.tree.nodes:
            return []
        inner = list(self.tree.nodes[name].plan.order)
        return inner + [deeper for one in inner for deeper in self._inside(one)]

    def _must(self, holds: bool, promise: str) -> None:
        if not holds:
            raise Broken(self._told(f"broken: {promise}"))

    def _note(self, at_ns: int | None, what: Event | Action) -> None:
        self.log.append((at_ns, what))  # put into words only if somebody wants to read it
        if self.talk:
            print(_line(at_ns, what))

    def _told(self, what: str) -> str:
        lines = "\n".join(_line(at_ns, what) for at_ns, what in self.log)
        again = f"python -m tests.policy.simulator {self.seed}"
        return f"{what}\nseed {self.seed}; to see all of it: {again}\n{lines}"


def _line(at_ns: int | None, what: Event | Action) -> str:
    return f"{at_ns:>15}  {what}" if at_ns is not None else f"{'':>15}    {what}"


def _run_of(tree: Tree, group: str) -> int:
    return 0 if group == ROOT else tree.nodes[tree.group_of[group]].children[group].generation


def _child(luck: random.Random, name: str, *, may_matter: bool) -> ChildSpec:
    restart = luck.choice(list(Restart))
    return ChildSpec(
        name,
        restart=restart,
        hello_timeout_ns=luck.choice((MS, S)),
        start_timeout_ns=luck.choice((MS, S)),
        stop_timeout_ns=luck.choice((None, 0, MS, S)),
        significant=may_matter and restart is not Restart.PERMANENT and luck.random() < 0.2,
        backoff=luck.choice((BackoffSpec(), BackoffSpec(max_ns=0), BackoffSpec(first_ns=5 * MS))),
    )


def _supervisor(luck: random.Random, prefix: str, level: int) -> SupervisorSpec:
    """Mostly patient supervisors: one that gives up at once has no deaths to tell of."""
    intensity = luck.choice((0, 2, 10, 100, 10_000))
    period_ns = luck.choice((1, 20 * MS, 10 * S))
    if level and luck.random() < 0.15:
        return SupervisorSpec(strategy=Strategy.SIMPLE_ONE_FOR_ONE, intensity=intensity, period_ns=period_ns)
    auto = luck.choice((AutoShutdown.NEVER, AutoShutdown.NEVER, *AutoShutdown))
    children: list[ChildSpec] = []
    for index in range(luck.randint(1, 6 - level)):
        child = _child(luck, f"{prefix}{'abcdef'[index]}", may_matter=auto is not AutoShutdown.NEVER)
        earlier = [one.name for one in children]
        depends_on = tuple(luck.sample(earlier, min(len(earlier), luck.choice((0, 0, 0, 1, 2)))))
        inner = None
        if level < 2 and luck.random() < 0.25:
            inner = _supervisor(luck, child.name, level + 1)
        children.append(
            ChildSpec(
                child.name,
                restart=child.restart,
                depends_on=depends_on,
                hello_timeout_ns=child.hello_timeout_ns,
                start_timeout_ns=child.start_timeout_ns,
                stop_timeout_ns=child.stop_timeout_ns,
                significant=child.significant,
                backoff=child.backoff,
                supervisor=inner,
            )
        )
    luck.shuffle(children)
    return SupervisorSpec(
        strategy=luck.choice((Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE)),
        intensity=intensity,
        period_ns=period_ns,
        on_give_up=luck.choice(list(OnGiveUp)),
        auto_shutdown=auto,
        children=tuple(children),
    )


if __name__ == "__main__":
    World(int(sys.argv[1]), talk=True).live(int(sys.argv[2]) if len(sys.argv) > 2 else 200)
