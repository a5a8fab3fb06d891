"""Nothing lost, nothing twice and nobody killed for nothing, where it presses: each was a defect."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Sequence

import psutil
import pytest

from supervisor.conversation import Conversation
from supervisor.errors import (
    DeviceError,
    DeviceFault,
    DeviceGone,
    EnvironmentFault,
    RequestTimeout,
    StartFailed,
)
from supervisor.events import DeviceCrashed, DeviceKilled, InputGivenUp, Record
from supervisor.host import Supervisor
from supervisor.launch import launcher
from supervisor.launch.launcher import Launcher
from supervisor.launch.spawn import ZygoteProcess
from supervisor.remote import RemoteHandle
from supervisor.tube import Descriptor
from supervisor.worker.records import InputKind
from tests.chaos import COUNTING, board, census, living_descendants

PRESSING = 'device: "tests.devices.pressing:Pressing"'
COUNT, SLOW, SHOUT = 0x0, 0x4, 0x8


def _pressing(extra: str = "", *, supervisor: str = "intensity: 5") -> Supervisor:
    return Supervisor(board(f"name: d, {PRESSING}, backoff: {{max: 0s}}{extra}", supervisor=supervisor))


def _told(sup: Supervisor, kind: type[Record]) -> list[Record]:
    return [record for record in sup.events() if isinstance(record, kind)]


def test_given_many_large_payloads_at_once_each_is_handled_and_nobody_is_killed() -> None:
    """Payloads that do not fit the ring wait for the worker to ask, however many there are."""
    with census(), _pressing() as sup:
        for _ in range(300):
            sup["d"].send(b"x" * 10_000)
        sup.kill("d", charged=False)
        assert sup["d"].call_bytes(b"") == b"301"
        assert not _told(sup, DeviceKilled)


def test_given_slow_posted_writes_their_progress_counts() -> None:
    """More work than request_timeout in the queue is no hang as long as it moves: nothing is dropped."""
    with census(), _pressing(", request_timeout: 300ms") as sup:
        for _ in range(60):
            sup["d"].write(SLOW, 4, 20)
        assert sup["d"].read(COUNT, 4) == 60
        assert not _told(sup, InputGivenUp)


def test_given_start_longer_than_request_timeout_nobody_is_killed_for_it() -> None:
    """While a worker is on its way only start_timeout judges it; the request then has its answer."""
    extra = ", options: {restart_takes_ms: 900}, start_timeout: 10s, request_timeout: 300ms"
    with census(), _pressing(extra) as sup:
        sup.kill("d")
        sup["d"].write(SLOW, 4, 0)
        assert sup["d"].call_bytes(b"") == b"2"
        assert not _told(sup, DeviceKilled)


def test_given_request_that_ended_in_gone_it_is_not_executed_after_a_new_start() -> None:
    """What was answered with DeviceGone never happens behind the caller's back."""
    with census(), _pressing(", stop_timeout: 100ms") as sup:
        handle = sup["d"]
        assert isinstance(handle, RemoteHandle)
        answers: list[bytes | DeviceFault] = []
        handle.submit(InputKind.CALL, answers.append, payload=b"take 30")
        sup.stop_device("d")
        while not answers:
            sup.dispatch(1)
        assert isinstance(answers[0], DeviceGone)
        sup.start_device("d")
        assert handle.call_bytes(b"") == b"1"
        assert not handle.ledger.replies


def test_given_poisoned_record_the_journal_still_grows() -> None:
    """A dropped record with a payload keeps its place in a journal that is replaced, also across a kill."""
    with census(), _pressing(", poison: 2", supervisor="intensity: 100") as sup:
        handle = sup["d"]
        assert isinstance(handle, RemoteHandle)
        grow = Conversation._grow
        killed: list[int | None] = []

        def grow_under_fire(self: Conversation, seat: object, message: object) -> None:
            if not killed:
                killed.append(sup.kill("d", charged=False))
                assert handle.ledger.journal.words[0]
            grow(self, seat, message)  # type: ignore[arg-type]

        answers: list[bytes | DeviceFault] = []
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Conversation, "_grow", grow_under_fire)
            for request in (b"die " + b"x" * 100, b"grow 20000", b"ok"):
                handle.submit(InputKind.CALL, answers.append, payload=request)
            while len(answers) < 3:
                sup.dispatch(1)
        assert isinstance(answers[0], DeviceError)
        assert answers[1:] == [b"1", b"2"]


def test_given_outputs_in_the_ring_growth_keeps_them() -> None:
    """What was emitted before the journal grew, and not taken yet, arrives once."""
    with census(), _pressing() as sup:
        heard: list[bytes] = []
        for _ in range(3):
            sup["d"].write(SHOUT, 4, 1)
        sup["d"].write(SHOUT, 4, 40)
        sup["d"].on_output(heard.append)
        sup["d"].flush()
        sup.dispatch(0)
        assert [len(data) for data in heard] == [1024] * 3 + [40 * 1024]


