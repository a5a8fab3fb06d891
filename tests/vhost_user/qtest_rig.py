"""A device behind QEMU: what tests of it do with its driver, its requests and its worker."""

from __future__ import annotations

import os
import struct

from devices.virtio.blk import (
    F_DISCARD,
    F_FLUSH,
    F_WRITE_ZEROES,
    GET_ID,
    ID_BYTES,
    IN,
    OK,
    SECTOR,
)
from supervisor.host import Supervisor
from supervisor.vhost_user import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1
from tests.vhost_user.driver import Driver
from tests.vhost_user.qtest import Qemu
from tests.vhost_user.test_worker_rings import QUEUE, Work
from tests.vhost_user.virtio_pci import VirtioPci

__all__ = ["BLK", "FAST", "PLAIN", "Rig"]

PLAIN = F_VERSION_1 | F_FLUSH | F_DISCARD | F_WRITE_ZEROES
FAST = PLAIN | F_EVENT_IDX | F_INDIRECT_DESC
BLK = "vhost-user-blk-pci,disable-legacy=on"


class Rig:
    """A device behind QEMU, its driver, and what the kit of the worker's tests wants to know of them."""

    def __init__(self, sup: Supervisor, qemu: Qemu, name: str) -> None:
        self.sup = sup
        self.qemu = qemu
        self.name = name
        self.guest = qemu.guest
        self.pci = VirtioPci(qemu)
        self.driver: Driver

    def bring_up(self, wanted: int = FAST, queues: int = 1) -> int:
        """Everything up to DRIVER_OK; returns the features."""
        accepted = self.pci.negotiate(wanted)
        for _ in range(queues):
            self.pci.add_queue(QUEUE, event_idx=bool(accepted & F_EVENT_IDX))
        self.driver = self.pci.queues[0]
        self.pci.start()
        return accepted

    def kick(self) -> None:
        self.pci.kick()

    def wait(self) -> None:
        self.qemu.pump()

    def kill(self) -> None:
        """kill -9, and the board must bear it without being charged."""
        # One that is on its way out, and not known to be gone, cannot be killed: then it is the next one.
        self.qemu.until(lambda: self.sup.kill(self.name, charged=False) is not None)

    def log_inode(self) -> int:
        """Which in-flight log the keeper holds for QEMU."""
        workers = self.sup._workers
        assert workers is not None
        connection = workers._keepers._keepers[self.name]._connection
        assert connection is not None
        assert connection.setup.inflight is not None
        return os.fstat(connection.setup.inflight[1].fileno()).st_ino

    def submit(
        self, kind: int, sector: int, *data: int | bytes, queue: int = 0, indirect: bool = False
    ) -> tuple[int, list[int], int]:
        """A request of the disk, without a kick: its head, where its buffers are, and its status."""
        guest, header = self.guest, self.guest.allocate(16)
        guest.view(header, 16)[:] = struct.pack("<IIQ", kind, 0, sector)
        chain, places = [(header, 16, False)], []
        for one in data:
            length = one if isinstance(one, int) else len(one)
            places.append(guest.allocate(length))
            if isinstance(one, bytes):
                guest.view(places[-1], length)[:] = one
            chain.append((places[-1], length, isinstance(one, int)))
        status = guest.allocate(1)
        guest.view(status, 1)[0] = 0xEE
        head = self.pci.queues[queue].offer(*chain, (status, 1, True), indirect=indirect)
        return head, places, status

    def finish(self, count: int = 1, queue: int = 0) -> list[int]:
        """Waits until so many requests more are used; returns their heads."""
        driver = self.pci.queues[queue]
        heads: list[int] = []

        def is_done() -> bool:
            heads.extend(head for head, _written in driver.take())
            return len(heads) >= count

        self.qemu.until(is_done)
        return heads

    def request(
        self, kind: int, sector: int, *data: int | bytes, queue: int = 0, indirect: bool = False
    ) -> int:
        """One request from start to end; returns its status."""
        head, _places, status = self.submit(kind, sector, *data, queue=queue, indirect=indirect)
        self.pci.kick(queue)
        assert self.finish(queue=queue) == [head]
        return self.guest.view(status, 1)[0]

    def read(self, sector: int, size: int = SECTOR, queue: int = 0, indirect: bool = False) -> bytes:
        head, places, status = self.submit(IN, sector, size, queue=queue, indirect=indirect)
        self.pci.kick(queue)
        assert self.finish(queue=queue) == [head]
        assert self.guest.view(status, 1)[0] == OK
        return bytes(self.guest.view(places[0], size))

    def serial(self) -> bytes:
        """What the disk says to GET_ID."""
        head, (place,), _status = self.submit(GET_ID, 0, ID_BYTES)
        self.kick()
        assert self.finish() == [head]
        return bytes(self.guest.view(place, ID_BYTES))

    def work(self, work: Work, requests: int) -> None:
        """Random writes and reads, each checked."""
        until = work.done + requests

        def is_done() -> bool:
            if work.done < until:
                work.submit()
            work.collect()
            return work.done >= until and not work.under_way

        self.qemu.until(is_done)
