"""Standbys: they take over with everything that there was, only then, and only where that is allowed."""

from __future__ import annotations

import ast
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from supervisor import policy, standbys
from supervisor.errors import ConfigError, DeviceError, DeviceGone
from supervisor.events import DeviceDied, RestartTimeline
from supervisor.host import Supervisor
from supervisor.messages_pb2 import Ready
from tests.chaos import COUNTING, board, census, living_descendants
from tests.test_exactly_once import COUNT, FIRE, NEXT, TRACE, _Killer, _one_request

DEADLINE_S = 30.0
ADD, KILL, GROW, KEEP = 0x04, 0x08, 0x0C, 0x10
DIARY = 'name: diary, device: "tests.devices.heir:Diary", standby: true, backoff: {max: 0s}'

pytestmark = pytest.mark.chaos


def _until(sup: Supervisor, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        sup.dispatch(0.01)
        assert time.monotonic() < deadline


def _standby(sup: Supervisor, name: str) -> int:
    """The pid of the standby, once it stands by."""
    _until(sup, lambda: sup[name].standby_pid)
    pid = sup[name].standby_pid
    assert pid is not None
    return pid


def _may_succeed(sup: Supervisor, name: str) -> bool:
    """True if the word has been given ahead."""
    assert sup._workers is not None
    return name in sup._workers._standbys._open


def _heir(sup: Supervisor, name: str) -> int:
    """The pid of the standby, once it may take over by itself and the witness knows whom to wake."""
    _until(sup, lambda: _may_succeed(sup, name) and _is_named(sup, name))
    return _standby(sup, name)


def _is_named(sup: Supervisor, name: str) -> bool:
    """True once the witness has been told of a device's standby, and rests."""
    assert sup._workers is not None
    worker, witness = sup._workers.seat(name).worker, sup._workers._witness
    if worker is None or worker.ticket not in witness._heirs or witness._process is None:
        return False
    return psutil.Process(witness._process.pid).status() == psutil.STATUS_SLEEPING


def _diary(sup: Supervisor, name: str = "diary") -> Any:
    return ast.literal_eval(sup[name].call_bytes(b"").decode())


def test_given_kill_the_standby_takes_over_with_the_state() -> None:
    """What was submitted before and what the state was: all is there, and the supervisor knows who serves."""
    with census(), Supervisor(board(DIARY)) as sup:
        total, pids = 0, list[int]()
        for restart in range(1, 6):
            heir = _heir(sup, "diary")
            sup["diary"].write(ADD, 4, restart)
            total += restart
            assert sup.kill("diary", charged=False) is not None
            assert _diary(sup) == (heir, heir, restart, "was killed by signal 9", [*pids, heir])
            pids.append(heir)
            assert (sup["diary"].pid, sup["diary"].generation) == (heir, restart + 1)
            assert sup["diary"].read(0, 4) == total
            _until(sup, lambda: sup["diary"].state == "ready")
            _until(sup, lambda heir=heir: os.sched_getaffinity(heir) == os.sched_getaffinity(0))  # type: ignore[misc]
            assert sup["diary"].restarts == restart


def test_given_death_that_nobody_has_announced_it_is_followed_as_well() -> None:
    """SIGKILL from outside, noticed by nobody who waits for an answer."""
    with census(), Supervisor(board(DIARY)) as sup:
        heir = _heir(sup, "diary")
        assert sup["diary"].pid is not None
        os.kill(sup["diary"].pid, signal.SIGKILL)
        _until(sup, lambda: sup["diary"].pid == heir and sup["diary"].state == "ready")
        assert _diary(sup)[-1] == [heir]
        died = [one for one in sup.events() if isinstance(one, DeviceDied)]
        assert [one.generation for one in died] == [1]


def test_given_supervisor_that_does_nothing_the_standby_serves_all_the_same() -> None:
    """It has taken over, restored and answered before the supervisor has heard of any of it."""
    with census(), Supervisor(board(DIARY)) as sup:
        heir = _heir(sup, "diary")
        diary = sup["diary"]
        assert diary.pid is not None
        os.kill(diary.pid, signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE_S
        while sup._workers is not None and not sup._workers._standbys._by_name["diary"].has_taken_over:
            assert time.monotonic() < deadline
            os.sched_yield()
        diary.write(ADD, 4, 7)
        assert diary.read(0, 4) == 7
        assert diary.pid == heir


def test_given_nobody_is_dead_no_code_of_the_device_runs_in_the_standby() -> None:
    """A bell that rings for nothing is not believed."""
    with census(), Supervisor(board(DIARY)) as sup:
        heir = _heir(sup, "diary")
        assert sup._workers is not None
        standby = sup._workers._standbys._by_name["diary"]
        assert standby.inheritance is not None
        for _ in range(3):
            os.eventfd_write(standby.inheritance.bell.fileno(), 1)
            _until(sup, lambda: psutil.Process(heir).status() == psutil.STATUS_SLEEPING)
        assert not standby.has_taken_over
        assert _diary(sup)[:2] == (sup["diary"].pid,) * 2


class _Assassin(_Killer):
    """Kills from beside as somebody else would, without asking the supervisor, which is not made for that."""

    def _kill(self) -> bool:
        assert self._sup._workers is not None
        seat = self._sup._workers.seat(self._name)
        worker = seat.worker
        if worker is None or worker.pidfd is None or not seat.ready:
            return False
        signal.pidfd_send_signal(worker.pidfd.fileno(), signal.SIGKILL)
        return True


@pytest.mark.parametrize("open_ahead", [True, False])
def test_given_counting_device_killed_at_random_requests_count_exactly(
    open_ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies, the count and the outputs are exact, whether standbys take over by themselves or are told."""
    if not open_ahead:
        monkeypatch.setattr(policy, "comes_back_at_once", lambda *_arguments, **_options: False)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    with census(), Supervisor(board(COUNTING + ", standby: true")) as sup:
        counter = sup["counter"]
        traced: list[int] = []
        counter.on_output(lambda data: traced.append(struct.unpack("<I", data)[0]))
        killer = _Assassin(sup, "counter", seed, 0.02)
        killer.start()
        expected: list[int] = []
        total = succeeded = 0
        deadline = time.monotonic() + 90
        while total < 4000 or killer.kills < 60 or succeeded < (15 if open_ahead else 0):
            total += 1
            kind = chooser.randrange(6)
            before = sup["counter"].standby_pid
            _one_request(kind, counter, total, expected)
            if chooser.random() < 0.05:
                sup.dispatch(0.001)
            succeeded += before is not None and counter.pid == before
            assert time.monotonic() < deadline, (total, killer.kills, succeeded)
        assert counter.read(COUNT, 4) == total
        killer.end()
        sup.dispatch(0)
        assert traced == expected


def test_given_successors_that_die_before_any_line_requests_count_exactly() -> None:
    """While they start, restore, commit, handle what waits and say that they are ready."""
    device = COUNTING.replace("counting:Counting", "heir:Mortal") + ", standby: true, poison: 1000"
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    with census(), Supervisor(board(device)) as sup:
        counter = sup["counter"]
        traced: list[int] = []
        counter.on_output(lambda data: traced.append(struct.unpack("<I", data)[0]))
        expected: list[int] = []
        total = succeeded = 0
        deadline = time.monotonic() + DEADLINE_S
        while succeeded < 60:
            assert time.monotonic() < deadline, (total, succeeded)
            if _may_succeed(sup, "counter"):
                succeeded += 1
                sup.kill("counter", charged=False)
            for _ in range(chooser.randrange(1, 4)):
                total += 1
                _one_request(chooser.randrange(6), counter, total, expected)
            assert counter.read(COUNT, 4) == total
            sup.dispatch(0.002)
        sup.dispatch(0)
        assert traced == expected


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_given_standby_that_is_no_more_or_does_not_move_somebody_else_takes_over(number: int) -> None:
    """The supervisor takes its word back, and goes on as if there were none."""
    with census(), Supervisor(board(DIARY)) as sup:
        heir = _heir(sup, "diary")
        os.kill(heir, number)
        sup.kill("diary", charged=False)
        assert sup["diary"].call_bytes(b"")
        assert sup["diary"].pid != heir
        _until(sup, lambda: sup["diary"].state == "ready")
        _until(sup, lambda: heir not in living_descendants())


def test_given_standbys_that_keep_dying_they_are_given_up_and_the_device_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So many lives without being needed."""
    with census(), Supervisor(board(DIARY)) as sup:
        for _ in range(standbys.LIVES):
            os.kill(_standby(sup, "diary"), signal.SIGKILL)
            _until(sup, lambda: sup["diary"].standby_pid is None)
        _until(sup, lambda: "keep dying" in caplog.text)
        sup.kill("diary", charged=False)
        assert sup["diary"].call_bytes(b"")
        assert _standby(sup, "diary")  # a new process of the device, and new luck


def test_given_successor_that_dies_at_once_the_next_ones_go_on() -> None:
    """It has taken over and is gone before the supervisor has heard of the first death."""
    device = DIARY.replace("heir:Diary", "heir:Fragile")
    with census(), Supervisor(board(device)) as sup:
        _heir(sup, "diary")
        sup.kill("diary", charged=False)
        made_by, _started_by, restarts, last_exit, processes = _diary(sup)
        assert (restarts, last_exit, processes) == (3, "was killed by signal 9", [made_by])


def test_given_request_that_kills_it_is_given_up_after_as_many_deaths_as_without() -> None:
    """Whoever takes over by itself counts like any other."""
    for standby in ("true", "false"):
        device = DIARY.replace("standby: true", f"standby: {standby}") + ", poison: 3"
        with census(), Supervisor(board(device)) as sup:
            if standby == "true":
                _heir(sup, "diary")
            with pytest.raises(DeviceError, match="killed 3 workers"):
                sup["diary"].write(KILL, 4, 1)
            _until(sup, lambda: sup["diary"].state == "ready")
            assert sup["diary"].generation == 4
            sup["diary"].write(ADD, 4, 1)
            assert sup["diary"].read(0, 4) == 1


def test_given_successor_that_dies_by_itself_the_request_before_is_not_blamed_for_that() -> None:
    """The first process dies of it, the next two in their own restoration: it has its second chance."""
    device = DIARY.replace("heir:Diary", "heir:Fragile") + ", poison: 2"
    with census(), Supervisor(board(device)) as sup:
        _heir(sup, "diary")
        with pytest.raises(DeviceError, match="killed 2 workers"):
            sup["diary"].write(KILL, 4, 1)
        _until(sup, lambda: sup["diary"].state == "ready")
        assert sup["diary"].generation == 5


def test_given_descriptor_that_is_kept_just_before_a_death_it_is_not_lost() -> None:
    """Whoever took over without it makes way for somebody who has it."""
    with census(), Supervisor(board(DIARY)) as sup:
        diary = sup["diary"]
        for number in range(1, 4):
            _heir(sup, "diary")
            diary.write(KEEP, 4, number)
            assert diary.pid is not None
            os.kill(diary.pid, signal.SIGKILL)
            kept = [f"thing{one}" for one in range(1, number + 1)]
            _until(sup, lambda kept=kept: diary.call_bytes(b"kept").decode().split() == kept)  # type: ignore[misc]
            _until(sup, lambda: diary.state == "ready")


def test_given_backoff_that_is_over_the_word_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a healthy while the next death is followed at once again."""
    monkeypatch.setattr(standbys, "AGAIN_NS", 50_000_000)
    with census(), Supervisor(board(DIARY.replace("{max: 0s}", "{healthy_after: 100ms}"))) as sup:
        for _ in range(3):
            heir = _heir(sup, "diary")
            sup.kill("diary")
            assert _diary(sup)[0] == heir


def test_given_many_reloads_there_still_is_a_standby() -> None:
    """One that is replaced because it was told something else has not died."""
    with census(), Supervisor(board(DIARY)) as sup:
        before = _standby(sup, "diary")
        for number in range(2 * standbys.LIVES):
            sup.reload(board(f"{DIARY}, env: {{WORD: w{number}}}"))
            _until(sup, lambda before=before: sup["diary"].standby_pid not in (None, before))  # type: ignore[misc]
            before = _standby(sup, "diary")


def test_given_journal_that_has_grown_the_standby_is_replaced() -> None:
    """The one that there was has the old journal."""
    with census(), Supervisor(board(DIARY)) as sup:
        before = _heir(sup, "diary")
        sup["diary"].write(GROW, 4, 20_000)
        _until(sup, lambda: sup["diary"].standby_pid not in (None, before))
        heir = _heir(sup, "diary")
        sup.kill("diary", charged=False)
        assert sup["diary"].call_bytes(b"")
        assert sup["diary"].pid == heir


def test_given_journal_that_has_just_grown_an_overtaken_standby_does_not_take_over() -> None:
    """The state is the one that was committed last, in whatever journal."""
    with census(), Supervisor(board(DIARY)) as sup:
        for size in (20_000, 200_000):
            overtaken = _heir(sup, "diary")
            sup["diary"].write(GROW, 4, size)
            sup.kill("diary", charged=False)
            sup["diary"].write(ADD, 4, 1)
            assert sup["diary"].pid != overtaken
        assert sup["diary"].read(0, 4) == 2


def test_given_stop_the_standby_goes_with_the_device_and_comes_back_with_it() -> None:
    """A device that is down has nobody who waits to take its place."""
    with census(), Supervisor(board(DIARY)) as sup:
        heir = _heir(sup, "diary")
        sup.stop_device("diary")
        _until(sup, lambda: sup["diary"].state == "down")
        assert sup["diary"].standby_pid is None
        _until(sup, lambda: heir not in living_descendants())
        sup.start_device("diary")
        assert _standby(sup, "diary") != heir


def test_given_death_and_stop_at_once_who_has_taken_over_is_gone_when_it_is_down() -> None:
    """The successor of a device that is wanted no more has not been asked for."""
    with census(), Supervisor(board(DIARY)) as sup:
        for _ in range(5):
            heir, pid = _heir(sup, "diary"), sup["diary"].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            sup.stop_device("diary")
            _until(sup, lambda: sup["diary"].state == "down")
            _until(sup, lambda heir=heir, pid=pid: not living_descendants() & {heir, pid})  # type: ignore[misc]
            with pytest.raises(DeviceGone):
                sup["diary"].read(0, 4)
            sup.start_device("diary")
            _until(sup, lambda: sup["diary"].state == "ready")


def test_given_restart_that_would_wait_nobody_takes_over_ahead_of_it() -> None:
    """Backoff and budgets hold: the word is not given where the policy would say something else."""
    slow = DIARY.replace("{max: 0s}", "{first: 200ms}")
    with census(), Supervisor(board(slow)) as sup:
        standby = _standby(sup, "diary")
        _until(sup, lambda: not sup._workers or not sup._workers._standbys._asked)
        assert not _may_succeed(sup, "diary")
        before = time.monotonic()
        sup.kill("diary")
        assert _diary(sup)[0] == standby
        assert time.monotonic() - before > 0.15


def test_given_all_killed_at_once_each_standby_takes_over() -> None:
    """One death counts for the others as the policy says, and here that changes nothing."""
    names = [f"d{number}" for number in range(6)]
    devices = [DIARY.replace("name: diary", f"name: {name}") for name in names]
    with census(), Supervisor(board(*devices, supervisor="intensity: 1000, period: 1s")) as sup:
        heirs = {name: _heir(sup, name) for name in names}
        for name in names:
            _until(sup, lambda name=name: _may_succeed(sup, name))  # type: ignore[misc]
        for name in names:
            pid = sup[name].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        for name in names:
            assert _diary(sup, name)[2] == 1
            assert sup[name].generation == 2
        served = [sup[name].pid == heirs[name] for name in names]
        assert sum(served) >= len(names) - 1, served


def test_given_budget_that_two_deaths_exceed_it_is_not_overdrawn_by_who_takes_over() -> None:
    """Two die together where one restart is allowed: the supervisor gives up, and nobody is left."""
    devices = [DIARY.replace("name: diary", f"name: d{number}") for number in range(2)]
    with census(), Supervisor(board(*devices, supervisor="intensity: 1, period: 60s")) as sup:
        for name in sup.devices:
            _heir(sup, name)
        pids = [sup[name].pid for name in sup.devices]
        for pid in pids:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        _until(sup, lambda: sup.outcome is not None)


def test_given_reload_the_standby_is_told_of_what_is_new() -> None:
    """Other options are another brief; without ``standby`` there is none."""
    with census(), Supervisor(board(DIARY)) as sup:
        first = _heir(sup, "diary")
        sup.reload(board(DIARY + ", env: {WORD: new}"))
        _until(sup, lambda: sup["diary"].standby_pid not in (None, first))
        sup.reload(board(DIARY.replace("standby: true", "standby: false")))
        assert sup["diary"].standby_pid is None
        _until(sup, lambda: first not in living_descendants())
        sup.kill("diary", charged=False)
        assert sup["diary"].call_bytes(b"")


def test_given_clock_of_the_machine_the_standby_begins_at_the_time_of_what_waits() -> None:
    """Guest time stands still while somebody waits, so it is known without the machine's being asked."""
    now = [5]
    with census(), Supervisor(board(DIARY)) as sup:
        _heir(sup, "diary")
        sup.clock = lambda: now[0]
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert time.monotonic() < deadline, "it has never taken over by itself"
            standby, generation = _heir(sup, "diary"), sup["diary"].generation
            now[0] += 1000
            sup.kill("diary", charged=False)
            assert sup["diary"].call_bytes(b"born") == str(now[0]).encode()
            assert _diary(sup)[0] == standby
            _until(sup, lambda generation=generation: sup["diary"].generation > generation)  # type: ignore[misc]
            _until(sup, lambda: sup["diary"].state == "ready")
            timeline = sup["diary"].last_restart
            assert isinstance(timeline, RestartTimeline)
            if timeline.restored_ns < timeline.settled_ns:
                break


def test_given_clock_of_the_machine_and_nothing_that_waits_the_standby_waits_for_the_word() -> None:
    """Guest time may have passed since the last input: only the machine knows."""
    with census(), Supervisor(board(DIARY)) as sup:
        sup.clock = lambda: 5
        assert sup["diary"].call_bytes(b"born") != b"5"
        standby = _heir(sup, "diary")
        sup.clock = lambda: 7
        standby = _heir(sup, "diary")
        sup.kill("diary", charged=False)
        _until(sup, lambda: sup["diary"].generation == 2 and sup["diary"].state == "ready")
        assert sup["diary"].call_bytes(b"born") == b"7"
        assert _diary(sup)[0] == standby


def test_given_succession_its_instants_are_told_in_their_order() -> None:
    """It has restored before the supervisor has judged the death, and the sum is the whole.

    On a busy machine the supervisor may lose patience, and then it is a restart like others.
    """
    with census(), Supervisor(board(DIARY)) as sup:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert time.monotonic() < deadline, "it has never taken over by itself"
            generation = sup["diary"].generation
            _heir(sup, "diary")
            sup.kill("diary", charged=False)
            assert sup["diary"].call_bytes(b"")
            _until(sup, lambda generation=generation: sup["diary"].generation > generation)  # type: ignore[misc]
            _until(sup, lambda: sup["diary"].state == "ready")
            timeline = sup["diary"].last_restart
            assert isinstance(timeline, RestartTimeline)
            assert sum(timeline.steps().values()) == timeline.ready_ns - timeline.killed_ns
            assert all(step >= 0 for step in timeline.steps().values())
            if timeline.restored_ns < timeline.settled_ns:
                break
        assert timeline.killed_ns < timeline.assigned_ns < timeline.started_ns < timeline.restored_ns
        assert timeline.settled_ns < timeline.activated_ns <= timeline.ready_ns


def test_given_device_that_has_just_been_succeeded_who_connects_to_it_meets_the_next_process() -> None:
    """Where several die at once their deaths are taken in a little later: nobody is to suffer from that."""
    talking = 'device: "tests.devices.talking:Talking", backoff: {max: 0s}'
    config = board(f"name: a, {talking}, standby: true", f"name: b, {talking}", DIARY)
    with census(), Supervisor(config) as sup:
        heirs = {name: _heir(sup, name) for name in ("a", "diary")}
        assert sup._workers is not None
        standby, seat = sup._workers._standbys._by_name["a"], sup._workers.seat("a")
        for name in heirs:
            pid = sup[name].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        _until(sup, lambda: standby.said or (seat.generation == 2 and seat.ready))  # it has said Ready
        assert sup["b"].call_bytes(b"connect a") == str(heirs["a"]).encode()
        assert sup["b"].generation == 1
        assert sup["a"].pid == heirs["a"]


def test_given_one_start_that_took_long_it_is_not_taken_for_the_rule() -> None:
    """The machine may have been busy: only a device that takes long each time is one that does."""
    with census(), Supervisor(board(DIARY)) as sup:
        assert sup._workers is not None
        seat = sup._workers.seat("diary")
        seat.begin_ns = 3_000_000
        slow = Ready(begun_ns=1_000_000, restored_ns=501_000_000)
        seat.note_start(slow)
        assert seat.begin_ns == 6_000_000
        for _ in range(10):
            seat.note_start(slow)
        assert seat.begin_ns == 500_000_000
        seat.note_start(Ready(begun_ns=1_000_000, restored_ns=3_000_000))
        assert seat.begin_ns == 2_000_000
        seat.note_start(Ready(begun_ns=9_000_000, restored_ns=3_000_000))  # as no clock runs
        assert seat.begin_ns == 1


def test_given_in_process_it_means_nothing() -> None:
    """There is no process whose place could be taken."""
    with Supervisor(board(DIARY, supervisor="in_process: true")) as sup:
        assert sup["diary"].standby_pid is None


def test_given_trace_and_interrupts_across_successions_none_is_doubled() -> None:
    """Outputs that were committed and not yet taken when it died come once, levels are the last ones."""
    with census(), Supervisor(board(COUNTING + ", standby: true")) as sup:
        counter, traced, levels = sup["counter"], [], []
        for round_ in range(1, 11):
            heir = _heir(sup, "counter")
            counter.write(TRACE, 4, 1)
            counter.write(FIRE, 4, round_ & 1)
            pid = counter.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert counter.read(NEXT, 4) == 2 * round_
            assert counter.pid == heir
            levels.append(counter.irq_levels >> 3 & 1)
        counter.on_output(lambda data: traced.append(struct.unpack("<I", data)[0]))
        sup.dispatch(0)
        assert traced == [2 * round_ - 1 for round_ in range(1, 11)]
        assert levels == [round_ & 1 for round_ in range(1, 11)]


def test_given_configuration_it_is_a_yes_or_no() -> None:
    """And no is what it is without."""
    assert board(DIARY).devices[0].standby
    assert not board(COUNTING).devices[0].standby
    with pytest.raises(ConfigError, match="standby"):
        board(COUNTING + ", standby: maybe")
