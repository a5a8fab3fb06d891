"""Erlang/OTP's own supervisor suite, as far as it concerns decisions, under OTP's names.

Each test is called ``test_`` and the name of the case it restates. What OTP starts by a function that
returns, starts here by a process that says Ready; what ends there for the reason ``normal`` or ``shutdown``,
exits here with a clean code. The list of all cases, and the tests on real processes, are in
``tests/test_otp_suite.py``.
"""

from __future__ import annotations

import pytest

from supervisor.errors import LocalError
from supervisor.policy import (
    AutoShutdown,
    BackoffSpec,
    ChildSpec,
    Counts,
    OnGiveUp,
    Phase,
    Restart,
    Strategy,
    SupervisorSpec,
    children,
    count,
    why_not_add,
    why_not_remove,
)
from supervisor.policy.actions import Finished, Forget
from supervisor.policy.events import (
    AddChild,
    ExitReason,
    RemoveChild,
    RestartChild,
    Start,
    StartChild,
    Stop,
    StopChild,
)
from supervisor.policy.records import DeviceStopped, GaveUp, Impossible, OutcomeKind, SupervisorReady
from tests.policy.fake import CLEAN, CRASH, KILLED, MS, Rig, S, asked, kills, orders, records, spawns, spec_of

STATIC = [one for one in Strategy if one is not Strategy.SIMPLE_ONE_FOR_ONE]
AT_ONCE = BackoffSpec(max_ns=0)


def _child(name: str, restart: Restart = Restart.PERMANENT, **options: object) -> ChildSpec:
    return ChildSpec(name, restart, backoff=AT_ONCE, **options)  # type: ignore[arg-type]


def _started(*children: ChildSpec, **options: object) -> Rig:
    rig = Rig(spec_of(*children, **options))
    rig.start()
    return rig


def _add(rig: Rig, child: ChildSpec) -> None:
    """start_child, successful."""
    rig.send(AddChild(child))
    rig.settle_only(child.name)


def _gone_all(rig: Rig) -> None:
    """Lets everybody who is asked go, until the supervisor has ended."""
    rig.obey()
    assert rig.outcome is not None


# start


def test_sup_start_normal() -> None:
    """An empty supervisor starts and stops."""
    rig = Rig(SupervisorSpec())
    assert [type(record) for record in records(rig.send(Start()))] == [SupervisorReady]
    assert isinstance(rig.stop()[-1], Finished)


@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
def test_sup_start_ignore_child(restart: Restart) -> None:
    """A child that ends cleanly before it is ready, and need not come back, does not fail the start."""
    rig = Rig(spec_of(_child("a", restart), "b"))
    rig.send(Start())
    rig.gone("a", CLEAN)
    rig.settle()
    assert rig.states() == {"a": "finished", "b": "ready"}
    assert rig.state.phase is Phase.RUNNING


@pytest.mark.parametrize("restart", Restart)
def test_sup_start_fail(restart: Restart) -> None:
    """A child that dies in the first start ends the start, whatever its restart type; the rest is stopped."""
    rig = Rig(spec_of("a", _child("b", restart, depends_on=("a",)), intensity=100))
    rig.send(Start())
    rig.settle_only("a")
    assert asked(rig.gone("b", CRASH)) == ["a"]
    _gone_all(rig)
    assert rig.outcome is not None
    assert (rig.outcome.kind, rig.outcome.culprit) == (OutcomeKind.START_FAILED, "b")
    assert rig.outcome.why == "'b' exited with code 1 before it was ready"


# stop


def test_sup_stop_infinity() -> None:
    """A child with no stop timeout is asked and waited for, for ever."""
    rig = _started(_child("a", stop_timeout_ns=None))
    rig.stop()
    assert rig.wait(1_000_000 * S) == []
    _gone_all(rig)


def test_sup_stop_timeout() -> None:
    """A child that ignores the stop is killed after its timeout; its obedient sibling is not."""
    rig = _started(_child("a", stop_timeout_ns=S), _child("b"))
    assert asked(rig.stop()) == ["b", "a"]
    rig.gone("b", CLEAN)
    assert kills(rig.wait(S - 1)) == []
    assert kills(rig.wait(1)) == ["a"]
    assert rig.outcome is None
    rig.gone("a", KILLED)
    assert rig.outcome is not None


