"""Which regions are mapped where: the changing half of ``GuestMemory``.

Owns the mappings. Every change makes a new table (``segments``) for those who access the memory, and either
happens as a whole or not at all.

Any thread may access the memory, also while another region is mapped. A region is unmapped or protected only
while nobody accesses it: an access that has found its region does not notice that it goes.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from supervisor.memory.access import AccessType
from supervisor.memory.errors import BadRegion, MemoryClosed, MemoryFault, ViewsAlive
from supervisor.memory.mapping import Mapping
from supervisor.memory.ranges import ADDRESS_MASK
from supervisor.memory.regions import MAX_REGIONS, Region, check_apart
from supervisor.memory.segments import NOWHERE, Protection, Segment, Table, protect

if TYPE_CHECKING:
    from typing import Self

__all__ = ["AddressSpace"]


class _Mapped:
    """A mapping's permissions, and the segments that they cut it into."""

    def __init__(self, mapping: Mapping, protections: list[Protection]) -> None:
        self.protections = protections
        self.segments = [Segment(mapping, *part) for part in protections]

    def release(self) -> None:
        for segment in self.segments:
            segment.release()


class AddressSpace:
    """Mapped regions; at first there are none. A context manager that closes itself.

    No address above ``max_addr`` is ever accessed. With ``sealed``, only files that can no longer be made
    shorter are mapped (memfds with F_SEAL_SHRINK). Without ``forked``, forks of this process do not have it.
    """

    def __init__(self, *, max_addr: int = ADDRESS_MASK, sealed: bool = False, forked: bool = True) -> None:
        self._max_addr = max_addr
        self._sealed = sealed
        self._forked = forked
        self._closed = False
        self._mapped: dict[Mapping, _Mapped] = {}
        self._table = Table()
        self._hit: Segment = NOWHERE  # the last one found: most requests stay in one region

    @property
    def regions(self) -> tuple[Region, ...]:
        """What is mapped, in the order of guest addresses."""
        return tuple(sorted((m.region for m in self._mapped), key=lambda region: region.guest_addr))

    def map(self, region: Region, fd: int) -> None:
        """Map ``region`` of the file behind ``fd``, which stays the caller's and may be closed then.

        Raises BadRegion, MappingFailed, MemoryClosed; nothing has changed then.
        """
        self._check_open()
        if len(self._mapped) >= MAX_REGIONS:
            raise BadRegion(f"more than {MAX_REGIONS} regions")
        if region.guest_end > self._max_addr:
            raise BadRegion(f"a region up to {region.guest_end:#x} in a space up to {self._max_addr:#x}")
        check_apart(region, [mapping.region for mapping in self._mapped])
        mapping = Mapping(region, fd, sealed=self._sealed, forked=self._forked)
        self._mapped[mapping] = _Mapped(mapping, [(0, region.size_bytes, region.access)])
        self._rebuild()

    def map_all(self, regions: Iterable[tuple[Region, int]]) -> None:
        """Map several regions with their descriptors, or none. Raises as ``map`` does."""
        before = set(self._mapped)
        try:
            for region, fd in regions:
                self.map(region, fd)
        except BaseException:
            for mapping in [m for m in self._mapped if m not in before]:
                self._drop(mapping)
            raise

    def unmap(self, guest_addr: int) -> None:
        """Unmap the region that starts at ``guest_addr``.

        Raises BadRegion if there is none, and ViewsAlive if somebody holds views of it: nothing has changed
        then.
        """
        for mapping in self._mapped:
            if mapping.region.guest_addr == guest_addr:
                self._drop(mapping)
                return
        raise BadRegion(f"no region starts at {guest_addr:#x}")

    def _drop(self, mapping: Mapping) -> None:
        parts = self._mapped.pop(mapping)
        self._rebuild()
        parts.release()
        try:
            mapping.close()
        except ViewsAlive:
            self._mapped[mapping] = _Mapped(mapping, parts.protections)
            self._rebuild()
            raise

    def protect(self, guest_addr: int, n: int, access: AccessType) -> None:
        """Permit ``access``, and nothing else, on ``n`` bytes at ``guest_addr``; holes are passed over."""
        self._check_open()
        replaced = []
        for mapping, parts in self._mapped.items():
            first = max(guest_addr - mapping.region.guest_addr, 0)
            last = min(guest_addr + n - mapping.region.guest_addr, mapping.region.size_bytes)
            if first < last:
                self._mapped[mapping] = _Mapped(mapping, protect(parts.protections, first, last, access))
                replaced.append(parts)
        self._rebuild()
        for parts in replaced:
            parts.release()

    def _rebuild(self) -> None:
        self._table = Table([segment for parts in self._mapped.values() for segment in parts.segments])
        self._hit = NOWHERE

    def guest_address(self, user_addr: int, n: int = 1) -> int:
        """Return the guest address of ``n`` bytes at ``user_addr`` of the VMM, all in one region.

        Raises MemoryFault, MemoryClosed.
        """
        self._check_open()
        for mapping in self._mapped:
            region = mapping.region
            if region.user_addr is not None and 0 <= user_addr - region.user_addr < region.size_bytes:
                offset = user_addr - region.user_addr
                if 0 <= n <= region.size_bytes - offset:
                    return region.guest_addr + offset
        raise MemoryFault(errno.EFAULT, 0, f"{n} bytes at user address {user_addr:#x} are in no region")

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Unmap everything; every access raises MemoryClosed from now on. Nothing happens the second time.

        Raises ViewsAlive if somebody holds views of a region. The other regions are unmapped, and ``close``
        can be called again to finish.
        """
        self._closed = True
        self._table = Table()
        self._hit = NOWHERE
        alive = []
        for mapping, parts in list(self._mapped.items()):
            parts.release()
            try:
                mapping.close()
            except ViewsAlive:
                alive.append(f"{mapping.region.guest_addr:#x}")
            else:
                del self._mapped[mapping]
        if alive:
            raise ViewsAlive(f"views are alive of the regions at {', '.join(alive)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What went wrong inside matters more, and its traceback may well be what holds the views.
        with contextlib.nullcontext() if error is None else contextlib.suppress(ViewsAlive):
            self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryClosed("this memory is closed")
