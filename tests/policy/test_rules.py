"""The rules that OTP does not have, and the small pure parts: order, budget, backoff, deadlines."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import LocalError
from supervisor.policy import (
    BackoffSpec,
    ChildSpec,
    ChildState,
    HeartbeatSpec,
    OnGiveUp,
    Phase,
    Restart,
    Strategy,
    child,
    next_deadline_ns,
)
from supervisor.policy.actions import AskStop, Finished, Kill, Report, Spawn
from supervisor.policy.backoff import FORK_NS, delay_ns
from supervisor.policy.events import AddChild, Reload, RestartChild, Start, StartChild, StopChild, Tick
from supervisor.policy.intensity import Window, charge
from supervisor.policy.order import find_circle, levels, start_order
from supervisor.policy.records import (
    DeviceDied,
    DeviceFailed,
    DeviceKilled,
    DeviceReady,
    DeviceRestarted,
    DeviceRestarting,
    DeviceStarting,
    OutcomeKind,
)
from supervisor.policy.rising import FORK_PATIENCE_NS
from supervisor.policy.strategy import make_plan, stop_levels
from tests.policy.fake import CLEAN, CRASH, KILLED, MS, Rig, S, asked, kills, records, spawns, spec_of

# additions


def test_given_addition_that_a_configuration_names_before_it_is_ready_it_is_not_forgotten() -> None:
    """It fails as what is configured does: an operator may start it again."""
    rig = Rig(spec_of("a"))
    rig.start()
    rig.send(AddChild(ChildSpec("d")))
    rig.hello("d")
    rig.send(Reload(spec_of("a", "d")))
    rig.gone("d", CRASH)
    assert child(rig.tree, "d").state is ChildState.FAILED
    rig.send(StartChild("d"))
    rig.settle()
    assert child(rig.tree, "d").state is ChildState.READY


# order


def test_start_order_moves_back_only_what_depends_on_later_ones() -> None:
    """List order stands wherever dependencies allow it."""
    assert start_order({"a": ["c"], "b": [], "c": [], "d": []}) == ("b", "c", "a", "d")


def test_stop_levels_are_the_reverse_of_the_start() -> None:
    """The deepest first, and in each level the last first."""
    plan = make_plan(
        spec_of("a", "b", ChildSpec("c", depends_on=("a",)), ChildSpec("d", depends_on=("c", "b")))
    )
    assert stop_levels(plan, "abcd") == (("d",), ("c",), ("b", "a"))


def test_a_long_chain_of_dependencies_meets_no_recursion_limit() -> None:
    """Order, levels and circles are found for chains of any length."""
    chain = {f"c{i}": [f"c{i - 1}"] if i else [] for i in range(5000)}
    assert start_order(chain)[-1] == "c4999"
    assert levels(chain)["c4999"] == 4999
    assert find_circle(chain) is None
    chain["c0"] = ["c4999"]
    circle = find_circle(chain)
    assert circle is not None
    assert len(circle) == 5001


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefx"), max_size=3)))
def test_any_graph_has_a_start_order_or_a_circle(graph: dict[str, list[str]]) -> None:
    """A circle that is told is one; without one, everybody comes after what it depends on."""
    known = {name: [target for target in targets if target in graph] for name, targets in graph.items()}
    circle = find_circle(graph)
    if circle is None:
        order = start_order(known)
        assert sorted(order) == sorted(graph)
        assert all(order.index(target) < order.index(name) for name in known for target in known[name])
    else:
        assert circle[0] == circle[-1]
        assert all(target in graph[name] for name, target in pairwise(circle))


# budget


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(0, 5), st.integers(1, 40))
def test_any_charges_are_over_when_a_plain_count_says_so(
    gaps: list[int], intensity: int, period_ns: int
) -> None:
    """The pruned window agrees with counting everything, and stays small while it is not over."""
    now_ns = 0
    window: Window = ()
    all_times: list[int] = []
    for gap in gaps:
        now_ns += gap
        all_times.append(now_ns)
        window, over = charge(window, now_ns, intensity=intensity, period_ns=period_ns)
        recent = [time for time in all_times if now_ns - time <= period_ns]
        assert over == (len(recent) > intensity)
        assert list(window) == recent


# backoff


def test_delays_grow_from_first_over_next_to_max() -> None:
    """first, then next times factor each, up to max."""
    spec = BackoffSpec(first_ns=1, next_ns=10, factor=3, max_ns=200, jitter=0)
    assert [delay_ns(spec, attempts, 0.5) for attempts in range(6)] == [1, 10, 30, 90, 200, 200]


def test_max_of_zero_switches_every_delay_off() -> None:
    """Also the first one."""
    spec = BackoffSpec(first_ns=S, max_ns=0)
    assert [delay_ns(spec, attempts, 0.5) for attempts in (0, 1, 10)] == [0, 0, 0]


@given(
    st.builds(
        BackoffSpec,
        first_ns=st.integers(0, 10**12),
        next_ns=st.integers(0, 10**12),
        factor=st.floats(1, 1e6),
        max_ns=st.integers(0, 10**12),
        jitter=st.floats(0, 1),
    ),
    st.integers(0, 100_000),
    st.floats(0, 1, exclude_max=True),
)
def test_any_delay_lies_between_nothing_and_max(spec: BackoffSpec, attempts: int, chance: float) -> None:
    """Chance only shortens, by no more than jitter; nothing overflows."""
    full = delay_ns(spec, attempts, 0.0)
    delay = delay_ns(spec, attempts, chance)
    assert 0 <= delay <= full <= spec.max_ns
    assert delay >= full * (1 - spec.jitter) * (1 - 1e-9) - 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"first_ns": -1}, "backoff: first_ns is -1, but must be at least 0"),
        ({"factor": 0.5}, "backoff: factor is 0.5, but must be at least 1"),
        ({"factor": float("nan")}, "backoff: factor is nan, but must be at least 1"),
        ({"factor": float("inf")}, "backoff: factor must be finite"),
        ({"jitter": 1.5}, "backoff: jitter is 1.5, but must lie between 0 and 1"),
    ],
)
def test_a_backoff_that_cannot_be_is_refused(options: dict[str, float], what: str) -> None:
    """Each bound is named."""
    with pytest.raises(LocalError) as caught:
        BackoffSpec(**options)  # type: ignore[arg-type]
    assert str(caught.value) == what


def test_a_heartbeat_that_times_out_before_it_beats_is_refused() -> None:
    """It would kill every healthy worker."""
    with pytest.raises(LocalError, match="must be longer than every_ns"):
        HeartbeatSpec(every_ns=S, timeout_ns=S)


def test_dead_again_soon_waits_longer_and_healthy_run_starts_anew() -> None:
    """At once, then 10 ms, 20 ms; after healthy_after at once again."""
    spec = spec_of(ChildSpec("a", backoff=BackoffSpec(jitter=0)), intensity=100)
    rig = Rig(spec)
    rig.start()
    delays = []
    for run_ns in (0, 0, S - 1, S, 0):
        rig.now_ns += run_ns
        (restarting,) = [one for one in records(rig.gone("a")) if isinstance(one, DeviceRestarting)]
        delays.append(restarting.delay_ns)
        if rig.state_of("a").value == "waiting":
            assert rig.wait(restarting.delay_ns - 1) == []
            assert spawns(rig.wait(1)) == ["a"]
        rig.settle()
    assert delays == [0, 10 * MS, 20 * MS, 0, 10 * MS]


def test_failed_attempts_wait_as_deaths_do() -> None:
    """Spawns that fail do not burn the budget in no time."""
    rig = Rig(spec_of(ChildSpec("a", backoff=BackoffSpec(jitter=0)), intensity=3, period_ns=10 * S))
    rig.start()
    rig.gone("a")
    rig.spawn_failed("a")
    assert next_deadline_ns(rig.tree) == 10 * MS
    rig.until_deadline()
    rig.spawn_failed("a")
    assert next_deadline_ns(rig.tree) == 30 * MS


def test_the_whole_group_waits_for_the_culprits_delay() -> None:
    """Siblings do not come back before the one for which they were stopped."""
    rig = Rig(spec_of("a", "b", strategy=Strategy.ONE_FOR_ALL))
    rig.start()
    for _ in range(2):
        rig.gone("b")
        rig.gone("a", CLEAN)
        rig.settle()
    assert rig.states() == {"a": "waiting", "b": "waiting"}
    assert spawns(rig.until_deadline()) == ["a", "b"]


def test_sibling_with_a_longer_delay_keeps_it_in_somebody_elses_group_restart() -> None:
    """A crash loop does not get round its backoff by the death of another."""
    slow = BackoffSpec(first_ns=S, jitter=0)
    rig = Rig(spec_of("a", ChildSpec("b", backoff=slow), strategy=Strategy.REST_FOR_ONE))
    rig.start()
    rig.gone("b")
    assert spawns(rig.gone("a")) == ["a"]
    assert next_deadline_ns(rig.tree) == S
    assert spawns(rig.wait(S)) == ["b"]


def test_uncharged_death_restarts_at_once_and_is_free() -> None:
    """The chaos monkey touches neither budget nor backoff."""
    rig = Rig(spec_of("a", intensity=0))
    rig.start()
    for generation in range(2, 50):
        actions = rig.gone("a", KILLED, charged=False)
        assert Spawn("a", generation) in actions
        assert DeviceDied("a", generation - 1, KILLED, False, at_ns=0) in records(actions)
        rig.settle()
    assert rig.state.window == ()


def test_uncharged_death_in_the_first_start_does_not_fail_it() -> None:
    """A monkey that is quick does not keep a board from starting."""
    rig = Rig(spec_of("a"))
    rig.send(Start())
    rig.gone("a", KILLED, charged=False)
    rig.settle()
    assert rig.state.phase is Phase.RUNNING


# deadlines


def test_no_hello_in_time_kills_and_fails_the_first_start() -> None:
    """Each deadline of the start is a kill; the start ends when the process is gone, not before."""
    rig = Rig(spec_of(ChildSpec("a", hello_timeout_ns=S)))
    rig.send(Start())
    rig.now_ns = 7 * S
    rig.forked("a")
    assert rig.wait(S - 1) == []
    assert rig.wait(1) == [
        Kill("a", 1, "no Hello within hello_timeout"),
        Report(DeviceKilled("a", 1, "no Hello within hello_timeout", at_ns=8 * S)),
    ]
    assert next_deadline_ns(rig.tree) is None
    assert isinstance(rig.gone("a", KILLED)[-1], Finished)


def test_not_forked_yet_the_hello_is_not_due_but_patience_has_an_end() -> None:
    """A zygote that is slow to fork is no device's fault; one that never does is noticed."""
    rig = Rig(spec_of(ChildSpec("a", hello_timeout_ns=S)))
    rig.send(Start())
    assert rig.wait(FORK_PATIENCE_NS - 1) == []
    assert rig.wait(1)[0] == Kill("a", 1, "no process within 60 s")


