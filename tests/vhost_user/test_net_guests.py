"""Real guests on a tap: QEMU and User-Mode Linux move files over TCP while their card is killed all the time.

The network is a namespace of the test's own, the guests come from ``make guests``; skipped without either.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from supervisor.chaos import ChaosRule, Monkey
from supervisor.events import DeviceDied, DeviceFailed, GaveUp
from supervisor.host import Supervisor
from tests.chaos import board, census
from tests.vhost_user.guests import DEADLINE_S, VMMS, boot
from tests.vhost_user.netns import GUEST, HOST, make_tap, own_network

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(280)]

MIB = 8
ROUNDS = 1
MAC = "52:54:00:09:00:02"


class Files:
    """The host's end: gives ``data`` to whoever connects to ``down``, and takes what comes to ``up``."""

    def __init__(self) -> None:
        self.data = os.urandom(MIB << 20)
        self.taken: list[str] = []
        self.errors: list[OSError] = []
        self._doors = [socket.create_server((HOST, 0)) for _ in range(2)]
        self.down, self.up = (door.getsockname()[1] for door in self._doors)
        works = (self._give, self._take)
        self._threads = [
            threading.Thread(target=self._serve, args=pair) for pair in zip(self._doors, works, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, door: socket.socket, work: object) -> None:
        while True:
            try:
                end, _address = door.accept()
            except OSError:
                return  # closed
            with end:
                end.settimeout(DEADLINE_S)
                try:
                    work(end)  # type: ignore[operator]
                except OSError as error:
                    self.errors.append(error)

    def _give(self, end: socket.socket) -> None:
        end.sendall(self.data)

    def _take(self, end: socket.socket) -> None:
        taken = hashlib.sha256()
        while data := end.recv(1 << 16):
            taken.update(data)
        self.taken.append(taken.hexdigest())

    def close(self) -> None:
        for door in self._doors:
            door.shutdown(socket.SHUT_RDWR)
            door.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def _files() -> Iterator[Files]:
    made = Files()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def sup() -> Iterator[Supervisor]:
    device = (
        f"name: net0, device: virtio.net, options: {{tap: tap0, mac: '{MAC}'}}, "
        "vhost_user: {}, backoff: {max: 0s}"
    )
    with census(), own_network():
        make_tap()
        with Supervisor(board(device, supervisor="intensity: 0, period: 60s")) as made:
            yield made


@pytest.mark.parametrize("disturbed", [False, True], ids=["quiet", "killed"])
@pytest.mark.parametrize("vmm", VMMS)
def test_given_guest_on_a_tap_files_arrive_whole_through_deaths(
    vmm: str, disturbed: bool, sup: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """Some MiB each way, with kills every 50 ms: TCP sees a lossy network, the VMM sees nothing."""
    caplog.set_level(logging.INFO, "tubevisor")
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    begun = time.monotonic()
    with _files() as files:
        addresses = f"tv.ip={GUEST} tv.host={HOST} tv.down={files.down} tv.up={files.up}"
        append = f"tv.what=net tv.rounds={ROUNDS} {addresses}"
        rule = ChaosRule(kill="net0", every_ns=50_000_000, jitter=0.5, seed=seed)
        monkey = Monkey(sup, [rule] if disturbed else [])
        monkey.start()
        text = boot(VMMS[vmm](sup, append))
        monkey.stop()
        wanted = hashlib.sha256(files.data).hexdigest()
        assert not files.errors
        assert re.findall(r"took=([0-9a-f]{64})", text) == [wanted] * ROUNDS, text[-3000:]
        assert files.taken == [wanted] * ROUNDS
    kills = monkey.kills["net0"] if disturbed else 0
    print(f"kills={kills} took {time.monotonic() - begun:.1f} s")
    assert "guest: net failed=0 errors=0" in text, text[-3000:]
    assert f"guest: ready, {MAC}" in text
    assert kills > (20 if disturbed else -1)
    connected = [one for one in caplog.messages if "a VMM has connected" in one]
    assert len(connected) == 1, caplog.messages
    events = list(sup.events())
    assert not [one for one in events if isinstance(one, GaveUp | DeviceFailed)]
    assert not [one for one in events if isinstance(one, DeviceDied) and one.charged]
