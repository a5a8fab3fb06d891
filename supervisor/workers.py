"""Devices on processes: the reactor's executor.

For each device there is a seat. A worker that has said Hello is assigned the seat's device, says Ready, and
is watched from then on. When its process is gone, the ledger settles what it committed before the policy
learns of the death and can spawn a successor.
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial

from supervisor import policy
from supervisor.agenda import Agenda
from supervisor.config import Config, DeviceConfig
from supervisor.conversation import MOST_AHEAD, Conversation
from supervisor.errors import EnvironmentFault, TubevisorError
from supervisor.handle import Clock, DeviceFacts, DeviceHandle
from supervisor.heartbeats import Heartbeats
from supervisor.keepers import Keepers
from supervisor.launch.launcher import WorkerProcess
from supervisor.messages_pb2 import WorkerMessage
from supervisor.placement import keep_off_our_core, push_off_our_core
from supervisor.policy import Restart
from supervisor.policy.events import (
    Forked,
    Gone,
    Refused,
    Silent,
    SpawnFailed,
)
from supervisor.policy.records import (
    DeviceDied,
    DeviceFailed,
    DeviceStopped,
    GaveUp,
    GroupEnded,
    GroupFailed,
    GroupStopped,
    Record,
    SupervisorStopped,
)
from supervisor.processes import BrokenContract, Processes
from supervisor.reactor import Reactor
from supervisor.remote import Overdue, Port, RemoteHandle
from supervisor.seat import InputGivenUp, Seat, exit_reason
from supervisor.standbys import Brief, Queues, Standby, Standbys
from supervisor.successions import Successions
from supervisor.tube import Descriptor, TubeError
from supervisor.witness import Witness
from supervisor.worker.journal import JournalCorrupt
from supervisor.worker.succession import Bequest

__all__ = ["Workers"]

ONE_BY_ONE_NS = 10_000_000  # between deaths; with many at once every core is wanted for all of it
OF_A_SUCCESSION = 3  # descriptors
_EDGE = select.EPOLLIN | select.EPOLLET  # a bell that is never read: each ring is one wake-up
_log = logging.getLogger("tubevisor")


class Workers:
    """All devices of a configuration as processes."""

    def __init__(self, config: Config, reactor: Reactor, clock: Clock, agenda: Agenda) -> None:
        self._reactor = reactor
        self._agenda = agenda
        self._clock = clock
        self._seats: dict[str, Seat] = {}
        self._by_ticket: dict[int, Seat] = {}
        self.processes = Processes(reactor, _preload(config))
        self._successions = Successions(
            reactor, self.processes, lambda seat: self._keepers.is_blameless(seat)
        )
        self._successions.standbys = self._standbys = Standbys(
            reactor,
            self.processes,
            brief=self._brief,
            may_succeed=self._successions.may_succeed,
            on_succession=self._successions.on_succession,
            name_heir=lambda *heir: self._witness.name_heir(*heir),
        )
        self._conversation = Conversation(
            reactor,
            clock,
            self._on_ready,
            self._standbys.about_to_change,
            self._standbys.overtake,
            self._catch_up,
        )
        self._witness = Witness(reactor, self.processes)
        self._heartbeats = Heartbeats(reactor)
        self._departed: list[RemoteHandle] = []
        self._killed_ns = self._gone_ns = 0  # when one was last killed from here, and when one was last gone
        self._keepers = Keepers(reactor, config.directory, self._conversation.attach, self.processes.kill)
        self.on_forget: Callable[[DeviceHandle, str], None] = lambda _handle, _why: None
        try:
            for device in config.devices:
                self._seats[device.name] = self._make_seat(device)
        except OSError as error:
            self.close()
            reactor.close()  # nobody closes a supervisor that could not be built
            raise EnvironmentFault(f"{device.name}: there is no room for its journal") from error
        self.handles: Mapping[str, RemoteHandle] = self._by_name()

    def _make_seat(self, device: DeviceConfig) -> Seat:
        """A place for a device. Its handle keeps to it: a successor of the same name is another device."""
        port = Port(
            pump=self._reactor.poll,
            overdue=lambda: self._overdue(seat),
            corrupt=lambda error: self._corrupt(seat, error),
            call_at=self._reactor.call_at,
            clock=self._clock,
            part=lambda: seat.worker is not None and seat.ready and push_off_our_core(seat.worker.pid),
            died=lambda: self._died(seat),
            stir=lambda: self._agenda.stir(handle),
            ready=lambda: seat.ready,
        )
        handle = RemoteHandle(
            device.name,
            device.mmio,
            port,
            request_timeout_ns=device.request_timeout_ns,
            poison=device.poison,
        )
        handle.ask_facts = partial(self.facts, device.name)
        agenda = self._agenda
        agenda.stir(handle)
        seat = Seat(device, handle, device.child)
        try:
            self._reactor.watch(handle.ledger.answer_fd, lambda _mask: agenda.stir(handle), _EDGE)
        except OSError:
            handle.close()
            agenda.forget(handle)
            raise
        return seat

    def use_clock(self, clock: Clock) -> None:
        """Guest time, for processes and devices to come."""
        self._clock = self._conversation.clock = clock
        self._standbys.take_back_all()  # who takes over by itself has been told whose time it is

    def _by_name(self) -> dict[str, RemoteHandle]:
        """``handles`` is replaced, never changed: somebody may be going through it."""
        return {name: seat.handle for name, seat in self._seats.items()}

    # -- devices that come and go ----------------------------------------------------------------

    def add(self, device: DeviceConfig) -> RemoteHandle:
        """A place for one more, before the policy is told of it. Raises ``OSError`` where there is none."""
        seat = self._seats[device.name] = self._make_seat(device)
        self.handles = self._by_name()
        return seat.handle

    def replace(self, device: DeviceConfig) -> None:
        """Another configuration for a device: the limits of requests count at once, the rest from its next
        process on."""
        seat = self._seats[device.name]
        seat.config = device
        seat.handle.mmio = device.mmio
        seat.handle.reconfigure(request_timeout_ns=device.request_timeout_ns, poison=device.poison)
        if device.standby:
            self._standbys.refresh_soon(seat)
        else:
            self._standbys.dismiss(device.name)

    def forget(self, name: str, restarts: int, why: str = "") -> None:
        seat = self._seats.pop(name)
        self.handles = self._by_name()
        facts = DeviceFacts("removed", None, seat.generation, restarts, seat.last_exit)
        seat.handle.ask_facts = lambda: facts
        seat.refused = True  # nothing is said of it any more
        self._dismiss_standby(seat)
        seat.handle.go(why or "the device was removed")
        self._conversation.stays_away(seat, why or "it was removed")
        seat.keep_nothing()
        self._reactor.unwatch(seat.handle.ledger.answer_fd)
        self._keepers.forget(name)
        self._departed.append(seat.handle)
        self.on_forget(seat.handle, why)

    def see_off(self) -> None:
        """Delivers what removed devices still had to say, and gives their journals back.

        Not where a device is forgotten: that may be in the middle of a request of its own.
        """
        while self._departed:
            handle = self._departed.pop()
            handle.deliver_outputs()
            handle.close()
            self._agenda.forget(handle)

    # -- what others ask -------------------------------------------------------------------------

    def seat(self, name: str) -> Seat:
        """The device's seat, to look at."""
        return self._seats[name]

    def facts(self, name: str) -> DeviceFacts:
        """What is known of a device just now."""
        seat = self._seats[name]
        self._successions.catch_up(seat)
        if self._seats.get(name) is not seat:
            return seat.handle.ask_facts()  # by what was known and not yet decided upon it has been removed
        child = policy.child(self._reactor.state, name)
        pid = self._standbys.pid_of(name) if self._standbys.has_successor(seat) else None
        if pid is None and seat.worker is not None:
            pid = seat.worker.pid or None
        return DeviceFacts(
            child.state.value,
            pid,
            child.generation,
            child.restarts,
            seat.last_exit,
            self._keepers.facts(seat),
            seat.last_restart,
            self._standbys.pid_of(name),
        )

    def send_signal(self, name: str, number: int, *, charged: bool) -> int | None:
        """Sends a signal to the worker that serves; returns its pid, or ``None`` where none does."""
        seat = self._seats[name]
        self._successions.catch_up(seat)
        worker = seat.worker
        if worker is not None and not seat.ready:
            self.processes.hear(worker)  # that it is ready may be news to us, though it has answered
        serves = seat.ready or self._successions.is_young(seat)
        if worker is None or worker.pidfd is None or not serves or self._standbys.has_successor(seat):
            return None
        seat.uncharged |= not charged
        if number == signal.SIGKILL:
            before_ns, self._killed_ns = self._killed_ns, time.monotonic_ns()
            seat.killed_ns = self._killed_ns
            if self._killed_ns - before_ns > ONE_BY_ONE_NS:
                keep_off_our_core(worker.pid)
        try:
            signal.pidfd_send_signal(worker.pidfd.fileno(), number)
        except ProcessLookupError:
            return None
        return worker.pid

    # -- Executor --------------------------------------------------------------------------------

    def spawn(self, name: str, generation: int) -> None:
        seat = self._seats[name]
        seat.prepare(generation)
        successor = self._standbys.successor(seat)
        if successor is not None:
            self._adopt(seat, successor)
            return
        if self._standbys.stands(seat) and self._begin(seat):
            return
        try:
            worker = self.processes.take(self)
        except EnvironmentFault as error:
            self._reactor.post(SpawnFailed(name, generation, f"{error}: {error.__cause__}"))
            return
        self._sit_down(seat, worker)
        if worker.hello:
            self._assign(seat)

    def _sit_down(self, seat: Seat, worker: WorkerProcess) -> None:
        seat.worker = worker
        self._by_ticket[worker.ticket] = seat
        if worker.pidfd is not None:
            self._reactor.post(Forked(seat.name, seat.generation))

    def _begin(self, seat: Seat) -> bool:
        """Has the device's standby take its place; false if what it has been told is overtaken."""
        queues = self._keepers.queues_ahead(seat, MOST_AHEAD, stands_by=True)
        brief = self._brief_of(seat, seat.generation, queues)
        worker = self._standbys.take(seat, brief)
        if worker is None:
            return False
        self.processes.hand_on(worker, self)
        self._sit_down(seat, worker)
        self._conversation.begin(seat)
        if queues is not None:
            self._keepers.given_ahead(seat)
        return True

    def _brief(self, seat: Seat) -> Brief | None:
        """What the next process of a device that serves is to know."""
        if not seat.ready or seat.stop_wanted:
            return None
        queues = self._keepers.queues_ahead(seat, MOST_AHEAD - OF_A_SUCCESSION, stands_by=True)
        return self._brief_of(seat, seat.generation + 1, queues)

    def _brief_of(self, seat: Seat, generation: int, queues: Queues | None) -> Brief:
        machine_time = self._clock is not time.monotonic_ns
        surroundings = self._conversation.surroundings
        return Brief.of(seat, generation, surroundings, queues, machine_time=machine_time)

    # -- standbys that take over by themselves ---------------------------------------------------

    def about_to_decide(self) -> None:
        self._standbys.take_back_all()

    def _catch_up(self, name: str) -> None:
        if name in self._seats:
            self._successions.catch_up(self._seats[name])

    def _adopt(self, seat: Seat, successor: Standby) -> None:
        """What has taken over is the device's process from now on; what it has said since is heard."""
        worker = successor.worker
        self._successions.adopt(seat, successor)
        self._sit_down(seat, worker)
        self._conversation.has_begun(seat)
        if successor.gone:
            for message, descriptors in successor.said:
                with contextlib.suppress(BrokenContract, TubeError):  # it has got what it would get for that
                    self._conversation.hear(seat, worker, message, descriptors)
            self.on_gone(worker, successor.wait_status)
        else:
            self.processes.hand_on(worker, self)
            self.processes.hear_again(worker, successor.said)
        _pass_on(seat, seat.log.feed(successor.logged))

    def _dismiss_standby(self, seat: Seat) -> None:
        """Nobody is to take the device's place any more, and who has done so is dead when this returns."""
        successor = self._standbys.successor(seat)
        self._standbys.dismiss(seat.name)
        if successor is not None:  # which is nearly always seen to when its predecessor's death is
            self._standbys.await_end(seat)
            self._settle(seat, charged=False)
            self._keepers.worker_gone(seat, charged=False, looked=True, suspects=lambda: None)
            self._standbys.settled(seat)

    def ask_stop(self, name: str, generation: int) -> None:
        seat = self._seats[name]
        if seat.generation != generation or seat.worker is None:
            return
        seat.stop_wanted = True
        if seat.assigned:
            self._conversation.ask_to_stop(seat)
        else:
            self.processes.kill(seat.worker)  # it has no device yet: nothing to drain

    def kill(self, name: str, generation: int, why: str) -> None:
        seat = self._seats[name]
        if seat.generation != generation:
            return
        if seat.worker is not None:
            self.processes.kill(seat.worker)
        elif not seat.ended:  # whatever the policy believes: there is nobody to wait for
            seat.ended = True
            self._reactor.post(Gone(name, generation, exit_reason(None)))

    def published(self, record: Record) -> None:
        match record:
            case GaveUp():
                self._let_go(record.culprit, "its restart budget is spent")
            case SupervisorStopped():
                for seat in self._seats.values():
                    self._dismiss_standby(seat)
                    seat.handle.go("the supervisor has stopped")
                    seat.keep_nothing()
            case DeviceFailed():
                self._let_go(record.name, record.why)
            case DeviceDied():
                if self._seats[record.name].child.restart is Restart.TEMPORARY:
                    self._let_go(record.name, f"it {record.exit}, and is temporary")
            case DeviceStopped():
                self._let_go(record.name, "the device is stopped")
            case GroupFailed() | GroupStopped() | GroupEnded():
                self._let_go(record.name, "")

    def _let_go(self, name: str, reason: str) -> None:
        """A device, or all of a group, is gone for its users; not while it may come back by itself."""
        tree = self._reactor.state
        if not tree.knows(name) or policy.is_wanted(tree, name):
            return
        top = policy.went_down_with(tree, name)
        if top in tree.nodes:
            outcome = tree.nodes[top].outcome
            ended = f"has ended: {outcome.why}" if outcome is not None and outcome.why else "is stopped"
            reason = f"group {top!r} {policy.child(tree, top).why or ended}"
        for device in policy.devices_in(tree, name) if name in tree.nodes else (name,):
            self._dismiss_standby(self._seats[device])
            self._seats[device].handle.go(reason)
            self._conversation.stays_away(self._seats[device], reason)
            self._seats[device].keep_nothing()
            self._keepers.worker_stays_away(device)

    # -- Owner of the processes ------------------------------------------------------------------

    def on_forked(self, worker: WorkerProcess) -> None:
        seat = self._by_ticket[worker.ticket]
        self._reactor.post(Forked(seat.name, seat.generation))

    def on_hello(self, worker: WorkerProcess) -> None:
        self._assign(self._by_ticket[worker.ticket])

    def _assign(self, seat: Seat) -> None:
        ahead = self._keepers.queues_ahead(seat, MOST_AHEAD)
        self._conversation.assign(seat, *(ahead or (None, ())))
        if ahead is not None:
            self._keepers.given_ahead(seat)

    def on_message(
        self, worker: WorkerProcess, message: WorkerMessage, descriptors: list[Descriptor]
    ) -> None:
        self._conversation.hear(self._by_ticket[worker.ticket], worker, message, descriptors)

    def on_log(self, worker: WorkerProcess, data: bytes) -> None:
        seat = self._by_ticket[worker.ticket]
        _pass_on(seat, seat.log.feed(data))

    def on_fork_failed(self, worker: WorkerProcess, why: str) -> None:
        seat = self._leave(worker)
        self._settle(seat, charged=False)
        self._reactor.post(SpawnFailed(seat.name, seat.generation, why))

    def is_followed(self, worker: WorkerProcess) -> bool:
        return self._standbys.summon(self._by_ticket[worker.ticket], again=True)

    def awaits_another(self, worker: WorkerProcess, wait_status: int | None) -> bool:
        return self._successions.awaits_another(self._by_ticket[worker.ticket], worker, wait_status)

    def on_gone(self, worker: WorkerProcess, wait_status: int | None) -> None:
        self._witness.forget(worker)
        seat = self._leave(worker)
        seat.ended = True
        _pass_on(seat, seat.log.finish())
        ended, charged = exit_reason(wait_status), self._successions.is_charged(seat, worker)
        seat.last_exit = str(ended)
        if seat.last_words is not None:
            seat.last_exit = f"{seat.last_exit}: {seat.last_words.exception}"
        if worker.broke:
            seat.last_exit = f"{seat.last_exit}: it {worker.broke}"
        successor = self._standbys.successor(seat)
        bequest = self._standbys.bequest(seat)
        self._settle(seat, charged=charged, bequest=bequest, succeeded=successor is not None)
        before_ns, self._gone_ns = self._gone_ns, time.monotonic_ns()
        now_ns = self._gone_ns
        seat.left_core = worker.left_core if now_ns - before_ns > ONE_BY_ONE_NS else None
        seat.noticed_ns, seat.settled_ns = worker.noticed_ns or now_ns, now_ns
        report = seat.crash_report(ended, worker.broke, time.monotonic_ns())
        if report is not None:
            self._reactor.publish(report)
        looked = self._successions.has_looked(seat)
        suspects = partial(self._standbys.suspects, seat)
        self._keepers.worker_gone(seat, charged=charged, looked=looked, suspects=suspects)
        self._standbys.settled(seat)
        if successor is not None and successor.has_queues:
            self._keepers.given_ahead(seat)  # it serves already, whatever a VMM asks before it is adopted
        self._reactor.post(Gone(seat.name, seat.generation, ended, charged))

    def _on_ready(self, seat: Seat, lifeline: bool) -> str:
        """A worker has said Ready; returns why its device cannot serve all the same, if so."""
        self._successions.has_looked(seat)  # and whatever it does from now on is done as the device's
        if seat.worker is not None and lifeline:
            seat.worker.exclusive = False
            self._witness.watch(seat.worker, seat.handle.ledger)
        try:
            self._keepers.worker_ready(seat)
        except TubevisorError as error:
            return f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        self._heartbeats.watch(seat)
        self.processes.refill_soon()
        self._standbys.begin_anew(seat)
        return ""

    def _leave(self, worker: WorkerProcess) -> Seat:
        seat = self._by_ticket.pop(worker.ticket)
        self._conversation.hang_up(seat)
        seat.leave()
        return seat

    def _settle(
        self, seat: Seat, *, charged: bool, bequest: Bequest | None = None, succeeded: bool = False
    ) -> None:
        """``bequest`` is what another one has found who came after the worker that is gone; it serves if it
        has ``succeeded``, and has been put out of the way if not."""
        self._agenda.stir(seat.handle)
        ledger = seat.handle.ledger
        try:
            if succeeded and bequest is not None:
                ledger.settle_succession(bequest.applied, bequest.handling, charged=charged)
                return
            handling = None if bequest is None else bequest.handling
            for fault in ledger.settle_dead(charged=charged, handling=handling):
                self._reactor.publish(InputGivenUp(seat.name, str(fault), at_ns=time.monotonic_ns()))
        except JournalCorrupt as error:
            self._corrupt(seat, error)

    # -- judging ---------------------------------------------------------------------------------

    def _overdue(self, seat: Seat) -> Overdue:
        if self._standbys.successor(seat) is not None:
            return Overdue.STARTING
        if seat.worker is None:
            return Overdue.NOBODY
        if seat.stop_wanted:  # the policy would grant it its stop_timeout; who waits has waited enough
            self.processes.kill(seat.worker)
            return Overdue.KILLED
        if not seat.ready:
            return Overdue.STARTING
        self._reactor.post(Silent(seat.name, seat.generation))
        return Overdue.KILLED

    def _died(self, seat: Seat) -> None:
        """Whoever waits for an answer has seen it before the witness could."""
        worker = seat.worker
        if worker is not None and seat.ready and not worker.exclusive and not self._standbys.summon(seat):
            self.processes.on_witnessed(worker.ticket)
            self._reactor.step()

    def _corrupt(self, seat: Seat, error: JournalCorrupt) -> None:
        self._standbys.successor(seat)  # if there is none yet, there will be none
        if not seat.refused:
            seat.refused = True
            _log.error("corrupt journal: %s", error)
            self._reactor.post(Refused(seat.name, seat.generation, f"corrupt journal: {error}"))
        if seat.worker is not None:
            self.processes.kill(seat.worker)

    def close(self) -> None:
        """Ends every process that is left, and gives descriptors and memory back."""
        self._keepers.close()
        self._witness.close()
        self._standbys.close()
        self._successions.close()
        self.processes.close()
        self.see_off()
        for seat in self._seats.values():
            self._reactor.unwatch(seat.handle.ledger.answer_fd)
            seat.handle.close()
            seat.keep_nothing()


def _preload(config: Config) -> list[str]:
    """Modules that the zygote imports: what the user names, and built-in devices, which are ours.

    With virtio devices also what attaches queues: a worker that imported it itself would keep its guest
    waiting for 20 ms at each restart.
    """
    built_in = {
        device.device_class.partition(":")[0]
        for device in config.devices
        if device.device_class.startswith("devices.")
    }
    if any(device.vhost_user is not None for device in config.devices):
        built_in.add("supervisor.worker.virtio_rehearsal")  # and with it what attaches queues
    return [*config.supervisor.preload, *sorted(built_in)]


def _pass_on(seat: Seat, lines: list[tuple[int, str]]) -> None:
    """What a device has logged goes to the logger that bears its name."""
    logger = logging.getLogger(f"tubevisor.device.{seat.name}")
    for level, text in lines:
        logger.log(level, "%s", text)