def test_forked_twice_the_first_deadline_stands() -> None:
    """hello_timeout runs from the first report of the fork."""
    rig = Rig(spec_of(ChildSpec("a", hello_timeout_ns=S)))
    rig.send(Start())
    rig.forked("a")
    rig.now_ns = S // 2
    rig.forked("a")
    assert next_deadline_ns(rig.tree) == S


def test_forked_told_after_hello_changes_nothing() -> None:
    """A process may speak before its zygote has reported it."""
    rig = Rig(spec_of(ChildSpec("a", start_timeout_ns=2 * S)))
    rig.send(Start())
    rig.hello("a")
    rig.now_ns = S
    assert rig.forked("a") == []
    assert next_deadline_ns(rig.tree) == 2 * S


def test_forked_is_known_anew_in_each_generation() -> None:
    """The successor's Hello is due from its own fork."""
    rig = Rig(spec_of(ChildSpec("a", hello_timeout_ns=S)))
    rig.start()
    rig.now_ns = S
    rig.gone("a")
    assert next_deadline_ns(rig.tree) == S + FORK_PATIENCE_NS
    rig.now_ns = 3 * S
    rig.forked("a")
    assert next_deadline_ns(rig.tree) == 4 * S


def test_hello_in_time_starts_the_clock_of_ready() -> None:
    """start_timeout runs from the Hello."""
    rig = Rig(spec_of(ChildSpec("a", hello_timeout_ns=S, start_timeout_ns=2 * S)))
    rig.send(Start())
    rig.now_ns = S - 1
    rig.hello("a")
    assert next_deadline_ns(rig.tree) == 3 * S - 1
    assert kills(rig.until_deadline()) == ["a"]


