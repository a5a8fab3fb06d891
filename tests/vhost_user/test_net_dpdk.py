"""DPDK's virtio-user as the VMM: somebody else's driver and front-end, which never wait for anything.

``dpdk-testpmd`` comes with Debian's dpdk-dev; skipped without it. It keeps a core busy while it runs, so it
runs for as short as it can.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from supervisor.host import Supervisor
from tests.chaos import board, census
from tests.vhost_user.netns import make_tap, own_network

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(150)]

TESTPMD = shutil.which("dpdk-testpmd")
RING = 256
KILLS = 8
KILL_EVERY_S = 0.1
DEADLINE_S = 60.0
ETHERTYPE = 0x88B5  # for experiments


class Testpmd:
    """The program: one port, on the card's socket, doing ``mode`` until it is told to stop."""

    __test__ = False

    def __init__(self, path: Path, mode: str, options: str) -> None:
        assert TESTPMD is not None
        self._log = path.with_suffix(".log")
        port = f"net_virtio_user0,path={path},queues=1,queue_size={RING}{options}"
        command = [
            TESTPMD,
            *("--no-huge", "--no-shconf", "-m", "256", "--no-pci", "--no-telemetry", "-l", "0,1"),
            *("--vdev", port, "--", "--no-mlockall", "--total-num-mbufs=4096", "--auto-start"),
            *(f"--forward-mode={mode}", "--stats-period", "1"),
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=path.parent,
                env={**os.environ, "RUNTIME_DIRECTORY": str(path.parent)},
            )

    @property
    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def counted(self, direction: str) -> int:
        """How many frames it says there were, in the end."""
        found = re.findall(rf"{direction}-packets: (\d+)", self.text.rpartition("Accumulated")[2])
        assert found, self.text[-2000:]
        return int(found[0])

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


@pytest.fixture
def sup(tmp_path: Path) -> Iterator[Supervisor]:
    if TESTPMD is None:
        pytest.skip("no dpdk-testpmd: install dpdk-dev")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("dpdk-testpmd needs two cores")
    device = (
        f"name: card, device: virtio.net, options: {{tap: tap0}}, backoff: {{max: 0s}}, "
        f'vhost_user: {{socket: "{tmp_path}/card.sock"}}'
    )
    with census(), own_network():
        make_tap()
        with Supervisor(board(device, supervisor="intensity: 0, period: 60s")) as made:
            yield made


@contextmanager
def _testpmd(sup: Supervisor, path: Path, mode: str, options: str) -> Iterator[Testpmd]:
    made = Testpmd(path, mode, options)
    try:
        yield made
        made.process.send_signal(signal.SIGINT)
        _until(lambda: made.process.poll() is not None, sup, made)
    finally:
        made.close()


def _until(what: Callable[[], bool], sup: Supervisor, program: Testpmd) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        sup.dispatch(0.01)
        assert program.process.poll() in (None, 0), program.text[-2000:]
        assert time.monotonic() < deadline, program.text[-2000:]


def _tap() -> dict[str, int]:
    """What the kernel has counted: ``rx`` is what came from the guest."""
    shown = subprocess.run(
        ["ip", "-s", "-j", "link", "show", "tap0"], check=True, capture_output=True, timeout=30
    )
    stats = json.loads(shown.stdout)[0]["stats64"]
    return {name: stats[name]["packets"] for name in ("rx", "tx")}


class _Kills:
    """Kills the card now and then, until it has been killed often enough."""

    def __init__(self, sup: Supervisor) -> None:
        self._sup = sup
        self._next = time.monotonic()
        self.done = 0

    def go_on(self) -> bool:
        if time.monotonic() >= self._next and self._sup.kill("card", charged=False) is not None:
            self.done += 1
            self._next = time.monotonic() + random.uniform(0.5, 1.5) * KILL_EVERY_S
        return self.done >= KILLS


@pytest.mark.parametrize("options", ["", ",mrg_rxbuf=0,in_order=0"], ids=["default", "plain"])
def test_given_dpdk_sends_every_frame_arrives_through_deaths(
    sup: Supervisor, tmp_path: Path, options: str
) -> None:
    """What it has handed over is sent by whoever lives; a few frames twice, none not at all."""
    with _testpmd(sup, tmp_path / "card.sock", "txonly", options) as program:
        _until(lambda: _tap()["rx"] > 1000, sup, program)
        _until(_Kills(sup).go_on, sup, program)
        before = _tap()["rx"]
        _until(lambda: _tap()["rx"] > before + 1000, sup, program)
    sent, arrived = program.counted("TX"), _tap()["rx"]
    print(f"sent={sent} arrived={arrived}")
    assert sent - RING <= arrived <= sent + (KILLS + 4) * RING


@pytest.mark.parametrize("options", ["", ",mrg_rxbuf=0,in_order=0"], ids=["default", "plain"])
def test_given_dpdk_receives_no_frame_comes_twice_through_deaths(
    sup: Supervisor, tmp_path: Path, options: str
) -> None:
    """What was taken from the tap comes but for what the dead had in their hands; nothing else comes."""
    kills = _Kills(sup)
    with (
        _testpmd(sup, tmp_path / "card.sock", "rxonly", options) as program,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end,
    ):
        end.bind(("tap0", 0))
        end.setblocking(False)

        def flow(until: Callable[[], bool]) -> None:
            def flowing() -> bool:
                for _ in range(64):
                    with suppress(OSError):  # its queue is full, or nobody is there
                        end.send(b"\xff" * 6 + bytes(6) + ETHERTYPE.to_bytes(2, "big") + bytes(200))
                return until()

            _until(flowing, sup, program)

        flow(lambda: _tap()["tx"] > 1000)
        flow(kills.go_on)
        before = _tap()["tx"]
        flow(lambda: _tap()["tx"] > before + 1000)
    received, taken = program.counted("RX"), _tap()["tx"]
    print(f"taken={taken} received={received} kills={kills.done}")
    assert taken - (KILLS + 4) * RING <= received <= taken
