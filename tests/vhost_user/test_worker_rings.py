"""A disk in a real worker, over shared memory, killed while its guest works: nothing lost, nothing doubled.

There is no VMM: the test is the driver, and hands the rings to each new worker, as the keeper does.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from devices.virtio.blk import F_FLUSH, IN, OK, OUT, SECTOR
from supervisor.host import Supervisor
from supervisor.messages_pb2 import Attach
from supervisor.vhost_user import F_EVENT_IDX, F_VERSION_1, region_bytes
from tests.chaos import board, census
from tests.vhost_user.driver import GUEST_BASE, Driver, Guest

pytestmark = pytest.mark.chaos

MEMORY_BYTES = 4 << 20
USER_BASE = 0x7F00_0000_0000
QUEUE = 64
SECTORS = 1024
CHUNK = 8  # sectors of one request
SLOTS = 16  # requests under way at once
DEADLINE_S = 60.0


class Rig:
    """A guest's memory in a memfd, one queue in it, and a disk that is attached to whoever serves."""

    def __init__(self, sup: Supervisor) -> None:
        self.sup = sup
        self.fds = {name: os.memfd_create(f"test {name}") for name in ("memory", "log")}
        os.ftruncate(self.fds["memory"], MEMORY_BYTES)
        os.ftruncate(self.fds["log"], region_bytes(QUEUE))
        self.mapping = mmap.mmap(self.fds["memory"], MEMORY_BYTES)
        self.guest = Guest(memory=memoryview(self.mapping))
        self.driver = Driver(self.guest, QUEUE, event_idx=True)
        for name in ("kick", "call"):
            self.fds[name] = os.eventfd(0, os.EFD_NONBLOCK)
        self.served = 0

    def attach(self) -> None:
        """Hands the rings to the present worker, if it has not got them yet."""
        workers = self.sup._workers
        assert workers is not None
        seat = workers.seat("disk")
        if not seat.ready or seat.generation == self.served:
            return
        self.served = seat.generation
        attach = Attach(features=F_VERSION_1 | F_EVENT_IDX | F_FLUSH)
        attach.regions.add(guest_address=GUEST_BASE, size_bytes=MEMORY_BYTES, user_address=USER_BASE)
        desc, avail, used = (place - GUEST_BASE + USER_BASE for place in self.driver.places)
        attach.rings.add(size=QUEUE, desc=desc, avail=avail, used=used, has_kick=True, has_call=True)
        attach.inflight.size_bytes = region_bytes(QUEUE)
        attach.inflight.queues = 1
        attach.inflight.queue_size = QUEUE
        workers._conversation.attach(
            seat, attach, tuple(self.fds[name] for name in ("memory", "log", "kick", "call"))
        )

    def kick(self) -> None:
        os.eventfd_write(self.fds["kick"], 1)

    def wait(self) -> None:
        """Waits for an interrupt or something in the supervisor."""
        select.select([self.fds["call"], self.sup.fileno()], [], [], self.sup.next_timeout())
        try:
            os.eventfd_read(self.fds["call"])
        except BlockingIOError:
            pass
        self.sup.dispatch()
        self.attach()

    def close(self) -> None:
        self.driver.release()
        self.guest.bytes.release()
        self.mapping.close()
        for fd in self.fds.values():
            os.close(fd)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SECTORS * SECTOR))
    options = f'name: disk, device: virtio.blk, options: {{image: "{image}"}}, backoff: {{max: 0s}}'
    with census(), Supervisor(board(options, supervisor="intensity: 100000, period: 1s")) as sup:
        made = Rig(sup)
        try:
            yield made
        finally:
            made.close()


class Bench(Protocol):
    """What there must be to work at: a guest, its driver, and its doorbell."""

    guest: Guest
    driver: Driver

    def kick(self) -> None: ...


