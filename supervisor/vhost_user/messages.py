"""The messages of vhost-user as values: a header, and what stands behind it. Pure.

Each payload is frozen, packs itself, and is unpacked by a class method that also checks what can be checked
without knowing the device: reserved bits, sums that would not fit into 64 bits, indices no device has. What
needs the device's state (overlaps, queue counts, whether an area is inside a region) is the state's business.
Those that describe memory are in ``areas``.

Everything is little-endian: the specification says the host's order, and the hosts that are supported have
this one. ``sizes`` are the lengths in bytes that a payload may have on the wire, a header is checked against
them before anything is allocated. Sections: "Header", "Payload".

Invariant: ``unpack(value.pack()) == value``, and ``unpack`` of any bytes returns or raises InvalidMessage.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, ClassVar, Protocol

from supervisor.vhost_user.errors import InvalidMessage, Unsendable
from supervisor.vhost_user.requests import MAX_CONFIG_BYTES, MAX_PAYLOAD_BYTES, MAX_VRINGS

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "HEADER_BYTES",
    "U64",
    "Config",
    "Empty",
    "Header",
    "Opaque",
    "Payload",
    "VringAddr",
    "VringFd",
    "VringState",
    "check_sum",
    "exact_size",
    "pack_numbers",
    "unpack_numbers",
]

VERSION = 1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8
RESERVED_MASK = 0xFFFFFFF0

_U64_END = 1 << 64
_HEADER = Struct("<III")
HEADER_BYTES = _HEADER.size


def pack_numbers(layout: Struct, *numbers: int) -> bytes:
    try:
        return layout.pack(*numbers)
    except StructError as error:
        raise Unsendable(f"a number does not fit its field: {numbers}") from error


def check_sum(name: str, start: int, size: int) -> None:
    """The end of a range must itself be an address: CVE-2020-10722 was a sum that wrapped."""
    if start + size >= _U64_END:
        raise InvalidMessage(f"{name} {start:#x} and size {size:#x} go beyond 64 bits")


def _index_fits(index: int) -> None:
    if index >= MAX_VRINGS:
        raise InvalidMessage(f"index {index} of a ring; there are at most {MAX_VRINGS}")


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before each payload: 32 bits each of request, flags and the payload's size in bytes."""

    request: int
    size: int = 0
    is_reply: bool = False
    need_reply: bool = False

    @classmethod
    def of_flags(cls, request: int, flags: int, size: int) -> Self:
        """Make a header of the two flags that have a meaning, whatever else ``flags`` holds."""
        return cls(request, size, bool(flags & REPLY), bool(flags & NEED_REPLY))

    @property
    def flags(self) -> int:
        """The second word: version, reply, need_reply."""
        return VERSION | (REPLY if self.is_reply else 0) | (NEED_REPLY if self.need_reply else 0)

    def pack(self) -> bytes:
        """Raises Unsendable when a number does not fit."""
        return pack_numbers(_HEADER, self.request, self.flags, self.size)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Self:
        """Check version and reserved bits; whether the request exists is the rules' business.

        Raises InvalidMessage.
        """
        if len(data) != HEADER_BYTES:
            raise InvalidMessage(f"a header of {len(data)} bytes")
        request, flags, size = _HEADER.unpack(data)
        if flags & VERSION_MASK != VERSION:
            raise InvalidMessage(f"version {flags & VERSION_MASK} of the protocol", f"request {request}")
        if flags & RESERVED_MASK:
            raise InvalidMessage(f"reserved flags {flags & RESERVED_MASK:#x}", f"request {request}")
        return cls.of_flags(request, flags, size)

    def reply(self, size: int) -> Header:
        """The header of the answer to this request. QEMU compares its flags for exactly this."""
        return Header(self.request, size, is_reply=True)

    def is_reply_for(self, request: Header) -> bool:
        """Tell whether this answers ``request``; sizes are compared elsewhere."""
        return self.is_reply and not request.is_reply and self.request == request.request


class Payload(Protocol):
    """What all payloads are."""

    sizes: ClassVar[range]

    def pack(self) -> bytes:
        """Raises Unsendable when a number does not fit its field."""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises InvalidMessage."""


def unpack_numbers(layout: Struct, data: bytes) -> tuple[int, ...]:
    """Raises InvalidMessage when the size is not the layout's."""
    if len(data) != layout.size:
        raise InvalidMessage(f"{len(data)} bytes where there must be {layout.size}")
    return layout.unpack(data)


def exact_size(size: int) -> range:
    """The ``sizes`` of a payload that has only one, in bytes."""
    return range(size, size + 1)


@dataclass(frozen=True, slots=True)
class Empty:
    """No payload at all."""

    sizes: ClassVar[range] = exact_size(0)

    def pack(self) -> bytes:
        return b""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if data:
            raise InvalidMessage(f"{len(data)} bytes where there must be none")
        return cls()


