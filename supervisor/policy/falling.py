"""How children go: asked, killed, and swept down together in the reverse of the order they came.

There is at most one sweep. It goes down level by level: the next level is asked only when everybody in the
present one is gone. A second incident while siblings are on their way down widens the sweep, and the end of
the supervisor takes it over. When a sweep is over, either everything is down for good, or those of its scope
who are WAITING come back, in start order.
"""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.policy.actions import AskStop, Finished, Kill
from supervisor.policy.draft import Draft, Sweep
from supervisor.policy.records import DeviceKilled, DeviceStopped, Outcome, OutcomeKind, SupervisorStopped
from supervisor.policy.rising import come
from supervisor.policy.spec import Restart
from supervisor.policy.states import ALIVE, ChildState, Phase
from supervisor.policy.strategy import stop_levels
from supervisor.policy.table import After

__all__ = ["abort", "advance_sweep", "ask_stop", "kill", "shut_down", "sweep_siblings"]

_ASKABLE = frozenset({ChildState.SPAWNING, ChildState.BUILDING, ChildState.READY})


def ask_stop(draft: Draft, name: str) -> None:
    """Asks a process to end, within its stop timeout; 0 means that it is not asked but killed."""
    stop_timeout_ns = draft.spec(name).stop_timeout_ns
    if stop_timeout_ns == 0:
        kill(draft, name, "stopped by brutal_kill")
        return
    deadline_ns = None if stop_timeout_ns is None else draft.now_ns + stop_timeout_ns
    _stops_serving(draft, name, ChildState.STOPPING, deadline_ns)
    draft.do(AskStop(name, draft.child(name).generation))


def kill(draft: Draft, name: str, why: str) -> None:
    """Kills a process. There is no deadline after this: nobody can do more than wait until it is gone."""
    _stops_serving(draft, name, ChildState.KILLING, None)
    generation = draft.child(name).generation
    draft.do(Kill(name, generation, why))
    draft.report(DeviceKilled(name, generation, why, at_ns=draft.now_ns))


def _stops_serving(draft: Draft, name: str, state: ChildState, deadline_ns: int | None) -> None:
    """An outage begins when a served device stops serving, not when its process is gone."""
    child = draft.child(name)
    down_since_ns = draft.now_ns if child.state is ChildState.READY else child.down_since_ns
    draft.change(name, state=state, deadline_ns=deadline_ns, down_since_ns=down_since_ns)


def sweep_siblings(draft: Draft, names: Iterable[str]) -> None:
    """Takes ``names`` down together, to come back together; what a sweep already holds stays in it."""
    scope = frozenset(names)
    if draft.sweep is not None:
        scope |= draft.sweep.scope
    for name in scope:
        child = draft.child(name)
        restart = draft.spec(name).restart
        if child.state in ALIVE and child.after is None:
            # OTP's temporary_bystander: stopped on a sibling's account, and not restarted.
            after = After.FINISHED if restart is Restart.TEMPORARY else After.GROUP
            draft.change(name, after=after)
        elif child.state is ChildState.WAITING:
            draft.change(name, deadline_ns=None)
        elif child.state is ChildState.FINISHED and restart is Restart.TRANSIENT:
            # As in OTP, a group starts afresh with everybody whom it still knows.
            draft.change(name, state=ChildState.WAITING)
    _begin_sweep(draft, scope)


def shut_down(draft: Draft, outcome: Outcome) -> None:
    """Takes everything down for good; the first reason given stands."""
    if draft.phase in (Phase.STOPPING, Phase.ENDED):
        return
    draft.phase = Phase.STOPPING
    draft.outcome = outcome
    for name in draft.plan.order:
        _is_over_for(draft, name)
    _begin_sweep(draft, frozenset(draft.plan.order))


def _is_over_for(draft: Draft, name: str) -> None:
    """The supervisor is going down: whatever this child was to become, it is to be down."""
    child = draft.child(name)
    if child.state in ALIVE and child.after is not After.FAILED:
        draft.change(name, after=After.DOWN)
    elif child.state is ChildState.WAITING:
        # Since when it is missed stays known: a group that comes back tells how long it was away.
        draft.change(name, state=ChildState.DOWN, deadline_ns=None)
        if child.generation:
            draft.report(DeviceStopped(name, child.generation, at_ns=draft.now_ns))


def abort(draft: Draft, why: str) -> None:
    """Kills everybody at once and for good, also those who are being asked; a reason given before stands."""
    draft.phase = Phase.STOPPING
    draft.outcome = draft.outcome or Outcome(OutcomeKind.STOPPED)
    alive = [name for name in reversed(draft.plan.order) if draft.child(name).state in ALIVE]
    for name in draft.plan.order:
        _is_over_for(draft, name)
    for name in alive:
        if draft.child(name).state is not ChildState.KILLING:
            kill(draft, name, why)
    draft.sweep = Sweep(frozenset(draft.plan.order), frozenset(alive), ())
    advance_sweep(draft)


def _begin_sweep(draft: Draft, scope: frozenset[str]) -> None:
    alive = [name for name in scope if draft.child(name).state in ALIVE]
    draft.sweep = Sweep(scope, frozenset(), stop_levels(draft.plan, alive))
    advance_sweep(draft)


def advance_sweep(draft: Draft, gone: str | None = None) -> None:
    """Goes on with the sweep, if there is one, now that ``gone`` has no process any more."""
    sweep = draft.sweep
    if sweep is None:
        return
    asked = sweep.asked if gone is None else sweep.asked - {gone}
    levels = sweep.levels
    while not asked and levels:
        alive = [name for name in levels[0] if draft.child(name).state in ALIVE]
        asked = frozenset(alive)
        levels = levels[1:]
        for name in alive:
            if draft.child(name).state in _ASKABLE:
                ask_stop(draft, name)
    if asked:
        draft.sweep = Sweep(sweep.scope, asked, levels)
        return
    draft.sweep = None
    if draft.phase is Phase.STOPPING:
        _end(draft)
        return
    for name in sorted(sweep.scope, key=draft.plan.position.__getitem__):
        if draft.child(name).state is ChildState.WAITING:
            come(draft, name)


def _end(draft: Draft) -> None:
    draft.phase = Phase.ENDED
    outcome = draft.outcome or Outcome(OutcomeKind.STOPPED)
    draft.report(SupervisorStopped(outcome, at_ns=draft.now_ns))
    draft.do(Finished(outcome))
