"""Who may speak to an end: ``target_pid`` and how it follows an end from process to process. Pure decisions.

The problem: a Tube has two ends, ends travel, and each side wants to know which process holds the other one,
without anybody writing it down by hand, and without believing a process that merely got hold of a copy of the
descriptor. Numbers do not help (a pid means something else in another pid namespace) and SO_PEERCRED does not
either (on a socketpair it names the creator for ever). What the kernel does give, on each packet, is its
sender: SCM_CREDENTIALS and, from 6.5, SCM_PIDFD (unix(7)). From these the protocol follows:

1. Each end keeps a view of its far side: ``speaker`` (the process whose packets are accepted:
   ``target_pid``), ``listener`` (the one that receives what we send; another process only after a split), and
   ``maker`` (the process that called ``pair``). A view starts with the maker known and the others open.
2. A packet from another process than ``speaker`` is refused (WrongPeer). While ``speaker`` is open, the first
   sender is pinned: until then only the maker and those it handed the end to can have had one.
3. **Giving an end away moves the far side's view, in-band.** A process that sends an end in a message first
   sends a HANDOVER packet *through that end*, which carries a pidfd of the next holder: the one at the other
   side of the carrying Tube. The far side gets it in order: everything before it came from the old holder,
   everything after must come from the new one. It does not matter who reads it, when, or whether that side
   travels meanwhile as well, since the packet waits in the socket's own queue.
4. **The end's own view travels with it**, as pidfds, or as "the sender of this packet", in the carrying
   packet.
5. A HANDOVER is accepted from the present holder of the role, from the maker, and, until the new holder has
   spoken, from the one that gave it away (it takes the end back if the carrying message could not be sent).
   So a supervisor that kept a copy hands it on again after a worker's death, while a third process with a
   copy can move nothing.
6. Whoever reads a HANDOVER and then dies takes the knowledge along. So a process that has handed over both
   ends of a pair tells each later holder of the one who holds the other (``heir``): accepted from its first
   packet on, while packets of its predecessor that are still in the queue are accepted before.
7. A carrier whose far side forks (a zygote) cannot name the next holder; then the HANDOVER is open, and the
   first packet pins it, or the spawner does by setting ``target_pid``. Raw descriptor numbers are sent
   without any of this.

So: one end handed to a worker: (3) sets the supervisor's end, (4) the worker's. Both ends to two workers:
each hand-over waits in the queue of the other end, wherever that went. Handed on again: (5) and (6).

Limits. If a worker, not the supervisor, hands an end on and then the process at the far side is replaced,
nobody tells the replacement: set ``target_pid``. By measurement: a process that may forge SCM_CREDENTIALS
(CAP_SYS_ADMIN over the pid namespace) is believed, and SCM_PIDFD follows the forged pid; so a worker that is
to be held to its word must not be root in our namespace. A copy of an end can still *steal* packets by
reading; no kernel interface prevents that: ends are close-on-exec.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag

from supervisor.tube.errors import WrongPeer

__all__ = ["PeerView", "Process", "Roles"]


class Roles(IntFlag):
    """What the holder of an end does with it."""

    SPEAK = 1
    LISTEN = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class Process:
    """A process, as this one sees it.

    ``pid`` is its number in our pid namespace, 0 if it has none there. ``unique`` is the inode of its pidfd
    (pidfs, Linux 6.9): the same in all namespaces and never used again before the next boot; None where that
    is not known.
    """

    pid: int
    unique: int | None = None

    def same_as(self, other: Process) -> bool:
        """Tell whether both name one process; by number where the kernel offers nothing better."""
        if self.unique is not None and other.unique is not None:
            return self.unique == other.unique
        return self.pid == other.pid


@dataclass(slots=True)
class PeerView:
    """What one end knows of its far side. None means open: whoever speaks first."""

    maker: Process | None = None
    speaker: Process | None = None
    listener: Process | None = None
    # Who holds the far end by now, as far as the process that gave us this end knew.
    heir: Process | None = None
    # Who handed the far end over; may think better of it until the new holder speaks.
    giver: Process | None = None
    # What this process itself did with the far end: holder by role, None for "whoever speaks first".
    moved: dict[Roles, Process | None] = field(default_factory=dict)

    def admit_data(self, sender: Process | None) -> None:
        """Accept a packet's sender, or raise WrongPeer. Pins an open role.

        A ``sender`` of None was not told by the kernel (sent before credentials were asked for): it pins
        nothing and is accepted only while nobody is expected.
        """
        if self.speaker is None:
            self.speaker = sender
            self.giver = None
            if self.listener is None:
                self.listener = sender
            return
        if sender is not None and self.heir is not None and self.heir.same_as(sender):
            self.speaker, self.heir = sender, None
        if sender is None or not self.speaker.same_as(sender):
            raise WrongPeer(f"packet from process {_name(sender)}, expected from {_name(self.speaker)}")
        self.giver = None
        if self.speaker.pid != sender.pid:
            # Named by its pidfd's inode alone until now, or by its number in another namespace.
            if self.listener is not None and self.listener.same_as(sender):
                self.listener = sender
            self.speaker = sender

    def admit_handover(self, sender: Process | None, roles: Roles, new: Process | None) -> None:
        """Apply a HANDOVER of ``roles`` to ``new`` (None: whoever speaks first), or raise WrongPeer."""
        for role, holder in ((Roles.SPEAK, self.speaker), (Roles.LISTEN, self.listener)):
            if role in roles and not self._may_move(sender, holder):
                raise WrongPeer(f"process {_name(sender)} cannot hand over an end of {_name(holder)}")
        if Roles.SPEAK in roles:
            self.speaker, self.heir = new, None
        if Roles.LISTEN in roles:
            self.listener = new
        self.giver = sender

    def _may_move(self, sender: Process | None, holder: Process | None) -> bool:
        if holder is None:
            return True
        if sender is None:
            return False
        entitled = (holder, self.maker, self.giver, self.heir)
        return any(process is not None and process.same_as(sender) for process in entitled)

    def expect(self, process: Process | None) -> None:
        """From now on accept packets of ``process`` only (None: whoever speaks first)."""
        # An identity learnt from the kernel says more than a bare number; keep it when both mean the same.
        if process is not None and self.speaker is not None and self.speaker.same_as(process):
            process = self.speaker if self.speaker.unique is not None else process
        self.speaker = process
        self.listener = process
        self.giver = self.heir = None

    def far_end_moved(self, roles: Roles, new: Process | None) -> None:
        """Note that this process handed the far end over.

        The packet that says so may be read by somebody else.
        """
        for role in roles:
            self.moved[role] = new

    def travelling(self) -> PeerView:
        """Return the view to send along with the end.

        An end whose far side was never handed over is still where it was made.
        """
        view = PeerView(self.maker, self.speaker or self.maker, self.listener or self.maker, self.heir)
        if Roles.SPEAK in self.moved:
            view.heir = self.moved[Roles.SPEAK]
            view.speaker = view.speaker if view.heir is not None else None
        if Roles.LISTEN in self.moved:
            view.listener = self.moved[Roles.LISTEN]
        return view

    def present_speaker(self) -> Process | None:
        """Return the best knowledge of who speaks: packets of a predecessor may still be in the queue."""
        return self.heir or self.speaker


def _name(process: Process | None) -> str:
    if process is None:
        return "(unknown)"
    return str(process.pid) if process.pid else "(outside our pid namespace)"
