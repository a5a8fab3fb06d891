"""A split virtqueue as the device sees it (virtio 1.2, section 2.7).

The guest and the device share three areas: descriptors, the ring of what is available, the ring of what was
used. A driver is not trusted: what it wrote is copied once and then checked, so that it cannot change between
the check and the use; chains are walked for at most as many steps as there are descriptors; addresses are
the memory's to refuse. A broken request ends as a request with an error, a broken ring stops the ring.

Batches are the rule: ``fetch`` looks at avail.idx once and takes what is there, ``complete`` collects, and
``flush`` publishes all with one store of used.idx and at most one interrupt. No object is made per request
but the lists of its buffers.

Order of stores: x86-64 keeps stores in order, and Python's are plain stores. The one thing it reorders, a
load before an earlier store to another place, matters twice: used.idx is stored before the driver's wish for
interrupts is read, and our wish for kicks is stored before avail.idx is read again. A full fence stands at
both.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from typing import Protocol

from supervisor.errors import PeerError
from supervisor.memory.fence import FENCE
from supervisor.vhost_user.inflight import InflightLog

__all__ = ["MAX_SIZE", "BrokenChain", "BrokenRing", "Chain", "GuestBuffers", "RingAreas", "SplitQueue"]

MAX_SIZE = 32768  # of a split queue, by the specification
MAX_CHAIN_BYTES = 1 << 32  # of all buffers of one request, by the specification

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1
ONE = (1).to_bytes(8, "little")  # what an eventfd counts; a pipe as call descriptor takes the same bytes

_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
_DESCRIPTOR_BYTES = _DESCRIPTOR.size


class BrokenRing(PeerError):
    """The driver broke the ring itself: nothing more can be taken from it."""


class BrokenChain(PeerError):
    """The driver broke one request. ``head`` is to be completed with an error."""

    def __init__(self, head: int, what: str) -> None:
        super().__init__(f"request {head}: {what}")
        self.head = head


class GuestBuffers(Protocol):
    """Guest memory as far as a queue needs it: ``GuestMemory`` and its like.

    ``buffers`` are (guest address, bytes); the views are theirs in order, more than one for a buffer that
    spans regions. Raises ``MemoryFault`` where some of it is not there.
    """

    def readable_views(self, buffers: Iterable[tuple[int, int]]) -> list[memoryview]: ...

    def writable_views(self, buffers: Iterable[tuple[int, int]]) -> list[memoryview]: ...


class RingAreas:
    """The three shared areas of a queue of ``size`` entries, as views of exactly their length."""

    __slots__ = ("avail", "desc", "size", "used")

    def __init__(self, desc: memoryview, avail: memoryview, used: memoryview, size: int) -> None:
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise BrokenRing(f"a queue of {size} entries; it must be a power of two up to {MAX_SIZE}")
        for name, area, length in zip(
            ("descriptor", "available", "used"), (desc, avail, used), self.lengths(size), strict=True
        ):
            if len(area) != length:
                raise BrokenRing(
                    f"a {name} area of {len(area)} bytes for {size} entries; it must have {length}"
                )
        self.size = size
        self.desc, self.avail, self.used = desc, avail, used

    @staticmethod
    def lengths(size: int) -> tuple[int, int, int]:
        """Bytes of the descriptor, available and used areas, the event words at their ends included."""
        return _DESCRIPTOR_BYTES * size, 6 + 2 * size, 6 + 8 * size


class Chain:
    """One request: ``readable`` buffers of the driver, then ``writable`` ones of ours, in order."""

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int, readable: list[memoryview], writable: list[memoryview]) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable


class SplitQueue:
    """Takes requests, gives them back used. ``position`` is the next entry of the available ring.

    ``log`` may be ``None`` for devices that complete in order and can do without. ``call_fd`` is where
    interrupts go (an eventfd or a pipe), negative for none.
    """

    def __init__(
        self,
        areas: RingAreas,
        memory: GuestBuffers,
        *,
        position: int,
        call_fd: int = -1,
        log: InflightLog | None = None,
        event_idx: bool = False,
    ) -> None:
        self.size = areas.size
        self.position = position & 0xFFFF
        self.call_fd = call_fd
        self.log = log
        self._mask = areas.size - 1
        self._event_idx = event_idx
        self._memory = memory
        self._desc = areas.desc
        self._avail = areas.avail.cast("H")  # flags, idx, ring..., used_event
        self._used = areas.used[: 4 + 8 * areas.size].cast("I")  # flags and idx together, then id, len ...
        self._used_words = areas.used.cast("H")  # flags, idx, ..., avail_event
        self._used_event = 2 + areas.size
        self._avail_event = 2 + 4 * areas.size
        self.used_idx = self._used_words[1]
        self._signalled = self.used_idx
        self._must_signal = True  # what the process before this one has signalled is not known
        self._done: list[int] = []
        self._out = 0

    # -- coming to life --------------------------------------------------------------------------

    def recover(self) -> list[int]:
        """Takes up where the process before this one has left; returns the heads to be executed again.

        They come in the order of fetching and count as fetched. Nothing may be fetched before they are under
        way. Without a log, what lies between used.idx and the position is fetched anew: that is for devices
        that complete in order. Raises :class:`~supervisor.vhost_user.inflight.CorruptLog`.
        """
        log = self.log
        if log is None:
            self.position = self.used_idx
            return []
        if log.is_fresh:
            log.begin(self.used_idx)
            return []
        left = log.recover(self.used_idx)
        if any(head >= self.size for head in left):
            raise BrokenRing(f"the log has request {max(left)} of a queue of {self.size}")
        self.position = (self.used_idx + len(left)) & 0xFFFF
        self._out = len(left)
        return left

    # -- taking ----------------------------------------------------------------------------------

    def fetch(self, limit: int = MAX_SIZE) -> list[int]:
        """The heads of up to ``limit`` new requests, in order; each is in the log. Empty: there are none.

        Raises :class:`BrokenRing`; heads that were taken before stay in the log.
        """
        avail = self._avail
        position = self.position
        count = (avail[1] - position) & 0xFFFF
        if not count:
            return []
        if count + self._out > self.size:
            raise BrokenRing(f"{count} requests available and {self._out} under way, of {self.size}")
        if count > limit:
            count = limit
        log, mask, size = self.log, self._mask, self.size
        heads: list[int] = []
        for offset in range(count):
            head = avail[2 + ((position + offset) & mask)]
            if head >= size:
                raise BrokenRing(f"request {head} of a queue of {size}")
            if log is not None:
                if log.is_in_flight(head):
                    raise BrokenRing(f"request {head} is available while it is under way")
                log.fetched(head)
            self.position = (position + offset + 1) & 0xFFFF
            self._out += 1
            heads.append(head)
        return heads

    def put_back(self, heads: Sequence[int]) -> bool:
        """Leaves ``heads``, the ones that were fetched last, in the ring, as if they had never been fetched.

        For devices that fetch buffers for what may come. False, and nothing is changed, where they are not
        what stands there last.
        """
        avail, mask = self._avail, self._mask
        position = self.position - len(heads)
        for offset, head in enumerate(heads):
            if avail[2 + ((position + offset) & mask)] != head:
                return False
        if self.log is not None:
            for head in reversed(heads):  # a death in between leaves the first ones: those that come next
                self.log.put_back(head)
        self.position = position & 0xFFFF
        self._out -= len(heads)
        return True

    @property
    def has_more(self) -> bool:
        """True if the driver has made more available than was fetched."""
        return self._avail[1] != self.position

    def wait_for_kick(self) -> bool:
        """Asks for a kick; false if there is more to fetch already, and no kick needs to be waited for."""
        if self._event_idx:
            self._used_words[self._avail_event] = self.position
        else:
            self._used_words[0] = 0
        if FENCE is not None:
            with FENCE:
                pass
        return self._avail[1] == self.position

    def ignore_kicks(self) -> None:
        """Kicks are not needed for now: the ring is being looked at anyway."""
        if not self._event_idx:  # with the event index, one that is not renewed asks for nothing
            self._used_words[0] = USED_NO_NOTIFY

    def chain(self, head: int) -> Chain:
        """The buffers of one request. Raises :class:`BrokenChain`, or ``MemoryFault`` for a bad address."""
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        table, entries, index = self._desc, self.size, head
        indirect = False
        total = 0
        left = entries
        while True:
            if not left:
                raise BrokenChain(head, f"more than {entries} descriptors: a loop")
            left -= 1
            address, length, flags, following = _DESCRIPTOR.unpack_from(table, _DESCRIPTOR_BYTES * index)
            if flags & DESC_INDIRECT:
                if indirect or flags & DESC_NEXT:
                    raise BrokenChain(head, "an indirect table within a chain or a table")
                if not length or length % _DESCRIPTOR_BYTES:
                    raise BrokenChain(head, f"an indirect table of {length} bytes")
                entries = length // _DESCRIPTOR_BYTES
                if entries > MAX_SIZE:
                    raise BrokenChain(head, f"an indirect table of {entries} descriptors")
                table = self._table(address, length)
                indirect, index, left = True, 0, entries
                continue
            total += length
            if not length or total > MAX_CHAIN_BYTES:
                raise BrokenChain(head, f"a buffer of {length} bytes, {total} in all")
            if flags & DESC_WRITE:
                writable.append((address, length))
            elif writable:
                raise BrokenChain(head, "a buffer to read behind one to write")
            else:
                readable.append((address, length))
            if not flags & DESC_NEXT:
                memory = self._memory
                return Chain(head, memory.readable_views(readable), memory.writable_views(writable))
            if following >= entries:
                raise BrokenChain(head, f"descriptor {following} of {entries}")
            index = following

    def _table(self, address: int, length: int) -> memoryview:
        """A copy of an indirect table: it may lie across regions, and must not change under our eyes."""
        return memoryview(b"".join(self._memory.readable_views([(address, length)])))

    # -- giving back -----------------------------------------------------------------------------

    def complete(self, head: int, written: int) -> None:
        """Request ``head`` is done, with ``written`` bytes of its writable part. Seen after ``flush``."""
        self._done.append(head)
        self._done.append(written)

    def flush(self) -> None:
        """Publishes what was completed, and interrupts the driver if it wants that."""
        done = self._done
        if not done:
            return
        heads = done[::2]
        log, used, mask = self.log, self._used, self._mask
        if log is not None:
            log.completing(heads)
        used_idx = self.used_idx
        for index in range(0, len(done), 2):
            at = 1 + 2 * (used_idx & mask)
            used[at] = done[index]
            used[at + 1] = done[index + 1]
            used_idx += 1
        self.used_idx = used_idx = used_idx & 0xFFFF
        self._used_words[1] = used_idx
        if log is not None:
            log.published(heads, used_idx)
        self._out -= len(heads)
        done.clear()
        self._interrupt()

    def _interrupt(self) -> None:
        if FENCE is not None:
            with FENCE:
                pass
        if not self._must_signal and not self._is_wanted():
            return
        self.signal()

    def _is_wanted(self) -> bool:
        if not self._event_idx:
            return not self._avail[0] & AVAIL_NO_INTERRUPT
        event = self._avail[self._used_event]
        new, old = self.used_idx, self._signalled
        span = (new - old) & 0xFFFF
        if span > self.size:  # a driver is never further behind, and a span must not come round to 0
            self._signalled = (new - self.size) & 0xFFFF
        return ((new - event - 1) & 0xFFFF) < span

    def remind(self) -> None:
        """Interrupts the driver if what was published last is a thing that it waits for after all.

        A driver says what it waits for and then looks whether it is there, with a full fence in between, and
        so do we the other way round: one of the two sees the other. Under an emulator that leaves a guest's
        fences out neither may (QEMU before 8.1 does with a single emulated processor), and then both wait.
        Some time later everything has been stored and can be seen.
        """
        if self.used_idx != self._signalled and self._is_wanted():
            self.signal()

    def signal(self) -> None:
        """Interrupts the driver, whether it wants that or not: one too many is always allowed."""
        self._signalled = self.used_idx
        self._must_signal = False
        if self.call_fd >= 0:
            try:
                os.write(self.call_fd, ONE)
            except BlockingIOError:
                pass  # it is full of interrupts that nobody has taken: one more says nothing new
            except OSError:
                pass  # nothing can be said with it, or to nobody: the VMM's doing, and its driver's loss

    def published_since(self, used_idx: int) -> list[int]:
        """The bytes written of each request that was published after ``used_idx``; for what comes after us.

        As the used ring says, which the driver can write. Empty where it does not reach so far back.
        """
        count = (self.used_idx - used_idx) & 0xFFFF
        if count > self.size:
            return []
        return [self._used[2 + 2 * ((used_idx + offset) & self._mask)] for offset in range(count)]

    def close(self) -> None:
        """Lets go of guest memory, so that it can be unmapped."""
        for view in (self._avail, self._used, self._used_words):
            view.release()
        if self.log is not None:
            self.log.close()
