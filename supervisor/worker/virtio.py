"""A virtio device's queues inside its worker: mapped, resumed, and served when the driver kicks.

The keeper hands over what the driver has set up; a worker serves one such set-up in its life. It is mapped
first, which a standby can do while its predecessor serves, and opened when that is dead. What the
process before had under way is executed first, in its order; then each ring is looked at once without a kick,
since the kick may have gone to the dead, and the driver is interrupted once, as its interrupt may have, too.

A broken request ends as a request. A broken ring is told to the VMM (its error descriptor) and left alone,
while the others go on. Nothing that a guest writes ends the process, and nothing that a VMM hands over does:
memory that cannot be mapped is like rings that are all broken, until the VMM sets something else up.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

from supervisor.errors import EnvironmentFault, LocalError, PeerError
from supervisor.memory import GuestMemory, Region
from supervisor.messages_pb2 import Attach, Ring
from supervisor.vhost_user import BrokenRing, CorruptLog, InflightLog, RingAreas, SplitQueue, VirtioDevice
from supervisor.vhost_user.device import F_EVENT_IDX
from supervisor.vhost_user.inflight import region_bytes
from supervisor.vhost_user.virtqueue import ONE

__all__ = ["Attachment"]

_log = logging.getLogger("tubevisor.virtio")
Watch = Callable[[int, Callable[[], None]], None]
Unwatch = Callable[[int], None]
_UNUSABLE = (PeerError, LocalError, EnvironmentFault, OSError)  # what a VMM's set-up may turn out to be


class _Place:
    """Where one ring lies, and the descriptors that belong to it. ``why_not``: it cannot be served."""

    def __init__(self, ring: Ring, fds: list[int]) -> None:
        self.ring = ring
        self.kick_fd, self.call_fd, self.err_fd = fds
        self.areas: RingAreas | None = None
        self.log: InflightLog | None = None
        self.why_not: Exception | None = None

    def close(self) -> None:
        """Lets go of guest memory. After the queue, if it was opened."""
        if self.areas is not None:
            for view in (self.areas.desc, self.areas.avail, self.areas.used):
                view.release()
        if self.log is not None:
            self.log.close()


class _Served:
    """One ring that is served."""

    def __init__(self, index: int, queue: SplitQueue, kick_fd: int, err_fd: int) -> None:
        self.index = index
        self.queue = queue
        self.kick_fd = kick_fd
        self.err_fd = err_fd
        self.broken = False
        self.left: list[int] = []  # what the process before has left under way


class Attachment:
    """Guest memory and rings as ``attach`` describes them; ``descriptors`` are its, in its order.

    Made without looking at what is in the rings: who serves them may still be somebody else. Raises
    :class:`PeerError` where there are fewer descriptors than are described: nothing is held then.
    """

    def __init__(self, attach: Attach, descriptors: list[Any]) -> None:
        self._device: VirtioDevice
        self._watch: Watch
        self._unwatch: Unwatch
        self._places: list[_Place] = []
        self._served: list[_Served] = []
        self._unserved: list[tuple[int, int]] = []  # (index, position) of rings that cannot be what they are
        self._unfinished: list[_Served] = []  # whose turn was over before the ring was empty
        self._owned: list[int] = []
        self.memory = GuestMemory(forked=False)
        self._log_memory: Any = None
        held = list(descriptors)
        try:
            self._map(attach, held)
            for ring in attach.rings:
                self._places.append(self._place(attach, ring, held))
        except BaseException:
            self.close()
            raise
        finally:
            for left in held:
                left.close()

    def _map(self, attach: Attach, held: list[Any]) -> None:
        # What cannot be mapped is not there, for each ring that would be in it.
        described = [
            (one.guest_address, one.size_bytes, one.offset_bytes, one.user_address) for one in attach.regions
        ]
        _map_all(self.memory, [(place, _next(held)) for place in described])
        if attach.HasField("inflight"):
            area = attach.inflight
            self._log_memory = GuestMemory(forked=False)
            _map_all(self._log_memory, [((0, area.size_bytes, area.offset_bytes, 0), _next(held))])

    def _place(self, attach: Attach, ring: Ring, held: list[Any]) -> _Place:
        has = ring.has_kick, ring.has_call, ring.has_err
        place = _Place(ring, [self._keep(held) if one else -1 for one in has])
        try:
            place.areas = self._areas(ring)
            place.log = self._log_of(attach, ring.index)
        except _UNUSABLE as error:
            place.why_not = error
        return place

    def _areas(self, ring: Ring) -> RingAreas:
        memory = self.memory
        places = (ring.desc, ring.avail, ring.used)
        views = [
            memory.writable_view(memory.guest_address(place, length), length)
            for place, length in zip(places, RingAreas.lengths(ring.size), strict=True)
        ]
        return RingAreas(views[0], views[1], views[2], ring.size)

    def _log_of(self, attach: Attach, index: int) -> InflightLog | None:
        if self._log_memory is None:
            return None
        area = attach.inflight
        stride = region_bytes(area.queue_size)
        if index >= area.queues or stride * area.queues > area.size_bytes:
            raise PeerError(f"no place for queue {index} in an in-flight log of {area.queues} queues")
        return InflightLog(self._log_memory.writable_view(stride * index, stride), area.queue_size)

    def _keep(self, held: list[Any]) -> int:
        fd: int = _next(held).detach()
        self._owned.append(fd)
        with contextlib.suppress(OSError):  # one that cannot be read or written either
            os.set_blocking(fd, False)
        return fd

    # -- serving -----------------------------------------------------------------------------------

    def serve(
        self,
        device: VirtioDevice,
        attach: Attach,
        watch: Watch,
        unwatch: Unwatch,
        commit: Callable[[], None],
        note: Callable[[list[tuple[int, int, int]]], None],
    ) -> None:
        """Takes up what is under way, then has ``device`` serve every ring whenever its driver kicks.

        ``attach`` is what this was made of, but that the rings may have moved on since. ``note`` is told
        beforehand of the oldest request under way of each ring: (ring, head, place in the order of fetching).
        """
        self._device, self._watch, self._unwatch = device, watch, unwatch
        device.commit = commit
        for place, ring in zip(self._places, attach.rings, strict=True):
            self._open(place, ring, attach.features)
        for write in attach.config_writes:
            device.write_config(write.offset, write.data)
        device.attached(attach.features, {one.index: one.queue for one in self._served})
        poison = {ring.index: set(ring.poison) for ring in attach.rings}
        oldest: list[tuple[int, int, int]] = []
        for one in self._served:
            self._guarded(one, lambda one=one: oldest.extend(self._recover(one)))  # type: ignore[misc]
        note(oldest)
        for one in self._served:
            self._guarded(one, lambda one=one: self._resume(one, poison[one.index]))  # type: ignore[misc]
        os.sched_yield()  # the guest has been interrupted, and may have no other core
        for one in self._served:
            if one.kick_fd >= 0:
                self._guarded(one, lambda one=one: self._listen(one))  # type: ignore[misc]
            self._process(one)

    def _open(self, place: _Place, ring: Ring, features: int) -> None:
        if place.areas is None:
            self._unserved.append((ring.index, ring.base))
            _complain(ring.index, place.why_not, place.err_fd)
            return
        queue = SplitQueue(
            place.areas,
            self.memory,
            position=ring.base,
            call_fd=place.call_fd,
            log=place.log,
            event_idx=bool(features & F_EVENT_IDX),
        )
        self._served.append(_Served(ring.index, queue, place.kick_fd, place.err_fd))

    @property
    def has_more(self) -> bool:
        """True if a ring's turn was over before it was empty."""
        return bool(self._unfinished)

    def go_on(self) -> None:
        """The next turn of each ring that has more."""
        unfinished, self._unfinished = self._unfinished, []
        for one in unfinished:
            self._process(one)

    @property
    def shows_inputs(self) -> bool:
        """True if the device has queues in which its inputs may show."""
        return bool(self._device.input_queues)

    def show_inputs(self) -> None:
        """Inputs have been committed: the driver may see what they have caused."""
        for one in self._served:
            if one.index in self._device.input_queues:
                self._process(one)

    def look_again(self) -> bool:
        """What a kick or an interrupt should have said and has not: see ``SplitQueue.remind``.

        True if something has come of it: then more may.
        """
        found = False
        for one in self._served:
            before = one.queue.position
            if one.queue.has_more:
                self._process(one)
            one.queue.remind()
            found |= one.queue.position != before
        return found

    def _recover(self, one: _Served) -> list[tuple[int, int, int]]:
        one.left = left = one.queue.recover()
        log = one.queue.log
        return [(one.index, left[0], log.counter_of(left[0]))] if left and log is not None else []

    def _resume(self, one: _Served, poison: set[int]) -> None:
        left = one.left
        poisoned = [head for head in left if head in poison]
        for head in poisoned:
            _log.error("queue %d: request %d has killed too often and is failed", one.index, head)
            self._device.give_up(one.queue, one.index, head)
        self._device.resume(one.queue, one.index, [head for head in left if head not in poison])
        one.queue.signal()

    def _listen(self, one: _Served) -> None:
        try:
            self._watch(one.kick_fd, lambda: self._kicked(one))
        except OSError as error:
            raise BrokenRing("its doorbell cannot be waited for") from error

    def _kicked(self, one: _Served) -> None:
        try:
            has_rung = bool(os.read(one.kick_fd, 8))
        except BlockingIOError:  # the process before may have taken it
            has_rung = True
        except OSError:
            has_rung = False
        if not has_rung:  # it would be readable for ever: nobody will ring it any more
            self._unwatch(one.kick_fd)
        self._process(one)

    def _process(self, one: _Served) -> None:
        def process() -> None:
            has_more = self._device.process(one.queue, one.index)
            if has_more and one not in self._unfinished:
                self._unfinished.append(one)

        self._guarded(one, process)

    def _guarded(self, one: _Served, work: Callable[[], None]) -> None:
        if one.broken:
            return
        try:
            work()
        except (BrokenRing, CorruptLog) as error:
            one.broken = True
            _complain(one.index, error, one.err_fd)

    def positions(self) -> list[tuple[int, int]]:
        """(Index, next available entry) of each ring; every request that was fetched is completed."""
        return [*self._unserved, *((one.index, one.queue.position) for one in self._served)]

    def close(self) -> None:
        """Gives descriptors and memory back."""
        for one in self._served:
            one.queue.close()
        self._served.clear()
        for place in self._places:
            place.close()
        self._places.clear()
        for fd in self._owned:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._owned.clear()
        for memory in (self.memory, self._log_memory):
            if memory is not None:
                with contextlib.suppress(LocalError):  # views that a traceback holds: the process ends soon
                    memory.close()


def _map_all(memory: GuestMemory, places: list[tuple[tuple[int, int, int, int], Any]]) -> None:
    """Maps guest address, size, offset and user address of each descriptor, all or none; closes them."""
    try:
        memory.map_all(
            (Region(guest_addr=at, size_bytes=size, offset_bytes=offset, user_addr=user), descriptor.fileno())
            for (at, size, offset, user), descriptor in places
        )
    except _UNUSABLE as error:
        _log.error("memory that a VMM has set up cannot be mapped: %s", error)
    finally:
        for _place, descriptor in places:
            descriptor.close()


def _complain(index: int, error: Exception | None, err_fd: int) -> None:
    _log.error("queue %d is broken and left alone: %s", index, error)
    if err_fd >= 0:
        with contextlib.suppress(OSError):
            os.write(err_fd, ONE)


def _next(held: list[Any]) -> Any:
    if not held:
        raise PeerError("fewer descriptors than are described")
    return held.pop(0)