def test_sup_stop_brutal_kill() -> None:
    """A brutal_kill child is killed at once, its sibling is asked."""
    rig = _started(_child("a", stop_timeout_ns=0), _child("b"))
    actions = rig.stop()
    assert (asked(actions), kills(actions)) == (["b"], ["a"])


@pytest.mark.parametrize("restart", Restart)
@pytest.mark.parametrize("reason", [CLEAN, CRASH, KILLED])
def test_sup_stop_race(restart: Restart, reason: object) -> None:
    """Nobody who dies by himself during the stop is restarted, and the stop ends."""
    rig = _started(_child("a", restart), _child("b", restart, depends_on=("a",)))
    rig.stop()
    assert spawns(rig.gone("a", reason)) == []  # type: ignore[arg-type]
    assert spawns(rig.gone("b", reason)) == []  # type: ignore[arg-type]
    assert rig.outcome is not None
    assert rig.outcome.kind is OutcomeKind.STOPPED


# administration


def test_child_adm() -> None:
    """Stop, start and restart of one child by the operator; each is idempotent and charged to nothing."""
    rig = _started(_child("a"), intensity=0)
    assert asked(rig.send(StopChild("a"))) == ["a"]
    assert rig.send(StopChild("a")) == []
    rig.gone("a", CRASH)
    assert rig.states() == {"a": "down"}
    assert rig.send(StopChild("a")) == []
    assert spawns(rig.send(StartChild("a"))) == ["a"]
    rig.settle()
    assert rig.send(StartChild("a")) == []
    assert asked(rig.send(RestartChild("a"))) == ["a"]
    assert rig.send(RestartChild("a")) == []
    assert spawns(rig.gone("a", KILLED)) == ["a"]
    rig.settle()
    assert rig.states() == {"a": "ready"}


def test_child_adm_add_and_remove() -> None:
    """start_child and delete_child: every error, counts right at every step, and the name is free again."""
    rig = _started(_child("a"))
    assert why_not_add(rig.tree, _child("a")).startswith("already_started")
    assert why_not_remove(rig.tree, "b").startswith("not_found")
    assert spawns(rig.send(AddChild(_child("b")))) == ["b"]
    rig.settle()
    assert why_not_remove(rig.tree, "b").startswith("running")
    assert count(rig.tree) == Counts(specs=2, active=2, supervisors=0, workers=2)
    rig.send(StopChild("b"))
    rig.gone("b", CLEAN)
    assert why_not_add(rig.tree, _child("b")).startswith("already_present")
    assert count(rig.tree) == Counts(specs=2, active=1, supervisors=0, workers=2)
    assert orders(rig.send(RemoveChild("b"))) == [Forget("b", 0)]
    assert count(rig.tree) == Counts(specs=1, active=1, supervisors=0, workers=1)
    _add(rig, _child("b"))
    assert rig.generations() == {"a": 1, "b": 1}


def test_child_adm_refused_at_the_door_changes_nothing() -> None:
    """Who asks all the same is recorded, and nothing changes."""
    rig = _started(_child("a"), _child("b", depends_on=("a",)))
    for event in (AddChild(_child("a")), AddChild(_child("c", depends_on=("x",))), RemoveChild("a")):
        before = rig.state
        assert [type(one) for one in records(rig.send(event))] == [Impossible]
        assert rig.state == before


def test_child_adm_what_another_depends_on_is_not_removed() -> None:
    """First the dependent, then what it needs."""
    rig = _started(_child("a"), _child("b", depends_on=("a",)))
    for name in ("b", "a"):
        rig.send(StopChild(name))
        rig.gone(name, CLEAN)
    assert why_not_remove(rig.tree, "a") == "'b' depends on 'a'"
    rig.send(RemoveChild("b"))
    rig.send(RemoveChild("a"))
    assert rig.states() == {}


@pytest.mark.parametrize("restart", Restart)
def test_sup_start_child_returns_error(restart: Restart) -> None:
    """An added child that dies before it is ready is forgotten, and charged to nobody."""
    rig = _started(_child("a"), intensity=0, strategy=Strategy.ONE_FOR_ALL)
    rig.send(AddChild(_child("b", restart)))
    assert orders(rig.gone("b", CRASH)) == [Forget("b", 0)]
    assert rig.states() == {"a": "ready"}


def test_sup_start_child_refused_is_forgotten() -> None:
    """The same where the device refuses its options."""
    rig = _started(_child("a"))
    rig.send(AddChild(_child("b")))
    rig.hello("b")
    assert asked(rig.refused("b")) == ["b"]
    assert orders(rig.gone("b", CLEAN)) == [Forget("b", 0)]


