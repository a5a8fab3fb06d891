"""The state of one supervisor, and the working copy that one step writes on.

A ``State`` is frozen and its containers are never changed once it exists. A step works on a ``Draft``, which
copies a container when it first writes to it, so that a step costs one copy of what it touches and nothing
for the rest; a draft never outlives its step.

Deadlines are kept sorted, as ``(deadline_ns, position)``: the next one is looked up, not searched, and those
that fall together come up in start order.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from supervisor.policy.actions import Action, Report
from supervisor.policy.intensity import Window
from supervisor.policy.records import Outcome, Record
from supervisor.policy.spec import ChildSpec, SupervisorSpec
from supervisor.policy.states import Phase
from supervisor.policy.strategy import Plan, make_plan, with_child, without_child
from supervisor.policy.table import Child

__all__ = ["Draft", "State", "Sweep"]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Siblings on their way down together, one level of dependencies after the other.

    ``scope`` holds everybody the sweep is about: none of them is spawned before it is over. ``asked`` are
    those of the present level that are not gone yet; ``levels`` are the levels still to come.
    """

    scope: frozenset[str]
    asked: frozenset[str]
    levels: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class State:
    """Everything the policy remembers of one supervisor and its children."""

    plan: Plan
    phase: Phase
    children: Mapping[str, Child]
    deadlines: tuple[tuple[int, int], ...] = ()
    window: Window = ()
    sweep: Sweep | None = None
    outcome: Outcome | None = None
    """Why the supervisor is STOPPING or ENDED."""
    awaited: int = 0
    """How many children the first start still waits for."""
    crowd: tuple[int, int] = (0, 0)
    """The instant (ns) of the last charged death, and how many there were in it."""


class Draft:
    """A State being written, together with the actions of the step."""

    __slots__ = (
        "_children",
        "_deadlines",
        "actions",
        "awaited",
        "base",
        "chance",
        "crowd",
        "ended",
        "now_ns",
        "outcome",
        "phase",
        "plan",
        "sweep",
        "window",
    )

    def __init__(self, state: State, now_ns: int, chance: float) -> None:
        self.base = state
        self._children: dict[str, Child] | None = None
        self._deadlines: list[tuple[int, int]] | None = None
        self.actions: list[Action] = []
        self.awaited = state.awaited
        self.ended: list[str] = []  # added ones that are to be forgotten at the end of the step
        self.chance = chance
        self.crowd = state.crowd
        self.now_ns = now_ns
        self.outcome = state.outcome
        self.phase = state.phase
        self.plan = state.plan
        self.sweep = state.sweep
        self.window = state.window

    def child(self, name: str) -> Child:
        """The child as it stands in this draft."""
        return (self.base.children if self._children is None else self._children)[name]

    def spec(self, name: str) -> ChildSpec:
        """The child's specification."""
        return self.plan.specs[name]

    def change(self, name: str, **changes: Any) -> None:
        """Replaces fields of a child and keeps the sorted deadlines in step."""
        old = self.child(name)
        new = replace(old, **changes)
        self._own_children()[name] = new
        if old.deadline_ns != new.deadline_ns:
            deadlines = self._own_deadlines()
            position = self.plan.position[name]
            if old.deadline_ns is not None:
                del deadlines[bisect_left(deadlines, (old.deadline_ns, position))]
            if new.deadline_ns is not None:
                insort(deadlines, (new.deadline_ns, position))

    def knows(self, name: str) -> bool:
        """True if there is a child of this name."""
        return name in self.plan.specs

    def add(self, spec: ChildSpec) -> None:
        """A new child, DOWN, the last in start order."""
        self.plan = with_child(self.plan, spec)
        self._own_children()[spec.name] = Child(awaited=False, added=True, new=True)

    def remove(self, name: str) -> None:
        """Forgets a child that has neither process nor deadline, and on which no other depends."""
        self.plan = without_child(self.plan, name)
        del self._own_children()[name]
        sweep = self.sweep
        if sweep is not None:
            levels = tuple(tuple(one for one in level if one != name) for level in sweep.levels)
            self.sweep = Sweep(sweep.scope - {name}, sweep.asked - {name}, levels)

    def reload(self, spec: SupervisorSpec) -> None:
        """Other rules and specifications; children that ``spec`` does not name stay, as if added."""
        old = self.plan.specs
        named = {child.name for child in spec.children}
        kept = tuple(old[name] for name in self.plan.order if name not in named)
        self.plan = make_plan(spec, (*spec.children, *kept))
        children = self._own_children()
        for name in self.plan.order:
            known = children.get(name) or Child(awaited=False)
            children[name] = replace(known, added=name not in named)
        self._deadlines = sorted(
            (child.deadline_ns, self.plan.position[name])
            for name, child in children.items()
            if child.deadline_ns is not None
        )

    def due(self) -> list[str]:
        """The names whose deadline has passed, the earliest first."""
        deadlines = self.base.deadlines if self._deadlines is None else self._deadlines
        end = bisect_left(deadlines, (self.now_ns + 1, -1))
        plan = self.plan
        return [plan.order[plan.index(position)] for _, position in deadlines[:end]]

    def is_held(self, name: str) -> bool:
        """True if the child must not be spawned before its siblings are down."""
        return self.sweep is not None and name in self.sweep.scope

    def do(self, action: Action) -> None:
        """Orders an action."""
        self.actions.append(action)

    def report(self, record: Record) -> None:
        """Publishes a record."""
        self.actions.append(Report(record))

    def freeze(self) -> tuple[State, tuple[Action, ...]]:
        """The new state and the actions that lead to it."""
        base = self.base
        state = State(
            plan=self.plan,
            phase=self.phase,
            children=base.children if self._children is None else self._children,
            deadlines=base.deadlines if self._deadlines is None else tuple(self._deadlines),
            window=self.window,
            sweep=self.sweep,
            outcome=self.outcome,
            awaited=self.awaited,
            crowd=self.crowd,
        )
        return state, tuple(self.actions)

    def _own_children(self) -> dict[str, Child]:
        if self._children is None:
            self._children = dict(self.base.children)
        return self._children

    def _own_deadlines(self) -> list[tuple[int, int]]:
        if self._deadlines is None:
            self._deadlines = list(self.base.deadlines)
        return self._deadlines
