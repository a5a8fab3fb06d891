"""The keeper and a real worker, with our own front-end as the VMM: orders, refusals, deaths, disconnects."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from devices.virtio.blk import F_FLUSH, IN, IOERR, OK, SECTOR
from supervisor import keeper, keepers
from supervisor.events import DeviceDied
from supervisor.host import Supervisor
from supervisor.vhost_user import F_EVENT_IDX, F_PROTOCOL_FEATURES, F_VERSION_1
from supervisor.vhost_user.areas import Region
from supervisor.vhost_user.errors import BackEndRefused, Disconnected, VhostUserError
from supervisor.vhost_user.frontend import FrontEnd
from supervisor.vhost_user.messages import U64, Header, VringAddr
from supervisor.vhost_user.requests import FrontEndRequest
from tests.chaos import board, census
from tests.devices.poisoned import DEADLY_SECTOR
from tests.vhost_user.driver import GUEST_BASE
from tests.vhost_user.test_worker_rings import MEMORY_BYTES, QUEUE, SECTORS, USER_BASE, Rig, Work

pytestmark = pytest.mark.chaos

FEATURES = F_VERSION_1 | F_EVENT_IDX | F_FLUSH | F_PROTOCOL_FEATURES
Result = TypeVar("Result")

# In which order VMMs say what they have to say about a ring.
ORDERS = {
    "qemu blk": ["features", "memory", "num", "base", "addr", "kick", "call", "enable"],
    "qemu net": ["enable", "features", "memory", "num", "base", "addr", "kick", "call"],
    "cloud-hypervisor": ["features", "memory", "num", "addr", "base", "call", "kick", "enable"],
    "no handshake": ["call", "features", "memory", "num", "base", "addr", "kick", "enable"],
    "late memory": ["features", "num", "base", "addr", "call", "kick", "enable", "memory"],
}


class Vmm(Rig):
    """A guest whose VMM is our front-end, in a thread of its own while it waits for answers."""

    def __init__(self, sup: Supervisor, path: Path) -> None:
        super().__init__(sup)
        self.path = path
        self._thread = ThreadPoolExecutor(1)
        self.front = self.ask(lambda: FrontEnd(path, need_reply=True))

    def ask(self, what: Callable[[], Result]) -> Result:
        """Does ``what`` while the supervisor goes on."""
        future = self._thread.submit(what)
        while not future.done():
            self.sup.dispatch(0.001)
        return future.result()

    def attach(self) -> None:
        """Nobody has to: that is what a keeper is for."""

    def say(self, what: str) -> None:
        front = self.front
        desc, avail, used = (place - GUEST_BASE + USER_BASE for place in self.driver.places)
        said: dict[str, Callable[[], object]] = {
            "features": lambda: front.set_features(FEATURES),
            "memory": lambda: front.set_mem_table(
                [Region(GUEST_BASE, MEMORY_BYTES, USER_BASE)], [self.fds["memory"]]
            ),
            "num": lambda: front.set_vring_num(0, QUEUE),
            "base": lambda: front.set_vring_base(0, self.driver.position),
            "addr": lambda: front.set_vring_addr(VringAddr(0, 0, desc, used, avail)),
            "kick": lambda: front.set_vring_kick(0, self.fds["kick"]),
            "call": lambda: front.set_vring_call(0, self.fds["call"]),
            "enable": lambda: front.set_vring_enable(0, True),
        }
        self.ask(said[what])

    def bring_up(self, order: str = "qemu blk") -> None:
        for what in ORDERS[order]:
            self.say(what)

    def close(self) -> None:
        self.ask(self.front.close)
        self._thread.shutdown()
        super().close()


@pytest.fixture
def kind() -> str:
    """The device: as its board names it."""
    return "virtio.blk"


@pytest.fixture
def backoff() -> str:
    """The device's, as its board says it."""
    return "{max: 0s}"


@pytest.fixture
def vmm(tmp_path: Path, kind: str, backoff: str) -> Iterator[Vmm]:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SECTORS * SECTOR))
    path = tmp_path / "disk.sock"
    device = (
        f'name: disk, device: "{kind}", options: {{image: "{image}"}}, backoff: {backoff}, '
        f'vhost_user: {{socket: "{path}"}}'
    )
    with census(), Supervisor(board(device, supervisor="intensity: 100000, period: 1s")) as sup:
        made = Vmm(sup, path)
        try:
            yield made
        finally:
            made.close()


