"""Deaths that are known before the process has been taken apart, and whom to believe about them."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.virtio.blk import IN, OK
from supervisor.events import DeviceDied, ExitKind
from supervisor.host import Supervisor
from supervisor.tube.process import exit_of_the_leaving
from supervisor.vhost_user.areas import Region
from tests.vhost_user import test_keeper
from tests.vhost_user.driver import GUEST_BASE
from tests.vhost_user.test_keeper import Vmm, _work
from tests.vhost_user.test_worker_rings import MEMORY_BYTES, USER_BASE, Work

pytestmark = pytest.mark.chaos
backoff = test_keeper.backoff
kind = test_keeper.kind
vmm = test_keeper.vmm

BIG_BASE = 1 << 32
BIG_BYTES = 1 << 30
PIECE = 64 * 1024
PIECES = 32  # of one request


def _until(sup: Supervisor, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        sup.dispatch(0.001)
        assert time.monotonic() < deadline


def _witness(sup: Supervisor) -> int:
    """The witness's pid; 0 while there is none that listens."""
    assert sup._workers is not None
    process = sup._workers._witness._process
    return process.pid if process is not None and process.hello else 0


def _touch(vmm: Vmm) -> None:
    """Has the disk read into every page of the large region."""
    guest, driver = vmm.guest, vmm.driver
    header, status = guest.allocate(16), guest.allocate(1)
    guest.view(header, 16)[:] = IN.to_bytes(16, "little")
    for at in range(BIG_BASE, BIG_BASE + BIG_BYTES, PIECE * PIECES):
        pieces = [(at + PIECE * number, PIECE, True) for number in range(PIECES)]
        guest.view(status, 1)[0] = 0xEE
        driver.offer((header, 16, False), *pieces, (status, 1, True))
        driver.want_interrupt_after(driver.position - 1)
        vmm.kick()
        used: list[tuple[int, int]] = []
        while not used:
            vmm.wait()
            used = driver.take()
        assert guest.view(status, 1)[0] == OK


def test_given_a_gib_of_touched_memory_the_successor_serves_before_it_is_given_back(
    vmm: Vmm, tmp_path: Path
) -> None:
    """The dead process is still being taken apart when the next one has the queues."""
    os.truncate(tmp_path / "disk.img", PIECE * PIECES)
    vmm.sup.restart_device("disk")  # which sees the larger image
    big = os.memfd_create("test big memory")
    try:
        os.ftruncate(big, BIG_BYTES)
        vmm.bring_up()
        regions = [Region(GUEST_BASE, MEMORY_BYTES, USER_BASE), Region(BIG_BASE, BIG_BYTES, 1 << 40)]
        vmm.ask(lambda: vmm.front.set_mem_table(regions, [vmm.fds["memory"], big]))
        _touch(vmm)
        _until(vmm.sup, lambda: _witness(vmm.sup) != 0)
        handle = vmm.sup["disk"]
        assert handle.pid is not None
        generation, pidfd = handle.generation, os.pidfd_open(handle.pid)
        vmm.sup.kill("disk", charged=False)
        _until(vmm.sup, lambda: handle.generation > generation and handle.state == "ready")
        assert not select.select([pidfd], [], [], 0)[0]
        assert handle.last_exit == "was killed by signal 9"
        _work(vmm, Work(vmm, 1), 50)
        os.close(pidfd)
    finally:
        os.close(big)


def test_given_dead_witness_another_takes_its_place(vmm: Vmm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever dies, the disk's deaths are seen: by the pidfd as long as there is no witness."""
    vmm.bring_up()
    work = Work(vmm, 2)
    for _ in range(3):
        _until(vmm.sup, lambda: _witness(vmm.sup) != 0)
        pid = _witness(vmm.sup)
        os.kill(pid, 9)
        vmm.sup.kill("disk", charged=False)
        _work(vmm, work, 20)
        _until(vmm.sup, lambda pid=pid: _witness(vmm.sup) not in (0, pid))  # type: ignore[misc]
    vmm.sup.kill("disk", charged=False)
    _work(vmm, work, 20)
    assert vmm.sup._workers is not None
    monkeypatch.setattr(vmm.sup._workers._witness, "_lives", 0)
    os.kill(_witness(vmm.sup), 9)
    _until(vmm.sup, lambda: _witness(vmm.sup) == 0)
    vmm.sup.kill("disk", charged=False)
    _work(vmm, work, 20)


@pytest.mark.parametrize("kind", ["tests.devices.liar:Liar"])
def test_given_worker_that_feigns_death_it_is_dead_before_the_next_one_comes(vmm: Vmm) -> None:
    """Two workers on one guest would be the end of its disk."""
    _until(vmm.sup, lambda: _witness(vmm.sup) != 0)
    handle = vmm.sup["disk"]
    pid = handle.pid
    assert pid is not None
    vmm.bring_up()
    _until(vmm.sup, lambda: handle.pid != pid)
    leaving = exit_of_the_leaving(pid) is not None  # looked at first: it may be reaped at any moment
    assert leaving or not os.path.exists(f"/proc/{pid}")
    died = [event for event in vmm.sup.events() if isinstance(event, DeviceDied)]
    assert died[0].exit.kind is ExitKind.SIGNALED


def test_given_living_processes_none_of_them_is_on_its_way_out() -> None:
    """Nor is one that has never been."""
    assert exit_of_the_leaving(os.getpid()) is None
    assert exit_of_the_leaving(2**22 + 1) is None