def test_silent_while_ready_is_killed_and_restarted_after_it_is_gone() -> None:
    """A stuck worker is killed; its successor waits for its end."""
    rig = Rig(spec_of("a"))
    rig.start()
    assert kills(rig.silent("a")) == ["a"]
    assert rig.silent("a") == []
    assert spawns(rig.gone("a", KILLED)) == ["a"]


def test_outage_runs_from_the_end_of_service_to_the_next_ready() -> None:
    """A killed worker stopped serving when it was killed."""
    rig = Rig(spec_of("a"))
    rig.start()
    rig.now_ns = 100
    rig.silent("a")
    rig.now_ns = 150
    rig.gone("a", KILLED)
    rig.hello("a")
    rig.now_ns = 175
    assert records(rig.ready("a")) == [
        DeviceReady("a", 2, 1, at_ns=175),
        DeviceRestarted("a", 2, 1, 75, at_ns=175),
    ]


# readiness and dependencies


def test_dependent_comes_when_all_it_depends_on_are_ready() -> None:
    """Independent ones start side by side, in list order."""
    rig = Rig(spec_of("a", ChildSpec("b", depends_on=("a", "c")), "c"))
    assert spawns(rig.send(Start())) == ["a", "c"]
    rig.hello("a")
    assert spawns(rig.ready("a")) == []
    rig.hello("c")
    assert spawns(rig.ready("c")) == ["b"]