class Work:
    """Random writes and reads of whole chunks, many at once, each checked against what was written last."""

    def __init__(self, rig: Bench, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.content = bytearray(SECTORS * SECTOR)
        guest = rig.guest
        self.free = [
            (guest.allocate(16), guest.allocate(CHUNK * SECTOR), guest.allocate(1)) for _ in range(SLOTS)
        ]
        self.under_way: dict[int, tuple[int, int, tuple[int, int, int]]] = {}
        self.done = 0

    def submit(self) -> None:
        busy = {chunk for _kind, chunk, _slot in self.under_way.values()}
        while self.free:
            chunk = self.random.randrange(SECTORS // CHUNK)
            if chunk in busy:
                break
            busy.add(chunk)
            slot = header, data, status = self.free.pop()
            kind = self.random.choice([IN, OUT])
            guest, length = self.rig.guest, CHUNK * SECTOR
            guest.view(header, 16)[:] = struct.pack("<IIQ", kind, 0, chunk * CHUNK)
            guest.view(status, 1)[0] = 0xEE
            if kind == OUT:
                noise = self.random.randbytes(length)
                guest.view(data, length)[:] = noise
                self.content[chunk * length : (chunk + 1) * length] = noise
            head = self.rig.driver.offer((header, 16, False), (data, length, kind == IN), (status, 1, True))
            self.under_way[head] = (kind, chunk, slot)
        self.rig.driver.want_interrupt_after(self.rig.driver.position - 1)
        self.rig.kick()

    def collect(self) -> None:
        length = CHUNK * SECTOR
        for head, _written in self.rig.driver.take():
            kind, chunk, slot = self.under_way.pop(head)  # a KeyError is a request that was used twice
            _header, data, status = slot
            assert self.rig.guest.view(status, 1)[0] == OK
            if kind == IN:
                expected = bytes(self.content[chunk * length : (chunk + 1) * length])
                assert bytes(self.rig.guest.view(data, length)) == expected
            self.free.append(slot)
            self.done += 1


def test_given_disk_killed_while_it_works_every_request_is_done_once(rig: Rig, tmp_path: Path) -> None:
    """Some hundred kills, some thousand requests: each answered once, and the image is what was written."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    work = Work(rig, seed)
    rig.attach()
    kills = 0
    deadline = time.monotonic() + DEADLINE_S
    while work.done < 3000 or kills < 60:
        work.submit()
        if chooser.random() < 0.05 and rig.sup.kill("disk", charged=False) is not None:
            kills += 1
        rig.wait()
        work.collect()
        assert time.monotonic() < deadline, f"{work.done} requests, {kills} kills, {work.under_way}"
    while work.under_way:
        rig.wait()
        work.collect()
        assert time.monotonic() < deadline
    assert (tmp_path / "disk.img").read_bytes() == bytes(work.content)


def test_given_worker_asked_to_stop_it_tells_where_its_rings_stand(rig: Rig) -> None:
    """Everything that was fetched is completed, and the next one to fetch is named."""
    work = Work(rig, 1)
    rig.attach()
    work.submit()
    while work.under_way:
        rig.wait()
        work.collect()
    workers = rig.sup._workers
    assert workers is not None
    seat = workers.seat("disk")
    assert seat.offer is not None
    assert (seat.offer.device_id, seat.offer.queues, len(seat.offer.config)) == (2, 1, 60)
    rig.sup.stop_device("disk")
    while rig.sup["disk"].state != "down":
        rig.sup.dispatch(1)
    assert seat.ring_positions == {0: rig.driver.position}


def test_given_broken_ring_its_worker_lives_and_says_so(rig: Rig) -> None:
    """A guest that breaks its ring breaks nothing else: the device is there, and the ring is left alone."""
    rig.attach()
    pid = rig.sup["disk"].pid
    rig.driver.avail[1] = 60_000
    rig.kick()
    generation = rig.sup["disk"].generation
    rig.sup["disk"].flush()
    for _ in range(20):
        rig.sup.dispatch(0.01)
    assert (rig.sup["disk"].pid, rig.sup["disk"].generation) == (pid, generation)


class Forgetter:
    """A guest in an emulator that leaves fences out: one request at a time, and a bell that is not rung."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.request = [(rig.guest.allocate(length), length) for length in (16, SECTOR, 1)]
        rig.guest.view(self.request[0][0], 16)[:] = struct.pack("<IIQ", IN, 0, 0)
        rig.attach()
        self.until = time.monotonic() + DEADLINE_S
        self.offer(kicks=True)
        while not self.has_come(0.05):
            rig.sup.dispatch()
            self.check()

    def check(self) -> None:
        assert time.monotonic() < self.until, "a worker whose guest forgot its bell has not looked again"

    def offer(self, *, kicks: bool) -> None:
        header, data, status = self.request
        self.rig.driver.offer((*header, False), (*data, True), (*status, True))
        if kicks:
            self.rig.kick()

    def has_come(self, seconds: float) -> bool:
        """True once the request is used, false if it is not within ``seconds``."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.rig.driver.take():
                return True
        return False

    def see_it_sleep(self) -> None:
        """Waits until the worker waits for a kick and sleeps."""
        driver, worker = self.rig.driver, psutil.Process(self.rig.sup["disk"].pid)
        while driver.kick_wanted_at != driver.position or worker.status() != psutil.STATUS_SLEEPING:
            self.check()


def test_given_kick_that_is_lost_the_worker_looks_again(rig: Rig) -> None:
    """A guest that has not seen that it should kick: what it offers soon after the last one is taken."""
    guest = Forgetter(rig)
    while True:  # a machine that is busy may have let the moment pass
        guest.offer(kicks=True)
        assert guest.has_come(DEADLINE_S)
        guest.see_it_sleep()
        guest.offer(kicks=False)
        if guest.has_come(0.02):
            return
        guest.check()
        rig.kick()
        assert guest.has_come(DEADLINE_S)


def test_given_interrupt_that_is_lost_the_worker_looks_again(rig: Rig) -> None:
    """A guest whose wish was not seen: what it waits for, and has been there before, is said soon after."""
    guest, driver, call_fd = Forgetter(rig), rig.driver, rig.fds["call"]
    while True:
        driver.want_interrupt_after(driver.position + 100)
        guest.offer(kicks=True)
        assert guest.has_come(DEADLINE_S)
        guest.see_it_sleep()
        try:
            os.eventfd_read(call_fd)  # of the time before
        except BlockingIOError:
            pass
        driver.want_interrupt_after(driver.position - 1)
        if select.select([call_fd], [], [], 0.02)[0]:
            return
        guest.check()
