"""The bell that wakes a worker: whoever rings it never waits, whatever the worker does with its end.

An eventfd will not do: both sides share its flags, so that a worker could make it one that blocks, fill it,
and have the supervisor wait for ever. Nor a pipe: who reads it holds its lock while memory of its own is
written to. The two ends of a socket have flags and locks of their own (unix(7)). What has been rung is read
by the worker only; a bell that is full has been rung.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

from supervisor.errors import LocalError

__all__ = ["answer_door", "make_doorbell", "ring_doorbell"]

QUEUE_BYTES: Final = 4608  # of kernel memory for what is not read yet: the least
READ_BYTES: Final = 4096
RING: Final = bytes(8)


def make_doorbell() -> tuple[int, int]:
    """(The end at which a worker waits, the end that is rung); close both. Raises ``OSError``."""
    door, bell = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    bell.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
    bell.shutdown(socket.SHUT_RD)  # or a worker could leave descriptors with us, which we never take
    return door.detach(), bell.detach()


def ring_doorbell(bell: int) -> None:
    """Wakes who waits at the other end, if anybody does."""
    # As one that does not block, or the default timeout of who embeds us would be waited for.
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, fileno=bell)
    try:
        own.send(RING, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # who embeds us may not ignore SIGPIPE
    except (BlockingIOError, BrokenPipeError):
        pass
    finally:
        own.detach()


def answer_door(door: int) -> None:
    """Takes what has been rung, so that the next ring wakes again. Never waits where ``door`` is readable.

    Raises :class:`~supervisor.errors.LocalError` where it never rings again: a process before this one has
    shut it, and it would be readable for good.
    """
    with contextlib.suppress(BlockingIOError):
        if not os.read(door, READ_BYTES):
            raise LocalError("its doorbell has been shut, and cannot wake it")
