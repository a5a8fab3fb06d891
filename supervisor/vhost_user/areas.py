"""The messages that describe memory: regions, the in-flight log, the dirty log, doorbells. Pure.

A sum of start and size that wraps is refused wherever one is made (CVE-2020-10722). What only the descriptor
or the device can tell (a file that is too short, regions that overlap) is checked where those are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, ClassVar

from supervisor.vhost_user.errors import InvalidMessage
from supervisor.vhost_user.inflight import region_bytes
from supervisor.vhost_user.messages import check_sum, exact_size, pack_numbers, unpack_numbers
from supervisor.vhost_user.requests import MAX_REGIONS, MAX_REGIONS_BASELINE, MAX_RING_SIZE, MAX_VRINGS

if TYPE_CHECKING:
    from typing import Self

__all__ = ["HostNotifier", "Inflight", "Log", "MemoryTable", "Region", "SingleRegion"]


@dataclass(frozen=True, slots=True)
class Region:
    """Guest memory that is contiguous: guest address, size, front-end address, offset in its descriptor."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int = 0
    layout: ClassVar[Struct] = Struct("<QQQQ")

    def pack(self) -> bytes:
        return pack_numbers(self.layout, self.guest_address, self.size, self.user_address, self.mmap_offset)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Self:
        made = cls(*cls.layout.unpack(data))
        if not made.size:
            raise InvalidMessage("a memory region of no size")
        check_sum("guest address", made.guest_address, made.size)
        check_sum("user address", made.user_address, made.size)
        check_sum("mmap offset", made.mmap_offset, made.size)
        return made


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """All of guest memory. User-Mode Linux sends room for two regions with one in it; what is behind the
    last one that counts is not looked at.
    """

    regions: tuple[Region, ...]
    sizes: ClassVar[range] = range(8 + 32, 8 + 32 * MAX_REGIONS + 1, 32)
    _layout: ClassVar[Struct] = Struct("<II")

    def pack(self) -> bytes:
        return pack_numbers(self._layout, len(self.regions), 0) + b"".join(
            region.pack() for region in self.regions
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) not in cls.sizes:
            raise InvalidMessage(f"a memory table of {len(data)} bytes")
        count, padding = cls._layout.unpack_from(data)
        room = (len(data) - cls._layout.size) // Region.layout.size
        if padding:
            raise InvalidMessage(f"padding {padding:#x} of a memory table")
        if not 0 < count <= room:
            raise InvalidMessage(f"a memory table of {count} regions, with room for {room}")
        start, step = cls._layout.size, Region.layout.size
        return cls(
            tuple(Region.unpack(data[at : at + step]) for at in range(start, start + step * count, step))
        )

    def check_count(self, limit: int = MAX_REGIONS_BASELINE) -> None:
        """Raises InvalidMessage for more regions than were negotiated; without that, the baseline's."""
        if len(self.regions) > limit:
            raise InvalidMessage(f"a memory table of {len(self.regions)} regions, the limit is {limit}")


@dataclass(frozen=True, slots=True)
class SingleRegion:
    """One region to be added or removed (CONFIGURE_MEM_SLOTS), behind 8 bytes of padding."""

    region: Region
    sizes: ClassVar[range] = exact_size(40)

    def pack(self) -> bytes:
        return bytes(8) + self.region.pack()

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) not in cls.sizes:
            raise InvalidMessage(f"a single region of {len(data)} bytes")
        if any(data[:8]):
            raise InvalidMessage("padding of a single region is not zero")
        return cls(Region.unpack(data[8:]))


@dataclass(frozen=True, slots=True)
class Log:
    """The dirty log's place in its descriptor, in bytes."""

    mmap_size: int
    mmap_offset: int
    sizes: ClassVar[range] = exact_size(16)
    _layout: ClassVar[Struct] = Struct("<QQ")

    def pack(self) -> bytes:
        return pack_numbers(self._layout, self.mmap_size, self.mmap_offset)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        made = cls(*unpack_numbers(cls._layout, data))
        check_sum("mmap offset", made.mmap_offset, made.mmap_size)
        return made


@dataclass(frozen=True, slots=True)
class Inflight:
    """The in-flight log's place in its descriptor, and for how many rings of how many entries it is.

    24 bytes on the wire, the last four padding: the struct has it, and QEMU refuses replies without it.
    """

    mmap_size: int
    mmap_offset: int
    queue_count: int
    queue_size: int
    sizes: ClassVar[range] = exact_size(24)
    _layout: ClassVar[Struct] = Struct("<QQHH4x")

    def pack(self) -> bytes:
        return pack_numbers(self._layout, self.mmap_size, self.mmap_offset, self.queue_count, self.queue_size)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        made = cls(*unpack_numbers(cls._layout, data))
        check_sum("mmap offset", made.mmap_offset, made.mmap_size)
        if made.queue_count > MAX_VRINGS or made.queue_size > MAX_RING_SIZE:
            raise InvalidMessage(f"a log of {made.queue_count} rings of {made.queue_size} entries")
        return made

    def check_room(self) -> None:
        """Raises InvalidMessage when the memory is too small for what it is to hold (CVE-2021-3839).

        A packed ring's log is larger than the split one's that is assumed here.
        """
        if not self.queue_count or not self.queue_size:
            raise InvalidMessage(f"a log of {self.queue_count} rings of {self.queue_size} entries")
        needed = region_bytes(self.queue_size) * self.queue_count
        if self.mmap_size < needed:
            raise InvalidMessage(f"a log of {self.mmap_size} bytes where {needed} are needed")


@dataclass(frozen=True, slots=True)
class HostNotifier:
    """Where the front-end may map a ring's doorbell; the ring's word is that of ``VringFd``."""

    ring_word: int
    mmap_size: int
    mmap_offset: int
    sizes: ClassVar[range] = exact_size(24)
    _layout: ClassVar[Struct] = Struct("<QQQ")

    def pack(self) -> bytes:
        return pack_numbers(self._layout, self.ring_word, self.mmap_size, self.mmap_offset)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        made = cls(*unpack_numbers(cls._layout, data))
        check_sum("mmap offset", made.mmap_offset, made.mmap_size)
        return made