def test_given_nobody_listens_outputs_are_held_within_bounds() -> None:
    """A loud device waits for its sink instead of filling the supervisor's memory; nothing is lost."""
    with census(), _pressing(", request_timeout: 300ms") as sup:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(200):
            sup["d"].write(SHOUT, 4, 100)
        until = time.monotonic() + 1
        while time.monotonic() < until:
            sup.dispatch(0.05)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 15_000  # KiB, of 20 MB emitted
        heard: list[int] = []
        sup["d"].on_output(lambda data: heard.append(len(data)))
        while len(heard) < 200:
            sup.dispatch(1)
        assert heard == [100 * 1024] * 200
        assert not _told(sup, DeviceKilled)


def test_given_hang_while_stopping_a_request_still_times_out() -> None:
    """A device that hangs in its stop with stop_timeout infinity blocks no caller for ever."""
    with census(), _pressing(", stop_timeout: infinity, request_timeout: 300ms") as sup:
        handle = sup["d"]
        assert isinstance(handle, RemoteHandle)
        handle.submit(InputKind.CALL, lambda _answer: None, payload=b"take 60")
        sup.restart_device("d")
        with contextlib.suppress(RequestTimeout):
            handle.call_bytes(b"")
        assert handle.call_bytes(b"")


@pytest.mark.parametrize("lie", ["slot", "count"])
def test_given_register_map_that_cannot_be_the_worker_is_ended(lie: str) -> None:
    """Slots beyond the published words, or ten thousand million registers: a broken contract, not a crash."""
    with census(), pytest.raises(StartFailed), _pressing(f", options: {{map: {lie}}}"):
        pass


def _lose_zygote(sup: Supervisor) -> None:
    """Kills the zygote; returns when every device has been restarted."""
    zygote = sup.zygote_pid
    assert zygote is not None
    os.kill(zygote, signal.SIGKILL)
    while any(device.restarts == 0 for device in sup.devices.values()):
        assert sup.outcome is None
        sup.dispatch(1)


def test_given_zygote_killed_every_devices_death_is_forgiven() -> None:
    """One kill -9 of the zygote takes all workers along, and spends no budget."""
    devices = [f'name: d{n}, device: "tests.devices.counting:Counting"' for n in range(6)]
    with census(), Supervisor(board(*devices, supervisor="intensity: 2, period: 60s")) as sup:
        _lose_zygote(sup)
        assert sup.outcome is None


def test_given_zygote_killed_while_it_forks_every_devices_death_is_forgiven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who is being forked has a copy of the zygote's end of the Tube, so that this is not hung up on yet."""
    copies = []

    class Copied(ZygoteProcess):
        def __init__(self, tube_fd: int, preload: Sequence[str]) -> None:
            copies.append(Descriptor(os.dup(tube_fd)))
            super().__init__(tube_fd, preload)

    monkeypatch.setattr(launcher, "ZygoteProcess", Copied)
    devices = [f'name: d{n}, device: "tests.devices.counting:Counting"' for n in range(6)]
    with census(), Supervisor(board(*devices, supervisor="intensity: 2, period: 60s, spares: 0")) as sup:
        _lose_zygote(sup)
        for copy in copies:  # or the next one would not hear that we stop
            copy.close()