def _work(vmm: Vmm, work: Work, requests: int) -> None:
    deadline = time.monotonic() + 60
    until = work.done + requests
    while work.done < until:
        work.submit()
        vmm.wait()
        work.collect()
        assert time.monotonic() < deadline, work.under_way
    while work.under_way:
        vmm.wait()
        work.collect()
        assert time.monotonic() < deadline, work.under_way


@pytest.mark.parametrize("order", ORDERS)
def test_given_any_order_of_set_up_the_disk_is_served_through_deaths(vmm: Vmm, order: str) -> None:
    """Rings may be enabled before they are there, and memory may come last."""
    vmm.bring_up(order)
    work = Work(vmm, 1)
    for _ in range(5):
        _work(vmm, work, 100)
        vmm.sup.kill("disk", charged=False)
    _work(vmm, work, 100)


def test_given_negotiation_it_is_offered_what_the_device_has(vmm: Vmm) -> None:
    """Features, protocol features, queues and the configuration space; need_reply is answered in any case."""
    front = vmm.front
    assert vmm.ask(front.get_features) & FEATURES == FEATURES
    assert vmm.ask(front.get_protocol_features) & 0x1209 == 0x1209
    vmm.ask(lambda: front.set_protocol_features(0x1209))
    assert vmm.ask(front.get_queue_num) == 1
    assert vmm.ask(lambda: front.get_config(0, 60))[:8] == SECTORS.to_bytes(8, "little")
    assert len(vmm.ask(lambda: front.get_config(0, 57))) == 57
    vmm.ask(lambda: front.set_config(32, b"\0"))
    assert vmm.ask(lambda: front.get_config(32, 1)) == b"\0"
    log, descriptor = vmm.ask(lambda: front.get_inflight_fd(1, 128))
    assert (log.mmap_size, log.queue_count, log.queue_size) == (2112, 1, 128)
    assert descriptor is not None
    descriptor.close()


def test_given_what_cannot_be_granted_it_is_refused_and_the_connection_goes_on(vmm: Vmm) -> None:
    """Features that were not offered, rings that there are not, a configuration that is not writable."""
    front = vmm.front
    refused: list[Callable[[], object]] = [
        lambda: front.set_features(1 << 63),
        lambda: front.set_protocol_features(1 << 14),
        lambda: front.set_vring_num(1, QUEUE),
        lambda: front.set_vring_num(0, 3),
        lambda: front.set_vring_base(0, 1 << 16),
        lambda: front.set_config(0, bytes(8)),
        lambda: front.send_rarp(1),
        lambda: front.set_mem_table(
            [Region(0, 8192, USER_BASE), Region(4096, 8192, USER_BASE + 65536)], [vmm.fds["memory"]] * 2
        ),
    ]
    for ask in refused:
        with pytest.raises(BackEndRefused):
            vmm.ask(ask)
    vmm.bring_up()
    _work(vmm, Work(vmm, 2), 50)


def test_given_second_vmm_it_is_turned_away_and_the_first_is_served(vmm: Vmm) -> None:
    """One connection at a time: two would write on one disk."""
    vmm.bring_up()
    second = vmm.ask(lambda: FrontEnd(vmm.path))
    with pytest.raises(Disconnected):
        vmm.ask(second.get_features)
    _work(vmm, Work(vmm, 3), 50)


@pytest.mark.parametrize("disabled_first", [False, True])
def test_given_death_the_vmm_is_told_where_the_ring_stands(vmm: Vmm, disabled_first: bool) -> None:
    """A worker that died cannot say: another one completes what was under way, and tells.

    QEMU disables a ring before it asks; then is the last moment at which a worker can serve it.
    """
    vmm.bring_up()
    work = Work(vmm, 4)
    _work(vmm, work, 50)
    work.submit()
    vmm.sup.kill("disk", charged=False)
    if disabled_first:
        vmm.ask(lambda: vmm.front.set_vring_enable(0, False))
    base = vmm.ask(lambda: vmm.front.get_vring_base(0))
    work.collect()
    assert not work.under_way
    assert base == vmm.driver.position & 0xFFFF
    for what in ("base", "addr", "kick", "call", "enable"):
        vmm.say(what)
    _work(vmm, work, 50)


