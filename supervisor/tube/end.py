"""One end of a connected SOCK_SEQPACKET pair: packets in and out, deadlines, hand-overs. The shell under all
Tubes.

``End`` is shared by the faces that one process has of an end (a Tube, its two halves, clones of a SendTube)
and is closed with the last of them. It joins the pure rooms (packet.py, peer.py) to the edges (scm.py,
memfd.py).

Threads: any number may send. One may receive. ``target_pid`` may be read by all: it first takes hand-overs
that wait at the head of the queue, so looking and receiving are serialised by a lock that is never held while
waiting. Closing belongs to the thread that uses the end: a number that another thread still polls may be
somebody else's next.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import weakref
from typing import TYPE_CHECKING

from supervisor.errors import PeerError
from supervisor.tube import packet
from supervisor.tube.descriptor import Descriptor, close_all
from supervisor.tube.errors import (
    BadDescriptor,
    Closed,
    Disconnected,
    MessageTooLarge,
    NotSendable,
    QueueFull,
    TooManyFds,
    TubeError,
    TubeSystemError,
    TubeTimeout,
    UnknownProcess,
    WouldBlock,
)
from supervisor.tube.handover import describe_ends, roles_of
from supervisor.tube.intake import accept, is_handover
from supervisor.tube.memfd import write_sealed
from supervisor.tube.notifiers import CloseNotifier, ReadNotifier
from supervisor.tube.packet import (
    ENTRY_BYTES,
    HEADER_BYTES,
    MAX_FDS_KERNEL,
    MAX_MESSAGE_BYTES,
    MAX_PACKET_BYTES,
    Header,
    Kind,
    Shape,
)
from supervisor.tube.parcel import Arrived, EndDescriptor, Outgoing
from supervisor.tube.peer import PeerView, Process
from supervisor.tube.process import current_process, pidfd_for, process_by_pid
from supervisor.tube.scm import (
    Broken,
    enable_credentials,
    is_seqpacket,
    next_packet_head,
    receive_packet,
    restore_blocking,
    send_packet,
)
from supervisor.tube.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["End", "end_pair"]

# The kernel keeps 32 bytes of a send buffer for itself; a larger packet is EMSGSIZE.
_SNDBUF_RESERVE_BYTES = 32


class End:
    """One end. See the module's docstring for who may call what."""

    def __init__(self, sock: socket.socket, view: PeerView) -> None:
        self._sock: socket.socket | None = sock
        self.view = view
        self.relays = False  # the far side hands on by forking what it is sent
        self.reset_seen = False  # the peer died and left unread what we had sent
        self.refused_handovers = 0
        self._sibling: weakref.ref[End] | None = None  # the other end, if this process made both
        self._users = 0
        self._close_notifier: CloseNotifier | None = None
        self._take_lock = threading.Lock()
        self._life_lock = threading.Lock()
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
        _prepare(sock)
        return cls(sock, view)

    # -- life ------------------------------------------------------------------------------------

    def attach(self) -> End:
        """Count one more user; returns the end."""
        with self._life_lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Count one user less; the last one closes the socket."""
        with self._life_lock:
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
        return ReadNotifier(self.sock)

    def close_notifier(self) -> CloseNotifier:
        """Return what is readable when the peer is gone; one for all faces. Raises Closed."""
        with self._life_lock:
            if self._close_notifier is None:
                self._close_notifier = CloseNotifier(self.sock)
            return self._close_notifier

    # -- sending ---------------------------------------------------------------------------------

    def send(self, out: Outgoing, deadline: int | None) -> None:
        """Send one message.

        Raises Closed, Disconnected, QueueFull, MessageTooLarge, TooManyFds, BadDescriptor, NotSendable.
        """
        if len(out.body) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"{len(out.body)} bytes; the limit is {MAX_MESSAGE_BYTES}")
        if out.ends or HEADER_BYTES + len(out.body) > self.max_packet_bytes:
            self._send_with_extras(out, deadline)
        else:
            head = packet.pack_head(Header(out.kind, len(out.body), len(out.fds)))
            self._send_packet([head, out.body], out.fds, deadline)

    def _send_with_extras(self, out: Outgoing, deadline: int | None) -> None:
        """Send a message that needs descriptors of the packet's own: for its ends' peers, or for its body."""
        if any(end is self for _, _, end in out.ends):
            raise NotSendable("a Tube cannot carry itself")
        extras: list[Descriptor] = []
        moved: list[tuple[Shape, End]] = []
        try:
            entries = describe_ends(out, extras)
            head_bytes = HEADER_BYTES + len(entries) * ENTRY_BYTES
            out_of_line = head_bytes + len(out.body) > self.max_packet_bytes
            if out_of_line:
                extras.append(write_sealed(out.body))
            if len(out.fds) + len(extras) > MAX_FDS_KERNEL:
                raise TooManyFds("with the packet's own descriptors there are more than the kernel takes")
            head = packet.pack_head(
                Header(out.kind, len(out.body), len(out.fds), len(extras), out_of_line, tuple(entries))
            )
            next_holder = None if self.relays else self.listener()
            for _, shape, end in out.ends:
                end.hand_over(shape, next_holder)
                moved.append((shape, end))
            buffers: list[bytes | memoryview] = [head] if out_of_line else [head, out.body]
            self._send_packet(buffers, out.fds + [extra.fileno() for extra in extras], deadline)
        except BaseException:
            for shape, end in moved:
                end.take_back(shape)
            raise
        finally:
            close_all(extras)

    def _send_packet(
        self, buffers: Sequence[bytes | memoryview], fds: Sequence[int], deadline: int | None
    ) -> None:
        while True:
            sock = self.sock
            try:
                send_packet(sock, buffers, fds)
                return
            except QueueFull:
                if not wait_for(sock.fileno(), select.POLLOUT, deadline):
                    raise
            except Disconnected as gone:
                self.reset_seen |= isinstance(gone.__cause__, ConnectionResetError)
                raise

    # -- receiving -------------------------------------------------------------------------------

    def receive(self, deadline: int | None) -> Arrived:
        """Return the next message.

        Raises Closed, Disconnected, WouldBlock, TubeTimeout, WrongPeer, MalformedMessage, TruncatedMessage.
        """
        while True:
            sock = self.sock
            with self._take_lock:
                arrived = self._take(sock)
            if arrived is None:
                if wait_for(sock.fileno(), select.POLLIN, deadline):
                    continue
                if deadline == 0:
                    raise WouldBlock("no message is waiting")
                raise TubeTimeout("no message came in time")
            if arrived.kind != Kind.HANDOVER:
                return arrived
            arrived.close()

    def _take(self, sock: socket.socket) -> Arrived | None:
        """Take and judge one packet, which may be a hand-over. Call with the lock."""
        try:
            arrival = receive_packet(sock, MAX_PACKET_BYTES)
        except Broken:
            # Reported once, before the peer's last words; they are still to be had.
            self.reset_seen = True
            arrival = receive_packet(sock, MAX_PACKET_BYTES)
        if arrival is None:
            return None
        if arrival.end_of_stream:
            raise Disconnected("the peer is gone")
        try:
            return accept(arrival, self.view)
        except BaseException:
            arrival.close()
            raise

    def take_handovers(self) -> None:
        """Apply the hand-overs that wait at the head of the queue; leaves messages alone and never waits."""
        with self._take_lock:
            while self._sock is not None:
                try:
                    head = next_packet_head(self._sock, HEADER_BYTES)
                except Broken:
                    self.reset_seen = True
                    continue
                if head is None or not is_handover(head):
                    return
                try:
                    arrived = self._take(self._sock)
                except PeerError:
                    # It moved nothing, and whoever only asks who is there has no use for the news.
                    self.refused_handovers += 1
                    continue
                if arrived is not None:
                    arrived.close()

    # -- the far side ----------------------------------------------------------------------------

    def speaker(self) -> Process | None:
        """Return whose packets are accepted, after hand-overs that wait; None while anybody's are."""
        self.take_handovers()
        return self.view.present_speaker()

    def listener(self) -> Process | None:
        """Return who receives what we send, after hand-overs that wait; None while that is open."""
        self.take_handovers()
        return self.view.listener

    def expect(self, pid: int | None) -> None:
        """From now on accept packets of process ``pid`` only; None: of whoever speaks first."""
        self.take_handovers()
        self.view.expect(None if pid is None else process_by_pid(pid))

    def hand_over(self, shape: Shape, new: Process | None) -> None:
        """Tell the far side that ``new`` holds this end from now on (None: whoever speaks first).

        Never waits. An end whose far side is gone may still be handed on, for what is left in its queue.
        Raises QueueFull, Closed.
        """
        pidfd = pidfd_for(new)
        fds = [] if pidfd is None else [pidfd.fileno()]
        unique, pid = (new.unique or 0, new.pid) if new is not None else (0, 0)
        body = packet.HandOver(roles_of(shape), unique, os.getpid(), pid).pack()
        head = packet.pack_head(Header(Kind.HANDOVER, len(body), 0, len(fds)))
        try:
            self._send_packet([head, body], fds, 0)
        except Disconnected:
            pass
        finally:
            if pidfd is not None:
                pidfd.close()
        sibling = self._sibling() if self._sibling is not None else None
        if sibling is not None:
            sibling.view.far_end_moved(roles_of(shape), new)

    def take_back(self, shape: Shape) -> None:
        """Undo ``hand_over`` as well as can be, when the carrying message could not be sent."""
        try:
            self.hand_over(shape, current_process())
        except TubeError:
            pass  # The first error is the one to report; the far side goes on expecting the other process.

    def announce(self, shape: Shape, pid: int | None) -> None:
        """Hand over to a process by its number. Raises UnknownProcess, QueueFull, Closed."""
        new = None
        if pid is not None:
            new = process_by_pid(pid)
            pidfd = pidfd_for(new)
            if pidfd is None:
                raise UnknownProcess(f"there is no process {pid}")
            pidfd.close()
        self.hand_over(shape, new)


def _prepare(sock: socket.socket) -> None:
    restore_blocking(sock)
    enable_credentials(sock)


def end_pair(buffer_size: int | None) -> tuple[End, End]:
    """Make a connected pair; the calling process is the maker. ``buffer_size``: bytes of each send buffer."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise TubeSystemError("socketpair failed") from error
    try:
        for sock in (ours, theirs):
            _prepare(sock)  # before anybody can send
            if buffer_size is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
    except OSError as error:
        ours.close()
        theirs.close()
        raise TubeSystemError("a socket option was refused") from error
    maker = current_process()
    pair = End(ours, PeerView(maker)), End(theirs, PeerView(maker))
    pair[0]._sibling, pair[1]._sibling = weakref.ref(pair[1]), weakref.ref(pair[0])
    return pair
