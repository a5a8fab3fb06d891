"""What the end of a process leads to: OTP's rules, in the order in which they are asked.

1. Was the end decided beforehand (asked to stop, swept, refused)? Then it becomes what was decided.
2. Did it fail in the very first start? Then the start has failed, and everything goes down. Was it added and
   has not been ready yet? Then its start has failed, and it is forgotten.
3. Does its exit status prevent a restart, and was the end unclean? Then it has failed.
4. Does its restart type want no other, and its exit status not force one? Then it is finished, and may end
   the supervisor if significant.
5. Was it a chaos monkey's doing? Then it restarts at once, with its siblings, and nothing is charged.
6. Is the budget spent? Then the supervisor gives up, or gives up this one.
7. Otherwise it restarts, with its siblings, after its backoff.
"""

from __future__ import annotations

from supervisor.policy.backoff import delay_ns, is_healthy, spread_ns
from supervisor.policy.draft import Draft
from supervisor.policy.events import ExitReason
from supervisor.policy.falling import advance_sweep, ask_stop, shut_down, sweep_siblings
from supervisor.policy.intensity import charge
from supervisor.policy.records import (
    DeviceDied,
    DeviceRestarting,
    DeviceStopped,
    GaveUp,
    Outcome,
    OutcomeKind,
)
from supervisor.policy.rising import come, fail, is_passing, no_longer_awaited, wake_dependents
from supervisor.policy.spec import AutoShutdown, OnGiveUp, Restart
from supervisor.policy.states import ALIVE, ChildState, Phase
from supervisor.policy.strategy import affected
from supervisor.policy.table import After

__all__ = ["excuse", "lost", "refuse"]


def lost(draft: Draft, name: str, exit_reason: ExitReason, *, charged: bool) -> None:
    """The process is gone: decides what becomes of the child and goes on with a sweep."""
    child = draft.child(name)
    after = child.after
    healthy = is_healthy(draft.spec(name).backoff, child.ready_at_ns, draft.now_ns)
    draft.change(
        name,
        state=ChildState.WAITING,  # whatever it becomes, it has no process from here on
        deadline_ns=None,
        ready_at_ns=None,
        after=None,
        attempts=0 if healthy else child.attempts,
        down_since_ns=draft.now_ns if child.down_since_ns is None else child.down_since_ns,
    )
    if after is None:
        _ended_unasked(draft, name, exit_reason, charged=charged)
    else:
        _ended_as_decided(draft, name, after)
    advance_sweep(draft, gone=name)


def refuse(draft: Draft, name: str, why: str) -> None:
    """A restart cannot help: the process is ended, and in the very first start the start with it."""
    child = draft.child(name)
    draft.change(name, after=After.FAILED, why=why)
    if child.state is not ChildState.KILLING:
        ask_stop(draft, name)
    if _is_first_start(draft, name):
        shut_down(draft, Outcome(OutcomeKind.START_FAILED, name, f"{name!r}: {why}"))


def excuse(draft: Draft, name: str) -> None:
    """There is nothing for this child to do: OTP's ignore. It ends, and nobody misses it."""
    draft.change(name, after=After.FINISHED)
    ask_stop(draft, name)


def _is_first_start(draft: Draft, name: str) -> bool:
    return draft.phase is Phase.STARTING and draft.child(name).awaited


def _ended_as_decided(draft: Draft, name: str, after: After) -> None:
    generation = draft.child(name).generation
    if after is After.FAILED:
        fail(draft, name, draft.child(name).why)
        return
    draft.report(DeviceStopped(name, generation, at_ns=draft.now_ns))
    match after:
        case After.DOWN:
            _settle(draft, name, ChildState.DOWN)
        case After.FINISHED:
            _settle(draft, name, ChildState.FINISHED)
            wake_dependents(draft, name)
        case After.GROUP:
            pass  # it waits, and comes when the sweep that asked for it is over
        case After.RESPAWN:
            come(draft, name)


def _settle(draft: Draft, name: str, state: ChildState) -> None:
    """The child is where it stays: nobody misses it, and the first start does not wait for it."""
    going = draft.phase is Phase.STOPPING  # with a group that may come back: then it is missed meanwhile
    down_since_ns = draft.child(name).down_since_ns if going else None
    draft.change(name, state=state, down_since_ns=down_since_ns, not_before_ns=0, new=False)
    if is_passing(draft, name):
        draft.ended.append(name)
    no_longer_awaited(draft, name)