def test_given_zygote_killed_the_children_of_workers_end_too() -> None:
    """What a worker has started does not outlive it, whoever is left to see to that."""
    with census(), _pressing() as sup:
        sup["d"].call_bytes(b"family")
        zygote = sup.zygote_pid
        assert zygote is not None
        family = living_descendants()
        assert len(family) >= 3
        os.kill(zygote, signal.SIGKILL)
        assert sup["d"].call_bytes(b"")
        deadline = time.monotonic() + 5
        while any(_lives(pid) for pid in family) and time.monotonic() < deadline:
            sup.dispatch(0.01)
        assert not [pid for pid in family if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_given_stopped_zygote_it_is_replaced_and_the_request_answered() -> None:
    """A zygote that says nothing although workers are ordered is given up."""
    with census(), _pressing(", request_timeout: 500ms", supervisor="spares: 0, intensity: 100") as sup:
        zygote = sup.zygote_pid
        assert zygote is not None
        os.kill(zygote, signal.SIGSTOP)
        sup.kill("d", charged=False)
        assert sup["d"].call_bytes(b"") == b"1"
        assert sup.zygote_pid != zygote


def test_given_zygote_dies_before_it_can_report_a_fork_the_device_comes_back() -> None:
    """The worker has said Hello, its zygote is gone, nobody knows its pid: it counts as gone."""
    judge, armed = Launcher._judge, [False]

    def judge_late(self: Launcher, report: object, descriptors: list) -> list:  # type: ignore[type-arg]
        if armed[0] and report.WhichOneof("report") == "forked":  # type: ignore[attr-defined]
            armed[0] = False
            self.kill_zygote()
            for descriptor in descriptors:
                descriptor.close()
            return []
        return judge(self, report, descriptors)  # type: ignore[arg-type]

    with census(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(Launcher, "_judge", judge_late)
        for _ in range(3):
            with _pressing(supervisor="spares: 0, intensity: 100") as sup:
                armed[0] = True
                sup.kill("d", charged=False)
                assert sup["d"].call_bytes(b"") == b"1"


def test_given_answer_that_leads_to_a_request_outputs_are_not_doubled() -> None:
    """Whoever is called with an answer may ask again at once."""
    with census(), Supervisor(board(COUNTING)) as sup:
        counter = sup["counter"]
        assert isinstance(counter, RemoteHandle)
        traced: list[bytes] = []
        counter.on_output(traced.append)
        asked: list[int] = []
        for _ in range(20):
            counter.write(0x0C, 4, 1)
            counter.submit(InputKind.READ, lambda _a: asked.append(counter.read(0x04, 4)), offset=4, size=4)
        while len(asked) < 20:
            sup.dispatch(1)
        counter.flush()
        sup.dispatch(0)
        assert len(traced) == 20
        assert traced == sorted(traced)


def test_given_last_line_without_an_end_it_is_in_the_report() -> None:
    """What a dying process wrote without a newline counts."""
    with census(), _pressing(", poison: 1") as sup:
        with pytest.raises(DeviceError):
            sup["d"].call_bytes(b"mumble")
        crash = _told(sup, DeviceCrashed)[0]
        assert isinstance(crash, DeviceCrashed)
        assert crash.log[-1] == "last words without an end"


@pytest.mark.parametrize(
    ("register", "told"), [(0x8, "has killed 2 workers"), (0xC, "did not come to an end")]
)
def test_given_alarm_that_kills_it_alone_is_dropped(register: int, told: str) -> None:
    """It is not the fault of the request before which it falls due: that one is answered, and others fire."""
    device = 'name: d, device: "tests.devices.alarming:Exploding", backoff: {max: 0s}, poison: 2'
    with census(), Supervisor(board(f"{device}, request_timeout: 300ms")) as sup:
        now_ns = 0
        sup.clock = lambda: now_ns
        sup["d"].write(0x0, 4, 7)
        sup["d"].write(register, 4, 5)
        now_ns = 6_000_000
        if register == 0xC:
            with pytest.raises(RequestTimeout):
                sup["d"].write(0x0, 4, 2)
            sup["d"].write(0x0, 4, 2)
        else:
            sup["d"].write(0x0, 4, 2)  # an alarm 2 ms from now
        now_ns = 9_000_000
        sup.dispatch()
        sup["d"].flush()
        assert sup["d"].read(0x4, 4) == 1  # token 1 was set anew by the second write: it fires once
        given_up = [one.why for one in sup.events() if isinstance(one, InputGivenUp)]
        assert sum(told in why for why in given_up) == 1


def test_given_spawns_that_fail_at_once_for_ever_the_host_keeps_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No delay, a budget without an end, and no process to be had: dispatch still returns, and recovers."""
    with census(), Supervisor(board(COUNTING, supervisor="intensity: 100000000, spares: 0")) as sup:
        processes = sup._workers.processes if sup._workers else None
        assert processes is not None

        def refuse(_owner: object) -> None:
            raise EnvironmentFault("no room")

        with monkeypatch.context() as patched:
            patched.setattr(processes, "take", refuse)
            sup.kill("counter")
            while sup["counter"].generation < 100:
                sup.dispatch(1)
        assert sup["counter"].read(0x04, 4) == 1


def test_given_alarm_that_hangs_the_posted_write_behind_it_still_counts() -> None:
    """Nobody waits for it, and it is not what hangs."""
    device = 'name: d, device: "tests.devices.alarming:Exploding", backoff: {max: 0s}, request_timeout: 200ms'
    with census(), Supervisor(board(device)) as sup:
        now_ns = 0
        sup.clock = lambda: now_ns
        sup["d"].write(0xC, 4, 5)
        now_ns = 6_000_000
        sup["d"].send(b"7 bytes")
        with contextlib.suppress(RequestTimeout):
            sup["d"].flush()
        sup["d"].flush()
        assert sup["d"].read(0x10, 4) == 7
