"""A mutex that tells of this thread's death before the process is taken apart.

A pidfd becomes readable when a process has been taken apart, and that takes 50 ms for each GiB of guest
memory it has touched. A robust mutex (pthread_mutexattr_setrobust(3); Linux: locking/robust-futexes.rst) is
marked by the kernel as soon as the thread that holds it executes no more instruction, whatever it has mapped.
A worker holds the one in its journal and gives it back only with the journal; another process waits for it
(:mod:`supervisor.worker.witness`).

It speaks for the thread that took it. Whether there are others is the supervisor's to see before it believes.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Final

__all__ = ["OWNER_DIED", "TID_MASK", "WAITERS", "give_back", "hold"]

WAITERS, OWNER_DIED, TID_MASK = 1 << 31, 1 << 30, (1 << 30) - 1  # of a futex word, <linux/futex.h>
PTHREAD_PROCESS_SHARED: Final = 1
PTHREAD_MUTEX_ROBUST: Final = 1
ATTRIBUTE_BYTES: Final = 64  # more than any pthread_mutexattr_t

_libc = ctypes.CDLL(None)


def hold(address: int) -> bool:
    """Makes a new robust mutex at ``address``, whatever is there, and takes it for this thread.

    False where this C library's mutexes are not what is expected: then the pidfd has to do.
    """
    attribute = _robust()
    if attribute is None:
        return False
    mutex = ctypes.c_void_p(address)
    if _libc.pthread_mutex_init(mutex, attribute) or _libc.pthread_mutex_lock(mutex):
        return False
    if ctypes.c_uint32.from_address(address).value & TID_MASK == threading.get_native_id():
        return True
    _libc.pthread_mutex_unlock(mutex)
    return False


@functools.cache
def _robust() -> ctypes.Array[ctypes.c_char] | None:
    """The attribute of a robust mutex that processes share; ``None`` where there is no such thing."""
    attribute = ctypes.create_string_buffer(ATTRIBUTE_BYTES)
    try:
        refused = (
            _libc.pthread_mutexattr_init(attribute)
            or _libc.pthread_mutexattr_setpshared(attribute, PTHREAD_PROCESS_SHARED)
            or _libc.pthread_mutexattr_setrobust(attribute, PTHREAD_MUTEX_ROBUST)
        )
    except AttributeError:
        return None
    return None if refused else attribute


def give_back(address: int) -> None:
    """Gives a mutex that is held up again, before its memory goes."""
    _libc.pthread_mutex_unlock(ctypes.c_void_p(address))