def test_sup_start_child_whose_dependency_fails_is_forgotten() -> None:
    """Who is added while what it depends on restarts waits for it, and goes with it."""
    rig = _started(_child("a"))
    rig.gone("a", KILLED)
    assert spawns(rig.send(AddChild(_child("b", depends_on=("a",))))) == []
    rig.hello("a")
    rig.refused("a")
    assert orders(rig.gone("a", CLEAN)) == [Forget("b", 0)]
    assert rig.states() == {"a": "failed"}


@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
def test_sup_start_ignore_temporary_child_start_child(restart: Restart) -> None:
    """An added child that ends cleanly before it is ready: only a temporary one is forgotten."""
    rig = _started(_child("a"))
    rig.send(AddChild(_child("b", restart)))
    rig.gone("b", CLEAN)
    assert ("b" in rig.states()) == (restart is Restart.TRANSIENT)


@pytest.mark.parametrize("reason", [KILLED, CLEAN, CRASH, None])
def test_do_not_save_child_specs_for_temporary_children(reason: ExitReason | None) -> None:
    """However an added temporary child ends, its name is free again."""
    rig = _started(_child("a"))
    _add(rig, _child("b", Restart.TEMPORARY))
    if reason is None:
        rig.send(StopChild("b"))
    rig.gone("b", reason or CLEAN)
    assert not why_not_add(rig.tree, _child("b"))


def test_count_children() -> None:
    """A thousand, then two thousand added children are counted and listed, newest first; then none."""
    rig = _started()
    names = [f"c{number}" for number in range(2000)]
    for number, name in enumerate(names, start=1):
        _add(rig, _child(name, Restart.TEMPORARY))
        if number % 1000 == 0:
            assert count(rig.tree) == Counts(specs=number, active=number, supervisors=0, workers=number)
    assert [one.name for one in children(rig.tree)] == names[::-1]
    for name in names:
        rig.gone(name, KILLED)
    assert count(rig.tree) == Counts(specs=0, active=0, supervisors=0, workers=0)


def test_added_children_follow_strategy_and_order() -> None:
    """Those added are the last in start order, and restart and stop as their place says."""
    rig = _started(_child("a"), _child("b"), strategy=Strategy.REST_FOR_ONE, intensity=9)
    _add(rig, _child("c"))
    rig.send(StopChild("b"))
    rig.gone("b", CLEAN)
    rig.send(RemoveChild("b"))
    _add(rig, _child("d", depends_on=("c",)))
    assert asked(rig.gone("a")) == ["d"]
    rig.obey()
    rig.settle()
    assert rig.generations() == {"a": 2, "c": 2, "d": 2}
    rig.gone("d")
    rig.settle()
    assert rig.generations() == {"a": 2, "c": 2, "d": 3}
    assert asked(rig.stop()) == ["d"]
    assert asked(rig.gone("d", CLEAN)) == ["c", "a"]


def test_removed_from_a_group_on_its_way_down() -> None:
    """A child stopped and removed while its siblings go down is not missed when they come back."""
    rig = _started(_child("a"), _child("b"), _child("c"), strategy=Strategy.ONE_FOR_ALL, intensity=9)
    rig.gone("a")
    rig.send(StopChild("a"))
    rig.send(RemoveChild("a"))
    rig.obey()
    rig.settle()
    assert rig.states() == {"b": "ready", "c": "ready"}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"name": ""}, "a child has no name"),
        ({"start_timeout_ns": 0}, "child 'a': start_timeout_ns is 0, but must be at least 1"),
        ({"stop_timeout_ns": -1}, "child 'a': stop_timeout_ns is -1, but must be at least 0"),
        (
            {"significant": True},
            "child 'a': a permanent child cannot be significant; make it transient or temporary",
        ),
        ({"depends_on": ("b",)}, "child 'a' depends on 'b', which is not there"),
        ({"depends_on": ("a",)}, "children depend on each other in a circle: a → a"),
    ],
)
def test_child_specs(options: dict[str, object], what: str) -> None:
    """A child that cannot be is refused, and named."""
    with pytest.raises(LocalError) as caught:
        spec_of(ChildSpec(**{"name": "a", **options}))  # type: ignore[arg-type]
    assert str(caught.value) == what


def test_child_specs_doubled_name() -> None:
    """Two children of one name are refused."""
    with pytest.raises(LocalError, match="'a' is named 2 times"):
        spec_of("a", "a")