def _ended_unasked(draft: Draft, name: str, exit_reason: ExitReason, *, charged: bool) -> None:
    spec = draft.spec(name)
    child = draft.child(name)
    generation = child.generation
    clean = exit_reason.clean(spec)
    prevented = exit_reason.status in spec.prevent_restart
    stays_down = exit_reason.status not in spec.force_restart and (
        spec.restart is Restart.TEMPORARY or (clean and (prevented or spec.restart is Restart.TRANSIENT))
    )

    def died(*, counts: bool) -> None:
        draft.report(DeviceDied(name, generation, exit_reason, counts, at_ns=draft.now_ns))

    # A clean end before Ready, of a child that need not come back, is OTP's "ignore" and fails nothing.
    if charged and _is_first_start(draft, name) and not (stays_down and clean):
        died(counts=False)
        draft.change(name, state=ChildState.FAILED, why=str(exit_reason), down_since_ns=None)
        shut_down(
            draft, Outcome(OutcomeKind.START_FAILED, name, f"{name!r} {exit_reason} before it was ready")
        )
    elif charged and child.new and not (stays_down and clean):
        died(counts=False)
        fail(draft, name, f"{exit_reason} before it was ready")
    elif prevented and not clean:
        died(counts=False)
        fail(draft, name, f"{exit_reason}, which prevents a restart")
        _end_of_significant(draft, name)
    elif stays_down:
        if clean:
            draft.report(DeviceStopped(name, generation, at_ns=draft.now_ns))
        else:
            died(counts=False)
        _settle(draft, name, ChildState.FINISHED)
        _end_of_significant(draft, name)
        if draft.phase is not Phase.STOPPING:
            wake_dependents(draft, name)
    elif not charged:
        died(counts=False)
        draft.change(name, not_before_ns=0)
        _restart(draft, name, 0)
    else:
        died(counts=True)
        _restart_within_budget(draft, name)


def _restart_within_budget(draft: Draft, name: str) -> None:
    spec = draft.plan.spec
    child = draft.child(name)
    isolates = spec.on_give_up is OnGiveUp.ISOLATE
    # Isolation judges each device by its own deaths: with one common budget, a device that died once would
    # be given up for what another one has spent.
    window, over = charge(
        child.window if isolates else draft.window,
        draft.now_ns,
        intensity=spec.intensity,
        period_ns=spec.period_ns,
    )
    if isolates:
        draft.change(name, window=() if over else window)
    else:
        draft.window = window
    if over:
        seconds = spec.period_ns / 1e9
        why = f"died, and the {spec.intensity} restarts that are allowed within {seconds:g} s are used up"
        if isolates:
            fail(draft, name, why)
            return
        draft.change(name, state=ChildState.FAILED, why=why)
        draft.report(GaveUp(name, len(window), spec.period_ns, at_ns=draft.now_ns))
        shut_down(draft, Outcome(OutcomeKind.GAVE_UP, name, f"{name!r} {why}"))
        return
    backoff = draft.spec(name).backoff
    wait_ns = delay_ns(backoff, child.attempts, draft.chance)
    wait_ns = min(wait_ns + spread_ns(backoff, _died_with_it(draft), draft.chance), backoff.max_ns)
    draft.change(name, attempts=child.attempts + 1, not_before_ns=draft.now_ns + wait_ns)
    _restart(draft, name, wait_ns)


def _died_with_it(draft: Draft) -> int:
    """How many others have died in this very instant; counts this one."""
    at_ns, deaths = draft.crowd
    others = deaths if at_ns == draft.now_ns else 0
    draft.crowd = (draft.now_ns, others + 1)
    return others


def _restart(draft: Draft, name: str, wait_ns: int) -> None:
    """Restarts a child and whom the strategy restarts with it; the whole group waits for its delay."""
    child = draft.child(name)
    draft.report(DeviceRestarting(name, child.generation, wait_ns, at_ns=draft.now_ns))
    names = affected(draft.plan, name)
    if len(names) == 1 and not draft.is_held(name):
        come(draft, name)
        return
    for sibling in names:
        # A sibling whose own backoff is longer keeps it: it must not profit from somebody else's death.
        not_before_ns = max(draft.child(sibling).not_before_ns, child.not_before_ns)
        draft.change(sibling, not_before_ns=not_before_ns)
    sweep_siblings(draft, names)


def _end_of_significant(draft: Draft, name: str) -> None:
    auto_shutdown = draft.plan.spec.auto_shutdown
    if name not in draft.plan.significant or auto_shutdown is AutoShutdown.NEVER:
        return
    if auto_shutdown is AutoShutdown.ALL_SIGNIFICANT:
        # As in OTP: who has no process and waits for none does not count, however that came about.
        present = ALIVE | {ChildState.WAITING}
        if any(draft.child(other).state in present for other in draft.plan.significant):
            return
    shut_down(draft, Outcome(OutcomeKind.AUTO_SHUTDOWN, name, f"{name!r} was significant and has ended"))
