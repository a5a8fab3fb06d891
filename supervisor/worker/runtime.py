"""The worker's loop: inputs from the journal, state back into it, control through the Tube.

One thread. It handles a batch of inputs, up to and with the first one that somebody waits for, and commits
them together (see ``committer``); then it looks for more, spins a little, and sleeps. A new worker commits
what it has restored, and so shows the last commit again, before it handles any input.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from supervisor.device import Ignore
from supervisor.errors import LocalError
from supervisor.memory.fence import FENCE
from supervisor.messages_pb2 import Attach, Failed, SupervisorMessage
from supervisor.tube import TubeError
from supervisor.worker import layout
from supervisor.worker.committer import Committer, unpack_state
from supervisor.worker.conversation import ControlTube, Conversation
from supervisor.worker.doorbell import answer_door
from supervisor.worker.glance import Glance
from supervisor.worker.journal import Journal, JournalCorrupt
from supervisor.worker.layout import (
    HEARTBEAT,
    SUBMITTED,
    WORKER_SLEEPS,
)
from supervisor.worker.records import Commit, Input, InputKind
from supervisor.worker.session import Session

if TYPE_CHECKING:
    from supervisor.worker.virtio import Attachment

__all__ = ["DeviceCrashed", "Runtime"]

ANSWERED = frozenset(map(int, (InputKind.READ, InputKind.WRITE, InputKind.CALL)))
BATCH_INPUTS = 64  # posted writes per commit: a commit costs as much as a few device calls
BATCH_NS = 5_000_000  # so that slow inputs are seen to move, and little is handled again after a death
SPIN_MIN_NS = 10_000  # a reply is often followed by a request
SPIN_MAX_NS = 200_000  # a few times what a wake-up costs
LOOK_AGAIN_S = 0.001  # store buffers are empty long before, and busy rings never wait so long
LOOKS_AT_TUBE = 256  # batches after which a busy worker looks whether the supervisor has spoken
Note = Callable[[list[tuple[int, int, int]]], None]


def _note_nothing(_requests: list[tuple[int, int, int]]) -> None:
    """The supervisor finds what is under way in the in-flight log itself."""


class DeviceCrashed(Exception):
    """The device raised; carries the phase and the number of the input for the last words."""

    def __init__(self, phase: Failed.Phase.ValueType, number: int = 0) -> None:
        super().__init__(phase, number)
        self.phase = phase
        self.number = number


class Runtime:
    """Runs one device. ``serve`` returns when the supervisor has asked to stop and all is committed."""

    def __init__(
        self,
        tube: ControlTube,
        generation: int,
        journal: Journal,
        *,
        door_fd: int,
        answer_fd: int,
        heartbeat_every_ns: int = 0,
    ) -> None:
        self._conversation = Conversation(tube, generation, self._take_down)
        self._committer = Committer(journal, answer_fd, self)
        self._timeout_s = heartbeat_every_ns / 2e9 if heartbeat_every_ns else None
        self._door_fd, self._answer_fd = door_fd, answer_fd
        self._epoll = select.epoll()
        self._epoll.register(door_fd, select.EPOLLIN)
        self._epoll.register(tube.fileno(), select.EPOLLIN)
        self._watched: dict[int, Callable[[], None]] = {}
        self.kept: set[int] = set()  # descriptors that the supervisor has, too
        self._handed: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._batch = 1
        self._spin_ns = SPIN_MIN_NS
        self._glance = Glance()
        self._looks_again = False  # at the rings, before it sleeps for long
        self._session: Session
        self._attachment: Attachment | None = None

    # -- coming to life --------------------------------------------------------------------------

    def adopt(self, session: Session, *, now_ns: int, fresh: bool) -> None:
        """Starts the device at guest time ``now_ns``, puts the committed state back, commits the result.

        ``fresh`` leaves the committed state unused. Raises :class:`DeviceCrashed` with the phase that failed,
        and :class:`~supervisor.device.Ignore` where the device does.
        """
        self._session = session
        committer = self._committer
        if len(session.words) > committer.journal.layout.register_words:
            self.ask_for_growth(output_bytes=0, state_bytes=0, register_words=len(session.words))
        commit = committer.journal.read_commit()
        try:
            session.start(now_ns)
        except Ignore:
            raise
        except Exception as error:
            raise DeviceCrashed(Failed.PHASE_START) from error
        if commit is not None:
            committer.go_on_from(commit)
            session.outputs.clear()  # said already, by the first process
            if not fresh:
                self._restore(commit)
        self._commit(committer.applied, Failed.PHASE_START)

    def _restore(self, commit: Commit) -> None:
        session = self._session
        try:
            if len(commit.registers) != 8 * len(session.words):
                words = len(commit.registers) // 8
                raise ValueError(f"{words} register words; the data sheet has {len(session.words)}")
            alarms, state = unpack_state(commit)
            session.words[:] = memoryview(commit.registers).cast("Q")
            session.irq_levels = commit.irq_levels
            session.alarms = alarms
            session.device.restore(state, commit.state_version)
        except Exception as error:
            raise DeviceCrashed(Failed.PHASE_RESTORE) from error

    # -- Loop, for the session -------------------------------------------------------------------

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        if fd not in self._watched:
            self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = handler

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def connect(self, name: str) -> Any:
        return self._conversation.connect(name)

    def hand_over(self, target_pid: int, fd: int) -> None:
        self._conversation.hand_over(target_pid, fd)

    def keep(self, name: str, fd: int | None) -> None:
        self._conversation.keep(name, fd)
        if fd is not None:
            self.kept.add(fd)

    def hold_lifeline(self) -> bool:
        """Has the kernel mark this worker's death in its journal; false where it cannot."""
        return self._committer.journal.hold_lifeline()

    # -- the loop --------------------------------------------------------------------------------

    def serve(self) -> None:
        """Handles inputs until the supervisor asks to stop and everything submitted is committed."""
        committer = self._committer
        batches = 0
        while True:
            if committer.words[SUBMITTED] != committer.applied:
                self._handle_batch()
                batches += 1
                if batches % LOOKS_AT_TUBE == 0:
                    self._conversation.hear(0)
            elif self._stopping:
                break
            elif self._handed:
                self._serve_descriptors([])
            elif self._attachment is not None and self._attachment.has_more:
                self._handle_watched(self._attachment.go_on)
                self._serve_descriptors(self._epoll.poll(0), watched=True)
            else:
                self._sleep()
        try:
            self._session.device.stop()
        except Exception as error:
            raise DeviceCrashed(Failed.PHASE_STOP) from error

    def close(self) -> None:
        """Gives memory and descriptors back, those that it was given too. After ``serve``."""
        self._epoll.close()
        if self._attachment is not None:
            self._attachment.close()
        self._committer.journal.close()
        for fd in (self._door_fd, self._answer_fd):
            os.close(fd)

    def _handle_batch(self) -> None:
        committer, session = self._committer, self._session
        take, number, submitted = committer.mailbox.take, committer.applied, committer.words[SUBMITTED]
        begun_ns = time.monotonic_ns() if submitted != number + 1 else 0
        # A young worker begins with one input a commit: if it is one that kills, it is known which.
        batch = self._batch
        if batch < BATCH_INPUTS:
            self._batch = 2 * batch
        for _ in range(batch):
            record = take(number)
            if record is None:
                record, number = self._take_payload(number)
            else:
                number += 1
            try:
                if session.alarms and session.next_alarm_ns <= record.stamp_ns:
                    self._fire_alarms(session, record)
                session.apply(record)
            except Exception as error:
                raise DeviceCrashed(Failed.PHASE_REQUEST, record.number) from error
            if number == submitted or record.kind in ANSWERED:
                break
            if time.monotonic_ns() - begun_ns > BATCH_NS:
                break
        self._commit(number, Failed.PHASE_REQUEST)
        if self._attachment is not None and self._attachment.shows_inputs:
            self._handle_watched(self._attachment.show_inputs)
            self._looks_again = True
            self._commit(number, Failed.PHASE_REQUEST)

    def _take_payload(self, number: int) -> tuple[Input, int]:
        """(Record ``number``, which has a payload, the number after it)."""
        record, after, out_of_line = self._committer.journal.get_input(number)
        if out_of_line:
            record = record._replace(payload=self._conversation.payload(number))
        return record, after

    def _commit(self, applied: int, phase: Failed.Phase.ValueType) -> None:
        try:
            self._committer.commit(self._session, applied)
        except (TubeError, JournalCorrupt):
            raise
        except Exception as error:
            raise DeviceCrashed(phase, applied) from error

    def _commit_meanwhile(self) -> None:
        """In the middle of what a watched descriptor has caused; never in that of an input."""
        self._commit(self._committer.applied, Failed.PHASE_REQUEST)

    def _fire_alarms(self, session: Session, record: Input) -> None:
        """Fires what is due before an input, and says so: an alarm that kills is not the input's fault."""
        committer = self._committer
        if committer.journal.drops_alarms(record.number):
            session.drop_alarms(record.stamp_ns)
            return
        committer.words[layout.HANDLING] = record.number + 1 | layout.FIRING
        session.fire_alarms(record)
        committer.words[layout.HANDLING] = record.number + 1

    def _sleep(self) -> None:
        """Waits for a doorbell, the Tube or a watched descriptor; the heart beats meanwhile."""
        words = self._committer.words
        words[HEARTBEAT] += 1
        applied, mailbox = self._committer.applied, self._committer.mailbox
        begun_ns = now_ns = time.monotonic_ns()
        while now_ns - begun_ns < self._spin_ns:
            if self._glance.sees(mailbox.await_submitted, applied + 1):
                return
            if self._watched and (ready := self._epoll.poll(0)):  # a guest's kick does not wait for the spin
                self._learn_to_spin(ready, 0)
                self._serve_descriptors(ready)
                return
            now_ns = time.monotonic_ns()
        words[WORKER_SLEEPS] = 1
        if FENCE is not None:
            with FENCE:
                pass
        # What was handed over while an input's payload was waited for makes no descriptor readable.
        awake = words[SUBMITTED] != applied or self._handed
        looks_again = self._looks_again
        ready = [] if awake else self._epoll.poll(LOOK_AGAIN_S if looks_again else self._timeout_s)
        words[WORKER_SLEEPS] = 0
        if ready or not looks_again:
            self._learn_to_spin(ready, time.monotonic_ns() - now_ns)
            self._serve_descriptors(ready)
        elif not awake:
            self._look_again()

    def _learn_to_spin(self, ready: list[tuple[int, int]], slept_ns: int) -> None:
        """As KVM polls before it halts: who was woken soon had better spun longer, who slept long less."""
        if any(fd in self._watched for fd, _mask in ready):
            self._spin_ns = 0  # a guest has better use for the core, and its kick needs no spin to be seen
        elif slept_ns < SPIN_MAX_NS:
            self._spin_ns = min(SPIN_MAX_NS, max(SPIN_MIN_NS, 2 * self._spin_ns))
        else:
            self._spin_ns = max(SPIN_MIN_NS, self._spin_ns // 2)

    def _look_again(self) -> None:
        """All has been quiet for a moment: it may be a kick or an interrupt that is missing."""
        self._looks_again = False
        if self._attachment is not None:
            self._handle_watched(self._look_at_rings)
            self._commit(self._committer.applied, Failed.PHASE_REQUEST)

    def _look_at_rings(self) -> None:
        assert self._attachment is not None  # noqa: S101 - the caller has looked
        self._looks_again = self._attachment.look_again()

    def _serve_descriptors(self, ready: list[tuple[int, int]], *, watched: bool = False) -> None:
        """``watched``: one has been served already, and its effects are to be committed."""
        for fd, _mask in ready:
            if fd == self._door_fd:
                self._answer_door()
            elif fd == self._conversation.fileno():
                self._conversation.hear(0)
            elif fd in self._watched:
                self._handle_watched(self._watched[fd])
                watched = True
        while self._handed:
            self._handle_watched(self._handed.popleft())
            watched = True
        if watched:
            self._looks_again = True
            self._commit(self._committer.applied, Failed.PHASE_REQUEST)

    def _answer_door(self) -> None:
        try:
            answer_door(self._door_fd)
        except LocalError as error:
            raise DeviceCrashed(Failed.PHASE_REQUEST) from error

    def _handle_watched(self, handler: Callable[[], None]) -> None:
        try:
            handler()
        except DeviceCrashed:  # of a commit that it has asked for
            raise
        except Exception as error:
            raise DeviceCrashed(Failed.PHASE_REQUEST) from error

    # -- Waiting, for the committer --------------------------------------------------------------

    def wait_for_bell(self) -> None:
        ready = [fd for fd, _mask in self._epoll.poll(self._timeout_s)]
        if self._door_fd in ready:
            self._answer_door()
        if self._conversation.fileno() in ready:
            self._conversation.hear(0)

    def ask_for_growth(self, *, output_bytes: int, state_bytes: int, register_words: int) -> None:
        grown = self._conversation.larger_journal(
            output_bytes=output_bytes, state_bytes=state_bytes, register_words=register_words
        )
        old = self._committer.journal
        self._committer.use(Journal.attach(grown.fileno()))
        old.close()

    # -- what nobody has asked for ---------------------------------------------------------------

    def _take_down(self, message: SupervisorMessage, descriptors: list[Any]) -> None:
        """Whatever it is, something else may be under way."""
        match message.WhichOneof("body"):
            case "stop":
                self._stopping = True
            case "attach":
                self._handed.append(lambda: self._map_and_attach(message.attach, descriptors))
            case "handed":
                from_pid = message.handed.from_pid
                self._handed.append(lambda: self._session.device.handed(descriptors[0], from_pid))
            case _:
                pass  # a newer supervisor's message: nothing that this worker knows to do

    def attach_when_ready(self, attachment: Attachment, attach: Attach) -> None:
        """Has the queues served before anything else that is waited for, but not before ``serve``."""
        self._handed.append(lambda: self._attach(attachment, attach))

    def attach_now(self, attachment: Attachment, attach: Attach, note: Note) -> None:
        """Has the queues served before the supervisor hears that the device is ready.

        ``note``: see ``Attachment.serve``.
        """
        self._handle_watched(lambda: self._attach(attachment, attach, note))
        self._looks_again = True
        self._commit(self._committer.applied, Failed.PHASE_REQUEST)

    def handle_what_waits(self) -> None:
        """The first batch of the inputs that the process before has left, if there are any."""
        if self._committer.words[SUBMITTED] != self._committer.applied:
            self._handle_batch()
            os.sched_yield()  # whoever waits for that may have no other core

    def _map_and_attach(self, attach: Attach, descriptors: list[Any]) -> None:
        """The device's driver has set its queues up."""
        from supervisor.worker.virtio import Attachment  # only where a device has queues

        if self._attachment is not None:
            raise LocalError("a worker serves one set-up of its queues")
        self._attach(Attachment(attach, descriptors), attach)

    def _attach(self, attachment: Attachment, attach: Attach, note: Note = _note_nothing) -> None:
        """The device's queues are there: serves them from now on."""
        device: Any = self._session.device
        self._attachment = attachment
        attachment.serve(device, attach, self.watch, self.unwatch, self._commit_meanwhile, note)

    @property
    def ring_positions(self) -> list[tuple[int, int]]:
        """(Index, next available entry) of each virtqueue; empty where there are none."""
        return [] if self._attachment is None else self._attachment.positions()
