"""Regions: which part of which file is guest memory at which addresses. Pure values and arithmetic.

A region has up to two addresses. ``guest_addr`` is the one that descriptors in rings hold; ``user_addr`` is
where the VMM itself has it mapped, and vhost-user names the rings by that one (vhost-user, SET_MEM_TABLE,
SET_VRING_ADDR).

A mapping starts at a page of its file, and a region need not: ``window`` says what to map around it. Pages
can be large (hugetlbfs): there the unit is the file system's block, and a mapping that ends inside one could
be made but not unmapped (mmap(2), "Huge page mappings").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from supervisor.memory.access import AccessType
from supervisor.memory.errors import BadRegion
from supervisor.memory.ranges import ADDRESS_MASK, MAX_INT

__all__ = ["MAX_REGIONS", "Region", "Window", "check_apart", "window"]

MAX_REGIONS = 32
"""As many as rust-vmm takes in one SET_MEM_TABLE, whose descriptors come in one packet. A PC has three or
four. Before Python 3.13 each mapping holds a descriptor (see ``mapping``)."""

_MAX_UNIT_BYTES = 1 << 30  # the largest huge page of x86-64; a larger block size is none of a page


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """``size_bytes`` of a file from ``offset_bytes`` on, at ``guest_addr``.

    ``user_addr`` is the same memory's address in the VMM, if it has one. ``access`` is what the guest
    permits; without ``writable`` the mapping itself is read-only, which no option passes over.

    Raises BadRegion for a size of 0, a negative number, or an end that is not below 2**64 (the file: 2**63).
    """

    guest_addr: int
    size_bytes: int
    offset_bytes: int = 0
    user_addr: int | None = None
    access: AccessType = AccessType.READ_WRITE
    writable: bool = True

    def __post_init__(self) -> None:
        if self.size_bytes <= 0:
            raise BadRegion(f"a region of {self.size_bytes} bytes")
        for what, start, limit in (
            ("guest address", self.guest_addr, ADDRESS_MASK),
            ("user address", self.user_addr or 0, ADDRESS_MASK),
            ("file offset", self.offset_bytes, MAX_INT),
        ):
            if start < 0 or start + self.size_bytes > limit:
                raise BadRegion(
                    f"{self.size_bytes:#x} bytes from {what} {start:#x} on leave the address space"
                )

    @property
    def guest_end(self) -> int:
        """The guest address behind the last byte."""
        return self.guest_addr + self.size_bytes


class Window(NamedTuple):
    """What to map for a region: ``length_bytes`` of the file from ``offset_bytes`` on; the region starts
    ``skip_bytes`` in."""

    offset_bytes: int
    length_bytes: int
    skip_bytes: int


def window(region: Region, file_bytes: int, block_bytes: int, page_bytes: int) -> Window:
    """Return the whole pages around ``region``, as far as the file goes.

    ``page_bytes`` is the host's page; ``block_bytes`` the file system's block, taken for a page if it is a
    larger power of two. Raises BadRegion if the file ends before the region: its last pages would be there to
    be mapped and deadly to be touched (SIGBUS).
    """
    region_end = region.offset_bytes + region.size_bytes
    if region_end > file_bytes:
        raise BadRegion(f"a region up to byte {region_end:#x} of a file of {file_bytes:#x} bytes")
    unit = page_bytes
    if page_bytes < block_bytes <= _MAX_UNIT_BYTES and block_bytes & (block_bytes - 1) == 0:
        unit = block_bytes
    start = region.offset_bytes & ~(unit - 1)
    end = min((region_end + unit - 1) & ~(unit - 1), file_bytes)
    return Window(start, end - start, region.offset_bytes - start)


def check_apart(region: Region, others: list[Region]) -> None:
    """Raise BadRegion if ``region`` shares an address with another: whose byte is there would be chance."""
    for other in others:
        if _meet(region.guest_addr, region.size_bytes, other.guest_addr, other.size_bytes):
            raise BadRegion(f"guest address {region.guest_addr:#x}: another region is there")
        if region.user_addr is None or other.user_addr is None:
            continue
        if _meet(region.user_addr, region.size_bytes, other.user_addr, other.size_bytes):
            raise BadRegion(f"user address {region.user_addr:#x}: another region is there")


def _meet(start: int, size: int, other_start: int, other_size: int) -> bool:
    return start < other_start + other_size and other_start < start + size
