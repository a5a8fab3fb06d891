"""How a standby may take over by itself: a page that it shares with its supervisor, and with nobody else.

A death is known to the kernel long before a supervisor that has other things to do has heard of it, judged it
and said what is to be done. Where that can only be one thing the supervisor says so beforehand: it opens the
succession. Who is dead cannot close it again, so there are two who may: the supervisor, which takes its word
back before it decides anything, and the standby, which takes over. A compare-and-swap says who was first.

What the judgement of a death needs (which input and which requests of the queues were at work in it) is gone
once the successor goes on, so that notes it here before it does.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Final

from supervisor.memory.atomics import true_atomics
from supervisor.placement import avoiding
from supervisor.tube.process import exit_of_the_leaving
from supervisor.worker.doorbell import ring_doorbell

__all__ = ["PAGE_BYTES", "Bequest", "Succession", "ring"]

PAGE_BYTES: Final = 4096
CLOSED, OPEN, TAKEN = range(3)  # the first 32 bits
(APPLIED, HANDLING, INPUTS_NOTED, REQUESTS_NOTED, REQUESTS) = range(1, 6)  # words of 64 bits
REQUEST_WORDS: Final = 3  # ring, head, place in the order of fetching
REQUESTS_MAX: Final = (PAGE_BYTES // 8 - REQUESTS) // REQUEST_WORDS


def ring(bell_fd: int, pid: int, dead_pid: int) -> None:
    """Wakes the standby ``pid`` by its bell, where it does not wait until the dead one is taken apart."""
    leaving = exit_of_the_leaving(dead_pid)
    with avoiding(leaving and leaving[1], pid):
        ring_doorbell(bell_fd)


@dataclass(frozen=True, slots=True)
class Bequest:
    """What a successor has found. ``applied`` and ``handling`` are the journal's words at the death.

    ``requests`` is of each ring the request that had been fetched first: (ring, head, place in the order);
    ``None``: nothing of the queues has been touched yet.
    """

    applied: int
    handling: int
    requests: tuple[tuple[int, int, int], ...] | None


class Succession:
    """The page behind ``fd``, which stays the caller's. Raises ``NoTrueAtomics``, ``OSError``."""

    def __init__(self, fd: int) -> None:
        self._atomics = true_atomics()
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self._words = memoryview(self._map).cast("Q")
        self._state = ctypes.c_uint32.from_buffer(self._map)
        self._address = ctypes.addressof(self._state)

    @staticmethod
    def create() -> int:
        """The descriptor of a new page, closed to successors."""
        fd = os.memfd_create("tubevisor succession", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, PAGE_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd

    # -- the supervisor --------------------------------------------------------------------------

    def open(self) -> None:
        """Whoever waits for it may take over when its predecessor is dead."""
        self._atomics.compare_and_swap_uint32(self._address, CLOSED, OPEN)

    def close(self) -> bool:
        """Takes that back; true if it is too late for that."""
        return self._atomics.compare_and_swap_uint32(self._address, OPEN, CLOSED) == TAKEN

    @property
    def is_taken(self) -> bool:
        """True once a successor has begun."""
        return self._atomics.load_uint32(self._address) == TAKEN

    @property
    def is_open(self) -> bool:
        """True while a death would be followed by a successor."""
        return self._atomics.load_uint32(self._address) == OPEN

    def bequest(self) -> Bequest | None:
        """What the successor has noted; ``None`` as long as it has not touched anything."""
        words = self._words
        if not words[INPUTS_NOTED]:
            return None
        requests = None
        if words[REQUESTS_NOTED]:
            count = min(words[REQUESTS_NOTED] - 1, REQUESTS_MAX)
            flat = words[REQUESTS : REQUESTS + REQUEST_WORDS * count].tolist()
            requests = tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        return Bequest(words[APPLIED], words[HANDLING], requests)

    # -- the standby -----------------------------------------------------------------------------

    def take(self) -> bool:
        """Takes over; false if that is not allowed. Only when the predecessor is dead."""
        return self._atomics.compare_and_swap_uint32(self._address, OPEN, TAKEN) == OPEN

    def note_inputs(self, applied: int, handling: int) -> None:
        """Before anything is written into the journal."""
        words = self._words
        words[APPLIED], words[HANDLING] = applied, handling
        words[INPUTS_NOTED] = 1

    def note_requests(self, requests: list[tuple[int, int, int]]) -> None:
        """Before any request of a queue is executed; ``requests`` as in :class:`Bequest`."""
        words, at = self._words, REQUESTS
        for request in requests[:REQUESTS_MAX]:
            for value in request:
                words[at] = value
                at += 1
        words[REQUESTS_NOTED] = 1 + min(len(requests), REQUESTS_MAX)

    def unmap(self) -> None:
        """Gives the memory back."""
        del self._state
        self._words.release()
        self._map.close()
