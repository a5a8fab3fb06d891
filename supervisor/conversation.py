"""What the supervisor and a device's worker say to each other, from the assignment to the last words.

The worker is not trusted: what it says is checked for its generation and for sense, and what no worker of
ours would say breaks the contract. Nothing here waits: a worker whose queue is full does not read.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import msgspec

from supervisor import policy
from supervisor.datasheet import MOST_OFFSETS, RegisterMap, check_register_map
from supervisor.errors import LocalError
from supervisor.handle import Clock
from supervisor.launch.launcher import WorkerProcess
from supervisor.messages_pb2 import Attach, Failed, SupervisorMessage, WorkerMessage
from supervisor.placement import avoiding
from supervisor.policy.events import Hello, Ignored, Ready, Refused, Silent
from supervisor.processes import BrokenContract
from supervisor.reactor import Reactor
from supervisor.seat import MOST_KEPT, Seat, Surroundings
from supervisor.switchboard import Switchboard
from supervisor.tube import MAX_FDS_KERNEL, Descriptor, Disconnected, TubeSystemError, TubeTimeout
from supervisor.worker import layout
from supervisor.worker.journal import JournalCorrupt

__all__ = ["MOST_AHEAD", "Conversation"]

MOST_AHEAD = MAX_FDS_KERNEL - 3 - MOST_KEPT
"""Descriptors of queues that go with an assignment, beside the journal, its bells and what was kept."""

_HOPELESS = {
    Failed.PHASE_ASSIGN: "the worker cannot take its place",
    Failed.PHASE_IMPORT: "the class is not there",
    Failed.PHASE_OPTIONS: "the class refuses its options",
    Failed.PHASE_RESTORE: "the class refuses its state",
}
_log = logging.getLogger("tubevisor")
_decode_map = msgspec.msgpack.Decoder(RegisterMap).decode


class Conversation:
    """Talks to the workers of all seats.

    ``clock`` is guest time. ``on_ready`` is called when a device has begun to serve, with whether its worker
    holds the mutex in its journal; what it returns is why it cannot, if so. ``about_to_change`` is
    asked before the next process of a device would find something else than the present one has; false: the
    next one is there already, and it is too late for that. ``overtake`` has that one end. ``catch_up`` sees
    to it that the process that is known of a device is the one that serves.
    """

    def __init__(
        self,
        reactor: Reactor,
        clock: Clock,
        on_ready: Callable[[Seat, bool], str],
        about_to_change: Callable[[Seat], bool],
        overtake: Callable[[Seat], None],
        catch_up: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self.clock = clock
        self._ready = on_ready
        self._about_to_change = about_to_change
        self._overtake = overtake
        self._catch_up = catch_up
        self._switchboard = Switchboard()
        self.surroundings = Surroundings.here()

    def assign(self, seat: Seat, attach: Attach | None = None, descriptors: tuple[object, ...] = ()) -> None:
        """Makes the worker that sits in ``seat`` its device, with its queues if those are set up already."""
        ledger = seat.handle.ledger
        assign = seat.assignment(seat.child, self.surroundings)
        assign.begin.CopyFrom(seat.beginning(self.clock()))
        if attach is not None:
            assign.attach.CopyFrom(attach)
        message = SupervisorMessage(generation=seat.generation, assign=assign)
        held = ledger.journal_fd, ledger.door_fd, ledger.answer_fd
        self.has_begun(seat, stood_by=False)
        self._tell_to_begin(seat, message, (*held, *seat.kept.values(), *descriptors))

    def begin(self, seat: Seat) -> None:
        """Has the standby that sits in ``seat`` become its device."""
        message = SupervisorMessage(generation=seat.generation, begin=seat.beginning(self.clock()))
        self.has_begun(seat)
        self._tell_to_begin(seat, message)

    def _tell_to_begin(self, seat: Seat, message: SupervisorMessage, fds: tuple[object, ...] = ()) -> None:
        with avoiding(seat.left_core, 0 if seat.worker is None else seat.worker.pid):
            self._tell(seat, message, fds)
        if seat.stop_wanted:
            self.ask_to_stop(seat)

    def has_begun(self, seat: Seat, *, stood_by: bool = True) -> None:
        """The worker in ``seat`` becomes its device: it is told so, or has done it without."""
        self._reactor.post(Hello(seat.name, seat.generation))
        seat.assigned, seat.stood_by, seat.assigned_ns = True, stood_by, time.monotonic_ns()

    def ask_to_stop(self, seat: Seat) -> None:
        """The worker is to commit what is submitted, and to leave."""
        message = SupervisorMessage(generation=seat.generation)
        message.stop.SetInParent()
        self._switchboard.waits_no_longer(seat.name, "this one is to stop")
        self._tell(seat, message)

    def attach(self, seat: Seat, attach: Attach, descriptors: tuple[object, ...]) -> None:
        """Hands a virtio device the queues that its driver has set up."""
        if self._about_to_change(seat):
            self._tell(seat, SupervisorMessage(generation=seat.generation, attach=attach), descriptors)

    def hang_up(self, seat: Seat) -> None:
        """The worker is gone: other devices cannot reach it any more."""
        self._switchboard.unplug(seat.name)

    def stays_away(self, seat: Seat, why: str) -> None:
        """The device will not be there by itself."""
        self._switchboard.stays_away(seat.name, why)

    def hear(
        self, seat: Seat, worker: WorkerProcess, message: WorkerMessage, descriptors: list[Descriptor]
    ) -> None:
        """Takes in one message. Raises :class:`BrokenContract`."""
        body = message.WhichOneof("body")
        if message.generation != seat.generation:
            raise BrokenContract(f"{body} of generation {message.generation}, not {seat.generation}")
        match body:
            case "ready":
                self._on_ready(seat, worker, message)
            case "failed":
                seat.last_words = message.failed
                self._judge_failure(seat, message.failed)
            case "ignored":
                self._reactor.post(Ignored(seat.name, seat.generation))
            case "journal_full":
                self._grow(seat, message)
            case "want_payload":
                self._tell_payload(seat, message.want_payload.number)
            case "stopped":
                seat.ring_positions = {ring.index: ring.position for ring in message.stopped.rings}
            case "keep":
                self._keep(seat, message.keep.name, descriptors)
            case "duplicate":
                self._hand_over(seat, worker, message, descriptors)
            case "connect":
                self._introduce(seat, message.connect.peer)
            case _:
                raise BrokenContract(f"{seat.name} says something unknown")

    def _on_ready(self, seat: Seat, worker: WorkerProcess, message: WorkerMessage) -> None:
        if seat.ready:
            raise BrokenContract("ready a second time")
        try:
            register_map = _decode_map(message.ready.register_map_msgpack)
        except msgspec.DecodeError as error:
            raise BrokenContract(f"a register map that cannot be: {error}") from error
        try:
            check_register_map(register_map, capacity=len(seat.handle.ledger.journal.registers))
        except LocalError as error:
            raise BrokenContract(str(error)) from error
        seat.handle.set_map(register_map)
        seat.ready = True
        seat.note_start(message.ready)
        seat.start_fresh = False
        if message.ready.HasField("virtio"):
            seat.offer = message.ready.virtio
        seat.heartbeat = (seat.handle.ledger.words[layout.HEARTBEAT], time.monotonic_ns())
        tube = worker.tube
        self._switchboard.plug_in(
            seat.name,
            worker.pid,
            seat.generation,
            lambda message, fds: tube.send_proto_nowait(message, fds=fds),
        )
        timeline = seat.timeline(message.ready)
        if timeline is not None:
            seat.last_restart = timeline
            self._reactor.publish(timeline)
        why_not = self._ready(seat, message.ready.lifeline)
        if why_not:
            seat.refused, seat.ready = True, False
            self._reactor.post(Refused(seat.name, seat.generation, why_not))
        else:
            self._reactor.post(Ready(seat.name, seat.generation))

    def _judge_failure(self, seat: Seat, failed: Failed) -> None:
        """A class, options or a state that the device refuses will be refused again: no restart helps."""
        phase = failed.phase
        if phase == Failed.PHASE_RESTORE and seat.config.on_bad_state == "fresh":
            seat.start_fresh = True
            return
        if phase in _HOPELESS:
            seat.refused = True
            why = f"{_HOPELESS[phase]}: {failed.exception}"
            self._reactor.post(Refused(seat.name, seat.generation, why))

    def _keep(self, seat: Seat, name: str, descriptors: list[Descriptor]) -> None:
        if not self._about_to_change(seat):
            self._overtake(seat)
        if len(descriptors) > 1 or not seat.keep(name, descriptors[0] if descriptors else None):
            raise BrokenContract(f"{seat.name} has too many descriptors kept, or too long names")

    def _grow(self, seat: Seat, message: WorkerMessage) -> None:
        if not self._about_to_change(seat):
            return
        full = message.journal_full
        if full.register_words > MOST_OFFSETS:
            raise BrokenContract(f"{full.register_words} words of registers; the limit is {MOST_OFFSETS}")
        try:
            fd = seat.handle.grow(
                state_bytes=full.state_bytes,
                output_bytes=full.output_bytes,
                register_words=full.register_words,
            )
        except (JournalCorrupt, OSError) as error:
            raise BrokenContract(str(error)) from error
        answer = SupervisorMessage(generation=seat.generation)
        answer.journal_grown.journal_bytes = os.fstat(fd).st_size
        self._tell(seat, answer, (fd,))

    def _tell_payload(self, seat: Seat, number: int) -> None:
        answer = SupervisorMessage(generation=seat.generation)
        answer.payload.number = number
        try:
            answer.payload.data = seat.handle.ledger.payload_of(number)
        except JournalCorrupt as error:
            raise BrokenContract(str(error)) from error
        self._tell(seat, answer)

    def _introduce(self, seat: Seat, peer: str) -> None:
        def answer(error: str, ends: tuple[object, ...]) -> None:
            message = SupervisorMessage(generation=seat.generation)
            message.connected.peer = peer
            message.connected.error = error
            self._tell(seat, message, ends)

        self._catch_up(peer)
        may_wait = seat.ready and not seat.stop_wanted  # in its start it may be what the other one waits for
        self._switchboard.connect(seat.name, peer, answer, waits=may_wait and self._comes_back(peer))

    def _comes_back(self, name: str) -> bool:
        tree = self._reactor.state
        return tree.knows(name) and name not in tree.nodes and policy.is_wanted(tree, name)

    def _hand_over(
        self, seat: Seat, worker: WorkerProcess, message: WorkerMessage, descriptors: list[Descriptor]
    ) -> None:
        asked = message.duplicate
        if len(descriptors) != 1:
            raise BrokenContract(f"hands over {len(descriptors)} descriptors at once")
        answer = SupervisorMessage(generation=seat.generation)
        answer.duplicated.request = asked.request
        answer.duplicated.error = self._switchboard.hand_over(
            asked.request, worker.pid, asked.target_pid, descriptors[0]
        )
        self._tell(seat, answer)

    def _tell(self, seat: Seat, message: SupervisorMessage, fds: tuple[object, ...] = ()) -> None:
        """Sends without waiting: a worker whose queue is full does not read, and is killed for it."""
        worker = seat.worker
        if worker is None or worker.mute:
            return
        try:
            worker.tube.send_proto(message, fds, timeout=0, max_fds=MAX_FDS_KERNEL)
        except Disconnected:
            pass  # its death is on the way
        except TubeTimeout:
            self._reactor.post(Silent(seat.name, seat.generation))
        except TubeSystemError as error:  # what it waits for will never come: the next one may have it
            _log.warning("%s cannot be told anything: %s: %s", seat.name, error, error.__cause__)
            worker.kill()
