"""The format of a packet: bytes to values and back, nothing else. Pure; anybody may call it.

    offset  size  field
    0       1     version (1)
    1       1     kind: MESSAGE (msgpack), PROTO (protobuf), HANDOVER (see peer.py)
    2       1     flags: bit 0: the body is in a sealed memfd, the last descriptor of the packet
    3       1     number of entries in the table of ends
    4       1     number of descriptors that belong to the message
    5       1     number of descriptors that belong to the packet (pidfds of the table, memfd)
    6       2     zero
    8       4     size of the body in bytes, wherever it is
    12      40*n  table of ends: which of the descriptors are ends of Tubes, and who is at their other side
    ...           the body, unless it is in a memfd

Little-endian. The header makes three things true which SOCK_SEQPACKET alone does not give: a packet is never
empty (an empty one cannot be told from the end of the connection, so an all-default protobuf would read as
"peer gone"); a lost byte is noticed; a lost or an extra descriptor is noticed (the kernel's alignment slack
lets one more through than the receiver made room for).

Invariant: ``unpack(pack(p)) == p``, and ``unpack`` of any bytes either returns or raises MalformedMessage.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar

from supervisor.tube.errors import MalformedMessage

__all__ = [
    "HEADER_BYTES",
    "MAX_FDS_DEFAULT",
    "MAX_FDS_KERNEL",
    "MAX_MESSAGE_BYTES",
    "MAX_PACKET_BYTES",
    "EndEntry",
    "HandOver",
    "Header",
    "Kind",
    "Ref",
    "Shape",
    "pack_head",
    "unpack",
    "unpack_frame_head",
]

# SCM_MAX_FD: sendmsg(2) refuses one more with EINVAL.
MAX_FDS_KERNEL = 253
# What crosvm allows unless asked; a message that needs more is more likely a mistake than a wish.
MAX_FDS_DEFAULT = 32
# The default send buffer takes one packet of 212,960 bytes; at 64 KiB three fit, so that a sender does not
# have to wait for each single one. Larger bodies travel in a memfd.
MAX_PACKET_BYTES = 64 * 1024
# What one message may make the receiver allocate. A device's state is the largest thing sent; 64 MiB is
# ample.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

VERSION = 1
_HEADER = Struct("<BBBBBBHI")
_ENTRY = Struct("<BBBBBBHQQQQ")
HEADER_BYTES = _HEADER.size
KIND_OFFSET = 1
ENTRY_BYTES = _ENTRY.size


class Kind(IntEnum):
    """What the body is."""

    MESSAGE = 1  # msgpack, see codec.py
    PROTO = 2  # one protobuf message; its type is the two ends' agreement
    HANDOVER = 3  # "the next holder of this end is ...", see peer.py


_KINDS = {int(kind): kind for kind in Kind}

# The one bit of the header's flags: the body is in a sealed memfd. A plain int: IntFlag costs microseconds a
# packet.
_OUT_OF_LINE = 1


class Shape(IntEnum):
    """What a travelling end was to its sender, and will be to its receiver."""

    TUBE = 1
    SEND_TUBE = 2
    RECV_TUBE = 3
    PROTO_TUBE = 4


@dataclass(frozen=True, slots=True)
class Ref:
    """How a packet names a process; a pid would mean something else in another pid namespace.

    ``where`` is the index of its pidfd among the packet's descriptors, or SENDER (whoever sent this packet,
    as the kernel says), or BY_UNIQUE (it is dead, or has no number where the packet was made), or OPEN
    (whoever speaks first). ``unique`` is the inode of its pidfd, 0 when not known (before Linux 6.9).
    """

    where: int
    unique: int = 0

    SENDER: ClassVar[int] = 253
    BY_UNIQUE: ClassVar[int] = 254
    OPEN: ClassVar[int] = 255


@dataclass(frozen=True, slots=True)
class EndEntry:
    """Descriptor ``index`` is an end of a Tube; the others name its far side (peer.py)."""

    index: int
    shape: Shape
    speaker: Ref
    listener: Ref
    maker: Ref
    heir: Ref = Ref(255)

    @property
    def refs(self) -> tuple[Ref, Ref, Ref, Ref]:
        """All of them, in the order of the wire."""
        return self.speaker, self.listener, self.maker, self.heir


@dataclass(frozen=True, slots=True)
class Header:
    """Everything of a packet but its body."""

    kind: Kind
    body_bytes: int
    fds: int = 0
    extra_fds: int = 0
    out_of_line: bool = False
    ends: tuple[EndEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class HandOver:
    """The body of a HANDOVER: which roles move, and to whom; the packet's pidfd says it best.

    ``unique`` is the inode of that pidfd, 0 if not known. ``sender_pid`` and ``new_pid`` are numbers in the
    sender's pid namespace: they mean something to a receiver that knows the sender by the same number, and
    are all there is of a holder that is dead before Linux 6.9.
    """

    roles: int
    unique: int
    sender_pid: int
    new_pid: int

    def pack(self) -> bytes:
        """Return the bytes of the body."""
        return _HANDOVER.pack(self.roles, self.unique, self.sender_pid, self.new_pid)

    @classmethod
    def unpack(cls, body: memoryview) -> HandOver:
        """Raises MalformedMessage."""
        if len(body) != _HANDOVER.size:
            raise MalformedMessage(f"a hand-over of {len(body)} bytes")
        made = cls(*_HANDOVER.unpack(body))
        if not 0 < made.roles <= _ALL_ROLES:
            raise MalformedMessage(f"a hand-over of unknown roles {made.roles}")
        return made


_HANDOVER = Struct("<BQII")
_ALL_ROLES = 3  # peer.Roles.BOTH


def pack_head(header: Header) -> bytes:
    """Return the packet's first bytes: header and table of ends; an inline body follows."""
    flags = _OUT_OF_LINE if header.out_of_line else 0
    head = _HEADER.pack(
        VERSION, header.kind, flags, len(header.ends), header.fds, header.extra_fds, 0, header.body_bytes
    )
    if not header.ends:
        return head
    return head + b"".join(
        _ENTRY.pack(e.index, e.shape, *(ref.where for ref in e.refs), 0, *(ref.unique for ref in e.refs))
        for e in header.ends
    )