def test_dependency_dead_leaves_its_dependents_alone() -> None:
    """Who restarts together is the strategy's business."""
    rig = Rig(spec_of("a", ChildSpec("b", depends_on=("a",))))
    rig.start()
    rig.gone("a")
    assert rig.state_of("b").value == "ready"
    assert spawns(rig.gone("b")) == []  # but it comes back only when a is
    rig.settle()
    assert rig.generations() == {"a": 2, "b": 2}


def test_dependency_failed_fails_those_who_wait_for_it() -> None:
    """Waiting for what will never come is a failure with a name; those who serve go on."""
    rig = Rig(
        spec_of(
            "a",
            ChildSpec("b", depends_on=("a",)),
            ChildSpec("c", depends_on=("b",)),
            intensity=0,
            on_give_up=OnGiveUp.ISOLATE,
        )
    )
    rig.start()
    rig.gone("a")
    assert rig.states() == {"a": "failed", "b": "ready", "c": "ready"}
    rig.gone("b", charged=False)
    assert rig.states() == {"a": "failed", "b": "failed", "c": "ready"}
    assert child(rig.tree, "b").why == "depends on 'a', which has failed"


def test_dependency_finished_counts_as_there() -> None:
    """One that has done its work and ended cleanly holds nobody up."""
    rig = Rig(spec_of(ChildSpec("a", restart=Restart.TRANSIENT), ChildSpec("b", depends_on=("a",))))
    rig.send(Start())
    assert spawns(rig.gone("a", CLEAN)) == ["b"]


