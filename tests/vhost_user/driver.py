"""The other side of a virtqueue: a guest's memory in this process, and a driver that fills rings in it."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from supervisor.vhost_user.inflight import InflightLog, region_bytes
from supervisor.vhost_user.virtqueue import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, RingAreas, SplitQueue

GUEST_BASE = 0x10000
Buffer = tuple[int, int, bool]  # guest address, length, whether the device writes it


class MemoryFault(OSError):
    """As the real one: nothing is there."""


class Guest:
    """A guest's memory: bytes from ``GUEST_BASE`` on, ``memory`` if that is given."""

    def __init__(self, size: int = 1 << 20, memory: memoryview | None = None) -> None:
        self.bytes = memoryview(bytearray(size)) if memory is None else memory
        self._free = GUEST_BASE

    def readable_views(self, buffers: Iterable[tuple[int, int]]) -> list[memoryview]:
        return [self.view(address, length) for address, length in buffers]

    writable_views = readable_views

    def allocate(self, length: int, alignment: int = 16) -> int:
        """A guest address with room for ``length`` bytes."""
        address = -(-self._free // alignment) * alignment
        self._free = address + length
        assert self._free - GUEST_BASE <= len(self.bytes)
        return address

    def view(self, address: int, length: int) -> memoryview:
        """A stretch of the guest's memory; raises ``MemoryFault`` where there is none."""
        start = address - GUEST_BASE
        if start < 0 or start + length > len(self.bytes):
            raise MemoryFault(f"{address:#x}")
        return self.bytes[start : start + length]


class Driver:
    """A queue of ``size`` as the guest's driver sees it. Every used entry is taken down in ``used``."""

    def __init__(self, guest: Guest, size: int, *, event_idx: bool = False, first: int = 0) -> None:
        self.guest = guest
        self.size = size
        self.event_idx = event_idx
        self.position = first  # avail.idx
        self.used: list[tuple[int, int]] = []
        self._seen = first
        self._lengths = RingAreas.lengths(size)
        self.places = [guest.allocate(length, 16) for length in self._lengths]
        self._desc, avail, used = (
            guest.view(at, length) for at, length in zip(self.places, self._lengths, strict=True)
        )
        self.avail, self.used_words = avail.cast("H"), used.cast("H")
        self.avail[1] = self.used_words[1] = first
        self._used_entries = used[: 4 + 8 * size].cast("I")
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.log_memory = memoryview(bytearray(region_bytes(size)))

    def release(self) -> None:
        """Lets go of the guest's memory."""
        for view in (self.avail, self.used_words, self._used_entries, self._desc):
            view.release()

    def areas(self) -> RingAreas:
        """The areas as a device maps them."""
        desc, avail, used = (
            self.guest.view(at, length) for at, length in zip(self.places, self._lengths, strict=True)
        )
        return RingAreas(desc, avail, used, self.size)

    def device(self, *, position: int = 0, log: bool = True, call_fd: int = -1) -> SplitQueue:
        """The device's side of this queue, as a process that has just been started."""
        return SplitQueue(
            self.areas(),
            self.guest,
            position=position,
            log=InflightLog(self.log_memory, self.size) if log else None,
            call_fd=call_fd,
            event_idx=self.event_idx,
        )

    def write_descriptor(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        struct.pack_into("<QIHH", self._desc, 16 * index, address, length, flags, following)

    def offer(self, *buffers: Buffer, indirect: bool = False) -> int:
        """Makes a chain of buffers available; returns its head."""
        needed = 1 if indirect else len(buffers)
        taken = [self.free.pop(0) for _ in range(needed)]
        if indirect:
            table = self.guest.allocate(16 * len(buffers))
            for index, (address, length, writes) in enumerate(buffers):
                flags = DESC_WRITE * writes | DESC_NEXT * (index + 1 < len(buffers))
                packed = struct.pack("<QIHH", address, length, flags, index + 1)
                self.guest.view(table + 16 * index, 16)[:] = packed
            self.write_descriptor(taken[0], table, 16 * len(buffers), DESC_INDIRECT, 0)
        else:
            for place, (index, (address, length, writes)) in enumerate(zip(taken, buffers, strict=True)):
                last = place + 1 == len(buffers)
                flags = DESC_WRITE * writes | DESC_NEXT * (not last)
                self.write_descriptor(index, address, length, flags, 0 if last else taken[place + 1])
        self.chains[taken[0]] = taken
        self.make_available(taken[0])
        return taken[0]

    def make_available(self, head: int) -> None:
        """Puts any number into the ring, be it a head or not."""
        self.avail[2 + self.position % self.size] = head
        self.position = (self.position + 1) & 0xFFFF
        self.avail[1] = self.position

    def take(self) -> list[tuple[int, int]]:
        """What has been used since the last call: (head, bytes written); its descriptors are free again."""
        taken = []
        while self._seen != self.used_words[1]:
            at = 1 + 2 * (self._seen % self.size)
            head, written = self._used_entries[at], self._used_entries[at + 1]
            self._seen = (self._seen + 1) & 0xFFFF
            taken.append((head, written))
            self.free += self.chains.pop(head)
        self.used += taken
        return taken

    def want_interrupt_after(self, position: int) -> None:
        """used_event, for the event index."""
        self.avail[2 + self.size] = position & 0xFFFF

    @property
    def kick_wanted_at(self) -> int:
        """avail_event, for the event index."""
        return self.used_words[2 + 4 * self.size]
