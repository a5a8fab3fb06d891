"""The supervisor's side of the witness: one process more, which tells of deaths before the pidfds do.

It is only ever quicker, most of all where a worker has much memory to be taken apart: what it says is held
against what the kernel says of the process, and without it (it may die like any other, and is replaced) the
pidfd tells, later.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque

from supervisor.errors import EnvironmentFault
from supervisor.launch.launcher import WorkerProcess
from supervisor.ledger import Ledger
from supervisor.messages_pb2 import SupervisorMessage, WorkerMessage
from supervisor.processes import Processes
from supervisor.reactor import Reactor
from supervisor.tube import Descriptor, TubeError, TubeTimeout
from supervisor.worker.witness import TICKET

__all__ = ["LIVES", "Witness"]

_log = logging.getLogger("tubevisor")
TICKETS_AT_ONCE = 512
ROOM_AFTER_NS = 2_000_000  # it has taken some of a full queue by then
LIVES = 5  # of the witness: one that always dies is of no use here
LONG_LIFE_NS = 60_000_000_000  # after which it does not always die


class Witness:
    """Ordered with the first worker that is to be watched."""

    def __init__(self, reactor: Reactor, processes: Processes) -> None:
        self._reactor = reactor
        self._processes = processes
        self._process: WorkerProcess | None = None
        self._lives = LIVES
        self._ordered_ns = 0
        self._watched: dict[int, tuple[WorkerProcess, Ledger]] = {}  # by ticket
        self._untold: deque[int] = deque()  # tickets of those of whom it has not heard yet
        self._heirs: dict[int, int] = {}  # tickets, of the one that is watched and of its standby
        self._told_fd = -1  # the pipe through which it tells

    def watch(self, worker: WorkerProcess, ledger: Ledger) -> None:
        """Has the witness wait for ``worker``, which holds the mutex in the journal of ``ledger``."""
        self._watched[worker.ticket] = worker, ledger
        if self._process is None:
            self._order()
        elif self._process.hello:
            self._untold.append(worker.ticket)
            self._tell()

    def name_heir(self, worker: WorkerProcess, heir: WorkerProcess, bell_fd: int, page_fd: int) -> bool:
        """Has the witness ring for ``heir`` first when ``worker`` dies, as long as that may take over.

        False if there is no witness yet that could, or no room in its queue.
        """
        if self._process is None or not self._process.hello or worker.ticket in self._untold:
            return False
        if self._heirs.get(worker.ticket) != heir.ticket:
            message = SupervisorMessage()
            message.heir.ticket = worker.ticket
            message.heir.pid = heir.pid
            if not self._send(message, bell_fd, page_fd):
                return False
            self._heirs[worker.ticket] = heir.ticket
        return True

    def forget(self, worker: WorkerProcess) -> None:
        """The worker is gone."""
        self._watched.pop(worker.ticket, None)
        self._heirs.pop(worker.ticket, None)

    def _order(self) -> None:
        if not self._lives:
            return
        self._lives -= 1
        self._ordered_ns = time.monotonic_ns()
        try:
            self._process = self._processes.take(self)
        except EnvironmentFault:
            return
        if self._process.hello:
            self.on_hello(self._process)

    def _tell(self) -> None:
        """Tells it whom to wait for: as many as it has room for, and the others a little later."""
        while self._untold and self._process is not None:
            watched = self._watched.get(self._untold[0])
            if watched is not None:
                worker, ledger = watched
                message = SupervisorMessage()
                message.watch.ticket = worker.ticket
                message.watch.pid = worker.pid
                if not self._send(message, ledger.journal_fd):
                    self._reactor.call_at(time.monotonic_ns() + ROOM_AFTER_NS, self._tell)
                    return
            self._untold.popleft()

    def _send(self, message: SupervisorMessage, *fds: int | Descriptor) -> bool:
        """False if its queue is full."""
        assert self._process is not None  # noqa: S101 - it has said Hello
        try:
            self._process.tube.send_proto_nowait(message, fds=fds)
        except TubeTimeout:
            return False
        except TubeError:  # it is dead, and that will be heard of
            pass
        return True

    # -- Owner of its process --------------------------------------------------------------------

    def on_forked(self, worker: WorkerProcess) -> None:
        """Its Hello is what counts."""

    def on_hello(self, worker: WorkerProcess) -> None:
        """It is there: it learns what it is, and whom to wait for."""
        message = SupervisorMessage()
        message.witness.SetInParent()
        try:
            self._told_fd, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # then there are too few to serve anybody
            self._processes.kill(worker)
            return
        with Descriptor(theirs):
            self._reactor.watch(self._told_fd, lambda _mask: self._hear())
            self._send(message, theirs)
        self._untold = deque(self._watched)
        self._heirs.clear()
        self._tell()

    def on_message(
        self, worker: WorkerProcess, message: WorkerMessage, descriptors: list[Descriptor]
    ) -> None:
        """It says nothing through its Tube."""

    def _hear(self) -> None:
        """It has seen somebody die, or has gone itself."""
        try:
            told = os.read(self._told_fd, TICKETS_AT_ONCE * TICKET.size)
        except BlockingIOError:
            return
        if not told:
            self._hang_up()
        for (ticket,) in TICKET.iter_unpack(told):
            self._processes.on_witnessed(ticket)

    def _hang_up(self) -> None:
        if self._told_fd >= 0:
            self._reactor.unwatch(self._told_fd)
            os.close(self._told_fd)
            self._told_fd = -1

    def on_log(self, worker: WorkerProcess, data: bytes) -> None:
        """What it has to say of itself."""
        _log.debug("the witness says: %s", data.decode(errors="replace").rstrip())

    def is_followed(self, worker: WorkerProcess) -> bool:
        """Nobody waits for its place."""
        return False

    def awaits_another(self, worker: WorkerProcess, wait_status: int | None) -> bool:
        """Nobody is in its place."""
        return False

    def on_gone(self, worker: WorkerProcess, wait_status: int | None) -> None:
        """It is dead itself: another one takes its place, unless they die one after the other."""
        self._process = None
        self._hang_up()
        if time.monotonic_ns() - self._ordered_ns > LONG_LIFE_NS:
            self._lives = LIVES
        if self._watched:
            self._order()
        if self._process is None and self._lives == 0 and self._watched:
            _log.warning("the witnesses keep dying; it goes on without: restarts take longer")

    def on_fork_failed(self, worker: WorkerProcess, why: str) -> None:
        """It has never lived: the next one may."""
        self.on_gone(worker, None)

    def close(self) -> None:
        """Asks for no more; its process ends with all the others."""
        self._watched.clear()
        self._untold.clear()
        self._hang_up()
        self._lives = 0
