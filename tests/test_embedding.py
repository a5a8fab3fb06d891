"""The supervisor in somebody else's program: select loop, asyncio, blocking; and what it must not do."""

from __future__ import annotations

import asyncio
import select
import signal
import struct
import threading
import time

import pytest

from supervisor.aio import AsyncDevice
from supervisor.config import Config
from supervisor.errors import DeviceGone
from supervisor.host import Supervisor
from supervisor.policy.records import DeviceKilled, DeviceRestarted, OutcomeKind, SupervisorReady
from tests.chaos import COUNTING, board, census, until_witnessed


@pytest.mark.parametrize("in_process", [False, True])
def test_given_either_mode_a_device_behaves_the_same(in_process: bool) -> None:
    """One contract for a device in a worker and one in this process."""
    config = board(COUNTING, supervisor=f"in_process: {'true' if in_process else 'false'}")
    with census(), Supervisor(config) as sup:
        counter = sup["counter"]
        now = [1_000]
        sup.clock = lambda: now[0]
        seen: list[int] = []
        edges: list[tuple[int, bool]] = []
        counter.on_output(lambda data: seen.append(struct.unpack("<I", data)[0]))
        counter.on_irq(lambda line, raised: edges.append((line, raised)))
        assert counter.read(0x04, 4) == 1
        assert counter.read(0x04, 1) == 2
        counter.write(0x08, 4, 3)
        counter.write(0x0C, 4, 1)
        counter.write(0x10, 4, 1)
        assert counter.read(0x00, 4) == 7
        assert counter.read(0x00, 2) == 7
        assert counter.call_bytes(b"ab") == struct.pack("<I", 8) + b"ab"
        counter.send(b"four")
        counter.flush()
        assert counter.read(0x00, 4) == 12
        counter.write(0x14, 4, 1)
        assert counter.irq_levels == 1 << 3
        counter.write(0x14, 4, 0)
        assert counter.irq_levels == 0
        assert (seen, edges) == ([], [])
        sup.dispatch(0)
        assert (seen, edges) == ([6], [(3, True), (3, False)])
        assert counter.read(0xF0, 4) == 0


def test_given_select_loop_fileno_and_next_timeout_are_all_it_needs() -> None:
    """A program's own loop watches one descriptor and one timeout; a killed device comes back."""
    with census(), Supervisor(board(COUNTING)) as sup:
        restarted: list[DeviceRestarted] = []
        sup.on_event(lambda event: restarted.append(event) if isinstance(event, DeviceRestarted) else None)
        assert sup.kill("counter")
        while not restarted:
            timeout = sup.next_timeout()
            select.select([sup.fileno()], [], [], 10 if timeout is None else timeout)
            sup.dispatch()
        assert restarted[0].restarts == 1
        assert restarted[0].outage_ns > 0


def test_given_all_has_happened_during_a_request_dispatch_does_not_wait_for_more() -> None:
    """What a blocking request has pumped through counts as something that has happened."""
    with census(), Supervisor(board(COUNTING)) as sup:
        list(sup.events())
        assert sup.kill("counter", charged=False)
        while not any(isinstance(record, DeviceRestarted) for record in sup._reactor.records):
            sup["counter"].read(0x04, 4)
        assert sup.next_timeout() == 0
        sup.dispatch(timeout=None)
        assert any(isinstance(record, DeviceRestarted) for record in sup.events())


def test_given_asyncio_devices_are_awaited_while_other_tasks_run() -> None:
    """Under asyncio requests are awaitable, also across a kill, and run() watches over the devices."""

    async def main(config: Config) -> None:
        with Supervisor(config) as sup:
            watch = asyncio.create_task(sup.run())
            counter = AsyncDevice(sup["counter"])
            assert await counter.read(0x04, 4) == 1
            sup.kill("counter", charged=False)
            values = await asyncio.gather(*(counter.read(0x04, 4) for _ in range(10)))
            assert values == list(range(2, 12))
            await counter.write(0x08, 4, 5)
            assert await counter.call_bytes(b"") == struct.pack("<I", 17)
            sup.stop_device("counter")
            with pytest.raises(DeviceGone):
                await asyncio.gather(*(counter.read(0x04, 4) for _ in range(10_000)))
            watch.cancel()

    with census():
        asyncio.run(asyncio.wait_for(main(board(COUNTING)), 30))