def test_child_specs_map_significant_and_never() -> None:
    """A significant child where nothing comes of it is refused."""
    with pytest.raises(LocalError, match="'a' is significant, but auto_shutdown is never"):
        spec_of(_child("a", Restart.TRANSIENT, significant=True))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"intensity": -1}, "supervisor: intensity is -1, but must be at least 0"),
        ({"period_ns": 0}, "supervisor: period_ns is 0, but must be at least 1"),
    ],
)
def test_sup_flags(options: dict[str, int], what: str) -> None:
    """A budget that cannot be is refused."""
    with pytest.raises(LocalError) as caught:
        SupervisorSpec(**options)  # type: ignore[arg-type]
    assert str(caught.value) == what


# restarts


def test_multiple_restarts() -> None:
    """Restarts spaced to stay inside the budget go on for ever: the window slides."""
    rig = _started(_child("a"), intensity=1, period_ns=S)
    for _ in range(20):
        rig.now_ns += S // 2 + 1
        rig.gone("a")
        rig.settle()
        rig.now_ns += S // 2
    assert rig.states() == {"a": "ready"}


def test_one_for_one() -> None:
    """Only the dead child is replaced; the third death at intensity 2 ends the supervisor."""
    rig = _started(_child("a"), _child("b"), intensity=2)
    for _ in range(2):
        assert spawns(rig.gone("a")) == ["a"]
        rig.settle()
    assert rig.generations() == {"a": 3, "b": 1}
    actions = rig.gone("a")
    assert GaveUp("a", 3, 10 * S, at_ns=0) in records(actions)
    assert asked(actions) == ["b"]
    _gone_all(rig)
    assert rig.outcome is not None
    assert (rig.outcome.kind, rig.outcome.culprit) == (OutcomeKind.GAVE_UP, "a")


@pytest.mark.parametrize("strategy", STATIC)
def test_one_for_one_escalation(strategy: Strategy) -> None:
    """Restart attempts that fail use up the budget, whatever the strategy."""
    rig = _started(_child("a"), _child("b"), intensity=4, strategy=strategy)
    rig.gone("a")
    rig.obey()
    attempts = 0
    while rig.state.phase is Phase.RUNNING:
        rig.spawn_failed("a")
        rig.obey()
        attempts += 1
    assert attempts == 4
    _gone_all(rig)


def test_one_for_all() -> None:
    """Everybody is stopped, then everybody is replaced, and the budget counts one."""
    rig = _started(_child("a"), _child("b"), _child("c"), intensity=1, strategy=Strategy.ONE_FOR_ALL)
    actions = rig.gone("b")
    assert (asked(actions), spawns(actions)) == (["c", "a"], [])
    assert spawns(rig.gone("a", CLEAN)) == []
    assert spawns(rig.gone("c", CLEAN)) == ["a", "b", "c"]
    rig.settle()
    assert rig.generations() == {"a": 2, "b": 2, "c": 2}
    assert rig.state.phase is Phase.RUNNING


def test_one_for_all_other_child_fails_restart() -> None:
    """In a group restart, one that fails stops those that were back already before the next try."""
    rig = _started(_child("a"), _child("b", depends_on=("a",)), intensity=5, strategy=Strategy.ONE_FOR_ALL)
    rig.gone("a")
    assert spawns(rig.gone("b", CLEAN)) == ["a"]
    rig.hello("a")
    assert spawns(rig.ready("a")) == ["b"]
    assert asked(rig.spawn_failed("b")) == ["a"]
    assert spawns(rig.gone("a", CLEAN)) == ["a"]
    rig.settle()
    assert rig.generations() == {"a": 3, "b": 3}


def test_rest_for_one() -> None:
    """The dead child and those after it are replaced, in order; those before it stay."""
    rig = _started(*map(_child, "abcd"), intensity=1, strategy=Strategy.REST_FOR_ONE)
    assert asked(rig.gone("b")) == ["d", "c"]
    rig.gone("c", CLEAN)
    assert spawns(rig.gone("d", CLEAN)) == ["b", "c", "d"]
    rig.settle()
    assert rig.generations() == {"a": 1, "b": 2, "c": 2, "d": 2}


