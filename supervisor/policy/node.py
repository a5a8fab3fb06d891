"""One supervisor as one pure function: ``step(state, event, now_ns, chance) -> (state, actions)``.

Nothing here, or below, looks at a clock, rolls dice or does anything: the same state, event, time and chance
give the same answer, so any run can be replayed from its events. ``step`` never raises, whatever the order
of events: one that makes no sense is reported as ``Impossible`` and changes nothing, because the supervisor
is the last process that may die. Children that are supervisors themselves are nothing special here: what
stands behind them is the business of ``supervisor.policy.tree``.

Two tables decide. ``PHASES`` says what an event means to the supervisor as a whole, and hands most of them on
to the child's own table in ``supervisor.policy.table``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import cast, get_args

from supervisor.policy.actions import Action, Forget
from supervisor.policy.draft import Draft, State
from supervisor.policy.ending import excuse, lost, refuse
from supervisor.policy.events import (
    Abort,
    AddChild,
    ChildEvent,
    Event,
    ExitKind,
    ExitReason,
    Gone,
    Refused,
    Reload,
    RemoveChild,
    RestartChild,
    SpawnFailed,
    Start,
    StartChild,
    Stop,
    StopChild,
    Tick,
    WorkerEvent,
)
from supervisor.policy.falling import abort, ask_stop, kill, shut_down
from supervisor.policy.records import (
    DeviceRemoved,
    DeviceStopped,
    Impossible,
    Outcome,
    OutcomeKind,
    SupervisorReady,
)
from supervisor.policy.rising import (
    FORK_PATIENCE_NS,
    build,
    come,
    expect_hello,
    fail,
    is_passing,
    no_longer_awaited,
    serve,
)
from supervisor.policy.spec import SupervisorSpec
from supervisor.policy.states import ChildState, Phase
from supervisor.policy.strategy import make_plan
from supervisor.policy.table import TABLE, After, Child, Do
from supervisor.policy.views import why_not_add, why_not_reload

__all__ = [
    "EVENTS",
    "PHASES",
    "PhaseDo",
    "initial",
    "step",
]


class PhaseDo(Enum):
    """What an event means to the whole supervisor. The value is what the documentation prints."""

    IGNORE = "–"
    IMPOSSIBLE = "impossible: recorded, nothing changes"
    BEGIN = "everything is wanted"
    SHUT_DOWN = "everything goes down, in order"
    ABORT = "everything is killed at once"
    RELOAD = "other rules from now on; nothing is started or stopped"
    DEADLINES = "the children whose deadline has passed"
    ADD = "a new child is wanted, the last in start order"
    CHILD = "the child's own table"


_OPERATOR = (StartChild, StopChild, RestartChild, RemoveChild)
_WORKER: tuple[type, ...] = get_args(WorkerEvent)
EVENTS: tuple[type, ...] = (Start, Stop, Abort, Reload, Tick, AddChild, *_OPERATOR, *_WORKER)


def _phase_row(
    *,
    start: PhaseDo = PhaseDo.IGNORE,
    stop: PhaseDo = PhaseDo.IGNORE,
    abort: PhaseDo = PhaseDo.IGNORE,
    reload: PhaseDo = PhaseDo.IGNORE,
    tick: PhaseDo = PhaseDo.IGNORE,
    add: PhaseDo = PhaseDo.IGNORE,
    asked: PhaseDo = PhaseDo.IGNORE,
    told: PhaseDo = PhaseDo.IGNORE,
) -> dict[type, PhaseDo]:
    return {
        Start: start,
        Stop: stop,
        Abort: abort,
        Reload: reload,
        Tick: tick,
        AddChild: add,
        **dict.fromkeys(_OPERATOR, asked),
        **dict.fromkeys(_WORKER, told),
    }


_SETTLED = frozenset({ChildState.DOWN, ChildState.FAILED, ChildState.FINISHED})
"""Without a process, and none is to come by itself."""

_P = PhaseDo
_SERVING = _phase_row(
    stop=_P.SHUT_DOWN,
    abort=_P.ABORT,
    reload=_P.RELOAD,
    tick=_P.DEADLINES,
    add=_P.ADD,
    asked=_P.CHILD,
    told=_P.CHILD,
)
PHASES: dict[Phase, dict[type, PhaseDo]] = {
    Phase.IDLE: _phase_row(start=_P.BEGIN, stop=_P.SHUT_DOWN, abort=_P.SHUT_DOWN, told=_P.IMPOSSIBLE),
    Phase.STARTING: _SERVING,
    Phase.RUNNING: _SERVING,
    # Going down cannot be taken back, child by child or altogether; but it can be made quicker.
    Phase.STOPPING: _phase_row(abort=_P.ABORT, tick=_P.DEADLINES, told=_P.CHILD),
    Phase.ENDED: _phase_row(),
}


def initial(spec: SupervisorSpec, before: State | None = None, *, missed: bool = False) -> State:
    """The state before Start: every child DOWN, generation 0.

    ``before`` is what this supervisor was the last time: generations and restarts are counted on from there.
    ``missed`` says that it went away against everybody's wish, so that its children tell for how long.
    """
    plan = make_plan(spec)
    children = {name: Child() for name in plan.order}
    if before is not None:
        for name in children.keys() & before.children.keys():
            old = before.children[name]
            children[name] = Child(
                generation=old.generation,
                restarts=old.restarts,
                down_since_ns=old.down_since_ns if missed else None,
            )
    return State(plan=plan, phase=Phase.IDLE, children=children, awaited=len(children))


def step(state: State, event: Event, now_ns: int, chance: float) -> tuple[State, tuple[Action, ...]]:
    """One event at ``now_ns`` (monotonic), with a number ``chance`` in [0, 1) for whatever needs luck."""
    draft = Draft(state, now_ns, chance)
    match PHASES[state.phase][type(event)]:
        case PhaseDo.IGNORE:
            return state, ()
        case PhaseDo.IMPOSSIBLE:
            draft.report(Impossible(event, state.phase, at_ns=now_ns))
        case PhaseDo.BEGIN:
            _begin(draft)
        case PhaseDo.SHUT_DOWN:
            shut_down(draft, Outcome(OutcomeKind.STOPPED))
        case PhaseDo.ABORT:
            abort(draft, cast("Abort", event).why)
        case PhaseDo.RELOAD:
            _reload(draft, cast("Reload", event))
        case PhaseDo.DEADLINES:
            for name in draft.due():
                deadline_ns = draft.child(name).deadline_ns
                # The one before may have changed what this one was waiting for.
                if deadline_ns is not None and deadline_ns <= now_ns:
                    _child_step(draft, name, Tick())
        case PhaseDo.ADD:
            _add(draft, cast("AddChild", event))
        case PhaseDo.CHILD:
            _child_event(draft, cast("ChildEvent", event))
    _forget_ended(draft)
    return draft.freeze()


def _begin(draft: Draft) -> None:
    draft.phase = Phase.STARTING
    # Everybody is wanted before anybody comes: who comes first must find those who wait for it WAITING.
    for name in draft.plan.order:
        draft.change(name, state=ChildState.WAITING)
    for name in draft.plan.order:
        come(draft, name)
    if not draft.plan.order:
        draft.phase = Phase.RUNNING
        draft.report(SupervisorReady(at_ns=draft.now_ns))


def _add(draft: Draft, event: AddChild) -> None:
    if why_not_add(draft.base, event.spec):
        known = draft.base.children.get(event.name)
        state = None if known is None else known.state
        draft.report(Impossible(event, state, at_ns=draft.now_ns))
        return
    draft.add(event.spec)
    come(draft, event.name)


def _reload(draft: Draft, event: Reload) -> None:
    if why_not_reload(draft.base, event.spec):
        draft.report(Impossible(event, draft.phase, at_ns=draft.now_ns))
    else:
        draft.reload(event.spec)


def _forget_ended(draft: Draft) -> None:
    """Added children that came to an end in this step are forgotten, the dependents before what they need."""
    if draft.phase in (Phase.STOPPING, Phase.ENDED):
        return  # everything ends, and Finished has the last word
    for name in reversed(draft.ended):
        settled = draft.knows(name) and draft.child(name).state in _SETTLED
        if settled and not draft.plan.dependents[name]:
            _forget(draft, name)


def _forget(draft: Draft, name: str) -> None:
    child = draft.child(name)
    why = child.why if child.state is ChildState.FAILED else ""
    draft.report(DeviceRemoved(name, at_ns=draft.now_ns))
    draft.do(Forget(name, child.restarts, why))
    draft.remove(name)


def _child_event(draft: Draft, event: ChildEvent) -> None:
    name = event.name
    if name not in draft.plan.specs:
        draft.report(Impossible(event, None, at_ns=draft.now_ns))
        return
    if isinstance(event, WorkerEvent):
        known = draft.child(name)
        if event.generation < known.generation:
            return
        if event.generation > known.generation:
            draft.report(Impossible(event, known.state, at_ns=draft.now_ns))
            return
    _child_step(draft, name, event)


def _child_step(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    state = draft.child(name).state
    _DO[TABLE[state][type(event)].do](draft, name, event)


def _ignore(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    pass


def _impossible(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    draft.report(Impossible(event, draft.child(name).state, at_ns=draft.now_ns))


def _come(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    if not isinstance(event, Tick):  # by the operator: at once
        draft.change(name, not_before_ns=0)
        if draft.child(name).state is not ChildState.WAITING:  # back into service: with a clean slate
            draft.change(name, attempts=0, window=())
    come(draft, name)


def _rest(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    generation = draft.child(name).generation
    draft.change(
        name, state=ChildState.DOWN, deadline_ns=None, not_before_ns=0, down_since_ns=None, new=False
    )
    if generation:  # otherwise it never was anything that could be news
        draft.report(DeviceStopped(name, generation, at_ns=draft.now_ns))
    if is_passing(draft, name):
        draft.ended.append(name)
    no_longer_awaited(draft, name)


def _remove(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    if draft.plan.dependents[name]:
        draft.report(Impossible(cast("RemoveChild", event), draft.child(name).state, at_ns=draft.now_ns))
    else:
        _forget(draft, name)


def _expect(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    expect_hello(draft, name)


def _build(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    build(draft, name)


def _serve(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    serve(draft, name)


def _leave(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    draft.change(name, after=After.DOWN)
    ask_stop(draft, name)


def _renew(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    if draft.child(name).after is None:  # otherwise it is on its way down with its siblings already
        draft.change(name, after=After.RESPAWN)
        ask_stop(draft, name)


def _refuse(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    refuse(draft, name, cast("Refused", event).why)


def _excuse(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    excuse(draft, name)


def _refuse_dying(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    if draft.child(name).after is None:
        refuse(draft, name, cast("Refused", event).why)


def _refuse_late(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    fail(draft, name, cast("Refused", event).why)


_OVERDUE = {
    ChildState.SPAWNING: "no Hello within hello_timeout",
    ChildState.BUILDING: "no Ready within start_timeout",
    ChildState.STOPPING: "not gone within stop_timeout",
}


def _kill(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    child = draft.child(name)
    if not isinstance(event, Tick):
        why = "alive but silent"
    elif child.state is ChildState.SPAWNING and not child.forked:
        why = f"no process within {FORK_PATIENCE_NS / 1e9:g} s"
    else:
        why = _OVERDUE[child.state]
    kill(draft, name, why)


def _stay_down(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    if draft.child(name).after is not After.FAILED:
        draft.change(name, after=After.DOWN)


def _return(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    # With no decision yet its end is a crash, which no operator's wish may keep from being charged.
    if draft.child(name).after in (After.DOWN, After.FINISHED):
        draft.change(name, after=After.RESPAWN, not_before_ns=0)


def _lost(draft: Draft, name: str, event: ChildEvent | Tick) -> None:
    if isinstance(event, Gone):
        lost(draft, name, event.exit, charged=event.charged)
    else:
        why = cast("SpawnFailed", event).why
        lost(draft, name, ExitReason(ExitKind.UNKNOWN, detail=why), charged=True)


_DO: dict[Do, Callable[[Draft, str, ChildEvent | Tick], None]] = {
    Do.IGNORE: _ignore,
    Do.IMPOSSIBLE: _impossible,
    Do.COME: _come,
    Do.REMOVE: _remove,
    Do.REST: _rest,
    Do.EXPECT: _expect,
    Do.BUILD: _build,
    Do.SERVE: _serve,
    Do.LEAVE: _leave,
    Do.RENEW: _renew,
    Do.REFUSE: _refuse,
    Do.REFUSE_DYING: _refuse_dying,
    Do.REFUSE_LATE: _refuse_late,
    Do.EXCUSE: _excuse,
    Do.KILL: _kill,
    Do.STAY_DOWN: _stay_down,
    Do.RETURN: _return,
    Do.LOST: _lost,
}
