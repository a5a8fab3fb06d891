"""One packet through one AF_UNIX socket, with descriptors and with its sender's identity. The Tube's system
calls.

Rules of this file:
- Descriptors that arrive are owned (``Descriptor``) before anything can raise; every error path closes them.
- MSG_NOSIGNAL and MSG_CMSG_CLOEXEC always. ``socket.send_fds`` / ``recv_fds`` are not used: they ignore their
  flags.
- MSG_CTRUNC and MSG_TRUNC are errors: the kernel has thrown part of the message away.
- No O_NONBLOCK and no settimeout: they change the open file description, which the process at the other end
  of a hand-over shares. A call that must not wait passes MSG_DONTWAIT; waiting is poll's business (end.py).
- An ECONNRESET on receive is not the end: the kernel reports once that the peer died with unread data, and
  then still delivers what it had sent. The caller is told by ``Broken`` and asks again.

Pages: unix(7), cmsg(3), recvmsg(2), sendmsg(2). EINTR never surfaces (PEP 475).
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervisor.tube.descriptor import Descriptor, close_all
from supervisor.tube.errors import (
    BadDescriptor,
    DescriptorsLost,
    Disconnected,
    MalformedMessage,
    MessageTooLarge,
    QueueFull,
    TooManyFds,
    TruncatedMessage,
    TubeSystemError,
)
from supervisor.tube.packet import MAX_FDS_KERNEL
from supervisor.tube.peer import Process
from supervisor.tube.process import process_of_pidfd

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Arrival",
    "Broken",
    "cmsg_len",
    "cmsg_space",
    "enable_credentials",
    "next_packet_bytes",
    "receive_packet",
    "restore_blocking",
    "send_packet",
]

# Constants that Python 3.11 to 3.13 do not have; asm-generic values, right on x86-64, aarch64 and riscv.
SCM_CREDENTIALS = 2
SCM_PIDFD = 4
SO_PASSPIDFD = 76

_CMSG_HEADER_BYTES = 16  # struct cmsghdr on 64-bit: size_t, int, int
_CMSG_ALIGN = 8
_FD = struct.Struct("=i")
_UCRED = struct.Struct("=iII")
_OVERFLOW_ID = 65534  # uid and gid of a packet whose sender was not recorded


# As plain ints: the arithmetic of socket's own enums costs more than the system calls.
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_PEEK_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)
_PEEK_SIZE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_PEEK | socket.MSG_TRUNC)
_CTRUNC = int(socket.MSG_CTRUNC)
_TRUNC = int(socket.MSG_TRUNC)


class Broken(Exception):
    """The peer died with unread data in its queue; what it sent can still be received."""


def cmsg_len(payload_bytes: int) -> int:
    """CMSG_LEN(3): header and payload. Pure."""
    return _CMSG_HEADER_BYTES + payload_bytes


def cmsg_space(payload_bytes: int) -> int:
    """CMSG_SPACE(3): header, payload and padding. Pure."""
    return _CMSG_HEADER_BYTES + -(-payload_bytes // _CMSG_ALIGN) * _CMSG_ALIGN


# Room for all that one packet can carry, in the kernel's order: credentials, descriptors, pidfd. Always
# offered in full, since too little of it loses descriptors; how many are welcome is decided after they are
# owned.
CONTROL_BYTES = cmsg_space(_UCRED.size) + cmsg_space(_FD.size * MAX_FDS_KERNEL) + cmsg_space(_FD.size)


@dataclass(slots=True)
class Arrival:
    """What one recvmsg gave. ``data`` is empty only together with ``end_of_stream``.

    ``sender`` is None when the kernel did not record one. ``pidfd`` is the sender's, on Linux 6.5 and later.
    """

    data: bytes
    descriptors: list[Descriptor]
    sender: Process | None
    pidfd: Descriptor | None
    end_of_stream: bool = False

    def close(self) -> None:
        """Close every descriptor that is still owned here."""
        close_all(self.descriptors)
        if self.pidfd is not None:
            self.pidfd.close()


def enable_credentials(sock: socket.socket) -> bool:
    """Have the kernel record each packet's sender; returns whether a pidfd comes along (Linux 6.5).

    Must happen before the first packet is sent: earlier ones carry no sender.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return False
    return True


def send_packet(sock: socket.socket, buffers: Sequence[bytes | memoryview], fds: Sequence[int]) -> int:
    """Send one packet without waiting; returns its size in bytes.

    Raises QueueFull, Disconnected, TooManyFds (before any system call), BadDescriptor, MessageTooLarge,
    TubeSystemError.
    """
    if len(fds) > MAX_FDS_KERNEL:
        raise TooManyFds(f"{len(fds)} descriptors; the kernel takes {MAX_FDS_KERNEL} in a packet")
    control = []
    if fds:
        try:
            rights = struct.pack(f"={len(fds)}i", *fds)
        except struct.error as error:
            raise BadDescriptor(f"not a descriptor number among {list(fds)}") from error
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    try:
        return sock.sendmsg(buffers, control, _SEND_FLAGS)
    except BlockingIOError:
        # Chaining would keep a frame alive for nothing: this one is an answer, not a failure.
        raise QueueFull("the peer's queue is full") from None
    except OSError as error:
        raise _send_error(error, fds) from error


