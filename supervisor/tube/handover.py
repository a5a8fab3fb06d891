"""Ends that travel in a message: what their new holder is told about their far side.

Translates between peer.py's views and the references of packet.py, which are pidfds where possible. Called
while a packet is made (end.py) or taken (intake.py). What the far side is told is ``End.hand_over``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.tube.errors import MalformedMessage
from supervisor.tube.packet import EndEntry, Header, Ref, Shape
from supervisor.tube.parcel import EndDescriptor
from supervisor.tube.peer import PeerView, Process, Roles
from supervisor.tube.process import current_process, pidfd_for, process_of_pidfd
from supervisor.tube.scm import is_seqpacket

if TYPE_CHECKING:
    from supervisor.tube.descriptor import Descriptor
    from supervisor.tube.parcel import Outgoing

__all__ = ["describe_ends", "restore_ends", "roles_of"]

_ROLES = {
    Shape.TUBE: Roles.BOTH,
    Shape.PROTO_TUBE: Roles.BOTH,
    Shape.SEND_TUBE: Roles.SPEAK,
    Shape.RECV_TUBE: Roles.LISTEN,
}


def roles_of(shape: Shape) -> Roles:
    """Return what the holder of an end of this shape does with it."""
    return _ROLES[shape]


def describe_ends(out: Outgoing, extras: list[Descriptor]) -> list[EndEntry]:
    """Return the packet's table of ends.

    The pidfds that it names are appended to ``extras``, which the caller closes.
    """
    entries = []
    known: dict[Process, Ref] = {}
    for index, shape, end in out.ends:
        view = end.view.travelling()
        refs = []
        for process in (view.speaker, view.listener, view.maker, view.heir):
            if process is None:
                refs.append(Ref(Ref.OPEN))
                continue
            if process not in known:
                known[process] = _ref(process, len(out.fds), extras)
            refs.append(known[process])
        entries.append(EndEntry(index, shape, *refs))
    return entries


def _ref(process: Process, fds: int, extras: list[Descriptor]) -> Ref:
    unique = process.unique or 0
    if process.same_as(current_process()):
        return Ref(Ref.SENDER, unique)
    pidfd = pidfd_for(process)
    if pidfd is not None:
        extras.append(pidfd)
        return Ref(fds + len(extras) - 1, unique)
    return Ref(Ref.BY_UNIQUE, unique) if unique else Ref(Ref.OPEN)


def restore_ends(
    header: Header, own: list[Descriptor], extras: list[Descriptor], sender: Process | None
) -> list[Descriptor]:
    """Return ``own`` with the ends among them as EndDescriptors. Raises MalformedMessage."""
    # Everything is judged before the first descriptor changes its owner.
    views = []
    for entry in header.ends:
        if not is_seqpacket(own[entry.index].fileno()):
            raise MalformedMessage("a descriptor that should be an end of a Tube is no SOCK_SEQPACKET socket")
        speaker, listener, maker, heir = (_resolve(ref, extras, header.fds, sender) for ref in entry.refs)
        views.append(PeerView(maker, speaker, listener, heir))
    restored = list(own)
    for entry, view in zip(header.ends, views, strict=True):
        restored[entry.index] = EndDescriptor(own[entry.index].detach(), entry.shape, view)
    return restored


def _resolve(ref: Ref, extras: list[Descriptor], fds: int, sender: Process | None) -> Process | None:
    if ref.where == Ref.OPEN:
        return None
    if ref.where == Ref.SENDER:
        return sender
    if ref.where == Ref.BY_UNIQUE:
        return Process(0, ref.unique) if ref.unique else None
    try:
        return process_of_pidfd(extras[ref.where - fds].fileno())
    except OSError as error:
        raise MalformedMessage("a descriptor that should name a process is no pidfd") from error
