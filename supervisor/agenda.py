"""What ``dispatch`` has to look at: devices that have stirred, and the earliest alarm of all the others.

A thousand devices that rest cost nothing. One stirs when its bell rings, when it is asked for something,
when its process has died, when somebody begins to listen to it; it rests again when it owes nothing and has
nothing to deliver. One that rests cannot change its alarm without stirring, so those alarms stand in a heap.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from supervisor.device import NO_ALARM
from supervisor.handle import DeviceHandle

__all__ = ["Agenda"]

SPARE_ENTRIES = 64  # of the heap that may be out of date, beside as many as there are alarms


class Agenda:
    """Handles that stir, in the order in which they began to, and alarms of those that rest."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] | None = None  # called where somebody begins to stir
        self._stirring: dict[DeviceHandle, None] = {}
        self._resting_until: dict[DeviceHandle, int] = {}  # its alarm, if it has one (guest ns)
        self._alarms: list[tuple[int, str, int, DeviceHandle]] = []  # a heap; some are no longer so
        self._entries = 0

    def stir(self, handle: DeviceHandle) -> None:
        """There may be something to do for ``handle``."""
        if self.on_change is not None:
            self.on_change()
        self._stirring[handle] = None
        self._resting_until.pop(handle, None)

    def forget(self, handle: DeviceHandle) -> None:
        """The device is no more."""
        self._stirring.pop(handle, None)
        self._resting_until.pop(handle, None)

    def stirring(self) -> list[DeviceHandle]:
        """Those to look at; they may come to rest meanwhile, or others stir."""
        return list(self._stirring)

    def settle(self) -> None:
        """Has those rest that can."""
        for handle in self.stirring():
            if handle.rests:
                self._rest(handle)

    def earliest_alarm(self) -> tuple[int, DeviceHandle] | None:
        """The alarm that is due first (guest ns), as far as it is known without waiting, and whose it is."""
        heap = self._alarms
        while heap and self._resting_until.get(heap[0][-1]) != heap[0][0]:
            heapq.heappop(heap)
        best = (heap[0][0], heap[0][1], heap[0][-1]) if heap else None
        for handle in self._stirring:
            at_ns = handle.published_alarm_ns
            if at_ns != NO_ALARM and (best is None or (at_ns, handle.name) < best[:2]):
                best = at_ns, handle.name, handle
        return None if best is None else (best[0], best[2])

    def _rest(self, handle: DeviceHandle) -> None:
        del self._stirring[handle]
        at_ns = handle.published_alarm_ns
        if at_ns != NO_ALARM:
            self._resting_until[handle] = at_ns
            self._entries += 1
            heapq.heappush(self._alarms, (at_ns, handle.name, self._entries, handle))
            if len(self._alarms) > SPARE_ENTRIES + 2 * len(self._resting_until):
                self._clear_out()

    def _clear_out(self) -> None:
        """Leaves one entry for each alarm: who stirs often would leave many behind until they are due."""
        known = enumerate(self._resting_until.items())
        self._alarms = [(at_ns, handle.name, entry, handle) for entry, (handle, at_ns) in known]
        heapq.heapify(self._alarms)
        self._entries = len(self._alarms)
