"""A mutex that tells of this thread's death before the process is taken apart.

A pidfd becomes readable when a process has been taken apart, and that takes 50 ms for each GiB of guest
memory it has touched. A robust mutex (pthread_mutexattr_setrobust(3); Linux: locking/robust-futexes.rst) is
marked by the kernel as soon as the thread that holds it executes no more instruction, whatever it has mapped.
A device with guest memory holds one, in a page of its own, and never gives it back; another process waits
for it (:mod:`supervisor.worker.witness`).

It speaks for the thread that took it. Whether there are others is the supervisor's to see before it believes.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
from typing import Final

__all__ = ["OWNER_DIED", "PAGE_BYTES", "TID_MASK", "WAITERS", "hold_lifeline"]

PAGE_BYTES: Final = 4096
WAITERS, OWNER_DIED, TID_MASK = 1 << 31, 1 << 30, (1 << 30) - 1  # of a futex word, <linux/futex.h>
PTHREAD_PROCESS_SHARED: Final = 1
PTHREAD_MUTEX_ROBUST: Final = 1
ATTRIBUTE_BYTES: Final = 64  # more than any pthread_mutexattr_t

_held: list[tuple[int, mmap.mmap]] = []  # one, for the life of the process


def hold_lifeline() -> int | None:
    """Takes a robust mutex at the beginning of a page, once; returns the page's descriptor, to be kept open.

    ``None`` where this C library's mutexes are not what is expected: then the pidfd has to do.
    """
    if _held:
        return _held[0][0]
    fd = os.memfd_create("tubevisor lifeline", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    page = mmap.mmap(fd, PAGE_BYTES)
    word = ctypes.c_uint32.from_buffer(page)
    if _lock(ctypes.addressof(word)) and word.value & TID_MASK == threading.get_native_id():
        _held.append((fd, page))
        return fd
    os.close(fd)
    return None


def _lock(address: int) -> bool:
    libc = ctypes.CDLL(None)
    attribute = ctypes.create_string_buffer(ATTRIBUTE_BYTES)
    mutex = ctypes.c_void_p(address)
    try:
        steps = (
            libc.pthread_mutexattr_init(attribute),
            libc.pthread_mutexattr_setpshared(attribute, PTHREAD_PROCESS_SHARED),
            libc.pthread_mutexattr_setrobust(attribute, PTHREAD_MUTEX_ROBUST),
            libc.pthread_mutex_init(mutex, attribute),
            libc.pthread_mutex_lock(mutex),
        )
    except AttributeError:
        return False
    return not any(steps)