@pytest.mark.parametrize("backoff", ["{first: 100ms, next: 100ms, max: 1s}"])
def test_given_many_deaths_and_no_worker_a_ring_that_stops_waits_for_the_next_one(vmm: Vmm) -> None:
    """Neither how often it has died since it last said where it stood matters, nor that none is there."""
    vmm.bring_up()
    work = Work(vmm, 7)
    for _ in range(12):
        _work(vmm, work, 10)
        vmm.sup.kill("disk", charged=False)
    _work(vmm, work, 10)
    work.submit()
    vmm.sup.kill("disk")
    while vmm.sup["disk"].state == "ready":
        vmm.sup.dispatch(0.01)
    vmm.ask(lambda: vmm.front.set_vring_enable(0, False))
    base = vmm.ask(lambda: vmm.front.get_vring_base(0))
    work.collect()
    assert not work.under_way
    assert base == vmm.driver.position & 0xFFFF


def test_given_no_worker_that_lives_the_vmm_is_told_the_last_that_is_known(
    vmm: Vmm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VMM waits in its main loop: not for ever for a device that is stopped."""
    monkeypatch.setattr(keeper, "SETTLE_NS", 50_000_000)
    vmm.bring_up()
    _work(vmm, Work(vmm, 8), 10)
    vmm.sup.kill("disk", charged=False)
    vmm.sup.stop_device("disk")
    while vmm.sup["disk"].state != "down":
        vmm.sup.dispatch(0.01)
    assert vmm.ask(lambda: vmm.front.get_vring_base(0)) == 0


def test_given_disk_given_up_while_it_is_drained_the_vmm_is_answered(vmm: Vmm) -> None:
    """No worker will come to say that the last one is out of the way: there is none to be in it."""
    vmm.bring_up()
    _work(vmm, Work(vmm, 9), 10)
    vmm.sup.kill("disk", send_signal=signal.SIGSTOP, charged=False)
    vmm.sup.stop_device("disk")
    vmm.say("memory")
    assert vmm.sup["disk"].state == "down"


def test_given_question_that_cannot_be_answered_the_connection_ends(vmm: Vmm) -> None:
    """What would say that it has failed would pass for a value."""
    with pytest.raises(Disconnected):
        vmm.ask(lambda: vmm.front.get_vring_base(7))


def test_given_silent_worker_the_vmm_is_answered_all_the_same(vmm: Vmm) -> None:
    """A worker that does not get out of the way is killed: the VMM's main loop waits for the answer."""
    vmm.bring_up()
    work = Work(vmm, 5)
    _work(vmm, work, 50)
    generation = vmm.sup["disk"].generation
    vmm.sup.kill("disk", send_signal=signal.SIGSTOP, charged=False)
    vmm.say("memory")
    assert vmm.sup["disk"].generation > generation or vmm.sup["disk"].state != "ready"
    _work(vmm, work, 50)


def test_given_vmm_gone_the_worker_lets_go_and_the_next_vmm_is_served(vmm: Vmm) -> None:
    """Nobody keeps the memory of a guest that is gone mapped."""
    vmm.bring_up()
    work = Work(vmm, 6)
    _work(vmm, work, 50)
    pid = vmm.sup["disk"].pid
    assert "test memory" in Path(f"/proc/{pid}/maps").read_text()
    vmm.ask(vmm.front.close)
    deadline = time.monotonic() + 10
    while vmm.sup["disk"].state != "ready" or vmm.sup["disk"].pid == pid:
        vmm.sup.dispatch(0.01)
        assert time.monotonic() < deadline
    assert "test memory" not in Path(f"/proc/{vmm.sup['disk'].pid}/maps").read_text()
    vmm.front = vmm.ask(lambda: FrontEnd(vmm.path, need_reply=True))
    vmm.bring_up()
    _work(vmm, work, 50)


def test_given_garbage_the_connection_ends_and_the_next_one_is_served(vmm: Vmm) -> None:
    """What the specification does not allow closes the connection, and nothing else."""
    vmm.bring_up()
    wire = vmm.front.endpoint.wire
    os.write(wire.fileno(), b"\xff" * 12)
    with pytest.raises(Disconnected):
        vmm.ask(vmm.front.get_features)
    vmm.ask(vmm.front.close)
    vmm.front = vmm.ask(lambda: FrontEnd(vmm.path, need_reply=True))
    assert vmm.ask(vmm.front.get_queue_num) == 1


def test_given_half_a_message_the_connection_ends_in_time(vmm: Vmm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who begins a message and does not end it keeps the socket from nobody."""
    monkeypatch.setattr(keeper, "HALF_MESSAGE_NS", 50_000_000)
    os.write(vmm.front.endpoint.wire.fileno(), b"\1\0\0\0\1")
    with pytest.raises(VhostUserError):
        vmm.ask(vmm.front.endpoint.recv_message)
    vmm.ask(vmm.front.close)
    vmm.front = vmm.ask(lambda: FrontEnd(vmm.path, need_reply=True))
    assert vmm.ask(vmm.front.get_queue_num) == 1


def test_given_vmm_that_reads_late_its_answers_come_when_it_does(vmm: Vmm) -> None:
    """Answers wait, in order, for whoever is slow; the supervisor waits for nobody."""
    fd = vmm.front.endpoint.wire.fileno()
    os.set_blocking(fd, False)
    request = Header(FrontEndRequest.GET_QUEUE_NUM).pack()
    answer = Header(FrontEndRequest.GET_QUEUE_NUM).reply(8).pack() + U64(1).pack()
    deadline = time.monotonic() + 30
    answers = bytearray()
    for _ in range(10):
        to_send = memoryview(request * 500)
        while to_send:
            with contextlib.suppress(BlockingIOError):
                to_send = to_send[os.write(fd, to_send) :]
            vmm.sup.dispatch(0)
            assert time.monotonic() < deadline
        until = len(answers) + 500 * len(answer)
        while len(answers) < until:
            vmm.sup.dispatch(0)
            with contextlib.suppress(BlockingIOError):
                answers += os.read(fd, 4096)
            assert time.monotonic() < deadline
    assert bytes(answers) == answer * 5000


@pytest.mark.parametrize("kind", ["tests.devices.poisoned:Poisoned"])
def test_given_request_that_kills_it_is_failed_and_the_others_are_served(vmm: Vmm) -> None:
    """Three deaths, as configured, and the guest is told of an I/O error instead of waiting for ever."""
    vmm.bring_up()
    guest, driver = vmm.guest, vmm.driver
    status: dict[int, int] = {}
    for sector in (8, DEADLY_SECTOR, 16):
        header, data, at = guest.allocate(16), guest.allocate(SECTOR), guest.allocate(1)
        guest.view(header, 16)[:] = struct.pack("<IIQ", IN, 0, sector)
        guest.view(at, 1)[0] = 0xEE
        driver.offer((header, 16, False), (data, SECTOR, True), (at, 1, True))
        status[sector] = at
    driver.want_interrupt_after(driver.position - 1)
    vmm.kick()
    deadline = time.monotonic() + 30
    while len(driver.used) < 3:
        vmm.wait()
        driver.take()
        assert time.monotonic() < deadline, driver.used
    assert [guest.view(at, 1)[0] for at in status.values()] == [OK, IOERR, OK]
    # Three of the one alone. If the first request was not slow, and published alone, there is one death more,
    # in a batch, of which the first is suspected.
    assert vmm.sup["disk"].generation in (4, 5)


@pytest.mark.parametrize("kind", ["tests.devices.slow:Slow"])
@pytest.mark.parametrize("leaves", [False, True])
def test_given_request_while_a_worker_starts_it_waits_and_nobody_is_killed(
    vmm: Vmm, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has the queues already, and is not ready: what needs it out of the way waits until it is."""
    monkeypatch.setattr(keepers, "FAST_START_NS", 10**12)
    vmm.bring_up()
    work = Work(vmm, 1)
    _work(vmm, work, 20)
    kills = 1 if leaves else 8
    for _ in range(kills):
        while vmm.sup.kill("disk", charged=False) is None:
            vmm.sup.dispatch(1)
        while vmm.sup["disk"].state != "building" or not vmm.sup["disk"].pid:
            vmm.sup.dispatch(1)
        if leaves:
            vmm.ask(vmm.front.close)
        else:
            vmm.ask(lambda: vmm.front.set_vring_call(0, vmm.fds["call"]))
            _work(vmm, work, 20)
    until = time.monotonic() + 2 * keeper.DRAIN_NS / 1e9  # no deadline of a drain is left
    while time.monotonic() < until:
        vmm.sup.dispatch(0.05)
    assert vmm.sup["disk"].state == "ready"
    died = [one for one in vmm.sup.events() if isinstance(one, DeviceDied)]
    assert not [one for one in died if one.charged]
    assert len(died) == kills
