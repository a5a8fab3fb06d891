"""One end of a connected SOCK_SEQPACKET pair: packets in and out, deadlines, hand-overs. The shell under all
Tubes.

``End`` is shared by the faces that one process has of an end (a Tube, its two halves, clones of a SendTube)
and is closed with the last of them. It joins the pure rooms (packet.py, peer.py) to the edges (scm.py,
memfd.py).

Threads: any number may send. One may receive. ``target_pid`` may be read by all: it first takes hand-over
packets that wait at the head of the queue, so looking and receiving are serialised by a lock that is never
held while waiting. Fork: the child has the parent's view; without pidfs (before 6.9) numbers would mean
nothing in a new pid namespace, so there the view opens again.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisor.tube import packet
from supervisor.tube.descriptor import Descriptor, close_all
from supervisor.tube.errors import (
    BadDescriptor,
    Closed,
    Disconnected,
    MalformedMessage,
    MessageTooLarge,
    NotSendable,
    QueueFull,
    TooManyFds,
    TubeSystemError,
    TubeTimeout,
    WouldBlock,
)
from supervisor.tube.memfd import read_sealed, write_sealed
from supervisor.tube.packet import (
    HEADER_BYTES,
    MAX_FDS_KERNEL,
    MAX_MESSAGE_BYTES,
    MAX_PACKET_BYTES,
    Header,
    Kind,
    Shape,
)
from supervisor.tube.peer import PeerView, Process, Roles
from supervisor.tube.process import current_process, open_pidfd, process_by_pid, process_of_pidfd
from supervisor.tube.scm import (
    Arrival,
    Broken,
    enable_credentials,
    is_seqpacket,
    next_packet_head,
    receive_packet,
    send_packet,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.tube.notifiers import CloseNotifier, ReadNotifier

__all__ = ["Arrived", "End", "EndDescriptor", "deadline_after", "end_pair"]

# The kernel keeps 32 bytes of a send buffer for itself; a larger packet is EMSGSIZE.
_SNDBUF_RESERVE_BYTES = 32


def deadline_after(timeout: float | None) -> int | None:
    """Return the monotonic time in ns at which ``timeout`` seconds are over.

    None for ever; 0 for "do not wait".
    """
    if timeout is None:
        return None
    if timeout <= 0:
        return 0
    return time.monotonic_ns() + int(timeout * 1e9)


class EndDescriptor(Descriptor):
    """A received descriptor that is an end of a Tube.

    ``Tube(d)``, ``ProtoTube(d)``, ... make it one again.
    """

    __slots__ = ("shape", "view")

    def __init__(self, fd: int, shape: Shape, view: PeerView) -> None:
        super().__init__(fd)
        self.shape = shape
        self.view = view


@dataclass(slots=True)
class Arrived:
    """One accepted packet; ``descriptors`` are the message's own, the packet's are gone."""

    kind: Kind
    body: bytes | memoryview
    descriptors: list[Descriptor]
    sender: Process | None
    pidfd: Descriptor | None

    def close(self) -> None:
        """Close every descriptor that is still owned here."""
        close_all(self.descriptors)
        if self.pidfd is not None:
            self.pidfd.close()


@dataclass(slots=True)
class Outgoing:
    """What a packet is made of: the message's descriptors, and for those that are ends, the ends."""

    kind: Kind
    body: bytes | memoryview
    fds: list[int] = field(default_factory=list)
    ends: list[tuple[int, Shape, End]] = field(default_factory=list)  # (index in fds, shape, end)


