"""What the Tube's tests share: a census of descriptors around each test, and processes that always end."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

DEADLINE_S = 10.0


def open_fds() -> dict[int, str]:
    """Return number and target of each open descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    # The listing's own descriptor is gone by now and readlink failed for it.
    return found


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Compare the open descriptors before and after each test."""
    before = open_fds()
    yield

    def leaks() -> dict[int, str]:
        return {fd: what for fd, what in open_fds().items() if before.get(fd) != what}

    leaked = leaks()
    if leaked:
        # A failed assertion's traceback may still hold what the test has made.
        gc.collect()
        leaked = leaks()
    assert not leaked, f"leaked descriptors: {leaked}"


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Child:
    """A forked process that runs one function and exits; killed if it does not."""

    def __init__(self, work: Callable[[], object]) -> None:
        with warnings.catch_warnings():
            # Python 3.12 warns of any other thread, here pytest-timeout's, which holds nothing that we use.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        self.pidfd = os.pidfd_open(self.pid)
        self._code: int | None = None

    def wait(self) -> int:
        """Return the exit code (negative: the signal), bounded."""
        if self._code is None:
            if not select.select([self.pidfd], [], [], DEADLINE_S)[0]:
                os.kill(self.pid, signal.SIGKILL)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self.pidfd)
        return self._code

    def kill(self) -> int:
        """Kill it with SIGKILL and return its exit code."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], object]], Child]]:
    """Start processes by fork; all are gone at the end of the test."""
    children: list[Child] = []

    def start(work: Callable[[], object]) -> Child:
        child = Child(work)
        children.append(child)
        return child

    yield start
    for child in children:
        if child._code is None:
            child.kill()


def until(condition: Callable[[], bool]) -> None:
    """Wait, bounded, for something that the kernel does in its own time and tells nobody."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        select.select([], [], [], 0.001)


def readable(notifier: int | HasFileno, timeout: float = 0.0) -> bool:
    """Tell whether a notifier is readable."""
    return bool(select.select([notifier], [], [], timeout)[0])


Fork = Callable[[Callable[[], object]], Child]