@dataclass(frozen=True, slots=True)
class Opaque:
    """Bytes whose meaning is between the driver and the device: crypto sessions, uuids, IOTLB entries."""

    data: bytes
    sizes: ClassVar[range] = range(MAX_PAYLOAD_BYTES + 1)

    def pack(self) -> bytes:
        return self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(bytes(data))


@dataclass(frozen=True, slots=True)
class U64:
    """One number: features, counts, answers (0 is yes)."""

    value: int
    sizes: ClassVar[range] = exact_size(8)
    _layout: ClassVar[Struct] = Struct("<Q")

    def pack(self) -> bytes:
        return pack_numbers(self._layout, self.value)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*unpack_numbers(cls._layout, data))


@dataclass(frozen=True, slots=True)
class VringState:
    """A ring's index, and a number that the request gives its meaning: size, base, enabled."""

    index: int
    num: int
    sizes: ClassVar[range] = exact_size(8)
    _layout: ClassVar[Struct] = Struct("<II")

    def pack(self) -> bytes:
        return pack_numbers(self._layout, self.index, self.num)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        made = cls(*unpack_numbers(cls._layout, data))
        _index_fits(made.index)
        return made


@dataclass(frozen=True, slots=True)
class VringAddr:
    """Where a ring's areas are, in addresses of the front-end's own process (not the guest's)."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int = 0
    sizes: ClassVar[range] = exact_size(40)
    _layout: ClassVar[Struct] = Struct("<IIQQQQ")
    _LOG: ClassVar[int] = 1  # the only flag: writes to the used ring are logged

    def pack(self) -> bytes:
        return pack_numbers(self._layout, self.index, self.flags, self.desc, self.used, self.avail, self.log)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        made = cls(*unpack_numbers(cls._layout, data))
        _index_fits(made.index)
        if made.flags & ~cls._LOG:
            raise InvalidMessage(f"unknown flags {made.flags:#x} of a ring")
        # virtio 1.2, section 2.7: the alignments of the three areas of a split ring; a packed one asks less.
        for name, address, alignment in (
            ("desc", made.desc, 16),
            ("avail", made.avail, 2),
            ("used", made.used, 4),
        ):
            if address % alignment:
                raise InvalidMessage(f"{name} {address:#x} is not aligned to {alignment}")
        return made


@dataclass(frozen=True, slots=True)
class VringFd:
    """Which ring a kick, call or error descriptor is for, and whether there is one at all."""

    index: int
    has_fd: bool = True
    sizes: ClassVar[range] = exact_size(8)
    _layout: ClassVar[Struct] = Struct("<Q")
    _INDEX: ClassVar[int] = 0xFF
    _NOFD: ClassVar[int] = 0x100

    def pack(self) -> bytes:
        if not 0 <= self.index <= self._INDEX:
            raise Unsendable(f"ring {self.index}: only the first {self._INDEX + 1} can have descriptors")
        return self._layout.pack(self.index | (0 if self.has_fd else self._NOFD))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        (word,) = unpack_numbers(cls._layout, data)
        if word & ~(cls._INDEX | cls._NOFD):
            raise InvalidMessage(f"ring word {word:#x} has more than an index of 8 bits and a flag")
        return cls(word & cls._INDEX, not word & cls._NOFD)


@dataclass(frozen=True, slots=True)
class Config:
    """A stretch of the configuration space, its bytes behind it. ``offset`` is in bytes."""

    offset: int
    data: bytes
    flags: int = 0
    sizes: ClassVar[range] = range(12, MAX_PAYLOAD_BYTES + 1)
    _layout: ClassVar[Struct] = Struct("<III")
    _FLAGS: ClassVar[int] = (
        0x3  # bit 0: written by a migration, not by the guest; bit 1: read-only fields too
    )

    def pack(self) -> bytes:
        return pack_numbers(self._layout, self.offset, len(self.data), self.flags) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) < cls._layout.size:
            raise InvalidMessage(f"{len(data)} bytes of a configuration message")
        offset, size, flags = cls._layout.unpack_from(data)
        cls.check(offset, size, flags)
        rest = bytes(data[cls._layout.size :])
        if len(rest) != size:
            raise InvalidMessage(f"{len(rest)} bytes of configuration, {size} announced")
        return cls(offset, rest, flags)

    @classmethod
    def check(cls, offset: int, size: int, flags: int) -> None:
        """Raises InvalidMessage for a stretch that no configuration space has."""
        if not 0 < size <= MAX_CONFIG_BYTES or offset + size > MAX_CONFIG_BYTES:
            raise InvalidMessage(
                f"offset {offset} and size {size}; a configuration has {MAX_CONFIG_BYTES} bytes"
            )
        if flags & ~cls._FLAGS:
            raise InvalidMessage(f"unknown flags {flags:#x} of a configuration message")