class End:
    """One end. See the module's docstring for who may call what."""

    def __init__(self, sock: socket.socket, view: PeerView) -> None:
        self._sock: socket.socket | None = sock
        self.view = view
        self.relays = False
        self.reset_seen = False  # the peer died and left unread what we had sent
        self._users = 0
        self._close_notifier: CloseNotifier | None = None
        self._take_lock = threading.Lock()
        self._close_lock = threading.Lock()
        send_buffer_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.max_packet_bytes = min(MAX_PACKET_BYTES, send_buffer_bytes - _SNDBUF_RESERVE_BYTES)

    @classmethod
    def adopt(cls, source: socket.socket | Descriptor | int) -> End:
        """Take over a connected SOCK_SEQPACKET socket. Raises BadDescriptor if it is none, Closed."""
        view = source.view if isinstance(source, EndDescriptor) else PeerView()
        fd = source if isinstance(source, int) else source.fileno()
        if not is_seqpacket(fd):
            raise BadDescriptor(f"descriptor {fd} is not a SOCK_SEQPACKET socket")
        if not isinstance(source, int):
            fd = source.detach()
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock_timeout_none(sock)
        enable_credentials(sock)
        return cls(sock, view)

    # -- life ------------------------------------------------------------------------------------

    def attach(self) -> End:
        """Count one more user; returns the end."""
        with self._close_lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Count one user less; the last one closes the socket."""
        with self._close_lock:
            self._users -= 1
            if self._users > 0 or self._sock is None:
                return
            sock, self._sock = self._sock, None
            notifier, self._close_notifier = self._close_notifier, None
        if notifier is not None:
            notifier.close()
        sock.close()

    @property
    def sock(self) -> socket.socket:
        """The socket. Raises Closed."""
        if self._sock is None:
            raise Closed("this end was closed")
        return self._sock

    def read_notifier(self) -> ReadNotifier:
        """Return what is readable while a packet waits. Raises Closed."""
        from supervisor.tube.notifiers import ReadNotifier

        return ReadNotifier(self.sock)

    def close_notifier(self) -> CloseNotifier:
        """Return what is readable when the peer is gone; one for all faces. Raises Closed."""
        from supervisor.tube.notifiers import CloseNotifier

        with self._close_lock:
            if self._close_notifier is None:
                self._close_notifier = CloseNotifier(self.sock)
            return self._close_notifier

    # -- sending ---------------------------------------------------------------------------------

    def send(self, out: Outgoing, deadline: int | None) -> None:
        """Send one message.

        Raises Closed, Disconnected, QueueFull, MessageTooLarge, TooManyFds, BadDescriptor.
        """
        if len(out.body) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"{len(out.body)} bytes; the limit is {MAX_MESSAGE_BYTES}")
        if len(out.fds) > MAX_FDS_KERNEL:
            raise TooManyFds(f"{len(out.fds)} descriptors; the kernel takes {MAX_FDS_KERNEL} in a packet")
        if not out.ends and HEADER_BYTES + len(out.body) <= self.max_packet_bytes:
            head = packet.pack_head(Header(out.kind, len(out.body), len(out.fds)))
            self._send_raw([head, out.body], out.fds, deadline)
            return
        self._send_with_extras(out, deadline)

    def _send_with_extras(self, out: Outgoing, deadline: int | None) -> None:
        """Send a message that needs descriptors of the packet's own.

        A body out of line, or ends and their peers.
        """
        from supervisor.tube.handover import describe_ends, hand_over, take_back

        if any(end is self for _, _, end in out.ends):
            raise NotSendable("a Tube cannot carry itself")
        extras: list[Descriptor] = []
        moved: list[tuple[Shape, End]] = []
        try:
            entries = describe_ends(out, extras)
            table_bytes = len(entries) * packet.ENTRY_BYTES
            out_of_line = HEADER_BYTES + table_bytes + len(out.body) > self.max_packet_bytes
            if out_of_line:
                extras.append(write_sealed(out.body))
            if len(out.fds) + len(extras) > MAX_FDS_KERNEL:
                raise TooManyFds("with the packet's own descriptors there are more than the kernel takes")
            head = packet.pack_head(
                Header(out.kind, len(out.body), len(out.fds), len(extras), out_of_line, tuple(entries))
            )
            # What can fail should fail before anything has moved.
            if not wait_for(self.sock, select.POLLOUT, deadline, at_once=True):
                raise QueueFull("the peer's queue is full")
            next_holder = None if self.relays else self.listener()
            for _, shape, end in out.ends:
                hand_over(end, shape, next_holder)
                moved.append((shape, end))
            buffers: list[bytes | memoryview] = [head] if out_of_line else [head, out.body]
            self._send_raw(buffers, out.fds + [extra.fileno() for extra in extras], deadline)
        except BaseException:
            for shape, end in moved:
                take_back(end, shape)
            raise
        finally:
            close_all(extras)

    def _send_raw(self, buffers: list[bytes | memoryview], fds: Sequence[int], deadline: int | None) -> None:
        while True:
            sock = self.sock
            try:
                send_packet(sock, buffers, fds)
                return
            except QueueFull:
                if not wait_for(sock, select.POLLOUT, deadline):
                    raise
            except Disconnected as gone:
                self.reset_seen |= isinstance(gone.__cause__, ConnectionResetError)
                raise

    def send_handover(self, roles: Roles, new: Process | None) -> None:
        """Tell the far side who holds this end from now on (None.

        Whoever speaks first). Never waits; raises QueueFull.
        """
        pidfd = pidfd_for(new)
        fds = [] if pidfd is None else [pidfd.fileno()]
        body = packet.pack_handover(roles, (new.unique or 0) if new is not None else 0)
        head = packet.pack_head(Header(Kind.HANDOVER, len(body), 0, len(fds)))
        try:
            self._send_raw([head, body], fds, 0)
        except Disconnected:
            pass  # An end whose far side is gone may still be handed on, for what is left in its queue.
        finally:
            if pidfd is not None:
                pidfd.close()

    # -- receiving -------------------------------------------------------------------------------

    def receive(self, deadline: int | None) -> Arrived:
        """Return the next message.

        Raises Closed, Disconnected, WouldBlock, TubeTimeout, WrongPeer, MalformedMessage...
        """
        while True:
            sock = self.sock
            with self._take_lock:
                arrived = self._take(sock)
            if arrived is None:
                if not wait_for(sock, select.POLLIN, deadline):
                    raise (
                        WouldBlock("no message is waiting")
                        if deadline == 0
                        else TubeTimeout("no message came in time")
                    )
            elif arrived.kind != Kind.HANDOVER:
                return arrived

    def _take(self, sock: socket.socket) -> Arrived | None:
        """Take and judge one packet; applies a hand-over. Call with the lock."""
        try:
            arrival = receive_packet(sock, MAX_PACKET_BYTES)
        except Broken:
            self.reset_seen = True
            arrival = receive_packet(sock, MAX_PACKET_BYTES)
        if arrival is None:
            return None
        if arrival.end_of_stream:
            raise Disconnected("the peer is gone")
        try:
            return self._judge(arrival)
        except BaseException:
            arrival.close()
            raise

    def _judge(self, arrival: Arrival) -> Arrived:
        # Who, before what: bytes of somebody else are not even parsed, but for the one byte that says
        # "hand-over".
        kind_number = arrival.data[1] if len(arrival.data) > 1 else 0
        if kind_number != Kind.HANDOVER:
            self.view.admit_data(arrival.sender)
        header, body = packet.unpack(arrival.data)
        expected_fds = header.fds + header.extra_fds
        if expected_fds != len(arrival.descriptors):
            raise MalformedMessage(f"{len(arrival.descriptors)} descriptors came, not {expected_fds}")
        own, extras = arrival.descriptors[: header.fds], arrival.descriptors[header.fds :]
        content: bytes | memoryview = body
        if header.kind == Kind.HANDOVER:
            self._apply_handover(header, body, extras, arrival.sender)
        else:
            if header.out_of_line:
                content = read_sealed(extras[-1], header.body_bytes)
            if header.ends:
                from supervisor.tube.handover import restore_ends

                own = restore_ends(header, own, extras, arrival.sender)
        close_all(extras)
        return Arrived(header.kind, content, own, arrival.sender, arrival.pidfd)

    def _apply_handover(
        self, header: Header, body: memoryview, extras: list[Descriptor], sender: Process | None
    ) -> None:
        if header.fds or header.ends or header.out_of_line or len(extras) > 1:
            raise MalformedMessage("a hand-over of the wrong form")
        roles, unique = packet.unpack_handover(body)
        new = Process(0, unique) if unique else None
        if extras:
            try:
                new = process_of_pidfd(extras[0].fileno())
            except OSError as error:
                raise MalformedMessage("a hand-over to what is not a process") from error
        self.view.admit_handover(sender, Roles(roles), new)

    def take_handovers(self) -> None:
        """Apply the hand-overs that wait at the head of the queue; leaves messages alone and never waits."""
        with self._take_lock:
            while self._sock is not None:
                try:
                    head = next_packet_head(self._sock, HEADER_BYTES)
                except Broken:
                    self.reset_seen = True
                    continue
                if not head or len(head) < HEADER_BYTES or head[1] != Kind.HANDOVER:
                    return
                arrived = self._take(self._sock)
                if arrived is not None:
                    arrived.close()

    # -- the far side ----------------------------------------------------------------------------

    def speaker(self) -> Process | None:
        """Return whose packets are accepted, after hand-overs that wait; None while anybody's are."""
        self.take_handovers()
        return self.view.speaker

    def listener(self) -> Process | None:
        """Return who receives what we send, after hand-overs that wait; None while that is open."""
        self.take_handovers()
        return self.view.listener

    def expect(self, pid: int | None) -> None:
        """From now on accept packets of process ``pid`` only; None: of whoever speaks first."""
        self.take_handovers()
        self.view.expect(None if pid is None else process_by_pid(pid))


