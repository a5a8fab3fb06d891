"""What outsiders may ask of a state, and what the door asks before it adds or removes a child."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.policy.draft import State
from supervisor.policy.spec import AutoShutdown, ChildSpec
from supervisor.policy.states import ALIVE, ChildState, Phase

__all__ = [
    "ChildView",
    "Counts",
    "child",
    "children",
    "count",
    "next_deadline_ns",
    "phase",
    "why_not_add",
    "why_not_remove",
]


@dataclass(frozen=True, slots=True)
class ChildView:
    """What outsiders may know of one child. ``why`` is set while it is FAILED."""

    name: str
    state: ChildState
    generation: int
    restarts: int
    why: str


@dataclass(frozen=True, slots=True)
class Counts:
    """As OTP counts: ``specs`` are all children, ``active`` those that have a process.

    ``workers`` counts like ``specs``, whether they have a process or not; there are no ``supervisors`` yet.
    """

    specs: int
    active: int
    supervisors: int
    workers: int


def next_deadline_ns(state: State) -> int | None:
    """When a Tick is due (on the clock of ``now_ns``), or None if nothing waits for time. Costs a look-up."""
    return state.deadlines[0][0] if state.deadlines else None


def phase(state: State) -> Phase:
    """Where the whole supervisor is in its life."""
    return state.phase


def child(state: State, name: str) -> ChildView:
    """A view of one child; KeyError if there is none of that name."""
    known = state.children[name]
    why = known.why if known.state is ChildState.FAILED else ""
    return ChildView(name, known.state, known.generation, known.restarts, why)


def children(state: State) -> tuple[ChildView, ...]:
    """All children, the newest first, as OTP's ``which_children`` has them."""
    return tuple(child(state, name) for name in reversed(state.plan.order))


def count(state: State) -> Counts:
    """How many there are, as OTP's ``count_children`` has it."""
    specs = len(state.children)
    active = sum(known.state in ALIVE for known in state.children.values())
    return Counts(specs=specs, active=active, supervisors=0, workers=specs)


def why_not_add(state: State, spec: ChildSpec) -> str:
    """Why this child cannot be added, in OTP's word and ours; empty if it can."""
    name = spec.name
    known = state.children.get(name)
    if known is not None:
        word = "already_started" if known.state in ALIVE else "already_present"
        return f"{word}: there is a {name!r}, and it is {known.state.value}"
    # With nobody to bring it up while somebody waits for this one, the wait would have no end.
    for target in spec.depends_on:
        there = state.children.get(target)
        if there is None:
            return f"child {name!r} depends on {target!r}, which is not there"
        if there.state in (ChildState.DOWN, ChildState.FAILED):
            return f"child {name!r} depends on {target!r}, which is {there.state.value}"
    if spec.significant and state.plan.spec.auto_shutdown is AutoShutdown.NEVER:
        return f"child {name!r} is significant, but auto_shutdown is never"
    return ""


def why_not_remove(state: State, name: str) -> str:
    """Why this child cannot be removed, in OTP's word and ours; empty if it can."""
    known = state.children.get(name)
    if known is None:
        return f"not_found: there is no {name!r}"
    if known.state in ALIVE:
        return f"running: {name!r} is {known.state.value}"
    if known.state is ChildState.WAITING:
        return f"restarting: {name!r} is {known.state.value}"
    dependents = state.plan.dependents[name]
    if dependents:
        return f"{dependents[0]!r} depends on {name!r}"
    return ""
