"""Standbys: for a device that asks for one, a second process, ready to take its place.

A spare can become any device, and learns which when it is needed. A standby has learnt it before: it has the
journal, the class, the options, and a virtio device's guest memory and rings, and only waits for the word.
Nothing of the device's own has run in it but its module's import. What it has been told (its brief) may be
overtaken: by another set-up of the VMM, a journal that has grown, another configuration. Then it is of no
use, and is replaced.

Most of the time it is known beforehand what a death would lead to: the next process, at once, and nothing
else. Then the word is given ahead (:mod:`supervisor.worker.succession`), and the standby takes over as soon
as it sees its predecessor dead. The supervisor hears of both later, and only then does the standby count as
the device's process. The word is taken back before anything is decided, and given again when all is quiet.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from supervisor.errors import EnvironmentFault
from supervisor.launch.launcher import WorkerProcess
from supervisor.lull import Lull
from supervisor.memory.errors import NoTrueAtomics
from supervisor.messages_pb2 import Assign, Attach, SupervisorMessage, WorkerMessage
from supervisor.processes import BrokenContract, Processes
from supervisor.reactor import Reactor
from supervisor.seat import Seat, Surroundings
from supervisor.tube import MAX_FDS_KERNEL, Descriptor, TubeError
from supervisor.tube.process import exit_of_the_leaving
from supervisor.worker.doorbell import make_doorbell
from supervisor.worker.layout import PUBLISHED
from supervisor.worker.succession import Bequest, Succession, ring

__all__ = ["Brief", "Queues", "Standby", "Standbys"]

LIVES = 5  # of the standbys of one device, of which none was needed: they die of something else
SLICE_NS = 500_000  # of seeing to standbys: the host's loop waits meanwhile
MOST_LOGGED_BYTES = 65536
MOST_SAID = 64  # messages of one that has taken over, until it is the device's process
END_WAIT_NS = 50_000_000  # a process that is killed does nothing more within microseconds
AGAIN_NS = 1_000_000_000  # to look whether the word may be given by now
Queues = tuple[Attach, tuple[Any, ...]]
"""What there is to serve, and its descriptors."""
_log = logging.getLogger("tubevisor")


@dataclass(frozen=True, slots=True)
class Brief:
    """What a standby is told; equal to another one if it would be told the same."""

    generation: int
    assign: Assign
    descriptors: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        seat: Seat,
        generation: int,
        surroundings: Surroundings,
        queues: Queues | None,
        *,
        machine_time: bool,
    ) -> Brief:
        """For process number ``generation`` of ``seat``; ``machine_time``: guest time is the machine's."""
        assign = seat.assignment(seat.config.child, surroundings)
        assign.machine_time = machine_time
        ledger = seat.handle.ledger
        descriptors = (ledger.journal, ledger.door_fd, ledger.answer_fd, *seat.kept.values())
        if queues is not None:
            assign.attach.CopyFrom(queues[0])
            descriptors += queues[1]
        return cls(generation, assign, descriptors)


class _Inheritance:
    """The supervisor's side of one standby's succession: its page, and the bell that says to look."""

    def __init__(self) -> None:
        """Raises ``NoTrueAtomics``, ``OSError``."""
        self.page = Descriptor(Succession.create())
        try:
            self.succession = Succession(self.page.fileno())
            self.door, self.bell = map(Descriptor, make_doorbell())
        except BaseException:
            self.page.close()
            raise

    def close(self) -> None:
        self.succession.unmap()
        for held in (self.page, self.door, self.bell):
            held.close()


@dataclass(eq=False, slots=True)
class Standby:
    """One standby. ``gone``, ``wait_status``, ``said``, ``logged``: what came of it since it took over."""

    seat: Seat
    worker: WorkerProcess
    brief: Brief | None = None
    inheritance: _Inheritance | None = None
    stands: bool = False  # it has made everything ready
    waits: bool = False  # until the word may be given
    summoned: bool = False  # since it was given
    gone: bool = False
    wait_status: int | None = None
    said: list[tuple[WorkerMessage, list[Descriptor]]] = field(default_factory=list)
    logged: bytes = b""

    @property
    def has_queues(self) -> bool:
        """True if it has been given a virtio device's queues."""
        return self.brief is not None and self.brief.assign.HasField("attach")

    def may_begin(self) -> bool:
        """False if it would not know at which guest time: nothing waits that it could have that from."""
        if self.brief is None or not self.brief.assign.machine_time:
            return True
        ledger = self.seat.handle.ledger
        return bool(ledger.words[PUBLISHED] < ledger.submitted)

    @property
    def has_taken_over(self) -> bool:
        """True once it has begun by itself."""
        return self.inheritance is not None and self.inheritance.succession.is_taken

    def take_back(self) -> bool:
        """It may not take over any more, until it is quiet again; true if it has done so already."""
        return self.inheritance is not None and self.inheritance.succession.close()

    def bequest(self) -> Bequest | None:
        """What it has found when it took over."""
        return None if self.inheritance is None else self.inheritance.succession.bequest()

    def close(self) -> None:
        """Gives back what is held for it. Its process is somebody else's business."""
        if self.inheritance is not None:
            self.inheritance.close()
            self.inheritance = None


