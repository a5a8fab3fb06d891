"""The tree of supervisors as a value, and what outsiders may ask of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from supervisor.policy import views
from supervisor.policy.draft import State
from supervisor.policy.spec import ChildSpec, SupervisorSpec
from supervisor.policy.states import ALIVE, ChildState, Phase
from supervisor.policy.table import After
from supervisor.policy.views import SERVING

__all__ = [
    "ROOT",
    "SERVING",
    "ChildView",
    "Counts",
    "Tree",
    "child",
    "children",
    "count",
    "devices_in",
    "groups_in",
    "is_wanted",
    "next_deadline_ns",
    "phase",
    "went_down_with",
    "why_not_add",
    "why_not_order",
    "why_not_reload",
    "why_not_remove",
]

ROOT = ""
"""The name of the group that everything is in."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Every supervisor by its group's name, and the group of every child, be it a device or a group."""

    nodes: Mapping[str, State]
    group_of: Mapping[str, str]

    def knows(self, name: str) -> bool:
        """True if there is a device or a group of this name."""
        return name in self.group_of


@dataclass(frozen=True, slots=True)
class ChildView:
    """What outsiders may know of one child. ``why`` is set while it is FAILED."""

    name: str
    group: str
    is_group: bool
    state: ChildState
    generation: int
    restarts: int
    why: str
    new: bool
    """Added, and neither ready nor settled yet."""


@dataclass(frozen=True, slots=True)
class Counts:
    """As OTP counts: ``specs`` are all children of one supervisor, ``active`` those that live.

    ``supervisors`` and ``workers`` count groups and devices, whether they live or not.
    """

    specs: int
    active: int
    supervisors: int
    workers: int


def groups_in(spec: SupervisorSpec) -> Iterator[tuple[str, SupervisorSpec]]:
    """Every group below ``spec`` with its own specification, those outside before those inside."""
    pending = deque([spec])
    while pending:
        for one in pending.popleft().children:
            if one.supervisor is not None:
                yield one.name, one.supervisor
                pending.append(one.supervisor)


def _names_below(spec: ChildSpec) -> Iterator[str]:
    """The names of everything in a group; of nothing where ``spec`` is a device."""
    if spec.supervisor is not None:
        inside = [spec.supervisor, *(inner for _, inner in groups_in(spec.supervisor))]
        yield from (one.name for supervisor in inside for one in supervisor.children)


def next_deadline_ns(tree: Tree) -> int | None:
    """When a Tick is due (on the clock of ``now_ns``), or None if nothing waits for time."""
    due = [state.deadlines[0][0] for state in tree.nodes.values() if state.deadlines]
    return min(due) if due else None


def phase(tree: Tree, group: str = ROOT) -> Phase:
    """Where a supervisor is in its life; the outermost where none is named. KeyError: no such group."""
    return tree.nodes[group].phase


def child(tree: Tree, name: str) -> ChildView:
    """A view of one device or group; KeyError if there is none of that name."""
    group = tree.group_of[name]
    known = tree.nodes[group].children[name]
    why = known.why if known.state is ChildState.FAILED else ""
    is_group = name in tree.nodes
    return ChildView(name, group, is_group, known.state, known.generation, known.restarts, why, known.new)


def children(tree: Tree, group: str = ROOT) -> tuple[ChildView, ...]:
    """The children of one supervisor, the newest first, as OTP's ``which_children`` has them."""
    return tuple(child(tree, name) for name in reversed(tree.nodes[group].plan.order))


def devices_in(tree: Tree, group: str = ROOT) -> tuple[str, ...]:
    """The names of all devices in a group and in the groups within, in start order."""
    names: list[str] = []
    for name in tree.nodes[group].plan.order:
        names += devices_in(tree, name) if name in tree.nodes else [name]
    return tuple(names)


def count(tree: Tree, group: str = ROOT) -> Counts:
    """How many children one supervisor has, as OTP's ``count_children`` has it."""
    known = tree.nodes[group].children
    active = sum(one.state in ALIVE for one in known.values())
    supervisors = sum(name in tree.nodes for name in known)
    return Counts(specs=len(known), active=active, supervisors=supervisors, workers=len(known) - supervisors)


_DECIDED = (After.DOWN, After.FINISHED, After.FAILED)


def is_wanted(tree: Tree, name: str) -> bool:
    """True while a device or group is there or may still come back by itself.

    One that goes down with its group may, as long as nobody has decided that the group stays down.
    """
    group = tree.group_of[name]
    state = tree.nodes[group]
    if state.phase not in SERVING:
        return group != ROOT and is_wanted(tree, group)
    known = state.children[name]
    if known.state in ALIVE:
        return known.after not in _DECIDED
    return known.state is ChildState.WAITING


def went_down_with(tree: Tree, name: str) -> str:
    """The outermost group whose end took ``name`` with it; ``name`` itself where it went down alone."""
    while (group := tree.group_of[name]) != ROOT and tree.nodes[group].phase not in SERVING:
        name = group
    return name


def why_not_add(tree: Tree, spec: ChildSpec, group: str = ROOT) -> str:
    """Why this child cannot be added to ``group``, in OTP's word and ours; empty if it can."""
    state = tree.nodes.get(group)
    if state is None:
        return f"not_found: there is no group {group!r}"
    if state.phase not in SERVING:
        return f"children come and go while their supervisor runs; {_condition(tree, group)}"
    there = tree.group_of.get(spec.name, group)
    if there != group:
        return f"already_present: there is a {spec.name!r} in {_called(there)}"
    for name in _names_below(spec):
        if name in tree.group_of or name == spec.name:
            return f"already_present: there is a {name!r} in {_called(tree.group_of.get(name, group))}"
    return views.why_not_add(state, spec)


def why_not_remove(tree: Tree, name: str) -> str:
    """Why this child cannot be removed, in OTP's word and ours; empty if it can."""
    group = tree.group_of.get(name, ROOT)
    return why_not_order(tree, name) or views.why_not_remove(tree.nodes[group], name)


def why_not_order(tree: Tree, name: str) -> str:
    """Why nobody would hear an order about this child; empty if its supervisor does."""
    group = tree.group_of.get(name, ROOT)
    if group == ROOT or tree.nodes[group].phase in SERVING:
        return ""
    return f"{name!r} cannot be given orders: {_condition(tree, group)}"


def why_not_reload(tree: Tree, spec: SupervisorSpec) -> str:
    """Why the whole tree cannot go on by ``spec``; empty if it can."""
    for group, wanted in [(ROOT, spec), *groups_in(spec)]:
        for one in wanted.children:
            there = tree.group_of.get(one.name, group)
            if there != group:
                return f"{one.name!r} is in {_called(there)} and cannot move to {_called(group)}"
        state = tree.nodes.get(group)
        if state is None:
            continue
        if state.phase is Phase.STOPPING or (group == ROOT and state.phase not in SERVING):
            return _condition(tree, group)
        why_not = views.why_not_reload(state, wanted)
        if why_not:
            return f"{_called(group)}: {why_not}" if group else why_not
    return ""


def _condition(tree: Tree, group: str) -> str:
    if group == ROOT:
        return f"{_called(group)} is {tree.nodes[group].phase.value}"
    return f"{_called(group)} is {child(tree, group).state.value}"


def _called(group: str) -> str:
    return f"group {group!r}" if group else "the outermost supervisor"
