"""A standby's side of the succession: it sees its predecessor dead, and takes over if that is allowed.

That a death is told is not enough: whoever tells may be mistaken. It counts what the kernel says of the
process: its pidfd, or, while it is still being taken apart, that its last thread is on its way out.
"""

from __future__ import annotations

import os
import select
import time
from typing import Any

from supervisor.exits import describe_exit
from supervisor.tube.process import exit_of_the_leaving, exit_of_the_reaped, kill_process_group
from supervisor.worker.doorbell import answer_door
from supervisor.worker.journal import Journal
from supervisor.worker.layout import HANDLING, PUBLISHED, RUNS_ON, SUBMITTED, WORKER_SLEEPS
from supervisor.worker.succession import Succession

__all__ = ["Heir"]


class Heir:
    """Of process ``pid``.

    ``descriptors``: the page of the succession, the door at which its death is rung for, its pidfd. With
    ``machine_time`` guest time is only known from inputs.
    """

    def __init__(self, pid: int, descriptors: list[Any], *, machine_time: bool) -> None:
        page, door, pidfd = descriptors
        self._pid = pid
        self._machine_time = machine_time
        self._door = door
        self._pidfd = pidfd
        with page:
            self.succession = Succession(page.fileno())

    def await_bell(self, other_fd: int) -> bool:
        """Waits for the bell, or until ``other_fd`` is readable; true if the bell has rung.

        Also returns when nobody has the bell any more.
        """
        poller = select.poll()
        poller.register(self._door.fileno(), select.POLLIN)
        poller.register(other_fd, select.POLLIN)
        rung = (self._door.fileno(), select.POLLIN) in poller.poll()
        if rung:
            answer_door(self._door.fileno())
        return rung

    def claim(self, journal: Journal) -> tuple[str, int] | None:
        """Takes the predecessor's place, if that is dead and it is allowed.

        Returns how it has ended, and the guest time (ns). Whoever judges that death then finds noted what
        there was in ``journal``.
        """
        ended = self._ended()
        if ended is None:  # what is in the journal may change
            return None
        now_ns = self._guest_time(journal)
        if now_ns is None or not self._take(journal):
            return None
        kill_process_group(self._pidfd.fileno())  # what it has forked has its memory, and its disk
        return ended, now_ns

    def _guest_time(self, journal: Journal) -> int | None:
        """It stands still while somebody waits for an answer; nobody does: then only the machine knows it."""
        if not self._machine_time:
            return time.monotonic_ns()
        unanswered = journal.words[PUBLISHED]
        return None if journal.words[SUBMITTED] == unanswered else journal.stamp_of(unanswered)

    def _ended(self) -> str | None:
        """How the predecessor has ended; ``None`` while it may still do something."""
        pidfd = self._pidfd.fileno()
        leaving = exit_of_the_leaving(self._pid)
        is_gone = bool(select.select([pidfd], [], [], 0)[0])
        status = exit_of_the_reaped(pidfd) if is_gone else None
        if status is None and leaving is not None:  # its number was still its own
            status = leaving[0]
        if status is None and not is_gone:
            return None
        return describe_exit(None if status is None else os.waitstatus_to_exitcode(status))

    def _take(self, journal: Journal) -> bool:
        commit = journal.read_commit()
        words = journal.words
        self.succession.note_inputs(0 if commit is None else commit.applied, words[HANDLING])
        if not self.succession.take():
            return False
        words[WORKER_SLEEPS] = words[RUNS_ON] = words[HANDLING] = 0  # those were the predecessor's
        return True

    def rehearse(self, journal: Journal) -> None:
        """What will be done when the time has come; it has not, so nothing comes of it."""
        page = Succession.create()
        stage, self.succession = self.succession, Succession(page)
        os.close(page)
        try:
            self._guest_time(journal)
            self._ended()
            self._take(journal)  # from a page that nobody has opened
        finally:
            self.succession.unmap()
            self.succession = stage

    def close(self) -> None:
        """Gives everything back."""
        self._door.close()
        self._pidfd.close()
        self.succession.unmap()
