"""A disk with a standby, which has the guest's memory and rings before it is needed."""

from __future__ import annotations

import os
import random
import select
import struct
import time
from pathlib import Path

import pytest

from devices.virtio.blk import IN, IOERR, OK, SECTOR
from supervisor.tube.process import exit_of_the_leaving
from tests.chaos import living_descendants
from tests.devices.poisoned import DEADLY_SECTOR
from tests.test_standbys import _heir, _until
from tests.vhost_user import test_keeper
from tests.vhost_user.test_keeper import (  # what holds without a standby holds with one
    Vmm,
    _work,
    test_given_any_order_of_set_up_the_disk_is_served_through_deaths,
    test_given_death_the_vmm_is_told_where_the_ring_stands,
    test_given_disk_given_up_while_it_is_drained_the_vmm_is_answered,
    test_given_no_worker_that_lives_the_vmm_is_told_the_last_that_is_known,
    test_given_silent_worker_the_vmm_is_answered_all_the_same,
    test_given_vmm_gone_the_worker_lets_go_and_the_next_vmm_is_served,
)
from tests.vhost_user.test_worker_rings import DEADLINE_S, Work

pytestmark = pytest.mark.chaos
kind = test_keeper.kind
vmm = test_keeper.vmm

__all__ = [
    "test_given_any_order_of_set_up_the_disk_is_served_through_deaths",
    "test_given_death_the_vmm_is_told_where_the_ring_stands",
    "test_given_disk_given_up_while_it_is_drained_the_vmm_is_answered",
    "test_given_no_worker_that_lives_the_vmm_is_told_the_last_that_is_known",
    "test_given_silent_worker_the_vmm_is_answered_all_the_same",
    "test_given_vmm_gone_the_worker_lets_go_and_the_next_vmm_is_served",
]


@pytest.fixture
def backoff() -> str:
    """What is behind it as well."""
    return "{max: 0s}, standby: true"


def _maps(pid: int | None) -> bool:
    """True if the process has the guest's memory mapped."""
    return "test memory" in Path(f"/proc/{pid}/maps").read_text()


def _mapped_heir(vmm: Vmm) -> int:
    """The standby's pid, once it has the guest's memory and may take over."""

    def has_mapped() -> bool:
        pid = vmm.sup["disk"].standby_pid
        return pid is not None and _maps(pid)

    _until(vmm.sup, has_mapped)
    return _heir(vmm.sup, "disk")


def _kill(vmm: Vmm) -> None:
    pid = vmm.sup["disk"].pid
    assert pid is not None
    os.kill(pid, 9)


def test_given_death_the_standby_goes_on_with_what_was_under_way(vmm: Vmm) -> None:
    """Time and again, with requests under way."""
    vmm.bring_up()
    work = Work(vmm, 1)
    for _ in range(6):
        _work(vmm, work, 20)
        heir = _mapped_heir(vmm)
        work.submit()
        _kill(vmm)
        _work(vmm, work, 20)
        assert vmm.sup["disk"].pid == heir


def test_given_supervisor_that_is_busy_with_something_else_the_guest_does_not_wait_for_it(vmm: Vmm) -> None:
    """From the death on nobody dispatches: the disk serves."""
    vmm.bring_up()
    work = Work(vmm, 2)
    _work(vmm, work, 20)
    heir, dead = _mapped_heir(vmm), vmm.sup["disk"].pid
    assert dead is not None
    _kill(vmm)
    deadline = time.monotonic() + DEADLINE_S
    while exit_of_the_leaving(dead) is None and os.path.exists(f"/proc/{dead}"):
        assert time.monotonic() < deadline
    until = work.done + 300
    while work.done < until or work.under_way:
        if work.done < until:
            work.submit()
        assert select.select([vmm.fds["call"]], [], [], DEADLINE_S)[0], work.under_way
        os.eventfd_read(vmm.fds["call"])
        work.collect()
        assert time.monotonic() < deadline
    assert vmm.sup["disk"].pid == heir
    _work(vmm, work, 20)