def _send_error(error: OSError, fds: Sequence[int]) -> Exception:
    if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN):
        return Disconnected("the peer is gone")
    if error.errno == errno.EMSGSIZE:
        return MessageTooLarge("the packet is larger than the socket's send buffer")
    if error.errno == errno.EBADF and fds:
        return BadDescriptor(f"a descriptor to be sent is not open: one of {list(fds)}")
    return TubeSystemError("sendmsg failed")


def receive_packet(sock: socket.socket, max_bytes: int) -> Arrival | None:
    """Receive one packet of at most ``max_bytes`` without waiting; None when there is none yet.

    Raises Broken (ask again), TruncatedMessage and MalformedMessage (the packet is consumed),
    TubeSystemError.
    """
    try:
        data, control, got_flags, _ = sock.recvmsg(max_bytes, CONTROL_BYTES, _RECEIVE_FLAGS)
    except BlockingIOError:
        return None
    except ConnectionResetError as error:
        raise Broken from error
    except OSError as error:
        raise TubeSystemError("recvmsg failed") from error
    return _own(data, control, got_flags)


def _own(data: bytes, control: list[tuple[int, int, bytes]], flags: int) -> Arrival:
    """Take over what arrived, then judge it."""
    pid: int | None = None
    arrival = Arrival(data, [], None, None)
    for level, kind, payload in control:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            whole = len(payload) // _FD.size * _FD.size
            arrival.descriptors.extend(Descriptor(fd) for (fd,) in _FD.iter_unpack(payload[:whole]))
        elif kind == SCM_PIDFD and len(payload) == _FD.size:
            arrival.pidfd = _own_pidfd(_FD.unpack(payload)[0])
        elif kind == SCM_CREDENTIALS and len(payload) == _UCRED.size:
            pid, uid, _ = _UCRED.unpack(payload)
            pid = None if pid == 0 and uid == _OVERFLOW_ID else pid
    try:
        if flags & _CTRUNC:
            raise DescriptorsLost("descriptors of a packet were lost (MSG_CTRUNC): our own limit is too low")
        if flags & _TRUNC:
            raise TruncatedMessage("bytes of a packet were lost (MSG_TRUNC): it is larger than we allow")
        if not data and control:
            raise MalformedMessage("an empty packet")
        if arrival.pidfd is not None:
            arrival.sender = process_of_pidfd(arrival.pidfd.fileno(), pid or 0)
        elif pid is not None:
            arrival.sender = Process(pid)
    except BaseException:
        arrival.close()
        raise
    arrival.end_of_stream = not data
    return arrival


def _own_pidfd(fd: int) -> Descriptor | None:
    # The kernel writes a negative errno when it could not make one.
    return Descriptor(fd) if fd >= 0 else None


def next_packet_bytes(sock: socket.socket) -> int | None:
    """Return the size in bytes of the packet that comes next, 0 at the end of the stream, None when there is
    none.

    Looks without taking, and without control buffer: with one, each look would install a copy of every
    descriptor. Raises Broken (ask again; looking has consumed the kernel's one report) and TubeSystemError.
    """
    try:
        return sock.recvmsg_into([], 0, _PEEK_SIZE_FLAGS)[0]
    except BlockingIOError:
        return None
    except ConnectionResetError as error:
        raise Broken from error
    except OSError as error:
        raise TubeSystemError("recvmsg failed") from error


def next_packet_head(sock: socket.socket, head_bytes: int) -> bytes | None:
    """Return the first bytes of the packet that comes next.

    Empty at the end of the stream, None when there is none.
    """
    head = bytearray(head_bytes)
    try:
        count = sock.recvmsg_into([head], 0, _PEEK_FLAGS)[0]
    except BlockingIOError:
        return None
    except ConnectionResetError as error:
        raise Broken from error
    except OSError as error:
        raise TubeSystemError("recvmsg failed") from error
    return bytes(head[:count])


def outstanding_bytes(sock: socket.socket) -> int:
    """Return what the kernel still charges us for packets that the peer has not taken (SIOCOUTQ).

    Not their size.
    """
    import fcntl
    import termios

    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int(_FD.unpack(answer)[0])


def is_seqpacket(fd: int) -> bool:
    """Tell whether a descriptor is a connected SOCK_SEQPACKET socket of AF_UNIX, without taking it over."""
    try:
        probe = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        restore_blocking(probe)
        return probe.family == socket.AF_UNIX and probe.type == socket.SOCK_SEQPACKET
    finally:
        probe.detach()


def restore_blocking(sock: socket.socket) -> None:
    """Undo a default timeout that somebody set for all new sockets of this process.

    It would make the open file description non-blocking, for all its holders.
    """
    if sock.gettimeout() is not None:
        sock.settimeout(None)