# refusals


def test_refused_in_the_first_start_fails_it_with_what_was_said() -> None:
    """No restart is tried; the refused worker is asked to end."""
    rig = Rig(spec_of("a", "b"))
    rig.send(Start())
    rig.hello("b")
    assert asked(rig.refused("b", "unknown option 'x'")) == ["b", "a"]
    rig.obey()
    assert rig.outcome is not None
    assert rig.outcome.kind is OutcomeKind.START_FAILED
    assert (rig.outcome.culprit, rig.outcome.why) == ("b", "'b': unknown option 'x'")


def test_refused_later_fails_the_device_and_nobody_else() -> None:
    """A state that is refused is a named failure, charged to nothing; the operator can try again."""
    rig = Rig(spec_of("a", "b", intensity=0, strategy=Strategy.ONE_FOR_ALL))
    rig.start()
    rig.send(RestartChild("a"))
    rig.gone("a", CLEAN)
    rig.hello("a")
    assert rig.refused("a", "state of version 3") == [AskStop("a", 2)]
    assert records(rig.gone("a", CRASH)) == [DeviceFailed("a", "state of version 3", at_ns=0)]
    assert rig.states() == {"a": "failed", "b": "ready"}
    assert spawns(rig.send(StartChild("a"))) == ["a"]


def test_refused_then_stopped_with_everybody_is_still_failed() -> None:
    """The end of the supervisor does not hide why a device was out of service."""
    rig = Rig(spec_of("a", "b"))
    rig.start()
    rig.refused("a")
    rig.stop()
    rig.obey()
    assert rig.states() == {"a": "failed", "b": "down"}


def test_refused_while_siblings_stop_fails_those_who_wait_for_it() -> None:
    """Also those who are held back by the group are told, once."""
    rig = Rig(spec_of("a", ChildSpec("b", depends_on=("a",)), "c", strategy=Strategy.ONE_FOR_ALL))
    rig.start()
    rig.refused("a")
    rig.gone("c")
    rig.gone("b", CLEAN)
    assert spawns(rig.gone("a", CLEAN)) == ["c"]
    assert rig.states() == {"a": "failed", "b": "failed", "c": "spawning"}


def test_refused_read_after_the_end_stops_the_restart() -> None:
    """What the worker said before it died still counts while its successor waits."""
    rig = Rig(spec_of("a"))
    rig.start()
    rig.gone("a")
    rig.gone("a")
    assert rig.refused("a")[0] == Report(DeviceFailed("a", "unknown option 'x'", at_ns=0))
    assert next_deadline_ns(rig.tree) is None


# the operator


def test_restart_while_waiting_skips_the_delay() -> None:
    """The operator does not wait for a backoff."""
    rig = Rig(spec_of("a"))
    rig.start()
    rig.gone("a")
    rig.gone("a")
    assert rig.send(RestartChild("a")) == [Spawn("a", 3), Report(DeviceStarting("a", 3, at_ns=0))]


def test_restart_does_not_launder_a_crash_under_way() -> None:
    """A worker that is being killed for its silence is charged, whoever asks for a restart meanwhile."""
    rig = Rig(spec_of("a", intensity=0))
    rig.start()
    rig.silent("a")
    rig.send(RestartChild("a"))
    rig.gone("a", KILLED)
    assert rig.outcome is not None
    assert rig.outcome.kind is OutcomeKind.GAVE_UP


def test_stop_of_one_in_a_group_restart_takes_it_out() -> None:
    """The operator's wish outlives the group's."""
    rig = Rig(spec_of("a", "b", strategy=Strategy.ONE_FOR_ALL))
    rig.start()
    rig.gone("a")
    rig.send(StopChild("b"))
    assert spawns(rig.gone("b", CLEAN)) == ["a"]
    assert rig.states() == {"a": "spawning", "b": "down"}


