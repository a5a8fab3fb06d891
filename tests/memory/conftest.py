"""What the tests of guest memory share: files to map, and a census of mappings and descriptors."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from supervisor.memory import AddrRangeSeq, GuestMemory, Region

PAGE = 4096
NAME = "guest-memory-test"
DEADLINE_S = 60.0


def holdings() -> tuple[list[str], list[str]]:
    """Return this process's descriptors and mappings of the memfds that tests make here."""
    fds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            fds.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # the listing's own
    with open("/proc/self/maps") as maps:
        return [fd for fd in fds if NAME in fd], [line for line in maps if NAME in line]


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test nothing of guest memory is open or mapped."""
    assert holdings() == ([], [])
    yield
    if holdings() != ([], []):
        # A failed assertion's traceback may still hold what the test has made.
        gc.collect()
    assert holdings() == ([], [])


@contextmanager
def file_of(size_bytes: int, content: bytes = b"", *, seals: int = 0) -> Iterator[int]:
    """A memfd with ``content`` at its start."""
    import fcntl

    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        os.pwrite(fd, content, 0)
        if seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def memory_of(*regions: Region, file_bytes: int = 64 * PAGE, content: bytes = b"") -> Iterator[GuestMemory]:
    """Guest memory with these regions of one file."""
    with file_of(file_bytes, content) as fd, GuestMemory() as memory:
        memory.map_all([(region, fd) for region in regions])
        yield memory


def seq(pairs: list[list[int]]) -> AddrRangeSeq:
    """Ranges out of pairs."""
    return AddrRangeSeq((start, end) for start, end in pairs)
