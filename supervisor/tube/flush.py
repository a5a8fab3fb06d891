"""Waiting until the peer has taken everything: ``flush`` and ``FlushOnDropTube``.

The kernel charges the *sender* for each packet until the receiver has taken it; SIOCOUTQ reads that charge
(unix(7), tty_ioctl(4) TIOCOUTQ). It also drops to nothing when the peer closes with packets unread, so
hang-up is looked at as well: then the kernel has reported ECONNRESET (POLLERR, or an earlier error that this
end remembers) if anything was left unread. EPOLLOUT with EPOLLET wakes once for each packet that is taken, so
there is no polling interval.
"""

from __future__ import annotations

import select
from types import TracebackType
from typing import TYPE_CHECKING

from supervisor.tube.errors import Closed, TubeError, TubeTimeout, Undelivered
from supervisor.tube.scm import outstanding_bytes
from supervisor.tube.waiting import deadline_after, seconds_left

if TYPE_CHECKING:
    from typing import Self

    from supervisor.tube.end import End
    from supervisor.tube.proto import ProtoTube
    from supervisor.tube.tube import SendTube, Tube

__all__ = ["FlushOnDropTube", "flush"]

# While a packet is being freed the kernel wakes us with one byte of its charge still counted; a packet that
# is really outstanding is charged 768 bytes or more.
_LEAST_CHARGE_BYTES = 256

# How long a dropped Tube holds up its thread for a peer that does not read.
FLUSH_TIMEOUT_S = 5.0


def flush(end: End, timeout: float | None) -> None:
    """Wait until the peer has taken everything. Raises TubeTimeout, Undelivered, Closed."""
    deadline = deadline_after(timeout)
    sock = end.sock
    with select.epoll(flags=select.EPOLL_CLOEXEC) as epoll:
        # Armed before the first look, so that nothing that happens after it is missed.
        epoll.register(sock.fileno(), select.EPOLLOUT | select.EPOLLET | select.EPOLLRDHUP)
        while True:
            taken = outstanding_bytes(sock) < _LEAST_CHARGE_BYTES
            hangup = _hangup(sock.fileno())
            if hangup & select.POLLERR:
                end.reset_seen = True
            if hangup and end.reset_seen:
                raise Undelivered("the peer is gone and left messages unread")
            if taken:
                return
            wait_s = seconds_left(deadline)
            if wait_s == 0:
                raise TubeTimeout("the peer has not taken everything in time")
            epoll.poll(wait_s)


def _hangup(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, 0)
    events = poll.poll(0)
    return events[0][1] if events else 0


class FlushOnDropTube:
    """Owns a Tube and closes it only after the peer has taken everything, or ``timeout`` seconds have passed.

    AF_UNIX keeps what was sent when the sender exits; what it does not do is tell the sender that the peer
    died before reading it. ``close`` tells: it raises what ``flush`` raises, and the Tube is closed all the
    same. On garbage collection nobody can be told, so a warning is logged.
    """

    def __init__(self, tube: Tube | SendTube | ProtoTube, *, timeout: float | None = FLUSH_TIMEOUT_S) -> None:
        self._tube: Tube | SendTube | ProtoTube | None = tube
        self._timeout = timeout

    @property
    def tube(self) -> Tube | SendTube | ProtoTube:
        """The Tube inside; still owned by this object. Raises Closed."""
        if self._tube is None:
            raise Closed("this FlushOnDropTube was closed")
        return self._tube

    def fileno(self) -> int:
        """Return the socket's number. Raises Closed."""
        return self.tube.fileno()

    def flush(self, timeout: float | None = None) -> None:
        """Wait as ``Tube.flush`` does.

        Its own timeout when none is given. Raises TubeTimeout, Undelivered, Closed.
        """
        self.tube.flush(self._timeout if timeout is None else timeout)

    def close(self) -> None:
        """Flush, then close.

        Nothing happens the second time. Raises TubeTimeout, Undelivered: closed all the same.
        """
        tube, self._tube = self._tube, None
        if tube is None or tube.closed:
            return
        try:
            tube.flush(self._timeout)
        finally:
            tube.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except (TubeError, AttributeError) as error:
            import logging  # 5 ms that a worker without trouble does not pay

            logging.getLogger(__name__).warning(
                "a Tube was dropped before its peer had taken everything: %s", error
            )
