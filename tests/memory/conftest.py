"""What the tests of guest memory share: files to map, and a census of mappings and descriptors."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    """After each test no more of guest memory is open or mapped than before."""
    before = holdings()
    yield
    if holdings() != before:
        # A failed assertion's traceback may still hold what the test has made.
        gc.collect()
    descriptors, mappings = holdings()
    assert len(descriptors) <= len(before[0])
    assert len(mappings) <= len(before[1])


@contextmanager
def file_of(size_bytes: int, content: bytes = b"", *, seals: int = 0) -> Iterator[int]:
    """A memfd with ``content`` at its start."""
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


def region(guest_addr: int, size_bytes: int = PAGE, offset_bytes: int = 0, **more: Any) -> Region:
    """A region, a page of a file's start unless something else is said."""
    return Region(guest_addr=guest_addr, size_bytes=size_bytes, offset_bytes=offset_bytes, **more)


def seq(pairs: list[list[int]]) -> AddrRangeSeq:
    """Ranges out of pairs."""
    return AddrRangeSeq((start, end) for start, end in pairs)
