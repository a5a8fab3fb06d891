"""The handle of a device in a worker: requests through the journal, plain registers straight from it.

A request is a record in the journal; whoever waits for it looks at one word (``PUBLISHED``), first spinning,
then in the reactor. The worker may die and be replaced meanwhile: the record stays where it is, and the
ledger settles what the dead one left.

Fast paths, all without a system call: a plain register, a counter, a latched capture, a posted write to a
worker that is awake. They hold as long as nothing is outstanding that could change the answer.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from supervisor.config import Mmio
from supervisor.datasheet import AccessTable, RegisterMap, evaluate_counter
from supervisor.device import NO_ALARM
from supervisor.errors import DeviceFault, DeviceGone
from supervisor.handle import ByteSink, Clock, DeviceHandle, IrqSink
from supervisor.ledger import SOMETHING, Ledger, Waiter
from supervisor.memory.fence import FENCE
from supervisor.worker.glance import LONGEST_NS, Glance
from supervisor.worker.journal import JournalCorrupt
from supervisor.worker.layout import (
    CONSUMED,
    IRQ_LEVELS,
    LIFELINE_WORD,
    NEXT_ALARM,
    OUTPUT_END,
    PUBLISHED,
    WANTED,
)
from supervisor.worker.lifeline import OWNER_DIED
from supervisor.worker.records import InputKind

__all__ = ["Overdue", "Port", "RemoteHandle"]

READ, WRITE, POSTED = map(int, (InputKind.READ, InputKind.WRITE, InputKind.POSTED))
ANY = 1  # commit at all, in WANTED
SPIN_NS = 150_000  # to wake a worker and hear its answer; sleeping as well would double that
OUTPUTS_HELD_BYTES = 1 << 20  # that the supervisor keeps for a sink that is not there yet
PART_EVERY_NS = 10_000_000  # it costs a few µs, and the other core may be wanted by somebody else
ROUNDS_TO_HEAR = 8  # of the reactor, at most: the first may be of what an earlier one has left
VALUE_BYTES = 8  # what a read is answered with
NEVER_LATCHED = (0, 0, -1)  # record, value, guest time


class Overdue(Enum):
    """What becomes of a request that is past its time."""

    KILLED = "its worker is being killed: the journal will say whether it has happened"
    STARTING = "its worker is on its way: the start has a deadline of its own"
    NOBODY = "there is no process: it can be given up at once"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What a handle needs of its surroundings."""

    pump: Callable[[int | None, Callable[[], bool]], None]
    """Runs the reactor once, for at most so many ns, or until it is enough."""
    overdue: Callable[[], Overdue]
    """Says that nothing has moved for too long; a worker that serves is killed for it."""
    corrupt: Callable[[JournalCorrupt], None]
    """Says that what the worker wrote into the journal cannot be."""
    call_at: Callable[[int, Callable[[], None]], object]
    """Calls back at a host time (ns)."""
    clock: Clock
    ready: Callable[[], bool] = lambda: True
    """True if the worker has been heard to be ready, which it says before it answers anything."""
    part: Callable[[], bool] = lambda: False
    """Moves the worker, which shares our core, to another; false if there is none."""
    died: Callable[[], None] = lambda: None
    """Says that the journal's mutex tells of the worker's death."""
    stir: Callable[[], None] = lambda: None
    """Says that ``dispatch`` has to look at this device."""


