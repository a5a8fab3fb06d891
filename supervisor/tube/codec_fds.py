"""Gathers the descriptors of an outgoing message. Needs neither msgspec nor protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.tube.descriptor import number_of
from supervisor.tube.errors import BadDescriptor, NotSendable, TooManyFds
from supervisor.tube.face import Face
from supervisor.tube.packet import MAX_FDS_KERNEL, Kind
from supervisor.tube.parcel import Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["add_owner", "check_max_fds", "gather"]


def check_max_fds(max_fds: int) -> None:
    """Raise TooManyFds when a caller asks for more than the kernel can carry."""
    if not 0 <= max_fds <= MAX_FDS_KERNEL:
        raise TooManyFds(f"max_fds={max_fds}; the kernel takes 0 to {MAX_FDS_KERNEL} in a packet")


def add_owner(out: Outgoing, owner: object) -> int:
    """Append the descriptor of an int or an object with ``fileno()``.

    Returns its index. Raises NotSendable.
    """
    index = len(out.fds)
    try:
        number = number_of(owner)
    except (AttributeError, TypeError) as error:
        raise NotSendable(f"a {type(owner).__name__} owns no descriptor") from error
    except (OSError, ValueError) as error:
        raise BadDescriptor(f"a {type(owner).__name__} that was to be sent has no open descriptor") from error
    if number < 0:
        raise BadDescriptor(f"a {type(owner).__name__} that was to be sent is closed")
    out.fds.append(number)
    if isinstance(owner, Face):
        out.ends.append((index, owner.shape, owner.end))
    return index


def gather(kind: Kind, body: bytes, owners: Iterable[object], max_fds: int) -> Outgoing:
    """Return what to send. Raises TooManyFds, NotSendable, BadDescriptor."""
    check_max_fds(max_fds)
    out = Outgoing(kind, body)
    for owner in owners:
        add_owner(out, owner)
    if len(out.fds) > max_fds:
        raise TooManyFds(f"{len(out.fds)} descriptors; at most {max_fds} are allowed here")
    return out