def test_start_of_one_held_by_a_group_waits_for_the_group() -> None:
    """Nobody of the group is spawned before all of it is down."""
    rig = Rig(spec_of("a", "b", "c", strategy=Strategy.ONE_FOR_ALL))
    rig.start()
    rig.send(StopChild("c"))
    rig.gone("c", CLEAN)
    rig.gone("a")
    assert spawns(rig.send(StartChild("c"))) == []
    assert spawns(rig.gone("b", CLEAN)) == ["a", "b", "c"]


def test_stop_while_everything_waits_ends_at_once() -> None:
    """Children without a process are not waited for."""
    rig = Rig(spec_of("a"))
    rig.start()
    rig.gone("a")
    rig.gone("a", CRASH)
    assert isinstance(rig.stop()[-1], Finished)


# many at once


def test_deaths_in_one_instant_come_back_one_after_the_other() -> None:
    """The first returns at once, each further one after a share of the forks before it, chosen by chance."""
    names = [f"d{index}" for index in range(10)]
    rig = Rig(spec_of(*names, intensity=100), chance=lambda: 0.5)
    rig.start()
    rig.now_ns += 10 * S
    for name in names:
        rig.gone(name)
    delays = [record.delay_ns for record in records(rig.history) if isinstance(record, DeviceRestarting)]
    assert delays == [index * FORK_NS * 5 // 100 for index in range(10)]
    assert spawns(rig.history)[10:] == ["d0"]
    rig.now_ns += max(delays)
    rig.send(Tick())
    assert sorted(spawns(rig.history)[10:]) == names


def test_deaths_at_different_times_or_without_delay_are_not_spread() -> None:
    """An instant apart they are no crowd; ``max: 0s`` switches every delay off; uncharged ones are free."""
    rig = Rig(spec_of("a", "b", ChildSpec("c", backoff=BackoffSpec(max_ns=0)), "d"), chance=lambda: 0.9)
    rig.start()
    rig.now_ns += 10 * S
    rig.gone("a")
    rig.now_ns += 1
    rig.gone("b")
    rig.gone("c")
    rig.gone("d", charged=False)
    assert {record.delay_ns for record in records(rig.history) if isinstance(record, DeviceRestarting)} == {0}


def test_one_level_is_stopped_in_parallel_under_one_deadline() -> None:
    """Who does not depend on one another is asked in the same step, and due at the same time."""
    names = ["a", "b", "c"]
    children = [ChildSpec(name, stop_timeout_ns=S, depends_on=("base",)) for name in names]
    rig = Rig(spec_of("base", *children, ChildSpec("top", depends_on=tuple(names))))
    rig.start()
    assert asked(rig.stop()) == ["top"]
    assert asked(rig.gone("top", CLEAN)) == ["c", "b", "a"]
    assert {rig.state.children[name].deadline_ns for name in names} == {rig.now_ns + S}
    assert kills(rig.wait(S)) == ["a", "b", "c"]


def test_delays_of_a_crowd_are_never_longer_than_max() -> None:
    """What is added for the others counts into the promise."""
    backoff = BackoffSpec(first_ns=10 * MS, next_ns=10 * MS, max_ns=10 * MS, jitter=1.0)
    names = [f"d{index}" for index in range(100)]
    rig = Rig(
        spec_of(*(ChildSpec(name, backoff=backoff) for name in names), intensity=200), chance=lambda: 0.5
    )
    rig.start()
    rig.now_ns += 10 * S
    for name in names:
        rig.gone(name)
    delays = [record.delay_ns for record in records(rig.history) if isinstance(record, DeviceRestarting)]
    assert len(delays) == 100
    assert max(delays) == 10 * MS