def sock_timeout_none(sock: socket.socket) -> None:
    """Undo a default timeout that somebody set for all new sockets.

    It would make ours non-blocking for all holders.
    """
    if sock.gettimeout() is not None:
        sock.settimeout(None)


def end_pair(buffer_size: int | None) -> tuple[End, End]:
    """Make a connected pair; the calling process is the maker. ``buffer_size``: bytes of each send buffer."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise TubeSystemError("socketpair failed") from error
    try:
        for sock in (ours, theirs):
            sock_timeout_none(sock)
            enable_credentials(sock)  # before anybody can send
            if buffer_size is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
        maker = current_process()
    except OSError as error:
        ours.close()
        theirs.close()
        raise TubeSystemError("a socket option was refused") from error
    return End(ours, PeerView(maker)), End(theirs, PeerView(maker))


def wait_for(sock: socket.socket, events: int, deadline: int | None, *, at_once: bool = False) -> bool:
    """Wait until the socket is ready or hung up; False when the deadline (monotonic ns) is over.

    A deadline of 0 means "do not wait": then the answer is False without looking, unless ``at_once``.
    """
    if deadline == 0 and not at_once:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), events)
    if deadline is None:
        poll.poll()
        return True
    left_ns = max(0, deadline - time.monotonic_ns())
    if not left_ns and not at_once:
        return False
    # Rounded up: a wait that ends early would spin through the last millisecond.
    return bool(poll.poll(-(-left_ns // 1_000_000)))


def pidfd_for(process: Process | None) -> Descriptor | None:
    """Return a pidfd of a process we know, or None when it is open or gone."""
    if process is None:
        return None
    fd = open_pidfd(process.pid)
    if fd is None:
        return None
    pidfd = Descriptor(fd)
    # The number may belong to somebody else by now.
    if not process.same_as(process_of_pidfd(fd, process.pid)):
        pidfd.close()
        return None
    return pidfd