def test_given_asyncio_and_deadline_that_another_task_brings_run_wakes_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it has gone to sleep with may be another when somebody stops a device that does not obey."""

    async def main(config: Config) -> None:
        with Supervisor(config) as sup:
            until_witnessed(sup)  # what the start has left would wake it, too
            while (sup.next_timeout() or 0) < 3600:
                sup.dispatch(None)
            watch = asyncio.create_task(sup.run())
            until = asyncio.get_running_loop().time() + 30
            await asyncio.sleep(0)  # it sleeps now
            assert sup.kill("sleepy", send_signal=signal.SIGSTOP)
            sup.stop_device("sleepy")
            while sup["sleepy"].state != "down" and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.05)  # nothing of ours has it look
            assert [event.why for event in sup.events() if isinstance(event, DeviceKilled)]
            watch.cancel()

    sleepy = 'name: sleepy, device: "tests.devices.counting:Counting", stop_timeout: 100ms'
    monkeypatch.setattr("supervisor.processes.ZYGOTE_SILENCE_NS", 10**18)
    with census():
        asyncio.run(asyncio.wait_for(main(board(sleepy, supervisor="spares: 0")), 40))


def test_given_blocking_program_run_returns_when_it_is_over() -> None:
    """run() blocks until the budget is spent."""
    config = board(
        COUNTING + ", restart: temporary, significant: true", supervisor="auto_shutdown: any_significant"
    )
    with census(), Supervisor(config) as sup:
        assert sup.kill("counter")
        outcome = sup.run()
        assert outcome.kind is OutcomeKind.AUTO_SHUTDOWN


def test_given_host_it_gets_no_threads_handlers_or_children_reaped() -> None:
    """A polite guest: signal handlers, threads, environment and other children stay as they were."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    threads = threading.active_count()
    import subprocess

    with subprocess.Popen(["sleep", "0"]) as child, census():
        with Supervisor(board(COUNTING)) as sup:
            assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
            assert threading.active_count() == threads
            sup.kill("counter")
            assert sup["counter"].read(0x04, 4) == 1
        assert child.wait(10) == 0, "somebody else reaped our child"


def test_given_alarms_dispatch_delivers_them_in_guest_time() -> None:
    """With the default clock an alarm is part of next_timeout and fires from dispatch."""
    device = 'name: timer, device: "tests.devices.alarming:Alarming"'
    with census(), Supervisor(board(device)) as sup:
        timer = sup["timer"]
        began = time.monotonic()
        timer.write(0, 4, 300)
        while (timeout := sup.next_timeout()) == 0:  # there is something to do from the start
            sup.dispatch(0)
        assert timeout is not None
        assert timeout <= 0.3
        while not timer.irq_levels:
            sup.dispatch(1)
        assert time.monotonic() - began >= 0.3
        assert timer.read(4, 4) == 1


def test_given_alarm_pending_kill_does_not_lose_or_double_it() -> None:
    """Alarms are state: the successor fires them, once."""
    device = 'name: timer, device: "tests.devices.alarming:Alarming", backoff: {max: 0s}'
    with census(), Supervisor(board(device)) as sup:
        timer = sup["timer"]
        now = [0]
        sup.clock = lambda: now[0]
        timer.write(0, 4, 30)
        for _ in range(5):
            sup.kill("timer", charged=False)
            sup.dispatch(0)
        now[0] = 30_000_000
        sup.dispatch(0)
        assert timer.read(4, 4) == 1
        sup.kill("timer", charged=False)
        sup.dispatch(0)
        assert timer.read(4, 4) == 1


def test_given_start_events_tell_the_story_once() -> None:
    """events() never blocks and returns what has happened since."""
    with census(), Supervisor(board(COUNTING)) as sup:
        first = list(sup.events())
        assert isinstance(first[-1], SupervisorReady)
        assert list(sup.events()) == []


def test_given_handle_its_facts_follow_the_device() -> None:
    """state, pid, generation, restarts and last_exit are those of the present process."""
    with census(), Supervisor(board(COUNTING)) as sup:
        counter = sup["counter"]
        pid = counter.pid
        assert (counter.state, counter.generation, counter.restarts, counter.last_exit) == ("ready", 1, 0, "")
        assert sup.kill("counter", charged=False) == pid
        while counter.restarts == 0:
            sup.dispatch(1)
        assert (counter.state, counter.generation) == ("ready", 2)
        assert counter.pid != pid
        assert counter.last_exit == "was killed by signal 9"
        sup.stop_device("counter")
        while counter.state != "down":
            sup.dispatch(1)
        assert counter.pid is None


ALARMING = 'device: "tests.devices.alarming:Alarming"'


def test_given_device_in_long_backoff_dispatch_waits_for_nobody() -> None:
    """A device that is away with its alarm outstanding delays neither dispatch nor the others' alarms."""
    slow = f"name: slow, {ALARMING}, backoff: {{first: 1h, next: 1h, max: 1h}}"
    with census(), Supervisor(board(slow, f"name: quick, {ALARMING}")) as sup:
        now = [0]
        sup.clock = lambda: now[0]
        for name in ("slow", "quick"):
            sup[name].write(0, 4, 10)
        assert sup.kill("slow")
        while sup["slow"].state != "waiting":
            sup.dispatch(1)
        sup["slow"].send(b"for later")
        now[0] = 20_000_000
        sup.dispatch(0)
        assert sup["quick"].read(4, 4) == 1


def test_given_failed_device_with_an_alarm_dispatch_goes_on() -> None:
    """The alarm of a device that was given up is nobody's business any more."""
    failing = f"name: failing, {ALARMING}, backoff: {{max: 0s}}"
    config = board(failing, COUNTING, supervisor="intensity: 0, on_give_up: isolate")
    with census(), Supervisor(config) as sup:
        now = [0]
        sup.clock = lambda: now[0]
        sup["failing"].write(0, 4, 10)
        assert sup.kill("failing")
        while sup["failing"].state != "failed":
            sup.dispatch(1)
        now[0] = 20_000_000
        sup.dispatch(0)
        assert sup.next_alarm_ns() > now[0]
        assert sup["counter"].read(0x04, 4) == 1