class Standbys:
    """All devices' standbys.

    ``brief`` says what the next process of a seat has to know, if that is known, and ``may_succeed`` whether
    it may be given the word ahead (``None``: never). ``on_succession`` hears of one that has taken over, and
    whether that has to be seen to now; ``name_heir`` hears of whose death one waits for, and returns false if
    nobody can tell of that yet.
    """

    def __init__(
        self,
        reactor: Reactor,
        processes: Processes,
        *,
        brief: Callable[[Seat], Brief | None],
        may_succeed: Callable[[Seat], bool | None],
        on_succession: Callable[[Seat, bool], None],
        name_heir: Callable[[WorkerProcess, WorkerProcess, int, int], bool],
    ) -> None:
        self._reactor = reactor
        self._processes = processes
        self._brief = brief
        self._may_succeed = may_succeed
        self._on_succession = on_succession
        self._name_heir = name_heir
        self._by_name: dict[str, Standby] = {}
        self._by_ticket: dict[int, Standby] = {}
        self._open: dict[str, Standby] = {}
        self._unseated: dict[str, Standby] = {}  # have taken over, and are not wanted
        self._lives: dict[str, int] = {}
        self._asked: dict[str, Seat] = {}
        self._lull = Lull(reactor, self._refresh, lambda: processes.is_busy)

    # -- what a device's seat asks ---------------------------------------------------------------

    def refresh_soon(self, seat: Seat) -> None:
        """A device serves, or what its next process has to know is another thing."""
        if seat.config.standby:
            self._asked[seat.name] = seat
            self._lull.ask()

    def about_to_change(self, seat: Seat) -> bool:
        """Something that the next process has to know is about to change; false if that has begun already."""
        standby = self._by_name.get(seat.name)
        if standby is not None and self._take_back(standby):
            return False
        self._open.pop(seat.name, None)
        self.refresh_soon(seat)
        return True

    def overtake(self, seat: Seat) -> None:
        """Who has taken over lacks something that its predecessor had said before: it is not wanted."""
        standby = self.successor(seat)
        if standby is not None:
            self.unseat(standby)

    def begin_anew(self, seat: Seat) -> None:
        """A process of the device has become ready: that its standbys have died is forgotten."""
        self._lives.pop(seat.name, None)
        self.refresh_soon(seat)

    def stands(self, seat: Seat) -> bool:
        """True if there is a standby, whatever it has been told."""
        standby = self._by_name.get(seat.name)
        return standby is not None and standby.stands

    def pid_of(self, name: str) -> int | None:
        """The process that stands by for a device."""
        standby = self._by_name.get(name)
        return standby.worker.pid if standby is not None and standby.stands else None

    def take(self, seat: Seat, needed: Brief) -> WorkerProcess | None:
        """The standby of ``seat``, if it has been told what is ``needed``: the caller's from then on."""
        standby = self._by_name.get(seat.name)
        if standby is None or not standby.stands:
            return None
        if standby.brief != needed:
            self._end(standby)
            return None
        self._forget(standby)
        standby.close()
        return standby.worker

    def successor(self, seat: Seat) -> Standby | None:
        """The standby of ``seat``, if it has taken over; if not, it will not, until it is quiet again."""
        standby = self._by_name.get(seat.name)
        return standby if standby is not None and self._take_back(standby) else None

    def has_successor(self, seat: Seat) -> bool:
        """True if the standby of ``seat`` has taken over."""
        standby = self._by_name.get(seat.name)
        return standby is not None and standby.has_taken_over

    def adopt(self, standby: Standby) -> None:
        """One that has taken over is the device's process from now on, and the caller's, who closes it."""
        self._forget(standby)

    def summon(self, seat: Seat, *, again: bool = False) -> bool:
        """Has the standby look whether its predecessor is dead; true if it takes over then, or has.

        Once, unless ``again``: it may share our core, and needs that now.
        """
        standby = self._by_name.get(seat.name)
        if standby is None or standby.inheritance is None or not standby.stands:
            return False
        if standby.inheritance.succession.is_open and standby.may_begin():
            if standby.summoned and not again:
                return True
            standby.summoned = True
            dead_pid = 0 if seat.worker is None else seat.worker.pid
            ring(standby.inheritance.bell.fileno(), standby.worker.pid, dead_pid)
            return True
        return standby.has_taken_over

    def unseat(self, standby: Standby) -> None:
        """One that has taken over is not wanted: it is killed. What it has found is kept until then."""
        self._unseated[standby.seat.name] = standby
        self._forget(standby)
        if not standby.gone:
            self._processes.kill(standby.worker)

    def is_ending(self, seat: Seat) -> bool:
        """True while one that was unseated may still do something."""
        standby = self._unseated.get(seat.name)
        return standby is not None and not standby.gone and exit_of_the_leaving(standby.worker.pid) is None

    def await_end(self, seat: Seat) -> None:
        """Has who has taken over, if anybody has, out of the way when this returns; for once, by waiting."""
        until_ns = time.monotonic_ns() + END_WAIT_NS
        while self.is_ending(seat) and time.monotonic_ns() < until_ns:
            os.sched_yield()

    def bequest(self, seat: Seat) -> Bequest | None:
        """What the one has found who has taken over, be it that it serves or that it was unseated."""
        standby = self._unseated.get(seat.name) or self._by_name.get(seat.name)
        return standby.bequest() if standby is not None and standby.has_taken_over else None

    def suspects(self, seat: Seat) -> tuple[tuple[int, int, int], ...] | None:
        """The requests that it has found under way; ``None`` while nobody has touched them."""
        bequest = self.bequest(seat)
        return None if bequest is None else bequest.requests

    def settled(self, seat: Seat) -> None:
        """The death is judged: what the one that was unseated has found is of no use any more."""
        standby = self._unseated.pop(seat.name, None)
        if standby is not None:
            standby.close()

    def take_back_all(self) -> None:
        """Something is to be decided: from now on whoever has not taken over may not, until it is quiet."""
        for standby in self._open.values():
            self._take_back(standby)
            self.refresh_soon(standby.seat)
        self._open.clear()

    def dismiss(self, name: str) -> None:
        """A device needs no standby any more, or not for now."""
        self._asked.pop(name, None)
        self._lives.pop(name, None)
        standby = self._by_name.get(name)
        if standby is not None:
            if standby.take_back():
                self.unseat(standby)
            else:
                self._end(standby)

    def close(self) -> None:
        """Asks for no more; the processes end with all the others."""
        self._asked.clear()
        for standby in [*self._by_name.values(), *self._unseated.values()]:
            self._forget(standby)
            standby.close()
        self._unseated.clear()

    # -- keeping them up to date -----------------------------------------------------------------

    def _refresh(self) -> bool:
        until_ns = time.monotonic_ns() + SLICE_NS
        while self._asked and not self._reactor.is_deciding and time.monotonic_ns() < until_ns:
            seat = self._asked.pop(next(iter(self._asked)))
            if seat.ready:  # or it will say so when it is
                self._see_to(seat)
        return bool(self._asked)

    def _see_to_now(self, seat: Seat) -> None:
        """As soon as nobody else is in a hurry."""
        if self._processes.is_busy or self._reactor.is_deciding or not seat.ready:
            self.refresh_soon(seat)
        else:
            self._see_to(seat)

    def _see_to(self, seat: Seat) -> None:
        standby = self._by_name.get(seat.name)
        if seat.name in self._unseated or (standby is not None and standby.take_back()):
            return  # its predecessor's death is on the way to us
        if standby is not None and standby.brief is not None and standby.brief != self._brief(seat):
            self._end(standby)
            standby = None
        if standby is None:
            self._order(seat)
        elif standby.brief is None:
            if standby.worker.hello:
                self._tell(standby)
        elif standby.stands:
            self._give_the_word(standby)

    def _give_the_word(self, standby: Standby) -> None:
        seat, inheritance = standby.seat, standby.inheritance
        if inheritance is None or seat.worker is None:
            return
        may = self._may_succeed(seat)
        is_told = True
        if may and standby.worker.pidfd is not None:
            standby.summoned = False
            inheritance.succession.open()
            self._open[seat.name] = standby
            bell_fd, page_fd = inheritance.bell.fileno(), inheritance.page.fileno()
            is_told = self._name_heir(seat.worker, standby.worker, bell_fd, page_fd)
        if (may is False or not is_told) and not standby.waits:
            standby.waits = True
            self._reactor.call_at(time.monotonic_ns() + AGAIN_NS, lambda: self._look_again(standby))

    def _look_again(self, standby: Standby) -> None:
        standby.waits = False
        if self._by_name.get(standby.seat.name) is standby:
            self.refresh_soon(standby.seat)

    def _order(self, seat: Seat) -> None:
        if self._lives.get(seat.name, LIVES) == 0:
            return
        try:
            worker = self._processes.order(self)
        except EnvironmentFault:
            return  # no descriptors to spare: the next death is a spare's
        self._by_name[seat.name] = self._by_ticket[worker.ticket] = Standby(seat, worker)

    def _tell(self, standby: Standby) -> None:
        seat, brief = standby.seat, self._brief(standby.seat)
        if brief is None or seat.worker is None or seat.worker.pidfd is None:
            return  # the device is away itself: there will be a better moment
        message = SupervisorMessage(generation=brief.generation, assign=brief.assign)
        fds = [seat.handle.ledger.journal_fd, *brief.descriptors[1:]]
        with contextlib.suppress(NoTrueAtomics, OSError):  # then the supervisor has to say when
            standby.inheritance = inheritance = _Inheritance()
            message.assign.succession.pid = seat.worker.pid
            fds += [inheritance.page, inheritance.door, seat.worker.pidfd]
        try:
            standby.worker.tube.send_proto(message, fds, timeout=0, max_fds=MAX_FDS_KERNEL)
        except TubeError:  # it is dead, and that will be heard of
            return
        standby.brief = brief

    def _end(self, standby: Standby) -> None:
        self._forget(standby)
        standby.close()
        self._processes.kill(standby.worker)

    def _take_back(self, standby: Standby) -> bool:
        """See ``Standby.take_back``; if the death that it waited for has happened, it is our turn now."""
        if standby.take_back():
            return True
        if standby.seat.worker is not None:
            self._processes.hurry(standby.seat.worker)
        return False

    def _forget(self, standby: Standby) -> None:
        self._take_back(standby)
        self._by_ticket.pop(standby.worker.ticket, None)
        for known in (self._by_name, self._open):
            if known.get(standby.seat.name) is standby:
                del known[standby.seat.name]

    # -- Owner of the processes ------------------------------------------------------------------

    def on_forked(self, worker: WorkerProcess) -> None:
        """Its Hello is what counts."""

    def on_hello(self, worker: WorkerProcess) -> None:
        """It is there, and learns what it is for."""
        standby = self._by_ticket.get(worker.ticket)
        if standby is not None and standby.seat.ready:
            self._tell(standby)

    def on_message(
        self, worker: WorkerProcess, message: WorkerMessage, descriptors: list[Descriptor]
    ) -> None:
        """It stands by, or cannot, or has taken over already and speaks as the device."""
        standby = self._by_ticket.get(worker.ticket)
        body = message.WhichOneof("body")
        if standby is None:
            return  # it was not wanted any more
        if body == "standing_by" and not standby.stands and standby.brief is not None:
            standby.stands = True
            self._see_to_now(standby.seat)
        elif body == "failed" and not standby.stands:
            _log.warning("the standby of %s has failed: %s", standby.seat.name, message.failed.exception)
        elif standby.has_taken_over and len(standby.said) < MOST_SAID:
            standby.said.append((message, descriptors))
            waits = standby.seat.config.vhost_user is not None and not standby.has_queues
            self._on_succession(standby.seat, body != "ready" or waits)
        else:
            raise BrokenContract("a standby says what only a device may")

    def on_log(self, worker: WorkerProcess, data: bytes) -> None:
        """What it has to say of itself, or of its device already."""
        standby = self._by_ticket.get(worker.ticket)
        if standby is not None and standby.has_taken_over:
            standby.logged = (standby.logged + data)[-MOST_LOGGED_BYTES:]
            return
        name = "a device" if standby is None else standby.seat.name
        _log.warning("the standby of %s says: %s", name, data.decode(errors="replace").rstrip())

    def is_followed(self, worker: WorkerProcess) -> bool:
        """Nobody waits for its place."""
        return False

    def awaits_another(self, worker: WorkerProcess, wait_status: int | None) -> bool:
        """Nobody is in its place."""
        return False

    def on_gone(self, worker: WorkerProcess, wait_status: int | None) -> None:
        """It is dead itself: another one takes its place."""
        for unseated in self._unseated.values():
            unseated.gone |= unseated.worker is worker
        standby = self._by_ticket.get(worker.ticket)
        if standby is None:
            return  # it was not wanted any more
        if standby.has_taken_over:  # it has died as the device's process
            standby.gone, standby.wait_status = True, wait_status
            self._on_succession(standby.seat, True)
            return
        self._forget(standby)
        standby.close()
        name = standby.seat.name
        self._lives[name] = self._lives.get(name, LIVES) - 1
        if self._lives[name] == 0:
            _log.warning("%s: its standbys keep dying; it goes on without", name)
        self.refresh_soon(standby.seat)

    def on_fork_failed(self, worker: WorkerProcess, why: str) -> None:
        """It has never lived: the next one may."""
        self.on_gone(worker, None)
