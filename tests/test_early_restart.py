"""Deaths are known before a process has been taken apart, unless its successor has to wait for that."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from supervisor.host import Supervisor
from supervisor.launch.launcher import Launcher
from supervisor.messages_pb2 import SupervisorMessage, WorkerMessage
from supervisor.tube import ProtoTube, QueueFull
from supervisor.witness import LIVES
from tests.chaos import board, census, open_descriptors
from tests.devices.unreported import HOLD

PID = 0x00
DEADLINE_S = 60.0

pytestmark = pytest.mark.chaos


def _device(kind: str, how: str = "nothing", port: int = 0) -> str:
    return (
        f'name: device, device: "tests.devices.holding:{kind}", options: {{how: {how}, port: {port}}}, '
        f"backoff: {{max: 0s}}, mmio: {{base: 0, size: 4KiB}}, start_timeout: 30s"
    )


def _serving(sup: Supervisor) -> int:
    """The pid of the process that serves, as it says itself, once it is known to be ready."""
    pid = sup["device"].read(PID, 4)
    while sup["device"].state != "ready":
        sup.dispatch(1)
    return pid


def _is_watched(sup: Supervisor) -> bool:
    """True if the witness waits for the death of the device's worker."""
    workers = sup._workers
    assert workers is not None
    worker = workers.seat("device").worker
    assert worker is not None
    return worker.ticket in workers._witness._watched


@pytest.mark.parametrize(
    ("kind", "how", "watched"),
    [("Holding", "nothing", True), ("Holding", "kept", True), ("Holding", "port", False),
     ("Exclusive", "nothing", False)],
)  # fmt: skip
def test_given_what_it_holds_it_is_known_whether_its_successor_waits(
    kind: str, how: str, watched: bool
) -> None:
    """In the first process and in those that find something kept."""
    with census(), Supervisor(board(_device(kind, how))) as sup:
        for _ in range(3):
            assert _serving(sup) == sup["device"].pid
            assert _is_watched(sup) == watched
            assert sup.kill("device", charged=False) is not None


def test_given_journal_that_was_replaced_each_death_is_seen_and_nothing_lost() -> None:
    """The worker that saw it replaced holds no mutex any more; the one before did, and the next one does."""
    with census(), Supervisor(board(_device("Growing"))) as sup:
        length = 0
        for added in (1, 20_000, 1, 40_000, 1):
            assert _serving(sup) == sup["device"].pid
            assert _is_watched(sup)
            length += added
            assert sup["device"].call_bytes(bytes(added)) == length.to_bytes(4, "little")
            assert sup.kill("device", charged=False) is not None


def test_given_witness_that_is_slow_to_listen_it_is_told_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A socket's queue is shorter than a large board is long: what has no room waits, and nobody is ended."""
    refused = Counter[int]()
    send = ProtoTube.send_proto_nowait

    def send_seldom(self: ProtoTube, message: Message, fds: Iterable[object] = ()) -> None:
        if isinstance(message, SupervisorMessage) and message.WhichOneof("body") == "watch":
            refused[message.watch.ticket] += 1
            if refused[message.watch.ticket] < 3:
                raise QueueFull("no room")
        send(self, message, fds)

    monkeypatch.setattr(ProtoTube, "send_proto_nowait", send_seldom)
    devices = [
        _device("Holding").replace("device", f"device{number}", 1).replace("base: 0", f"base: {number << 20}")
        for number in range(5)
    ]
    with census(), Supervisor(board(*devices)) as sup:
        workers = sup._workers
        assert workers is not None
        while not refused or workers._witness._untold:
            sup.dispatch(1)
        assert sorted(refused.values()) == [3] * 5
        witness = workers._witness._process
        for number in range(5):
            name = f"device{number}"
            pid = sup[name].pid
            assert sup.kill(name, charged=False) == pid
            assert sup[name].read(PID, 4) != pid
        assert workers._witness._process is witness