def test_rest_for_one_other_child_fails_restart() -> None:
    """One that fails in the group restart does not restart again those before it."""
    rig = _started(_child("a"), _child("b", depends_on=("a",)), strategy=Strategy.REST_FOR_ONE)
    rig.gone("a")
    rig.gone("b", CLEAN)
    rig.settle_only("a")
    assert asked(rig.spawn_failed("b")) == []
    rig.settle()
    assert rig.generations() == {"a": 2, "b": 3}


def test_rest_for_one_earlier_child_dies_while_later_ones_stop() -> None:
    """A second incident widens the group: nobody comes before everybody in it is down."""
    rig = _started(*map(_child, "abc"), strategy=Strategy.REST_FOR_ONE)
    assert asked(rig.gone("b")) == ["c"]
    assert spawns(rig.gone("a")) == []
    assert spawns(rig.gone("c", CLEAN)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("restart", "reason", "state", "generation"),
    [
        pytest.param(Restart.PERMANENT, CLEAN, "ready", 2, id="permanent_normal"),
        pytest.param(Restart.TRANSIENT, CLEAN, "finished", 1, id="transient_normal"),
        pytest.param(Restart.TEMPORARY, CLEAN, "finished", 1, id="temporary_normal"),
        pytest.param(Restart.PERMANENT, CRASH, "ready", 2, id="permanent_abnormal"),
        pytest.param(Restart.TRANSIENT, CRASH, "ready", 2, id="transient_abnormal"),
        pytest.param(Restart.TEMPORARY, CRASH, "finished", 1, id="temporary_abnormal"),
        pytest.param(Restart.TRANSIENT, KILLED, "ready", 2, id="transient_killed"),
    ],
)
def test_restart_types(restart: Restart, reason: object, state: str, generation: int) -> None:
    """Which end of which type calls for a new process."""
    rig = _started(_child("a", restart))
    rig.gone("a", reason)  # type: ignore[arg-type]
    rig.settle()
    assert (rig.states(), rig.generations()) == ({"a": state}, {"a": generation})


def test_transient_shutdown() -> None:
    """Other exit codes can be declared clean."""
    rig = _started(_child("a", Restart.TRANSIENT, clean_exit_codes=frozenset({0, 1})))
    rig.gone("a", CRASH)
    assert rig.states() == {"a": "finished"}


def test_temporary_bystander() -> None:
    """A temporary sibling stopped by a group restart is not restarted."""
    rig = _started(_child("a"), _child("b", Restart.TEMPORARY), strategy=Strategy.ONE_FOR_ALL)
    assert asked(rig.gone("a")) == ["b"]
    assert spawns(rig.gone("b", CLEAN)) == ["a"]
    rig.settle()
    assert rig.states() == {"a": "ready", "b": "finished"}


def test_transient_bystander_that_had_finished() -> None:
    """As in OTP, a group restart begins afresh with a transient sibling that had ended cleanly."""
    rig = _started(_child("a"), _child("b", Restart.TRANSIENT), strategy=Strategy.ONE_FOR_ALL)
    rig.gone("b", CLEAN)
    assert spawns(rig.gone("a")) == ["a", "b"]


def test_count_restarting_children() -> None:
    """A child that waits for its restart has no process, and can be stopped while it waits."""
    rig = Rig(spec_of("a"))
    rig.start()
    rig.gone("a")
    rig.settle()
    rig.gone("a")
    assert rig.states() == {"a": "waiting"}
    assert rig.alive() == set()
    assert records(rig.send(StopChild("a"))) == [DeviceStopped("a", 2, at_ns=0)]
    assert rig.states() == {"a": "down"}
    assert rig.state.deadlines == ()


@pytest.mark.parametrize("strategy", STATIC)
def test_hanging_restart_loop(strategy: Strategy) -> None:
    """While a restart keeps failing, operator and shutdown are obeyed at once."""
    rig = Rig(spec_of("a", "b", intensity=1000, strategy=strategy))
    rig.start()
    rig.gone("a")
    rig.obey()
    for _ in range(10):
        rig.spawn_failed("a")
        rig.obey()
        rig.until_deadline()
        rig.obey()
        rig.settle_only("b")
    assert rig.send(StartChild("a")) == []
    rig.spawn_failed("a")
    rig.obey()
    assert rig.states()["a"] == "waiting"
    rig.send(Stop())
    _gone_all(rig)


