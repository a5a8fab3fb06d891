"""How children come: waiting, spawning, serving, and the failure that keeps them from it.

The one rule of this file: a child is spawned by ``come`` and nowhere else, and ``come`` looks at everything
that can hold a child back: siblings on their way down, its backoff, and what it depends on.
"""

from __future__ import annotations

from supervisor.policy.actions import Spawn
from supervisor.policy.draft import Draft
from supervisor.policy.records import (
    DeviceFailed,
    DeviceReady,
    DeviceRestarted,
    DeviceStarting,
    SupervisorReady,
)
from supervisor.policy.spec import Restart, Strategy
from supervisor.policy.states import ChildState, Phase

__all__ = [
    "FORK_PATIENCE_NS",
    "build",
    "come",
    "expect_hello",
    "fail",
    "is_passing",
    "no_longer_awaited",
    "serve",
    "wake_dependents",
]

FORK_PATIENCE_NS = 60_000_000_000
"""How long a process may take to come into being. No device's fault and so no device's deadline: the zygote
imports what is preloaded (a second or ten), then forks one after the other (hundreds on a busy machine); past
this, something is stuck."""

_THERE = frozenset({ChildState.READY, ChildState.FINISHED})
"""A dependency is there when it serves, or when it has done what it was for and ended by itself."""


def come(draft: Draft, name: str) -> None:
    """Spawns a child that has no process, or leaves it WAITING for whatever still holds it back."""
    child = draft.child(name)
    waiting = ChildState.WAITING
    if draft.is_held(name):
        draft.change(name, state=waiting, deadline_ns=None)
        return
    depends_on = [(target, draft.child(target).state) for target in draft.spec(name).depends_on]
    for target, state in depends_on:
        if state is ChildState.FAILED:
            fail(draft, name, f"depends on {target!r}, which has failed")
            return
    if child.not_before_ns > draft.now_ns:
        draft.change(name, state=waiting, deadline_ns=child.not_before_ns)
    elif any(state not in _THERE for _, state in depends_on):
        draft.change(name, state=waiting, deadline_ns=None)
    else:
        generation = child.generation + 1
        draft.change(
            name,
            state=ChildState.SPAWNING,
            generation=generation,
            deadline_ns=draft.now_ns + FORK_PATIENCE_NS,
            not_before_ns=0,
            forked=False,
            after=None,
            why="",
        )
        draft.do(Spawn(name, generation))
        draft.report(DeviceStarting(name, generation, at_ns=draft.now_ns))


def expect_hello(draft: Draft, name: str) -> None:
    """The process exists: its Hello is due. Told twice, the first time stands."""
    if not draft.child(name).forked:
        draft.change(name, forked=True, deadline_ns=draft.now_ns + draft.spec(name).hello_timeout_ns)


def build(draft: Draft, name: str) -> None:
    """The process said Hello: its Ready is due. A group has no deadline: each of its children has one."""
    spec = draft.spec(name)
    deadline_ns = draft.now_ns + spec.start_timeout_ns if spec.supervisor is None else None
    draft.change(name, state=ChildState.BUILDING, deadline_ns=deadline_ns)


def serve(draft: Draft, name: str) -> None:
    """The device serves: news, and the turn of those who depend on it."""
    child = draft.child(name)
    now_ns = draft.now_ns
    restarts = child.restarts + (child.down_since_ns is not None)
    draft.change(
        name,
        state=ChildState.READY,
        new=False,
        deadline_ns=None,
        ready_at_ns=now_ns,
        down_since_ns=None,
        restarts=restarts,
    )
    draft.report(DeviceReady(name, child.generation, restarts, at_ns=now_ns))
    if child.down_since_ns is not None:
        outage_ns = now_ns - child.down_since_ns
        draft.report(DeviceRestarted(name, child.generation, restarts, outage_ns, at_ns=now_ns))
    wake_dependents(draft, name)
    no_longer_awaited(draft, name)


def wake_dependents(draft: Draft, name: str) -> None:
    """Gives those who wait for nothing but their dependencies another try."""
    for dependent in draft.plan.dependents[name]:
        child = draft.child(dependent)
        if child.state is ChildState.WAITING and child.deadline_ns is None:
            come(draft, dependent)


def fail(draft: Draft, name: str, why: str) -> None:
    """Takes a child that has no process out of service, and with it those who wait for it."""
    pending = [(name, why)]
    failed: set[str] = set()
    while pending:
        name, why = pending.pop()
        if name in failed:
            continue  # reached twice, over two dependencies
        failed.add(name)
        draft.change(
            name,
            state=ChildState.FAILED,
            deadline_ns=None,
            not_before_ns=0,
            down_since_ns=None,
            after=None,
            why=why,
        )
        draft.report(DeviceFailed(name, why, at_ns=draft.now_ns))
        child = draft.child(name)
        if (child.new and child.added) or is_passing(draft, name):  # or the configuration names it by now
            draft.ended.append(name)
        no_longer_awaited(draft, name)
        for dependent in reversed(draft.plan.dependents[name]):
            if draft.child(dependent).state is ChildState.WAITING:
                pending.append((dependent, f"depends on {name!r}, which has failed"))


def is_passing(draft: Draft, name: str) -> bool:
    """True for an added child that is temporary: as in OTP, nothing is kept of it once it has ended.

    One that the configuration names stays known: the configuration still names it. Of the children of a
    template nothing is ever kept, whatever their restart type.
    """
    of_template = draft.plan.spec.strategy is Strategy.SIMPLE_ONE_FOR_ONE
    return draft.child(name).added and (of_template or draft.spec(name).restart is Restart.TEMPORARY)


def no_longer_awaited(draft: Draft, name: str) -> None:
    """The first start need not wait for this child any longer; the last one to say so ends it."""
    if not draft.child(name).awaited:
        return
    draft.change(name, awaited=False)
    draft.awaited -= 1
    if draft.awaited == 0 and draft.phase is Phase.STARTING:
        draft.phase = Phase.RUNNING
        draft.report(SupervisorReady(at_ns=draft.now_ns))
