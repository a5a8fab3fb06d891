"""Where a network device's frames go to and come from: a tap interface of the host, or another such device.

Both take and give the guest's own buffers (``sendmsg``, ``readv`` and their like, one call a frame), never
wait, and drop what does not go, as a cable does. A port's ``fd`` is what is readable while a frame waits, and
negative while nothing can come.

``header_from`` says which bytes of a received frame's virtio_net_hdr the port has not written itself.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from supervisor.device import Context
from supervisor.errors import LocalError, TubevisorError

__all__ = ["LOST", "NOTHING", "Cable", "Port", "Tap", "Timer", "behind"]

NOTHING: Final = 0  # received: no frame waits
LOST: Final = -1  # received: there was one, and it cannot be had

# linux/if.h, linux/if_tun.h
IFNAMSIZ = 16
TUNSETIFF, TUNSETOFFLOAD, TUNGETIFF, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x800454D2, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
NUM_BUFFERS_AT = 10  # the kernel leaves it alone

LINK_BYTES = 4 << 20  # a link's queue in each direction; the kernel may grant less (net.core.wmem_max)
REDIAL_NS = 2_000_000  # a peer that was killed is back after a few milliseconds
REDIAL_MOST_NS = 250_000_000  # one that is stopped may be away for days
STEADY_NS = 10_000_000  # a link that has held for so long is redialled at once, should it break
DONT_WAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL  # the peer may change what O_NONBLOCK says


class Port(Protocol):
    """What the device needs of either."""

    fd: int
    header_from: int

    def plug_in(self, header_bytes: int, offloads: int) -> None:
        """There is a guest: its headers have so many bytes, and it takes these of the kernel's TUN_F_*."""

    def send(self, views: list[memoryview]) -> None:
        """Sends a frame with its header, or drops it."""

    def receive(self, views: list[memoryview]) -> int:
        """Receives a frame: how many bytes, as if the header were among them; ``NOTHING`` or ``LOST``."""

    def close(self) -> None:
        """Gives everything back."""


class Tap:
    """A tap interface that somebody has made: the device's from process to process.

    The kernel takes and gives virtio_net_hdr, so a guest's offloads are the host's.
    """

    header_from = NUM_BUFFERS_AT

    def __init__(self, name: str, ctx: Context) -> None:
        self.name = name
        kept = ctx.passed.get("tap")
        if kept is not None and _interface_of(kept) == name:
            self.fd = kept
            return
        recipe = f"ip tuntap add dev {name} mode tap user {os.getuid()} && ip link set {name} up"
        if not 0 < len(name.encode()) < IFNAMSIZ:
            raise LocalError(f"tap: {name!r} cannot be an interface's name")
        try:
            socket.if_nametoindex(name)  # TUNSETIFF would make one that goes when we do
        except OSError as error:
            raise LocalError(f"tap {name}: there is no such interface; make it with: {recipe}") from error
        try:
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise LocalError(f"tap {name}: /dev/net/tun: {error.strerror}") from error
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        try:
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        except OSError as error:
            os.close(self.fd)
            why = {
                errno.EBUSY: "somebody else has it open",
                errno.EPERM: f"it is another user's; remove it, then make it with: {recipe}",
                errno.EINVAL: f"it is no tap, or one of several queues; make one with: {recipe}",
            }.get(error.errno or 0, error.strerror)
            raise LocalError(f"tap {name}: {why}") from error
        ctx.keep("tap", self.fd)  # the interface keeps its carrier, and frames wait in its queue

    def plug_in(self, header_bytes: int, offloads: int) -> None:
        fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", header_bytes))
        fcntl.ioctl(self.fd, TUNSETOFFLOAD, offloads)

    def send(self, views: list[memoryview]) -> None:
        try:
            os.writev(self.fd, views)
        except OSError as error:
            self._check(error)  # anything else is this frame's: a wrong header, an interface that is down

    def receive(self, views: list[memoryview]) -> int:
        try:
            return os.readv(self.fd, views)
        except BlockingIOError:
            return NOTHING
        except OSError as error:
            self._check(error)
            if error.errno != errno.EINVAL:  # a frame that no header describes
                raise
            return LOST

    def _check(self, error: OSError) -> None:
        if error.errno == errno.EBADFD:
            raise LocalError(f"tap {self.name}: the interface was removed") from error

    def close(self) -> None:
        os.close(self.fd)


def _interface_of(fd: int) -> str:
    """The interface that a descriptor of /dev/net/tun stands for; empty if it stands for none any more."""
    request = bytearray(40)
    try:
        fcntl.ioctl(fd, TUNGETIFF, request)
    except OSError:
        return ""
    return request[:IFNAMSIZ].split(b"\0")[0].decode()


