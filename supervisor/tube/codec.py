"""Typed messages: values to msgpack and back, owners of descriptors included. msgspec is imported with this
module,
which Tube does on its first message: a worker that only speaks ProtoTube never pays its 20 ms.

An owner of a descriptor becomes msgpack extension 1 with two bytes and more:

    index of its descriptor in the packet, what it is (Owner), for a file its mode

and arrives as the same kind of object with a new descriptor, or as what the receiver's type asks for (a
Descriptor can be asked for in place of any but an end). Each descriptor must be named exactly once, so a
message can neither leave a descriptor behind unseen nor give one number two owners. There is no pickle, and
nothing in a message names a class: decoding runs no code of the sender's choosing.

Plain ints are never descriptors. Text files arrive as UTF-8; writable files are flushed before they are sent.
Not every buffer travels: what a reader has already buffered stays with the sender.
"""

from __future__ import annotations

import io
import socket
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from supervisor.tube.codec_fds import add_owner, check_max_fds
from supervisor.tube.descriptor import Descriptor, Eventfd
from supervisor.tube.errors import MalformedMessage, NotSendable, TooManyFds, TubeError, UnexpectedFds
from supervisor.tube.face import FACES, Face
from supervisor.tube.packet import Kind
from supervisor.tube.parcel import EndDescriptor, Outgoing

if TYPE_CHECKING:
    from supervisor.tube.parcel import Arrived

__all__ = ["check_max_fds", "decode", "encode", "pack_plain", "unpack_plain"]

EXT_OWNER = 1

# What msgspec and Python's own codecs raise for bytes or values that they do not like. MemoryError: a few
# bytes can claim an array of 2**32 items.
_REFUSALS = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError, MemoryError)


class Owner(IntEnum):
    """What an owner of a descriptor is."""

    DESCRIPTOR = 0
    EVENTFD = 1
    SOCKET = 2
    FILE = 3
    END = 4  # which shape is in the packet's table of ends


class _Closable(Protocol):
    def close(self) -> None: ...


def encode(message: object, max_fds: int) -> Outgoing:
    """Return what to send. Raises NotSendable, BadDescriptor, TooManyFds."""
    check_max_fds(max_fds)
    out = Outgoing(Kind.MESSAGE, b"")

    def owner_to_ext(value: Any) -> msgspec.msgpack.Ext:
        if not hasattr(value, "fileno") or isinstance(value, type):
            raise NotSendable(f"a {type(value).__name__} is neither data nor the owner of a descriptor")
        what, mode = _describe(value)
        if len(out.fds) >= max_fds:
            raise TooManyFds(f"the message owns more than {max_fds} descriptors")
        index = add_owner(out, value)
        return msgspec.msgpack.Ext(EXT_OWNER, bytes((index, what)) + mode)

    out.body = _pack(message, owner_to_ext)
    return out


def pack_plain(message: object) -> bytes:
    """Return the msgpack of a message without owners of descriptors, for a byte stream.

    Raises NotSendable.
    """

    def refuse(value: Any) -> msgspec.msgpack.Ext:
        raise NotSendable(f"a {type(value).__name__} cannot travel over a byte stream")

    return _pack(message, refuse)


def _pack(message: object, hook: Any) -> bytes:
    try:
        return msgspec.msgpack.Encoder(enc_hook=hook).encode(message)
    except TubeError:
        raise
    except _REFUSALS as error:
        raise NotSendable(f"a {type(message).__name__} that msgpack cannot express") from error


def _describe(value: Any) -> tuple[Owner, bytes]:
    if isinstance(value, Face):
        return Owner.END, b""
    if isinstance(value, Eventfd):
        return Owner.EVENTFD, b""
    if isinstance(value, socket.socket):
        return Owner.SOCKET, b""
    if isinstance(value, io.IOBase) and not value.closed:
        return Owner.FILE, _mode_of(value)
    return Owner.DESCRIPTOR, b""


def _mode_of(file: io.IOBase) -> bytes:
    if file.writable():
        file.flush()
    access = b"+" if file.readable() and file.writable() else b"w" if file.writable() else b"r"
    layer = b"t" if isinstance(file, io.TextIOBase) else b"u" if isinstance(file, io.RawIOBase) else b"b"
    return access + layer


