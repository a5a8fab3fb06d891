"""What the door asks before it adds or removes a child, or exchanges the rules, of one supervisor."""

from __future__ import annotations

from supervisor.policy.draft import State
from supervisor.policy.spec import AutoShutdown, ChildSpec, Strategy, SupervisorSpec
from supervisor.policy.states import ALIVE, ChildState, Phase

__all__ = ["SERVING", "why_not_add", "why_not_reload", "why_not_remove"]

SERVING = frozenset({Phase.STARTING, Phase.RUNNING})
"""The phases in which children come and go."""


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


def why_not_reload(state: State, spec: SupervisorSpec) -> str:
    """Why this supervisor cannot go on by ``spec``; empty if it can."""
    old = state.plan.spec
    dynamic = Strategy.SIMPLE_ONE_FOR_ONE
    if spec.strategy is not old.strategy and dynamic in (spec.strategy, old.strategy):
        return f"the strategy cannot become {spec.strategy.value} while it is {old.strategy.value}"
    named = {child.name: child for child in spec.children}
    for name, known in state.plan.specs.items():
        if name not in named:
            if known.significant and spec.auto_shutdown is AutoShutdown.NEVER:
                return f"{name!r} is significant and stays until it is removed, but auto_shutdown is never"
        elif (known.supervisor is None) is not (named[name].supervisor is None):
            return f"{name!r} cannot turn from a device into a group, or back, under the same name"
    return ""
