"""From what the kernel gave to a message that may be used: sender, form, descriptors, body, ends, in this
order.

The sender is judged first: what a stranger sent is not parsed, except for the one byte that says "hand-over",
which has rules of its own. Whatever raises here leaves the packet's descriptors in the arrival, for the
caller to close.
"""

from __future__ import annotations

from supervisor.tube import packet
from supervisor.tube.descriptor import Descriptor, close_all
from supervisor.tube.errors import MalformedMessage
from supervisor.tube.handover import restore_ends
from supervisor.tube.memfd import read_sealed
from supervisor.tube.packet import Header, Kind
from supervisor.tube.parcel import Arrived
from supervisor.tube.peer import PeerView, Process, Roles
from supervisor.tube.process import process_of_pidfd
from supervisor.tube.scm import Arrival

__all__ = ["accept", "is_handover"]


def is_handover(head: bytes) -> bool:
    """Tell from a packet's first bytes whether it is a hand-over."""
    return len(head) >= packet.HEADER_BYTES and head[packet.KIND_OFFSET] == Kind.HANDOVER


def accept(arrival: Arrival, view: PeerView) -> Arrived:
    """Judge a packet, apply it to the view, and return it.

    Raises WrongPeer, MalformedMessage, TubeSystemError.
    """
    if not is_handover(arrival.data):
        view.admit_data(arrival.sender)
    header, body = packet.unpack(arrival.data)
    expected_fds = header.fds + header.extra_fds
    if expected_fds != len(arrival.descriptors):
        raise MalformedMessage(f"{len(arrival.descriptors)} descriptors came, not {expected_fds}")
    own, extras = arrival.descriptors[: header.fds], arrival.descriptors[header.fds :]
    content: bytes | memoryview = body
    if header.kind == Kind.HANDOVER:
        _apply_handover(header, body, extras, arrival.sender, view)
    else:
        if header.out_of_line:
            content = read_sealed(extras[-1], header.body_bytes)
        if header.ends:
            own = restore_ends(header, own, extras, arrival.sender)
    close_all(extras)
    return Arrived(header.kind, content, own, arrival.sender, arrival.pidfd)


def _apply_handover(
    header: Header, body: memoryview, extras: list[Descriptor], sender: Process | None, view: PeerView
) -> None:
    if header.fds or header.ends or header.out_of_line or len(extras) > 1:
        raise MalformedMessage("a hand-over of the wrong form")
    said = packet.HandOver.unpack(body)
    new = Process(0, said.unique) if said.unique else None
    if extras:
        try:
            new = process_of_pidfd(extras[0].fileno())
        except OSError as error:
            raise MalformedMessage("a hand-over to what is not a process") from error
    if new is not None and not new.pid and sender is not None and sender.pid == said.sender_pid:
        new = Process(said.new_pid, new.unique)
    view.admit_handover(sender, Roles(said.roles), new)