class Timer:
    """Makes ``fd`` readable after a while. Python has none before 3.13."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def set(self, after_ns: int) -> None:
        """Replaces what was set before."""
        seconds, rest_ns = divmod(after_ns, 1_000_000_000)
        self._libc.timerfd_settime(self.fd, 0, (ctypes.c_long * 4)(0, 0, seconds, rest_ns), None)

    def take(self) -> None:
        """It is not readable any more."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self.fd)


class Cable:
    """A link to the device ``peer``: plain frames, one a packet, through a socket that only the two have.

    The supervisor introduces them (``ctx.connect``); over that Tube the one whose name comes first gives the
    other its end of a new socket, and the Tube has done its work. Whoever finds itself without a link dials
    again, soon at first and then now and then, since nobody tells a device that it was connected to. Where
    the two dial past each other, an end is dropped, which the other notices, and dials again.

    ``changed`` is called when ``fd`` has.
    """

    header_from = 0

    def __init__(self, ctx: Context, peer: str, changed: Callable[[], None]) -> None:
        self.fd = -1
        self._ctx = ctx
        self._peer = peer
        self._changed = changed
        self._header_bytes = 0
        self._gives = ctx.name < peer
        self._socket: socket.socket | None = None
        self._tube: Any = None
        self._timer: Timer | None = None
        self._delay_ns = REDIAL_NS
        self._since_ns = 0

    def plug_in(self, header_bytes: int, offloads: int) -> None:
        self._header_bytes = header_bytes
        self._timer = Timer()
        self._ctx.watch(self._timer.fd, self._dial)
        self._dial()

    # -- frames ----------------------------------------------------------------------------------

    def send(self, views: list[memoryview]) -> None:
        link = self._socket
        if link is None:
            return
        try:
            link.sendmsg(behind(views, self._header_bytes), (), DONT_WAIT)
        except BlockingIOError:
            pass  # its queue is full
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.EINVAL, errno.EFAULT, errno.ENOBUFS, errno.ENOMEM):
                self._hang_up()

    def receive(self, views: list[memoryview]) -> int:
        link = self._socket
        if link is None:
            return NOTHING
        try:
            length = link.recvmsg_into(behind(views, self._header_bytes), 0, DONT_WAIT)[0]
        except BlockingIOError:
            return NOTHING
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise
            length = 0
        if not length:
            self._hang_up()
            return NOTHING
        return length + self._header_bytes

    # -- the link --------------------------------------------------------------------------------

    def _dial(self) -> None:
        if self._timer is not None:
            self._timer.take()
        if self._socket is not None or self._tube is not None:
            return
        try:
            tube = self._ctx.connect(self._peer)
        except LocalError as error:
            self._ctx.logger.debug("no link yet: %s", error)
            self._dial_later()
            return
        if self._gives:
            self._give(tube)
        else:
            self._tube = tube
            self._ctx.watch(tube.fileno(), self._given)

    def _give(self, tube: Any) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINK_BYTES)
            tube.send(theirs, timeout=0)
        except (TubevisorError, OSError) as error:
            self._ctx.logger.debug("the link was not taken: %s", error)
            ours.close()
            self._dial_later()
        else:
            self._use(ours)
        finally:
            theirs.close()
            tube.close()

    def _given(self) -> None:
        tube = self._tube
        try:
            end = tube.recv(socket.socket, timeout=0)
        except BlockingIOError:
            return
        except TubevisorError as error:
            self._ctx.logger.debug("the link was not given: %s", error)
            end = None
        self._ctx.unwatch(tube.fileno())
        tube.close()
        self._tube = None
        if end is not None and (end.family, end.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            self._ctx.logger.error("device %s has given something that is no link", self._peer)
            end.close()
            end = None
        if end is None:
            self._dial_later()
        else:
            self._use(end)

    def _use(self, end: socket.socket) -> None:
        self._socket = end
        self.fd = end.fileno()
        self._since_ns = time.monotonic_ns()
        self._changed()

    def _hang_up(self) -> None:
        """The peer is gone: the link is dropped, and made anew."""
        link = self._socket
        if link is None:
            return
        if time.monotonic_ns() - self._since_ns > STEADY_NS:
            self._delay_ns = REDIAL_NS
        self._socket = None
        self.fd = -1
        self._changed()
        link.close()
        self._dial_later()

    def _dial_later(self) -> None:
        if self._timer is not None:
            self._timer.set(self._delay_ns)
        self._delay_ns = min(2 * self._delay_ns, REDIAL_MOST_NS)

    def close(self) -> None:
        for owner in (self._socket, self._tube, self._timer):
            if owner is not None:
                owner.close()


def behind(views: list[memoryview], count: int) -> list[memoryview]:
    """The views without their first ``count`` bytes."""
    for index, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[index + 1 :]] if count else views[index:]
        count -= len(view)
    return []
