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
import signal
import struct
import threading
import time
from typing import Final

from supervisor.memory.atomics import true_atomics
from supervisor.tube import Descriptor
from supervisor.worker.conversation import ControlTube
from supervisor.worker.doorbell import ring_doorbell
from supervisor.worker.layout import HEADER_BYTES, LIFELINE_AT
from supervisor.worker.lifeline import OWNER_DIED, TID_MASK, WAITERS
from supervisor.worker.succession import Succession, ring

__all__ = ["TICKET", "serve_as_witness"]

TICKET: Final = struct.Struct("<Q")  # what is written for each death

SYS_FUTEX: Final = {"x86_64": 202}.get(os.uname().machine, 98)
FUTEX_WAIT: Final = 0
HEAD_START_S: Final = 0.003  # of who takes over: what is to be done about the dead would be in its way
REST_S: Final = 0.02  # before tidying up: the supervisor needs the core
STACK_BYTES: Final = 256 * 1024  # a thread that does nothing but wait

_libc = ctypes.CDLL(None, use_errno=True)


def serve_as_witness(tube: ControlTube, pipe_fd: int) -> None:
    """Watches whom it is told to, until the supervisor goes; writes their tickets to ``pipe_fd``.

    Raises ``NoTrueAtomics``, ``Disconnected``.
    """
    true_atomics()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # of standbys that have ended; a module may have undone it
    threading.stack_size(STACK_BYTES)
    heirs: dict[int, _Heir | None] = {}  # by ticket, of all that are watched
    while True:
        heard = tube.hear(None)
        if heard is None:
            continue
        message, descriptors = heard
        match message.WhichOneof("body"), len(descriptors):
            case "watch", 1:
                with descriptors[0] as descriptor:
                    page = _map(descriptor.fileno())
                if page is not None:
                    heirs[message.watch.ticket] = None
                    told = page, message.watch.pid, message.watch.ticket, pipe_fd, heirs
                    threading.Thread(target=_watch, args=told, daemon=True).start()
            case "heir", 2 if message.heir.ticket in heirs:
                heirs[message.heir.ticket] = heir = _Heir(message.heir.pid, *descriptors)
                heir.look()  # it may be too late for the thread that waits


class _Heir:
    """Process ``pid`` waits for a worker's death: ``bell`` wakes it, ``page`` says what it may do."""

    def __init__(self, pid: int, bell: Descriptor, page: Descriptor) -> None:
        self._pid = pid
        self._bell = bell
        with page:
            self._succession = Succession(page.fileno())

    def ring(self, dead_pid: int) -> bool:
        """Wakes it; false if it may not do anything."""
        if not self._succession.is_open:
            return False
        ring(self._bell.fileno(), self._pid, dead_pid)
        return True

    def look(self) -> None:
        """Has it see for itself whether somebody is dead."""
        ring_doorbell(self._bell.fileno())

    def close(self) -> None:
        self._succession.unmap()
        self._bell.close()


def _map(fd: int) -> mmap.mmap | None:
    """The page with the mutex, if it is one that cannot be taken away from under us."""
    try:
        if os.fstat(fd).st_size >= HEADER_BYTES and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return mmap.mmap(fd, HEADER_BYTES)
    except OSError:
        pass
    return None


def _watch(page: mmap.mmap, pid: int, ticket: int, pipe_fd: int, heirs: dict[int, _Heir | None]) -> None:
    word = ctypes.c_uint32.from_buffer(page, LIFELINE_AT)
    if _wait_for_death(ctypes.addressof(word), pid):
        heir = heirs[ticket]
        if heir is not None and heir.ring(pid):
            time.sleep(HEAD_START_S)
        os.write(pipe_fd, TICKET.pack(ticket))  # so few bytes are written in one piece
        time.sleep(REST_S)
    heir = heirs.pop(ticket)
    if heir is not None:
        heir.close()
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