class RemoteHandle(DeviceHandle):
    """A device in a worker. ``ledger`` is its journal's; whoever runs the worker uses it too."""

    def __init__(
        self, name: str, mmio: Mmio | None, port: Port, *, request_timeout_ns: int, poison: int
    ) -> None:
        super().__init__(name, mmio, port.clock)
        self._port = port
        self._request_timeout_ns = request_timeout_ns
        self.ledger = Ledger(name, self._outputs, poison=poison, request_timeout_ns=request_timeout_ns)
        self._bind()
        self._glance = Glance(self._give_way)
        self._alarm_ns = NO_ALARM  # as it was when dispatch was last told to look
        self._parted_ns = 0  # when the worker was last moved off our core
        self._barrier = 0  # the number behind the last record that is not a capture
        self._outstanding = False  # something was submitted that is not known to be published
        self._full_at = 0  # the number at which the ring may be full
        self._watching_outstanding = False
        self._gone: DeviceGone | None = None
        self._map = RegisterMap((), 0)
        self._set_tables()

    # -- requests --------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        if size == 4:
            slot = self._plain.get(offset)
            if slot is not None:
                if self._outstanding:
                    self._settle()
                return self._registers[slot]
        if offset in self._timed:
            return self._read_timed(offset, size)
        return self._ask(offset, size)

    def _read_timed(self, offset: int, size: int) -> int:
        """A register whose value depends on guest time."""
        if offset in self._counters:
            slot, mask = self._counters[offset]
            self._settle_counters()
            return self._evaluate(slot, mask, self.clock()) & ((1 << (8 * size)) - 1)
        return self._read_captured(self._captured[offset]) if size == 4 else self._ask(offset, size)

    def _ask(self, offset: int, size: int) -> int:
        ledger = self.ledger
        if self._gone is not None or ledger.submitted >= self._full_at:
            number = self._submit(READ, offset, size, 0)
        else:
            number = ledger.put(READ, self.clock(), offset, size, 0)
            self._barrier = number + 1
            value = self._take_value(number)
            if value is not None:
                alarm_ns = self._words[NEXT_ALARM]
                if alarm_ns != self._alarm_ns:
                    self._alarm_ns = alarm_ns
                    self._port.stir()
                return value
            self._outstand()
        reply = self._answer(number)
        if len(reply) != VALUE_BYTES:
            raise self._disbelieve(f"a value of {len(reply)} bytes")
        return int.from_bytes(reply, "little")

    def _take_value(self, number: int) -> int | None:
        """The answer to read ``number``, if it comes at once and alone."""
        bell, glance = self.ledger.doorbell_fd, self._glance
        value = self._mailbox.take_value(number, glance.ns, bell)
        if value is None:
            self._give_way()
            value = self._mailbox.take_value(number, 0, bell)
            if value is not None:
                glance.learn(paid=False)
        elif glance.ns < LONGEST_NS:
            glance.learn(paid=True)
        return value

    def _give_way(self) -> None:
        """Lets the worker run: beside us where there is a core for it, else instead of us."""
        if self._mailbox.shares_core():
            now_ns = time.monotonic_ns()
            if now_ns - self._parted_ns > PART_EVERY_NS:
                self._parted_ns = now_ns
                if self._port.part():
                    return
        os.sched_yield()

    def write(self, offset: int, size: int, value: int) -> None:
        way = self._writes.get(offset)
        if way is None:
            self._answer(self._submit(WRITE, offset, size, value))
        elif way < 0:
            self._submit(POSTED, offset, size, value)
        else:
            self._capture(way, offset, size, value)

    def call_bytes(self, request: bytes) -> bytes:
        return self._answer(self._submit_payload(InputKind.CALL, request))

    def send(self, data: bytes) -> None:
        self._submit_payload(InputKind.RECEIVE, data)

    def deliver_alarm(self, at_ns: int) -> None:
        self._submit(InputKind.ALARM, 0, 0, 0, at_ns)

    def flush(self) -> None:
        self._settle()

    def submit(
        self,
        kind: InputKind,
        done: Waiter,
        *,
        offset: int = 0,
        size: int = 0,
        value: int = 0,
        payload: bytes = b"",
    ) -> None:
        """A request without waiting: ``done`` gets the reply's bytes, or the fault, from ``dispatch``."""
        if kind == InputKind.READ:
            done = self._checked(done)
        if self._gone is not None:
            raise self._gone
        slots = self.ledger.slots_for(payload)[0] if payload else 1
        if self.ledger.submitted + slots > self._full_at:
            self._make_room(slots)  # whose end wants nothing any more
        self._words[WANTED] = ANY  # before it is shown, or the worker may be faster
        if kind == InputKind.CALL:
            number = self._submit_payload(kind, payload)
        else:
            number = self._submit(kind, offset, size, value)
        self.ledger.waiters[number] = done

    def _checked(self, done: Waiter) -> Waiter:
        """``done`` for a read: what is no value never reaches it as one."""

        def checked(answer: bytes | DeviceFault) -> None:
            if isinstance(answer, bytes) and len(answer) != VALUE_BYTES:
                answer = self._disbelieve(f"a value of {len(answer)} bytes")
            done(answer)

        return checked

    def _disbelieve(self, what: str) -> DeviceGone:
        """What is in the journal cannot be: that is its device's end, and the request's."""
        error = JournalCorrupt(f"{self.name}: {what}")
        self._port.corrupt(error)
        gone = DeviceGone(f"{self.name}: corrupt journal: {what}")
        gone.__cause__ = error
        return gone

    # -- levels and time -------------------------------------------------------------------------

    @property
    def irq_levels(self) -> int:
        if self._outstanding:
            self._settle()
        return self._words[IRQ_LEVELS]

    @property
    def next_alarm_ns(self) -> int:
        if self._gone is not None:
            return NO_ALARM
        if self._outstanding:
            self._settle()
        return self._words[NEXT_ALARM]

    @property
    def published_alarm_ns(self) -> int:
        if self._gone is not None or self._words[PUBLISHED] != self.ledger.submitted:
            return NO_ALARM
        return self._words[NEXT_ALARM]

    # -- submitting ------------------------------------------------------------------------------

    def _submit(self, kind: int, offset: int, size: int, value: int, stamp_ns: int | None = None) -> int:
        """Appends a record; returns its number. Waits while the ring is full."""
        if self._gone is not None:
            raise self._gone
        ledger = self.ledger
        if ledger.submitted >= self._full_at:
            self._make_room(1)
        number = ledger.put(kind, self.clock() if stamp_ns is None else stamp_ns, offset, size, value)
        self._barrier = number + 1
        if not self._outstanding:
            self._outstand()
        return number

    def _outstand(self) -> None:
        self._outstanding = True
        self._port.stir()

    def _make_room(self, slots: int) -> None:
        """Waits until ``slots`` more have room in the ring, and notes for how long that will do."""
        ledger = self.ledger
        if ledger.lacks(slots) > self._words[PUBLISHED]:
            self._await(ledger.lacks(slots))
        self._full_at = min(self._words[PUBLISHED], ledger.submitted) + ledger.input_slots

    def _submit_payload(self, kind: int, payload: bytes) -> int:
        if not payload:
            return self._submit(kind, 0, 0, 0)
        if self._gone is not None:
            raise self._gone
        ledger = self.ledger
        slots, out_of_line = ledger.slots_for(payload)
        if ledger.submitted + slots > self._full_at:
            self._make_room(slots)
        number = ledger.put_payload(kind, self.clock(), payload, out_of_line=out_of_line)
        self._barrier = ledger.submitted
        if not self._outstanding:
            self._outstand()
        return number

    def _capture(self, way: int, offset: int, size: int, value: int) -> None:
        """Latches the counter at once, and lets the worker do the same when it gets there.

        A capture that would latch what the one before has latched, at the same guest time and with nothing
        but captures in between, is done already: a guest that waits by polling a timer costs one record a
        step of guest time, not one a look.
        """
        counter_slot, into_slot, mask = self._captures[way]
        now_ns = self.clock()
        number, _value, then_ns = self._latched.get(into_slot, NEVER_LATCHED)
        if then_ns == now_ns and number > self._barrier and self._gone is None:
            return
        self._settle_counters()
        barrier = self._barrier
        latched = self._evaluate(counter_slot, mask, now_ns)
        self._submit(InputKind.POSTED, offset, size, value, now_ns)
        self._barrier = barrier
        self._latched[into_slot] = (self.ledger.submitted, latched, now_ns)

    def _read_captured(self, slot: int) -> int:
        number, value, _then_ns = self._latched.get(slot, NEVER_LATCHED)
        if number > self._words[PUBLISHED] and number > self._barrier:
            return value
        if self._outstanding:
            self._settle()
        return self._registers[slot]

    def _evaluate(self, slot: int, mask: int, now_ns: int) -> int:
        base, since_ns, ticks, per_ns, narrowed = self._registers[slot : slot + 5]
        return evaluate_counter(base, since_ns, ticks, per_ns or 1, now_ns, mask & narrowed)

    # -- waiting ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Returns when everything submitted is published."""
        self._await(self.ledger.submitted)  # in which somebody else may have submitted more
        self._outstanding = self._words[PUBLISHED] != self.ledger.submitted

    def _settle_counters(self) -> None:
        if self._words[PUBLISHED] < self._barrier:
            self._await(self._barrier)

    def _answer(self, number: int) -> bytes:
        """Waits for the reply to record ``number``; raises the fault that it ended in."""
        ledger = self.ledger
        self._await(ledger.submitted, number)
        self.collect()
        if ledger.given_up and number in ledger.given_up:
            raise ledger.given_up.pop(number)
        reply = ledger.replies.pop(number, None)
        if reply is None:
            raise self._disbelieve(f"record {number} was applied without a reply")
        return reply

    def _await(self, published: int, number: int | None = None) -> None:
        """Returns once ``PUBLISHED`` is at ``published``, or the caller's record ``number`` is given up.

        When nothing has moved for ``request_timeout`` the worker is killed: then the journal says whether the
        record has happened.
        """
        if self._words[PUBLISHED] >= published:
            return  # as always where all has been given back
        begun_ns = now_ns = time.monotonic_ns()
        while now_ns - begun_ns < SPIN_NS:
            if self._glance.sees(self._mailbox.await_published, published):
                self._hear_ready()
                return
            if self._words[LIFELINE_WORD] & OWNER_DIED:
                self._port.died()  # in which its last words are heard: the journal may be another afterwards
                os.sched_yield()  # its successor shares our core, and goes first
            now_ns = time.monotonic_ns()
        deadline_ns = now_ns + self._request_timeout_ns
        moved_to = self._words[PUBLISHED]
        try:
            while not self._arrived(published) and number not in self.ledger.given_up:
                if self._gone is not None:
                    raise self._gone
                if self._words[PUBLISHED] > moved_to:
                    moved_to = self._words[PUBLISHED]
                    deadline_ns = time.monotonic_ns() + self._request_timeout_ns
                left_ns = deadline_ns - time.monotonic_ns()
                if left_ns <= 0:
                    self._time_out(number)
                    deadline_ns += self._request_timeout_ns
                    continue
                self._port.pump(left_ns, lambda: self._words[PUBLISHED] >= published)
                self.collect()  # or a worker that waits for room would wait for ever
        finally:
            self._words[WANTED] = ANY if self.ledger.waiters else 0
        self._hear_ready()

    def _hear_ready(self) -> None:
        """A successor says that it is ready before it answers: whoever has its answer has heard that too."""
        for _ in range(ROUNDS_TO_HEAR):
            if self._port.ready():
                return
            self._port.pump(0, self._port.ready)

    def _arrived(self, published: int) -> bool:
        """Asks to be rung for ``published``; true if that is not needed any more."""
        words = self._words
        words[WANTED] = ANY if self.ledger.waiters else published
        if FENCE is not None:
            with FENCE:
                pass
        return words[PUBLISHED] >= published

    def _time_out(self, number: int | None) -> None:
        ledger = self.ledger
        if ledger.overdue is not None:
            return  # it is being killed, and the kernel takes its time
        ledger.overdue = SOMETHING if number is None else number
        overdue = self._port.overdue()
        if overdue is Overdue.KILLED:
            return
        ledger.overdue = None
        if overdue is Overdue.STARTING:
            return
        if number is None:
            raise ledger.timeout_fault()
        self._give_up(number)

    def _give_up(self, number: int) -> None:
        """Record ``number`` has waited long enough for a process. No worker lives."""
        try:
            self.ledger.give_up(number, self.ledger.timeout_fault())
        except JournalCorrupt as error:
            self._port.corrupt(error)

    def _watch_outstanding(self) -> None:
        """Sees to it that a posted write on which the worker hangs is noticed though nobody waits."""
        published = self._words[PUBLISHED]
        if published == self.ledger.submitted or self._watching_outstanding or self._gone is not None:
            return
        if published > self.ledger.submitted:
            self._disbelieve(f"published {published} of {self.ledger.submitted}")
            return
        self._watching_outstanding = True
        at_ns = time.monotonic_ns() + self._request_timeout_ns
        self._port.call_at(at_ns, lambda: self._judge_outstanding(published))

    def _judge_outstanding(self, published_then: int) -> None:
        self._watching_outstanding = False
        ledger = self.ledger
        published = self._words[PUBLISHED]
        if published == published_then and published != ledger.submitted and ledger.overdue is None:
            self._judge_stuck()
        self._watch_outstanding()

    def _judge_stuck(self) -> None:
        """Nothing has moved for ``request_timeout`` and nobody waits in here: a posted write, or a waiter."""
        ledger = self.ledger
        if self._words[OUTPUT_END] != self._words[CONSUMED] and self._holds_enough():
            return  # its outputs are not taken: that is the host's doing, not the worker's
        ledger.overdue = SOMETHING
        overdue = self._port.overdue()
        if overdue is not Overdue.KILLED:
            ledger.overdue = None
        if overdue is Overdue.NOBODY:  # the policy has it waiting: who asked is told, what was posted stays
            for number in list(ledger.waiters):
                self._give_up(number)

    # -- what comes back -------------------------------------------------------------------------

    def on_output(self, sink: ByteSink | None) -> None:
        super().on_output(sink)
        self._port.stir()

    def on_irq(self, sink: IrqSink | None) -> None:
        super().on_irq(sink)
        self._port.stir()

    @property
    def rests(self) -> bool:
        words = self._words
        if self._gone is None:
            if words[PUBLISHED] != self.ledger.submitted:
                return False
            self._outstanding = False
            if words[WANTED] and not self.ledger.waiters:
                words[WANTED] = 0
        if words[CONSUMED] != words[OUTPUT_END] and not self._holds_enough():
            return False
        return not super().has_outputs

    def may_be_waited_for(self) -> bool:
        return self.rests or not self._arrived(self.ledger.submitted)

    @property
    def has_outputs(self) -> bool:
        self._watch_outstanding()
        if not self._holds_enough():
            self.collect()
        return super().has_outputs

    def deliver_outputs(self) -> bool:
        self._watch_outstanding()
        if not self._holds_enough():
            self.collect()
        delivered = super().deliver_outputs()
        if not self._outputs:
            self.ledger.outputs_bytes = 0
        return delivered

    def _holds_enough(self) -> bool:
        """True while so much waits for a sink that the rest is left in the ring, for the worker to wait."""
        return self.ledger.outputs_bytes > OUTPUTS_HELD_BYTES

    def collect(self) -> None:
        """Takes everything out of the output ring. A ring that cannot be is the worker's end."""
        if self._words[CONSUMED] == self._words[OUTPUT_END]:
            return
        try:
            self.ledger.collect()
        except JournalCorrupt as error:
            self._port.corrupt(error)

    # -- generations -----------------------------------------------------------------------------

    def set_map(self, register_map: RegisterMap) -> None:
        """The worker has said what its registers are."""
        if register_map != self._map:
            self._map = register_map
            self._set_tables()

    def grow(self, *, state_bytes: int, output_bytes: int, register_words: int) -> int:
        """Replaces the journal by a larger one; see :meth:`Ledger.grow`. Returns its descriptor."""
        old = self.ledger.journal
        fd = self.ledger.grow(
            state_bytes=state_bytes, output_bytes=output_bytes, register_words=register_words
        )
        self._bind()
        old.close()
        return fd

    def go(self, reason: str) -> None:
        """The device is stopped or given up: every request, waiting or to come, is told so.

        The first reason is kept: that all has stopped since explains nothing.
        """
        if self._gone is None:
            self._gone = DeviceGone(f"{self.name}: {reason}")
        self._set_tables()
        self._port.stir()
        with contextlib.suppress(JournalCorrupt):  # then there is nobody to handle anything either
            self.ledger.abandon(self._gone)

    def reconfigure(self, *, request_timeout_ns: int, poison: int) -> None:
        """Other limits from now on."""
        self._request_timeout_ns = request_timeout_ns
        self.ledger.reconfigure(request_timeout_ns=request_timeout_ns, poison=poison)

    def revive(self) -> None:
        """The device is started again after ``go``."""
        self._gone = None
        self._set_tables()
        self._port.stir()

    def close(self) -> None:
        """Gives the shared memory and the descriptors back."""
        self.go("the supervisor has stopped")
        self.ledger.close()
        self._words = self.ledger.words

    # -- tables ----------------------------------------------------------------------------------

    def _bind(self) -> None:
        self._mailbox = self.ledger.mailbox
        self._words = self.ledger.journal.words
        self._registers = self.ledger.journal.registers

    def _set_tables(self) -> None:
        """Compiles what can be answered here. A device that is gone answers nothing."""
        table = AccessTable(self._map if self._gone is None else RegisterMap((), 0))
        self._plain = table.plain
        self._captured = table.captured
        self._counters = table.counters
        self._timed = table.captured.keys() | table.counters.keys()
        self._writes = table.writes
        self._captures = table.captures
        self._latched: dict[int, tuple[int, int, int]] = {}
