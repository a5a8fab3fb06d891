"""A guest without a VMM: memory, one ring in it that is kept full, and our front-end to attach a disk to it.

So lean that the disk is what is measured: the chains are written once, a request is one store to its header
and one to the available ring. It behaves as Linux's driver does where the disk can tell: with the event
index, a kick only where one is wanted, and asleep until the next interrupt once nothing is left to collect.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import select
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from supervisor.memory.fence import FENCE
from supervisor.vhost_user import F_EVENT_IDX, F_PROTOCOL_FEATURES, F_VERSION_1
from supervisor.vhost_user.areas import Region
from supervisor.vhost_user.errors import SocketConnect
from supervisor.vhost_user.frontend import FrontEnd
from supervisor.vhost_user.messages import VringAddr
from supervisor.vhost_user.virtqueue import DESC_NEXT, DESC_WRITE, RingAreas

__all__ = ["IN", "OUT", "MemoryFile", "Ring", "attach", "memory_file"]

IN, OUT = 0, 1
SECTOR = 512
ENTRIES = 128  # of the ring, as QEMU's vhost-user-blk has it; three descriptors a request
F_BLK_FLUSH = 1 << 9
FEATURES = F_VERSION_1 | F_EVENT_IDX | F_BLK_FLUSH
PROTOCOL_FEATURES = 0x1 | 0x8 | 0x200 | 0x1000  # MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD
USER_BASE = 0x7F00_0000_0000
HEADERS, STATUSES, DATA = 16384, 20480, 65536  # where in the guest's memory they begin
PATIENCE_S = 20.0
PLACES = 4096  # random sectors, drawn before anything is measured
MIB = 1 << 20
FILL = bytes(MIB)


class MemoryFile:
    """Memory with a name to open it by, which ends with this process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("benchmark", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def fill(self) -> None:
        """Gives every page of it a place, so that nobody who is measured has to."""
        for at in range(0, self.size, len(FILL)):
            os.pwrite(self.fd, FILL[: self.size - at], at)


@contextlib.contextmanager
def memory_file(size: int) -> Iterator[MemoryFile]:
    """A disk's image in memory, filled."""
    made = MemoryFile(size)
    try:
        made.fill()
        yield made
    finally:
        os.close(made.fd)


class Ring:
    """``depth`` requests of ``block`` bytes, under way at once, in ``memory`` bytes of a guest."""

    def __init__(
        self, disk_bytes: int, *, depth: int, block: int, memory: int, chooser: random.Random
    ) -> None:
        self.memory_bytes = memory
        self.depth, self.block = depth, block
        self.fd = os.memfd_create("benchmark guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, memory)
        self._mapping = mmap.mmap(self.fd, memory)
        view = memoryview(self._mapping)
        lengths = RingAreas.lengths(ENTRIES)
        self.places = 0, 4096, 8192  # descriptors, available, used
        areas = [view[at : at + length] for at, length in zip(self.places, lengths, strict=True)]
        self._avail, self._used = areas[1].cast("H"), areas[2].cast("H")
        self._entries = areas[2][: 4 + 8 * ENTRIES].cast("I")
        self._headers = view[HEADERS : HEADERS + 16 * ENTRIES].cast("Q")
        self._views = [self._avail, self._used, self._entries, self._headers, *areas]
        self.view = view
        self.desc = areas[0]
        self.kick_fd, self.call_fd = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))
        last = (disk_bytes - MIB) // block  # so that even a request of ``touch`` ends on the disk
        self._sectors = [chooser.randrange(last) * (block // SECTOR) for _ in range(PLACES)]
        self._next = 0
        self.position = self.seen = 0
        for slot in range(depth):
            self.describe(slot, DATA + slot * block, block)

    def describe(self, slot: int, address: int, length: int, kind: int = IN) -> None:
        """Writes a request's chain: header, ``length`` bytes at the guest's ``address``, status."""
        first = 3 * slot
        writes = DESC_WRITE if kind == IN else 0
        chain = (
            (HEADERS + 16 * slot, 16, DESC_NEXT, first + 1),
            (address, length, DESC_NEXT | writes, first + 2),
            (STATUSES + slot, 1, DESC_WRITE, 0),
        )
        for offset, fields in enumerate(chain):
            struct.pack_into("<QIHH", self.desc, 16 * (first + offset), *fields)
        self._headers[2 * slot] = kind

    def aim(self, kind: int) -> None:
        """All requests read, or all write, from now on. Nothing may be under way."""
        for slot in range(self.depth):
            self.describe(slot, DATA + slot * self.block, self.block, kind)

    @property
    def used_idx(self) -> int:
        return self._used[1]

    @property
    def under_way(self) -> int:
        return (self.position - self.seen) & 0xFFFF

    def submit(self, heads: Sequence[int]) -> None:
        """Makes requests available, each at a sector drawn at random, and kicks where that is wanted."""
        if not heads:
            return
        avail, headers, sectors = self._avail, self._headers, self._sectors
        old = position = self.position
        at = self._next
        for head in heads:
            headers[2 * (head // 3) + 1] = sectors[at & PLACES - 1]
            at += 1
            avail[2 + (position & ENTRIES - 1)] = head
            position += 1
        self._next = at
        self.position = position = position & 0xFFFF
        avail[1] = position
        _fence()
        event = self._used[2 + 4 * ENTRIES]
        if ((position - event - 1) & 0xFFFF) < ((position - old) & 0xFFFF):
            self.kick()

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def collect(self) -> list[int]:
        """The heads of what was completed since the last call."""
        seen, entries = self.seen, self._entries
        count = (self._used[1] - seen) & 0xFFFF
        heads = [entries[1 + 2 * ((seen + offset) & ENTRIES - 1)] for offset in range(count)]
        self.seen = (seen + count) & 0xFFFF
        return heads

    def want_interrupt(self) -> bool:
        """Asks for one at the next completion; false if there has been one already."""
        self._avail[2 + ENTRIES] = self.seen
        _fence()
        return self._used[1] == self.seen

    def wait(self) -> None:
        """Sleeps until an interrupt, if there is nothing to collect. Raises ``TimeoutError``."""
        if not self.want_interrupt():
            return
        if not select.select([self.call_fd], [], [], PATIENCE_S)[0]:
            raise TimeoutError(f"{self.under_way} requests, and no answer in {PATIENCE_S:g} s")
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.call_fd)

    def run(self, requests: int) -> int:
        """Keeps ``depth`` requests under way until so many have been completed; ns that it took."""
        began_ns = time.monotonic_ns()
        self.submit(range(0, 3 * self.depth, 3))
        left = requests - self.depth
        while self.under_way:
            heads = self.collect()
            if not heads:
                self.wait()
                continue
            again = heads[: max(0, left)]
            left -= len(again)
            self.submit(again)
        return time.monotonic_ns() - began_ns

    def run_each(self, requests: int) -> list[int]:
        """One after the other; ns of each, from before it is made available until it is collected."""
        took_ns = []
        for _ in range(requests):
            began_ns = time.monotonic_ns()
            self.submit((0,))
            while not self.collect():
                self.wait()
            took_ns.append(time.monotonic_ns() - began_ns)
        return took_ns

    def touch(self) -> None:
        """Has the disk write into every page of the guest's memory. None may be under way."""
        slots, at = 0, DATA
        while at < self.memory_bytes:
            length = min(MIB, self.memory_bytes - at)
            self.describe(slots, at, length)
            at, slots = at + length, slots + 1
            if slots == self.depth or at == self.memory_bytes:
                self.submit(range(0, 3 * slots, 3))
                while self.under_way:
                    self.wait()
                    self.collect()
                slots = 0
        self.aim(IN)

    def check(self) -> None:
        """Every request has ended well."""
        statuses = bytes(self.view[STATUSES : STATUSES + self.depth])
        assert statuses == bytes(self.depth), f"statuses {statuses!r}"

    def restart(self) -> None:
        """As after a reset of the device: nothing is available, nothing used."""
        self.position = self.seen = 0
        for area in (self._avail, self._used):
            area[1] = 0
        self._used[2 + 4 * ENTRIES] = self._avail[2 + ENTRIES] = 0

    def close(self) -> None:
        for view in (*self._views, self.view):
            view.release()
        self._mapping.close()
        for fd in (self.fd, self.kick_fd, self.call_fd):
            os.close(fd)


def attach(path: str | os.PathLike[str], ring: Ring) -> FrontEnd:
    """Connects to a back-end and gives it the ring, in QEMU's order, as far as it is heard."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            front = FrontEnd(Path(path), timeout=PATIENCE_S)
            break
        except SocketConnect:  # it has only just been started
            if time.monotonic() > until:
                raise
            time.sleep(0.001)
    front.set_owner()
    offered = front.get_features()
    front.set_protocol_features(front.get_protocol_features() & PROTOCOL_FEATURES)
    front.set_features((FEATURES | F_PROTOCOL_FEATURES) & offered)
    assert offered & FEATURES == FEATURES, f"{offered:#x}"
    front.set_mem_table([Region(0, ring.memory_bytes, USER_BASE)], [ring.fd])
    front.set_vring_num(0, ENTRIES)
    front.set_vring_base(0, ring.position)
    desc, avail, used = (USER_BASE + place for place in ring.places)
    front.set_vring_addr(VringAddr(0, 0, desc, used, avail))
    front.set_vring_kick(0, ring.kick_fd)
    front.set_vring_call(0, ring.call_fd)
    front.set_vring_enable(0, True)
    front.get_features()  # whoever answers this has heard all that
    return front


def _fence() -> None:
    if FENCE is not None:
        with FENCE:
            pass
