"""The chaos monkey: its rules as they are written, its doings on a fake, and on real processes."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable

import pytest

from supervisor.chaos import ChaosRule, DeviceToll, Monkey, Outages
from supervisor.errors import LocalError
from supervisor.host import Supervisor
from supervisor.policy.records import DeviceReady, DeviceRestarted, OutcomeKind
from supervisor.reactor import Timer
from supervisor.timeline import RestartTimeline
from tests.chaos import COUNTING, board, census

MS = 1_000_000


class FakeBoard:
    """Devices that die when they are hit and are back ``outage_ns`` later, in a time of their own."""

    def __init__(self, *names: str, outage_ns: int = 0, dying_ns: int = 0) -> None:
        self.devices = list(names)
        self.now_ns = 0
        self.hits: list[tuple[int, str, int, bool]] = []
        self._timers: list[Timer] = []
        self._pids = dict(enumerate(names, start=100))
        self._down_until: dict[str, int] = {}
        self._dead_from: dict[str, int] = {}
        self._outage_ns, self._dying_ns = outage_ns, dying_ns
        self._next_pid = 1000
        self._pid = {name: pid for pid, name in self._pids.items()}

    def kill(self, name: str, *, send_signal: int, charged: bool) -> int | None:
        if self._dead_from.get(name, self.now_ns) < self.now_ns:
            if self.now_ns < self._down_until[name]:
                return None
            del self._dead_from[name]
            self._pid[name] = self._next_pid
            self._next_pid += 1
        self.hits.append((self.now_ns, name, send_signal, charged))
        if name not in self._dead_from:
            self._dead_from[name] = self.now_ns + self._dying_ns
            self._down_until[name] = self._dead_from[name] + self._outage_ns
        return self._pid[name]

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now_ns + delay_ns, callback)
        self._timers.append(timer)
        return timer

    def let_pass(self, span_ns: int) -> None:
        """Lets time pass, timer by timer."""
        until_ns = self.now_ns + span_ns
        while due := [timer for timer in self._timers if timer.at_ns <= until_ns]:
            first = min(due)
            self._timers.remove(first)
            self.now_ns = first.at_ns
            if first.callback is not None:
                first.callback()
        self.now_ns = until_ns


def _monkey(fake: FakeBoard, *rules: str) -> Monkey:
    monkey = Monkey(fake, [ChaosRule.parse(rule) for rule in rules])
    monkey.start()
    return monkey


def test_given_shortest_rule_the_rest_has_its_defaults() -> None:
    """SIGKILL, without end, without jitter, charged to nothing, a seed of chance."""
    assert ChaosRule.parse("kill=uart0,every=50ms") == ChaosRule(kill="uart0", every_ns=50 * MS)
    rule = ChaosRule.parse("kill=uart0,every=50ms")
    assert (rule.signal, rule.count, rule.jitter, rule.seed, rule.charge) == (9, None, 0, None, False)


def test_given_full_rule_every_part_counts() -> None:
    """In any order, with blanks between the parts."""
    rule = ChaosRule.parse("seed=7, charge=yes, jitter=0.5, count=10, signal=segv, every=1.5s, kill=*")
    assert rule == ChaosRule(
        kill="*", every_ns=1500 * MS, signal=signal.SIGSEGV, count=10, jitter=0.5, seed=7, charge=True
    )


@pytest.mark.parametrize("written", ["KILL", "SIGKILL", "kill", "sigkill", "9"])
def test_given_signal_by_any_name_it_is_the_same(written: str) -> None:
    """Signals are written as people write them."""
    assert ChaosRule.parse(f"kill=a,every=1s,signal={written}").signal == signal.SIGKILL


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("", "'' is not KEY=VALUE with KEY of kill, every, signal, count, jitter, seed, charge"),
        ("uart0", "'uart0' is not KEY=VALUE"),
        ("kill=a,every=1s,", "'' is not KEY=VALUE"),
        ("kill=a,every=1s,speed=3", "'speed=3' is not KEY=VALUE"),
        ("kill=a,every=1s,kill=b", "kill is given twice"),
        ("every=1s", "kill=... is missing"),
        ("kill=,every=1s", "kill=... is missing"),
        ("kill=a", "every=... is missing"),
        ("kill=a,every=", "every=... is missing"),
        ("kill=a,every=soon", "every=soon: must be a duration"),
        ("kill=a,every=1", "every=1: must be a duration"),
        ("kill=a,every=0s", "every=0s: a time above zero is needed"),
        ("kill=a,every=-1s", "every=-1s: must be a duration"),
        ("kill=a,every=1s,signal=KISS", "no signal 'KISS'"),
        ("kill=a,every=1s,signal=", "no signal ''"),
        ("kill=a,every=1s,signal=0", "no signal '0'"),
        ("kill=a,every=1s,signal=99", "no signal '99'"),
        ("kill=a,every=1s,signal=²", "no signal '²'"),
        ("kill=a,every=1s,count=0", "count=0: a whole number from 1 on is needed"),
        ("kill=a,every=1s,count=-1", "count=-1: a whole number from 1 on is needed"),
        ("kill=a,every=1s,count=²", "count=²: a whole number from 1 on is needed"),
        ("kill=a,every=1s,count=many", "count=many: a whole number from 1 on is needed"),
        ("kill=a,every=1s,jitter=2", "jitter=2: a fraction from 0 to 1 is needed"),
        ("kill=a,every=1s,jitter=-0.1", "jitter=-0.1: a fraction from 0 to 1 is needed"),
        ("kill=a,every=1s,jitter=nan", "jitter=nan: a fraction from 0 to 1 is needed"),
        ("kill=a,every=1s,jitter=some", "jitter=some: a fraction from 0 to 1 is needed"),
        ("kill=a,every=1s,seed=1.5", "seed=1.5: a whole number from 0 on is needed"),
        ("kill=a,every=1s,charge=perhaps", "charge=perhaps: yes or no"),
    ],
)
def test_given_invalid_rule_error_shows_it_and_what_is_wrong(rule: str, told: str) -> None:
    """Each mistake has its own words, and the rule is in them."""
    with pytest.raises(LocalError) as error:
        ChaosRule.parse(rule)
    assert str(error.value).startswith(f"chaos rule {rule!r}: ")
    assert told in str(error.value)


def test_given_unknown_victim_monkey_is_not_made() -> None:
    """The devices that there are stand in the error."""
    with pytest.raises(LocalError, match="no device 'c'; there are a, b"):
        Monkey(FakeBoard("a", "b"), [ChaosRule.parse("kill=c,every=1s")])
    with pytest.raises(LocalError, match="no devices to kill"):
        Monkey(FakeBoard(), [ChaosRule.parse("kill=*,every=1s")])


def test_given_no_jitter_kills_are_evenly_spaced() -> None:
    """The first is one interval away."""
    fake = FakeBoard("a", "b")
    monkey = _monkey(fake, "kill=a,every=10ms,signal=TERM,charge=yes")
    fake.let_pass(35 * MS)
    assert fake.hits == [(n * 10 * MS, "a", signal.SIGTERM, True) for n in (1, 2, 3)]
    assert monkey.kills == Counter(a=3)


def test_given_jitter_intervals_vary_within_its_fraction() -> None:
    """With jitter 0.5 an interval is between half and one and a half."""
    fake = FakeBoard("a")
    _monkey(fake, "kill=a,every=10ms,jitter=0.5,seed=1")
    fake.let_pass(2000 * MS)
    times = [hit[0] for hit in fake.hits]
    gaps = [after - before for before, after in zip([0, *times], times, strict=False)]
    assert all(5 * MS <= gap <= 15 * MS for gap in gaps)
    assert min(gaps) < 7 * MS < 13 * MS < max(gaps)


def test_given_count_monkey_stops_there() -> None:
    """A tick that hits nobody does not count."""
    fake = FakeBoard("a", outage_ns=25 * MS)
    monkey = _monkey(fake, "kill=a,every=10ms,count=3")
    fake.let_pass(1000 * MS)
    assert monkey.kills == Counter(a=3)
    assert len(fake.hits) == 3


def test_given_process_still_dying_second_kill_does_not_count() -> None:
    """A process dies once, however often it is hit."""
    fake = FakeBoard("a", dying_ns=35 * MS, outage_ns=5 * MS)
    monkey = _monkey(fake, "kill=a,every=10ms,count=2")
    fake.let_pass(40 * MS)
    assert len(fake.hits) == 4
    assert monkey.kills == Counter(a=1)
    fake.let_pass(1000 * MS)
    assert monkey.kills == Counter(a=2)


def test_given_star_everybody_has_a_turn_and_one_at_a_tick() -> None:
    """Each tick hits one of those that are alive."""
    fake = FakeBoard("a", "b", "c")
    monkey = _monkey(fake, "kill=*,every=10ms,seed=5")
    fake.let_pass(600 * MS)
    assert sum(monkey.kills.values()) == 60
    assert all(monkey.kills[name] >= 10 for name in "abc"), monkey.kills


def test_given_star_while_one_is_down_another_is_hit() -> None:
    """The tick is not wasted on a device without a process."""
    fake = FakeBoard("a", "b", outage_ns=15 * MS)
    monkey = _monkey(fake, "kill=*,every=10ms")
    fake.let_pass(200 * MS)
    assert sum(monkey.kills.values()) == 20


def test_given_same_seed_the_same_kills() -> None:
    """A run can be repeated from the seeds that it has told, also those that chance gave."""
    first, again, other = FakeBoard("a", "b", "c"), FakeBoard("a", "b", "c"), FakeBoard("a", "b", "c")
    monkey = _monkey(first, "kill=*,every=10ms,jitter=1")
    assert len(monkey.seeds) == 1
    _monkey(again, f"kill=*,every=10ms,jitter=1,seed={monkey.seeds[0]}")
    _monkey(other, f"kill=*,every=10ms,jitter=1,seed={monkey.seeds[0] + 1}")
    for fake in (first, again, other):
        fake.let_pass(500 * MS)
    assert first.hits == again.hits
    assert first.hits != other.hits


def test_given_two_rules_each_keeps_its_own_time() -> None:
    """Rules do not know of each other."""
    fake = FakeBoard("a", "b")
    monkey = _monkey(fake, "kill=a,every=10ms,count=2", "kill=b,every=25ms")
    fake.let_pass(100 * MS)
    assert monkey.kills == Counter(a=2, b=4)


def test_given_stop_nobody_is_hit_any_more() -> None:
    """And stopping twice is no error."""
    fake = FakeBoard("a")
    monkey = _monkey(fake, "kill=a,every=10ms")
    fake.let_pass(25 * MS)
    monkey.stop()
    monkey.stop()
    fake.let_pass(100 * MS)
    assert len(fake.hits) == 2


def test_given_restarts_toll_has_median_and_worst() -> None:
    """In the order asked for; a device that was never down has no outage."""
    outages = Outages()
    for ms in (3, 1, 8):
        outages.record(DeviceRestarted("a", 2, 1, ms * MS, at_ns=0))
    outages.record(DeviceReady("b", 1, 0, at_ns=0))
    assert outages.toll(["b", "a"], {"a": 4}) == [
        DeviceToll("b", 0, 0, None, None),
        DeviceToll("a", 4, 3, 3.0, 8.0),
    ]


def test_given_device_that_was_back_before_its_death_was_known_its_outage_is_from_the_kill_on() -> None:
    """A standby has taken over: to the policy death and return are one instant."""
    outages = Outages()
    instants = [MS * ms for ms in (1000, 1004, 1005, 1006, 1001, 1002, 1003, 1007)]
    outages.record(RestartTimeline("a", 2, *instants, at_ns=1007 * MS))
    outages.record(DeviceRestarted("a", 2, 1, 0, at_ns=1007 * MS))
    outages.record(DeviceRestarted("a", 3, 2, 7 * MS, at_ns=2000 * MS))  # whose timeline was not told
    assert outages.toll(["a"], {}) == [DeviceToll("a", 0, 2, 5.0, 7.0)]


def test_given_no_restarts_toll_is_a_row_of_nothing() -> None:
    """Nothing has happened yet."""
    assert Outages().toll(["a"], {}) == [DeviceToll("a", 0, 0, None, None)]


@pytest.mark.chaos
@pytest.mark.parametrize("number", ["KILL", "SEGV", "TERM"])
def test_given_uncharged_kills_budget_is_not_spent(number: str) -> None:
    """A budget of a single restart outlives twenty deaths, whatever the device dies of."""
    config = board(COUNTING, supervisor="intensity: 1, period: 1m")
    with census(), Supervisor(config) as sup:
        outages = Outages()
        sup.on_event(outages.record)
        monkey = Monkey(sup, [ChaosRule.parse(f"kill=counter,every=2ms,signal={number}")])
        monkey.start()
        asked = 0
        while len(outages.by_device.get("counter", [])) < 20:
            asked += 1
            assert sup["counter"].read(0x04, 4) == asked
            sup.dispatch(0)
        assert sup.outcome is None
        assert outages.toll(sup.devices, monkey.kills)[0].kills >= 20
        monkey.stop()


@pytest.mark.chaos
def test_given_charged_kills_budget_is_spent() -> None:
    """``charge=yes`` tests the policy itself: the third death within the period is one too many."""
    config = board(COUNTING, supervisor="intensity: 2, period: 1m")
    with census(), Supervisor(config) as sup:
        monkey = Monkey(sup, [ChaosRule.parse("kill=counter,every=2ms,charge=yes")])
        monkey.start()
        outcome = sup.run()
        assert outcome.kind is OutcomeKind.GAVE_UP
        assert monkey.kills == Counter(counter=3)
        monkey.stop()


@pytest.mark.chaos
def test_given_star_on_real_processes_every_device_comes_back() -> None:
    """One device at a time; all answer, and none has lost count."""
    names = ["one", "two", "three"]
    devices = [
        f'name: {name}, device: "tests.devices.counting:Counting", backoff: {{max: 0s}}' for name in names
    ]
    with census(), Supervisor(board(*devices, supervisor="intensity: 1, period: 1m")) as sup:
        monkey = Monkey(sup, [ChaosRule.parse("kill=*,every=3ms,jitter=0.5,count=30,seed=11")])
        monkey.start()
        asked = 0
        while sum(monkey.kills.values()) < 30:
            asked += 1
            assert [sup[name].read(0x04, 4) for name in names] == [asked] * 3
            sup.dispatch(0)
        assert set(monkey.kills) == set(names)
        monkey.stop()
