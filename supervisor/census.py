"""What this process holds just now: processes below it, open descriptors, mapped journals.

Two censuses, one before something was started and one after it was stopped, must agree: that is how tests
find what leaked. It reads ``/proc`` and asks nobody; it belongs to tests, not to a program that runs.

Not seen: a process that left the family, by ``setsid()`` and a parent that ended.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Census"]

PATIENCE_S = 2.0  # a process that was killed is a process until its parent has reaped it
JOURNAL = "memfd:tubevisor"


@dataclass(frozen=True, slots=True)
class Census:
    """Descriptors with what they are, processes with their command lines, and how many mapped journals."""

    descriptors: dict[int, str]
    processes: dict[int, str]
    journals: int

    @classmethod
    def take(cls) -> Census:
        """The census of this moment."""
        return cls(_descriptors(), _processes(), Path("/proc/self/maps").read_text().count(JOURNAL))

    def leaks(self) -> list[str]:
        """What is there now and was not then, a line each; waits a little for processes to end."""
        deadline = time.monotonic() + PATIENCE_S
        while _processes().keys() - self.processes.keys() and time.monotonic() < deadline:
            os.sched_yield()
        if found := self._compare(Census.take()):
            gc.collect()  # what only waits for the garbage collector is no leak
            found = self._compare(Census.take())
        return found

    def _compare(self, now: Census) -> list[str]:
        lines = [
            f"descriptor {fd} is open: {what}"
            for fd, what in now.descriptors.items()
            if fd not in self.descriptors
        ]
        lines += [
            f"process {pid} lives: {what}" for pid, what in now.processes.items() if pid not in self.processes
        ]
        if now.journals > self.journals:
            lines.append(f"{now.journals - self.journals} journals are mapped")
        return lines


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists the folder is closed again
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _processes() -> dict[int, str]:
    import psutil

    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())[:100]
    return found
