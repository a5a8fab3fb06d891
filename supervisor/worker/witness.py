"""The process that waits for others to die: the witness.

For each worker that it is told of it waits, in a thread, on the futex word of the mutex that the worker holds
in its journal (:mod:`supervisor.worker.lifeline`), and tells the supervisor when the kernel has marked it:
through a pipe, since a message would take longer to make and to read than all the rest. Threads belong here:
the supervisor has none, since its process is somebody else's.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import threading
import time
from typing import Final

from supervisor.memory.atomics import true_atomics
from supervisor.worker.conversation import ControlTube
from supervisor.worker.journal import HEADER_BYTES, LIFELINE_AT
from supervisor.worker.lifeline import OWNER_DIED, TID_MASK, WAITERS

__all__ = ["TICKET", "serve_as_witness"]

TICKET: Final = struct.Struct("<Q")  # what is written for each death

SYS_FUTEX: Final = {"x86_64": 202}.get(os.uname().machine, 98)
FUTEX_WAIT: Final = 0
REST_S: Final = 0.02  # before tidying up: the supervisor needs the core
STACK_BYTES: Final = 256 * 1024  # a thread that does nothing but wait

_libc = ctypes.CDLL(None, use_errno=True)


def serve_as_witness(tube: ControlTube, pipe_fd: int) -> None:
    """Watches whom it is told to, until the supervisor goes; writes their tickets to ``pipe_fd``.

    Raises ``NoTrueAtomics``, ``Disconnected``.
    """
    true_atomics()
    threading.stack_size(STACK_BYTES)
    while True:
        heard = tube.hear(None)
        if heard is None:
            continue
        message, descriptors = heard
        if message.WhichOneof("body") != "watch" or len(descriptors) != 1:
            continue
        with descriptors[0] as descriptor:
            page = _map(descriptor.fileno())
        if page is not None:
            told = page, message.watch.pid, TICKET.pack(message.watch.ticket), pipe_fd
            threading.Thread(target=_watch, args=told, daemon=True).start()


def _map(fd: int) -> mmap.mmap | None:
    """The page with the mutex, if it is one that cannot be taken away from under us."""
    try:
        if os.fstat(fd).st_size >= HEADER_BYTES and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return mmap.mmap(fd, HEADER_BYTES)
    except OSError:
        pass
    return None


def _watch(page: mmap.mmap, pid: int, ticket: bytes, pipe_fd: int) -> None:
    word = ctypes.c_uint32.from_buffer(page, LIFELINE_AT)
    if _wait_for_death(ctypes.addressof(word), pid):
        os.write(pipe_fd, ticket)  # so few bytes are written in one piece
        time.sleep(REST_S)
    del word
    page.close()


def _wait_for_death(address: int, pid: int) -> bool:
    """Returns when process ``pid``, which holds the mutex at ``address``, has died.

    False if it does not hold it any more: it has given it back, or its successor has it already.
    """
    atomics = true_atomics()
    while True:
        value = atomics.load_uint32(address)
        if value & OWNER_DIED:
            return True
        if value & TID_MASK != pid:  # the main thread's number is the process's
            return False
        wanted = value | WAITERS  # or the kernel wakes nobody
        if value != wanted and atomics.compare_and_swap_uint32(address, value, wanted) != value:
            continue
        _libc.syscall(SYS_FUTEX, ctypes.c_void_p(address), FUTEX_WAIT, ctypes.c_uint32(wanted), None, None, 0)