def test_given_port_that_only_one_can_have_no_successor_comes_too_early() -> None:
    """Thirty kills, and each next process gets the port: nobody has died by itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    device = _device("Holding", "port", port)
    with census(), Supervisor(board(device, supervisor="intensity: 0, period: 60s")) as sup:
        for _ in range(30):
            assert _serving(sup) == sup["device"].pid
            assert sup.kill("device", charged=False) is not None
        assert _serving(sup)


def test_given_much_memory_its_successor_starts_before_it_is_given_back() -> None:
    """The dead process is still being taken apart when the next one is on its way; not each time, if busy."""
    with census(), Supervisor(board(_device("Large"), supervisor="spares: 2")) as sup:
        until = time.monotonic() + DEADLINE_S
        while True:
            before = _serving(sup)
            pidfd = os.pidfd_open(before)
            try:
                assert sup.kill("device", charged=False) == before
                while sup["device"].pid == before:
                    sup.dispatch(0.01)
                if not select.select([pidfd], [], [], 0)[0]:
                    break
            finally:
                os.close(pidfd)
            assert time.monotonic() < until, "it is known too late each time"
        assert _serving(sup) != before


def test_given_witnesses_that_lived_long_there_is_always_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only those that die one after the other are given up, and that is said."""
    with census(), Supervisor(board(_device("Holding"))) as sup:
        witness = sup._workers._witness if sup._workers is not None else None
        assert witness is not None
        for long_ns, deaths in ((0, 3 * LIVES), (10**18, LIVES)):
            monkeypatch.setattr("supervisor.witness.LONG_LIFE_NS", long_ns)
            for _ in range(deaths):
                while witness._process is None or not witness._process.hello:
                    sup.dispatch(1)
                before = witness._process
                before.kill()
                while witness._process is before:
                    sup.dispatch(1)
            assert ("the witnesses keep dying" in caplog.text) == (witness._process is None) == (long_ns > 0)


def test_given_process_that_is_forgotten_before_its_fork_is_reported_the_report_has_its_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that is lost for want of one would be the end of the zygote, and so of all others."""
    hold = tmp_path / "hold"
    os.mkfifo(hold)
    monkeypatch.setenv(HOLD, str(hold))
    with census():
        launcher = Launcher(["tests.devices.unreported"])
        worker = launcher.fork()
        try:
            hello = worker.tube.recv_proto_with_fds(WorkerMessage, timeout=DEADLINE_S)
            with hello.pidfd or contextlib.nullcontext():
                assert launcher.learns(worker, hello.descriptors[0])
            worker.kill()
            launcher.forget(worker)
            launcher.reports()
            with hold.open("wb"):
                hold.unlink()
            select.select([launcher.fileno()], [], [], DEADLINE_S)
            with _all_descriptors_taken():
                assert launcher.reports() == []
            assert launcher.running
        finally:
            worker.close()
            launcher.close()


@contextlib.contextmanager
def _all_descriptors_taken() -> Iterator[None]:
    """Nobody can have one unless another is closed."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 2, limits[1]))
    with contextlib.ExitStack() as taken:
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        with contextlib.suppress(OSError):
            while True:
                taken.callback(os.close, os.dup(0))
        yield


def _has_all_it_ordered(sup: Supervisor) -> bool:
    """True once the witness is there, too, and its fork is reported: no other will be ordered by itself."""
    workers = sup._workers
    assert workers is not None
    witness = workers._witness._process
    return witness is not None and witness.hello and not workers.processes._launcher._ordered


def test_given_fork_that_is_not_reported_yet_its_process_can_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a process answers before its zygote runs again: it has said itself who it is."""
    hold = tmp_path / "hold"
    monkeypatch.setenv(HOLD, str(hold))
    device = 'name: device, device: "tests.devices.unreported:Counting", backoff: {max: 0s}'
    with (
        census(),
        Supervisor(board(device, supervisor="spares: 0, preload: [tests.devices.unreported]")) as sup,
    ):
        counter = sup["device"]
        assert counter.read(0x04, 4) == 1
        while not _has_all_it_ordered(sup):
            sup.dispatch(1)
        for expected in range(2, 10, 2):
            os.mkfifo(hold)
            sup.kill("device", charged=False)
            assert counter.read(0x04, 4) == expected
            assert counter.pid == sup.kill("device", charged=False) is not None
            with hold.open("wb"):
                hold.unlink()
            assert counter.read(0x04, 4) == expected + 1
        assert counter.restarts == 8