@pytest.mark.parametrize("seed", range(3))
def test_given_disk_killed_at_random_every_request_is_done_once(vmm: Vmm, tmp_path: Path, seed: int) -> None:
    """Some of the deaths find a standby that may take over, some one that is not ready yet."""
    print(f"seed={seed}")
    chooser = random.Random(seed)
    vmm.bring_up()
    work = Work(vmm, seed)
    kills = succeeded = 0
    deadline = time.monotonic() + DEADLINE_S
    while work.done < 1500 or kills < 40 or succeeded < 5:
        work.submit()
        if chooser.random() < 0.03:
            heir = vmm.sup["disk"].standby_pid
            if vmm.sup.kill("disk", charged=False) is not None:
                kills += 1
                vmm.wait()
                succeeded += heir is not None and vmm.sup["disk"].pid == heir
        vmm.wait()
        work.collect()
        assert time.monotonic() < deadline, f"{work.done} requests, {kills} kills, {work.under_way}"
    _work(vmm, work, 0)
    assert (tmp_path / "disk.img").read_bytes() == bytes(work.content)


def test_given_other_memory_the_standby_is_replaced(vmm: Vmm) -> None:
    """The one that there was has mapped what is not the guest's any more."""
    vmm.bring_up()
    work = Work(vmm, 3)
    _work(vmm, work, 20)
    before = _mapped_heir(vmm)
    vmm.say("memory")
    _work(vmm, work, 20)
    heir = _mapped_heir(vmm)
    assert heir != before
    assert before not in living_descendants()
    _kill(vmm)
    _work(vmm, work, 20)
    assert vmm.sup["disk"].pid == heir


def test_given_vmm_gone_the_standby_lets_go_of_its_memory_too(vmm: Vmm) -> None:
    """Nobody keeps the memory of a guest that is gone."""
    vmm.bring_up()
    _work(vmm, Work(vmm, 4), 20)
    before = _mapped_heir(vmm)
    vmm.ask(vmm.front.close)
    _until(vmm.sup, lambda: vmm.sup["disk"].standby_pid not in (None, before))
    assert not _maps(vmm.sup["disk"].standby_pid)
    _until(vmm.sup, lambda: before not in living_descendants())


@pytest.mark.parametrize("kind", ["tests.devices.heavy:Heavy"])
def test_given_class_that_takes_long_to_import_its_standby_has_the_queues_all_the_same(vmm: Vmm) -> None:
    """It has done that beforehand: how long a first process takes says nothing of it."""
    vmm.bring_up()
    work = Work(vmm, 8)
    _work(vmm, work, 20)
    _mapped_heir(vmm)
    _kill(vmm)
    _work(vmm, work, 20)


@pytest.mark.parametrize("kind", ["tests.devices.poisoned:Poisoned"])
def test_given_request_that_kills_it_is_failed_after_as_many_deaths_as_without(vmm: Vmm) -> None:
    """Whoever takes over by itself notes what it has found before it goes on with that."""
    vmm.bring_up()
    work = Work(vmm, 5)
    _work(vmm, work, 20)
    _mapped_heir(vmm)
    before = vmm.sup["disk"].generation
    guest, driver = vmm.guest, vmm.driver
    header, data, at = guest.allocate(16), guest.allocate(SECTOR), guest.allocate(1)
    deaths = []
    for sector in (DEADLY_SECTOR, 8):
        guest.view(header, 16)[:] = struct.pack("<IIQ", IN, 0, sector)
        guest.view(at, 1)[0] = 0xEE
        driver.offer((header, 16, False), (data, SECTOR, True), (at, 1, True))
        driver.want_interrupt_after(driver.position - 1)
        vmm.kick()
        deadline = time.monotonic() + DEADLINE_S
        while not driver.take():
            vmm.wait()
            assert time.monotonic() < deadline, driver.used
        assert guest.view(at, 1)[0] == (IOERR if sector == DEADLY_SECTOR else OK)
        _until(vmm.sup, lambda: vmm.sup["disk"].state == "ready")
        deaths.append(vmm.sup["disk"].generation - before)
    assert deaths == [3, 3]
    for _ in range(3):  # requests of the same number that have killed nobody
        _mapped_heir(vmm)
        work.submit()
        _kill(vmm)
        _work(vmm, work, 50)