def unpack(packet: bytes) -> tuple[Header, memoryview]:
    """Split a packet into its header and its inline body (empty when the body is out of line).

    Raises MalformedMessage for anything that ``pack_head`` cannot have made.
    """
    kind, out_of_line, end_count, fds, extra_fds, body_bytes = _unpack_header(packet)
    body_offset = HEADER_BYTES + end_count * ENTRY_BYTES
    inline_bytes = len(packet) - body_offset
    if inline_bytes != (0 if out_of_line else body_bytes):
        raise MalformedMessage(f"packet has {inline_bytes} bytes of body, its header says otherwise")
    ends = tuple(
        _unpack_entry(packet, HEADER_BYTES + i * ENTRY_BYTES, fds, extra_fds) for i in range(end_count)
    )
    if len({entry.index for entry in ends}) != len(ends):
        raise MalformedMessage("a descriptor is named twice in a packet's table of ends")
    return Header(kind, body_bytes, fds, extra_fds, out_of_line, ends), memoryview(packet)[body_offset:]


def unpack_frame_head(head: bytes) -> tuple[Kind, int]:
    """Return (kind, body size in bytes) from the header of a frame in a byte stream, which carries no
    descriptors.

    Raises MalformedMessage.
    """
    kind, out_of_line, end_count, fds, extra_fds, body_bytes = _unpack_header(head)
    if out_of_line or end_count or fds or extra_fds or kind == Kind.HANDOVER:
        raise MalformedMessage("a frame of a byte stream claims descriptors")
    return kind, body_bytes


def _unpack_header(packet: bytes) -> tuple[Kind, bool, int, int, int, int]:
    if len(packet) < HEADER_BYTES:
        raise MalformedMessage(f"packet of {len(packet)} bytes is shorter than its header")
    version, kind_number, flags, end_count, fds, extra_fds, zero, body_bytes = _HEADER.unpack_from(packet)
    if version != VERSION:
        raise MalformedMessage(f"packet version {version}, expected {VERSION}")
    if flags & ~_OUT_OF_LINE or zero:
        raise MalformedMessage("reserved bits of a packet header are set")
    kind = _KINDS.get(kind_number)
    if kind is None:
        raise MalformedMessage(f"unknown packet kind {kind_number}")
    out_of_line = bool(flags & _OUT_OF_LINE)
    if body_bytes > MAX_MESSAGE_BYTES:
        raise MalformedMessage(
            f"packet claims a body of {body_bytes} bytes; the limit is {MAX_MESSAGE_BYTES}"
        )
    if fds + extra_fds > MAX_FDS_KERNEL or (out_of_line and not extra_fds):
        raise MalformedMessage("packet claims descriptors that it cannot have")
    return kind, out_of_line, end_count, fds, extra_fds, body_bytes


def _unpack_entry(packet: bytes, offset: int, fds: int, extra_fds: int) -> EndEntry:
    fields = _ENTRY.unpack_from(packet, offset)
    index, shape_number, wheres, zero, uniques = fields[0], fields[1], fields[2:6], fields[6], fields[7:]
    try:
        shape = Shape(shape_number)
    except ValueError as error:
        raise MalformedMessage(f"unknown shape {shape_number} of an end") from error
    if index >= fds or zero:
        raise MalformedMessage("a packet's table of ends names a descriptor that is not there")
    refs = [Ref(where, unique) for where, unique in zip(wheres, uniques, strict=True)]
    if any(ref.where < Ref.SENDER and not fds <= ref.where < fds + extra_fds for ref in refs):
        raise MalformedMessage("a packet's table of ends names a process that is not there")
    return EndEntry(index, shape, *refs)
