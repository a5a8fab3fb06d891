"""Supervisors as children of supervisors: ``step(tree, event, now_ns, chance) -> (tree, actions)``.

Each supervisor is a ``State`` of its own, and ``supervisor.policy.node`` decides for it as if there were no
other. What is here is the talk between them, and that is all that nesting is:

=====================  =======================================================================
above, of the group    below, of its own children
=====================  =======================================================================
Spawn                  a new State from the specification, then Start
AskStop                Stop
Kill                   Abort: every child is killed
Hello, then Ready      (at once), then SupervisorReady
Gone                   Finished: OTP's ``shutdown``, or a start that failed
=====================  =======================================================================

So a group lives, dies, is restarted, counted and given up by the table of a device. Generations are counted
on when a group starts afresh: no journal, Tube or process can be mistaken for one of the run before. Children
that were added to the last run are not part of the specification and are forgotten, as in OTP.

Devices and groups share one space of names. The outermost supervisor is the group whose name is empty.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from supervisor.errors import LocalError
from supervisor.policy import node
from supervisor.policy.actions import Action, AskStop, Finished, Forget, Kill, Report, Spawn
from supervisor.policy.events import (
    Abort,
    AddChild,
    Event,
    ExitKind,
    ExitReason,
    Gone,
    Hello,
    Ready,
    Reload,
    Start,
    Stop,
    Tick,
    WorkerEvent,
)
from supervisor.policy.records import (
    DeviceRemoved,
    Impossible,
    Outcome,
    OutcomeKind,
    Record,
    SupervisorReady,
    SupervisorStopped,
    of_group,
)
from supervisor.policy.spec import ChildSpec, SupervisorSpec
from supervisor.policy.states import Phase
from supervisor.policy.strategy import with_supervisor
from supervisor.policy.survey import ROOT, SERVING, Tree, groups_in, phase, why_not_add, why_not_reload

__all__ = ["initial", "step"]


def initial(spec: SupervisorSpec) -> Tree:
    """The tree before Start. Raises ``LocalError`` where a name is there twice."""
    nodes = {ROOT: node.initial(spec)}
    nodes |= {name: node.initial(inner) for name, inner in groups_in(spec)}
    group_of: dict[str, str] = {}
    for group, state in nodes.items():
        for name in state.plan.order:
            if name in group_of or name == ROOT:
                raise LocalError(f"the name {name!r} is there twice, in different groups")
            group_of[name] = group
    return Tree(nodes, group_of)


def step(tree: Tree, event: Event, now_ns: int, chance: float) -> tuple[Tree, tuple[Action, ...]]:
    """One event at ``now_ns`` (monotonic), with a number ``chance`` in [0, 1) for whatever needs luck."""
    if phase(tree) is Phase.ENDED:
        return tree, ()  # not even a group that never was started has anything to say any more
    growth = _Growth(tree, now_ns, chance)
    match event:
        case Start() | Stop() | Abort():
            growth.tell(ROOT, event)
        case Tick():
            for group, state in tree.nodes.items():
                if state.deadlines and state.deadlines[0][0] <= now_ns:
                    growth.tell(group, event)
        case Reload(spec) if not why_not_reload(tree, spec):
            growth.reload(ROOT, spec)
        case AddChild(spec, group) if not why_not_add(tree, spec, group):
            growth.add(group, event)
        case Reload() | AddChild():
            growth.refuse(event)
        case _ if isinstance(event, WorkerEvent) and event.name in tree.nodes:
            growth.refuse(event)  # a group has no process of which there could be news
        case _:
            growth.tell(tree.group_of.get(event.name, ROOT), event)
    growth.work_off()
    return growth.freeze()


class _Growth:
    """A Tree being written: what one supervisor says is heard by the next, until all is said."""

    def __init__(self, tree: Tree, now_ns: int, chance: float) -> None:
        self._nodes = dict(tree.nodes)
        self._group_of = tree.group_of
        self._moved: dict[str, str] | None = None  # ``group_of`` once this step has written on it
        self._now_ns = now_ns
        self._chance = chance
        self._pending: deque[tuple[str, Event]] = deque()
        self._actions: list[Action] = []

    def freeze(self) -> tuple[Tree, tuple[Action, ...]]:
        return Tree(self._nodes, self._group_of), tuple(self._actions)

    def refuse(self, event: Event) -> None:
        outermost = self._nodes[ROOT].phase
        if outermost in SERVING:  # otherwise it does not matter any more, or not yet
            self._actions.append(Report(Impossible(event, outermost, at_ns=self._now_ns)))

    def tell(self, group: str, event: Event) -> None:
        self._pending.append((group, event))

    def work_off(self) -> None:
        while self._pending:
            group, event = self._pending.popleft()
            state = self._nodes.get(group)
            if state is None:  # removed by what was said before
                continue
            self._nodes[group], actions = node.step(state, event, self._now_ns, self._chance)
            for action in actions:
                self._carry_on(group, action)

    def _carry_on(self, group: str, action: Action) -> None:
        """Passes an order on to where it belongs: to another supervisor, or to the world."""
        match action:
            case Spawn(name, generation) if name in self._nodes:
                self._spawn(group, name, generation)
            case AskStop(name) if name in self._nodes:
                self.tell(name, Stop())
            case Kill(name, _, why) if name in self._nodes:
                self.tell(name, Abort(why))
            case Forget(name):
                self._forget(action)
                self._amend(group)
            case Report(record):
                self._publish(group, record)
            case Finished(outcome) if group != ROOT:
                parent = self._group_of[group]
                generation = self._nodes[parent].children[group].generation
                self.tell(parent, Gone(group, generation, _exit_of(outcome)))
            case _:
                self._actions.append(action)

    def _publish(self, group: str, record: Record) -> None:
        if group != ROOT and isinstance(record, SupervisorReady | SupervisorStopped):
            if isinstance(record, SupervisorReady):
                parent = self._group_of[group]
                self.tell(parent, Ready(group, self._nodes[parent].children[group].generation))
            return
        if getattr(record, "name", None) in self._nodes:
            record = of_group(record)
        self._actions.append(Report(record))

    # -- groups that come and go -------------------------------------------------------------------

    def _spawn(self, parent: str, name: str, generation: int) -> None:
        child = self._nodes[parent].children[name]
        spec = self._nodes[parent].plan.specs[name].supervisor
        if spec is not None:
            self._renew(name, spec, missed=child.down_since_ns is not None)
        self.tell(parent, Hello(name, generation))
        self.tell(name, Start())

    def _renew(self, name: str, spec: SupervisorSpec, *, missed: bool) -> None:
        """A supervisor from its specification; what was added to the last one is forgotten."""
        before = self._nodes[name]
        fresh = node.initial(spec, before, missed=missed)
        for gone in [one for one in reversed(before.plan.order) if one not in fresh.children]:
            self._publish(name, DeviceRemoved(gone, at_ns=self._now_ns))
            self._forget(Forget(gone, before.children[gone].restarts))
        self._nodes[name] = fresh
        for one in spec.children:
            self._adopt(name, one)

    def _adopt(self, group: str, spec: ChildSpec) -> None:
        """A child of ``group``, and if it is a group itself, everything in it."""
        self._own_groups()[spec.name] = group
        if spec.supervisor is not None and spec.name not in self._nodes:
            self._nodes[spec.name] = node.initial(spec.supervisor)
            for inner in spec.supervisor.children:
                self._adopt(spec.name, inner)

    def _forget(self, action: Forget) -> None:
        """A child, and if it is a group everything in it: the innermost first."""
        inside = self._nodes.get(action.name)
        if inside is None:
            self._actions.append(action)
        else:
            for name in reversed(inside.plan.order):
                self._forget(Forget(name, inside.children[name].restarts))
            del self._nodes[action.name]
        del self._own_groups()[action.name]

    def _amend(self, group: str) -> None:
        """What was removed from a group is not in its specification any more, so that no restart brings it
        back: its name may be somebody else's by then."""
        while group != ROOT:
            spec = self._nodes[group].plan.spec
            parent = self._group_of[group]
            state = self._nodes[parent]
            if state.plan.specs[group].supervisor is spec:
                return
            self._nodes[parent] = replace(state, plan=with_supervisor(state.plan, group, spec))
            group = parent

    def _own_groups(self) -> dict[str, str]:
        if self._moved is None:
            self._group_of = self._moved = dict(self._group_of)
        return self._moved

    def add(self, group: str, event: AddChild) -> None:
        """A child more. That its group takes it has been asked before."""
        self._adopt(group, event.spec)
        self.tell(group, event)

    def reload(self, group: str, spec: SupervisorSpec) -> None:
        """Other rules for a supervisor and for all below it."""
        if self._nodes[group].phase in SERVING:
            self.tell(group, Reload(spec))
        else:
            known = self._nodes[self._group_of[group]].children.get(group)  # not yet, if it is new
            missed = known is not None and known.down_since_ns is not None
            self._renew(group, spec, missed=missed)  # the next start finds it
        for child in spec.children:
            self._adopt(group, child)
            if child.supervisor is not None:
                self.reload(child.name, child.supervisor)


def _exit_of(outcome: Outcome) -> ExitReason:
    """How a supervisor's end looks from above. As in OTP, one that gave up has shut down: no crash."""
    failed = outcome.kind is OutcomeKind.START_FAILED
    kind = ExitKind.NOT_STARTED if failed else ExitKind.SHUTDOWN
    return ExitReason(kind, detail=outcome.why)