def test_order_of_children() -> None:
    """Started in list order, stopped in its reverse, also in a group restart."""
    chain = [
        _child(name, depends_on=tuple(before)) for name, before in zip("abc", ["", "a", "b"], strict=True)
    ]
    rig = Rig(spec_of(*chain, strategy=Strategy.REST_FOR_ONE))
    rig.start()
    assert spawns(rig.history) == ["a", "b", "c"]
    rig.history.clear()
    rig.gone("a")
    rig.obey()
    rig.settle()
    assert (asked(rig.history), spawns(rig.history)) == (["c", "b"], ["a", "b", "c"])
    rig.history.clear()
    rig.stop()
    rig.obey()
    assert asked(rig.history) == ["c", "b", "a"]


# significant children

ANY = AutoShutdown.ANY_SIGNIFICANT
ALL = AutoShutdown.ALL_SIGNIFICANT


@pytest.mark.parametrize("auto", AutoShutdown)
@pytest.mark.parametrize("restart", [Restart.TEMPORARY, Restart.TRANSIENT])
def test_nonsignificant(auto: AutoShutdown, restart: Restart) -> None:
    """Ordinary children never end the supervisor."""
    rig = _started(_child("a", restart), auto_shutdown=auto)
    rig.gone("a", CLEAN)
    assert rig.state.phase is Phase.RUNNING


@pytest.mark.parametrize("reason", [CLEAN, CRASH])
def test_significant_temporary(reason: object) -> None:
    """Any end of a significant temporary child ends the supervisor."""
    rig = _started(_child("a", Restart.TEMPORARY, significant=True), _child("b"), auto_shutdown=ANY)
    assert asked(rig.gone("a", reason)) == ["b"]  # type: ignore[arg-type]
    _gone_all(rig)
    assert rig.outcome is not None
    assert (rig.outcome.kind, rig.outcome.culprit) == (OutcomeKind.AUTO_SHUTDOWN, "a")


def test_significant_temporary_stopped_by_the_operator() -> None:
    """An end that was asked for does not count."""
    rig = _started(_child("a", Restart.TEMPORARY, significant=True), auto_shutdown=ANY)
    rig.send(StopChild("a"))
    rig.gone("a", CLEAN)
    assert rig.state.phase is Phase.RUNNING


def test_significant_temporary_all() -> None:
    """all_significant waits for the last."""
    rig = _started(
        _child("a", Restart.TEMPORARY, significant=True),
        _child("b", Restart.TEMPORARY, significant=True),
        auto_shutdown=ALL,
    )
    rig.gone("a")
    assert rig.state.phase is Phase.RUNNING
    rig.gone("b")
    assert rig.outcome is not None


def test_significant_temporary_all_with_one_that_waits() -> None:
    """One that waits for its restart is still there."""
    rig = Rig(
        spec_of(
            _child("a", Restart.TEMPORARY, significant=True),
            ChildSpec("b", Restart.TRANSIENT, significant=True),
            auto_shutdown=ALL,
        )
    )
    rig.start()
    rig.gone("b")
    rig.gone("b")
    assert rig.states()["b"] == "waiting"
    rig.gone("a")
    assert rig.state.phase is Phase.RUNNING


def test_significant_transient() -> None:
    """Only a clean end of a transient child counts; after another it is restarted."""
    rig = _started(_child("a", Restart.TRANSIENT, significant=True), auto_shutdown=ANY)
    assert spawns(rig.gone("a", CRASH)) == ["a"]
    rig.settle()
    rig.gone("a", CLEAN)
    assert rig.outcome is not None


def test_significant_bystander() -> None:
    """A significant child stopped on a sibling's account does not end the supervisor."""
    rig = _started(
        _child("a"),
        _child("b", Restart.TEMPORARY, significant=True),
        _child("c", Restart.TRANSIENT, significant=True),
        auto_shutdown=ANY,
        strategy=Strategy.ONE_FOR_ALL,
    )
    rig.gone("a")
    rig.obey()
    rig.settle()
    assert rig.states() == {"a": "ready", "b": "finished", "c": "ready"}


def test_isolated_children_have_budgets_of_their_own() -> None:
    """Not OTP's: what one child has spent is not held against another."""
    rig = _started(_child("a"), _child("b"), intensity=2, on_give_up=OnGiveUp.ISOLATE)
    for _ in range(2):
        rig.gone("a")
        rig.settle()
    rig.now_ns += MS
    rig.gone("a")
    assert rig.states() == {"a": "failed", "b": "ready"}
    rig.gone("b")
    rig.settle()
    assert rig.states() == {"a": "failed", "b": "ready"}
    assert rig.state.phase is Phase.RUNNING