def decode(arrived: Arrived, type: Any, max_fds: int) -> Any:
    """Return the message, which takes over its descriptors; what is left in ``arrived`` is the caller's to
    close.

    Raises MalformedMessage, UnexpectedFds; then nothing is left open but what ``arrived`` still holds.
    """
    if arrived.kind != Kind.MESSAGE:
        raise MalformedMessage("not a typed message")
    if len(arrived.descriptors) > max_fds:
        raise UnexpectedFds(f"{len(arrived.descriptors)} descriptors, at most {max_fds} are expected")
    made: list[_Closable] = []

    def ext_to_owner(code: int, data: memoryview) -> object:
        owner = _take(arrived.descriptors, code, bytes(data))
        made.append(owner)
        return owner

    def adapt(wanted: Any, value: object) -> object:
        owner = _as_wanted(wanted, value)
        made.append(owner)
        return owner

    try:
        message = _unpack(arrived.body, type, ext_to_owner, adapt)
        if not all(descriptor.closed for descriptor in arrived.descriptors):
            raise MalformedMessage("a message came with descriptors that it does not name")
    except BaseException:
        for owner in made:
            owner.close()
        raise
    return message


def unpack_plain(body: bytes | memoryview, type: Any) -> Any:
    """Return the message of a byte stream. Raises MalformedMessage."""

    def refuse(code: int, data: memoryview) -> object:
        raise MalformedMessage(f"extension {code} in a message without descriptors")

    def refuse_type(wanted: Any, value: object) -> object:
        raise MalformedMessage(f"a {wanted} cannot travel over a byte stream")

    return _unpack(body, type, refuse, refuse_type)


def _unpack(body: bytes | memoryview, type: Any, ext_hook: Any, dec_hook: Any) -> Any:
    # Made first: a type that msgspec does not know is our caller's mistake (TypeError), not the peer's.
    decoder = msgspec.msgpack.Decoder(type, ext_hook=ext_hook, dec_hook=dec_hook)
    try:
        return decoder.decode(body)
    except TubeError:
        raise
    except _REFUSALS as error:
        raise MalformedMessage("the message's bytes are not of the expected type") from error


def _take(descriptors: list[Descriptor], code: int, data: bytes) -> _Closable:
    """Make the owner of one descriptor; on an error the descriptor stays in the list, open."""
    if code != EXT_OWNER or len(data) < 2:
        raise MalformedMessage(f"unknown extension {code}")
    index, what, mode = data[0], data[1], data[2:]
    if index >= len(descriptors) or descriptors[index].closed:
        raise MalformedMessage(f"descriptor {index} is not there, or is named twice")
    descriptor = descriptors[index]
    if isinstance(descriptor, EndDescriptor) != (what == Owner.END):
        raise MalformedMessage(f"descriptor {index} is said to be an end and something else")
    if isinstance(descriptor, EndDescriptor):
        return FACES[descriptor.shape](descriptor)
    if what == Owner.DESCRIPTOR:
        return Descriptor(descriptor.detach())
    if what == Owner.EVENTFD:
        return Eventfd(descriptor.detach())
    try:
        if what == Owner.SOCKET:
            return _socket_of(descriptor)
        if what == Owner.FILE:
            return _file_of(descriptor, mode)
    except (OSError, ValueError) as error:
        raise MalformedMessage(f"descriptor {index} is not what it is said to be") from error
    raise MalformedMessage(f"unknown owner {what}")


def _socket_of(descriptor: Descriptor) -> socket.socket:
    sock = socket.socket(fileno=descriptor.fileno())
    descriptor.detach()
    return sock


def _file_of(descriptor: Descriptor, mode: bytes) -> _Closable:
    """Open the layers by hand.

    After an error ``open`` closes the number in some cases and in others does not.
    """
    if len(mode) != 2 or mode[:1] not in b"rw+" or mode[1:] not in b"tub":
        raise ValueError("not a mode of a file")
    access, layer = mode[:1], mode[1:]
    raw = io.FileIO(descriptor.fileno(), {b"r": "r", b"w": "w", b"+": "r+"}[access])
    descriptor.detach()
    try:
        if layer == b"u":
            return raw
        layers: dict[bytes, Any] = {b"r": io.BufferedReader, b"w": io.BufferedWriter, b"+": io.BufferedRandom}
        buffered = layers[access](raw)
        return io.TextIOWrapper(buffered, encoding="utf-8") if layer == b"t" else buffered
    except BaseException:
        raw.close()
        raise


def _as_wanted(wanted: Any, value: object) -> _Closable:
    """Turn an arrived owner into what the receiver's type asks for, where that owns the same descriptor."""
    try:
        if isinstance(wanted, type) and isinstance(value, wanted):
            return value  # type: ignore[return-value]
        if wanted is Descriptor and isinstance(value, socket.socket):
            return Descriptor(value.detach())
        if wanted is Descriptor and isinstance(value, io.IOBase):
            with value:
                return Descriptor.duplicate(value)
        if wanted is Eventfd and type(value) is Descriptor:
            return Eventfd(value.detach())
        if wanted is socket.socket and type(value) is Descriptor:
            return _socket_of(value)
    except (OSError, ValueError) as error:
        raise MalformedMessage("a descriptor is not of the expected kind") from error
    name = getattr(wanted, "__name__", wanted)
    raise MalformedMessage(f"a {type(value).__name__} where a {name} was expected")
