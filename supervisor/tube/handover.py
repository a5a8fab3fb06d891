"""Ends that travel in a message: what is said about their far side, to the receiver and to the far side
itself.

Joins peer.py's protocol to pidfds. Called by end.py only, while a packet is made or taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.tube.end import EndDescriptor, pidfd_for
from supervisor.tube.errors import MalformedMessage, TubeError, UnknownProcess
from supervisor.tube.packet import EndEntry, Header, Ref, Shape
from supervisor.tube.peer import PeerView, Process, Roles
from supervisor.tube.process import current_process, process_by_pid, process_of_pidfd
from supervisor.tube.scm import is_seqpacket

if TYPE_CHECKING:
    from supervisor.tube.descriptor import Descriptor
    from supervisor.tube.end import End, Outgoing

__all__ = ["announce", "describe_ends", "hand_over", "restore_ends", "roles_of", "take_back"]

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
        for process in (view.speaker, view.listener, view.maker):
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

    def resolve(ref: Ref) -> Process | None:
        if ref.where == Ref.OPEN:
            return None
        if ref.where == Ref.SENDER:
            return sender
        if ref.where == Ref.BY_UNIQUE:
            return Process(0, ref.unique)
        try:
            return process_of_pidfd(extras[ref.where - header.fds].fileno())
        except OSError as error:
            raise MalformedMessage("a descriptor that should name a process is no pidfd") from error

    # Everything is judged before the first descriptor changes its owner.
    views = []
    for entry in header.ends:
        if not is_seqpacket(own[entry.index].fileno()):
            raise MalformedMessage("a descriptor that should be an end of a Tube is no SOCK_SEQPACKET socket")
        views.append(PeerView(resolve(entry.maker), resolve(entry.speaker), resolve(entry.listener)))
    restored = list(own)
    for entry, view in zip(header.ends, views, strict=True):
        restored[entry.index] = EndDescriptor(own[entry.index].detach(), entry.shape, view)
    return restored


def hand_over(end: End, shape: Shape, new: Process | None) -> None:
    """Tell an end's far side who holds it from now on. Raises QueueFull, Closed."""
    end.send_handover(_ROLES[shape], new)


def take_back(end: End, shape: Shape) -> None:
    """Undo ``hand_over`` as well as can be, when the carrying message could not be sent."""
    try:
        end.send_handover(_ROLES[shape], current_process())
    except TubeError:
        # The first error is the one to report; a full queue leaves the far side expecting the other process.
        pass


def announce(end: End, shape: Shape, pid: int | None) -> None:
    """Tell an end's far side that process ``pid`` holds it from now on.

    Raises UnknownProcess, QueueFull, Closed.
    """
    new = None
    if pid is not None:
        new = process_by_pid(pid)
        if pidfd_for(new) is None:
            raise UnknownProcess(f"there is no process {pid}")
    hand_over(end, shape, new)
