"""The handle of a device in a worker: requests through the journal, plain registers straight from it.

A request is a record in the journal; whoever waits for it looks at one word (``PUBLISHED``), first spinning,
then in the reactor. The worker may die and be replaced meanwhile: the record stays where it is. What a dead
worker committed but did not publish is published here, while no worker lives; what it did not commit is left
for the next one, unless it is this record that keeps killing workers (poison) or that one was stuck in.

Fast paths, all without a system call: a plain register, a counter, a latched capture, a posted write to a
worker that is awake. They hold as long as nothing is outstanding that could change the answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from supervisor.config import Mmio
from supervisor.device import NO_ALARM
from supervisor.errors import DeviceError, DeviceFault, DeviceGone, LocalError, RequestTimeout
from supervisor.handle import Clock, DeviceHandle
from supervisor.memory.fence import FENCE
from supervisor.registers import Access, RegisterMap, evaluate_counter
from supervisor.worker import journal as layout
from supervisor.worker.journal import INPUT, INPUT_BYTES, JournalCorrupt, Layout, create_journal
from supervisor.worker.records import Input, InputKind, OutputKind

__all__ = ["Port", "RemoteHandle"]

_KIND_NAMES: dict[int, str] = {kind: kind.name.lower() for kind in InputKind}
SPIN_LOOKS = 300  # looks at the journal before sleeping, some 20 µs: an awake worker answers within
INLINE_SHARE = 4  # a payload may take a quarter of the input ring; a larger one goes through the Tube
NEVER = 2**64
NEVER_LATCHED = (0, 0, -1)  # record, value, guest time


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What a handle needs of its surroundings."""

    pump: Callable[[int | None], None]
    """Runs the reactor once, for at most so many ns."""
    tell_payload: Callable[[str, int, bytes], None]
    """Sends the payload of an out-of-line record to the worker, if there is one."""
    overdue: Callable[[str], bool]
    """Says that the worker is stuck and is to be killed; false if there is no process at all."""
    corrupt: Callable[[str, JournalCorrupt], None]
    """Says that what the worker wrote into the journal cannot be."""
    call_at: Callable[[int, Callable[[], None]], object]
    """Calls back at a host time (ns)."""
    clock: Clock


class RemoteHandle(DeviceHandle):
    """A device in a worker."""

    def __init__(
        self, name: str, mmio: Mmio | None, port: Port, *, request_timeout_ns: int, poison: int
    ) -> None:
        super().__init__(name, mmio)
        self._port = port
        self._clock = port.clock
        self._request_timeout_ns = request_timeout_ns
        self._poison = poison
        self.journal_fd, self._journal = create_journal(name)
        self.doorbell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.answer_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._bind()
        self._submitted = 0
        self._barrier = 0  # the number behind the last record that is not a capture
        self._replies: dict[int, bytes] = {}
        self._waiters: dict[int, Callable[[bytes | DeviceFault], None]] = {}
        self._given_up: dict[int, DeviceFault] = {}
        self._blame: dict[int, int] = {}
        self._payloads: dict[int, bytes] = {}
        self._overdue: int | None = None
        self._watching_outstanding = False
        self._gone: DeviceGone | None = None
        self._map = RegisterMap((), 0)
        self._set_tables()

    # -- requests --------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        if size == 4:
            slot = self._plain.get(offset)
            if slot is not None:
                if self._words[layout.PUBLISHED] != self._submitted:
                    self._settle()
                return self._registers[slot]
        return self._read_slowly(offset, size)

    def _read_slowly(self, offset: int, size: int) -> int:
        if offset in self._captured and size == 4:
            return self._read_captured(self._captured[offset])
        if offset in self._counters:
            slot, mask = self._counters[offset]
            self._settle_counters()
            return self._evaluate(slot, mask, self._clock()) & ((1 << (8 * size)) - 1)
        number = self._submit(InputKind.READ, offset, size, 0)
        return int.from_bytes(self._answer(number), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        way = self._writes.get(offset)
        if way is None:
            self._answer(self._submit(InputKind.WRITE, offset, size, value))
        elif way < 0:
            self._submit(InputKind.POSTED, offset, size, value)
        else:
            self._capture(way, offset, size, value)

    def call_bytes(self, request: bytes) -> bytes:
        return self._answer(self._submit(InputKind.CALL, 0, 0, 0, request))

    def send(self, data: bytes) -> None:
        self._submit(InputKind.RECEIVE, 0, 0, 0, data)

    def deliver_alarm(self, at_ns: int) -> None:
        self._submit(InputKind.ALARM, 0, 0, 0, stamp_ns=at_ns)

    def flush(self) -> None:
        self._settle()

    def submit(
        self,
        kind: InputKind,
        done: Callable[[bytes | DeviceFault], None],
        *,
        offset: int = 0,
        size: int = 0,
        value: int = 0,
        payload: bytes = b"",
    ) -> None:
        """A request without waiting: ``done`` gets the reply's bytes, or the fault, from ``dispatch``."""
        number = self._submit(kind, offset, size, value, payload)
        self._waiters[number] = done
        self._words[layout.WANTED] = self._submitted

    # -- levels and time -------------------------------------------------------------------------

    @property
    def irq_levels(self) -> int:
        if self._words[layout.PUBLISHED] != self._submitted:
            self._settle()
        return self._words[layout.IRQ_LEVELS]

    @property
    def next_alarm_ns(self) -> int:
        if self._words[layout.PUBLISHED] != self._submitted:
            if self._gone is not None:
                return NO_ALARM
            self._settle()
        return self._words[layout.NEXT_ALARM]

    # -- submitting ------------------------------------------------------------------------------

    def _submit(
        self,
        kind: int,
        offset: int,
        size: int,
        value: int,
        payload: bytes = b"",
        stamp_ns: int | None = None,
    ) -> int:
        """Appends a record; returns its number."""
        if self._gone is not None:
            raise self._gone
        if not 0 <= offset < 2**32 or not 0 <= value < 2**64:
            raise LocalError(f"{self.name}: offset {offset:#x} or value {value:#x} is out of range")
        number = self._submitted
        words = self._words
        slots = 1
        if payload:
            slots = self._put_payload(number, kind, payload)
            words = self._words
        else:
            if number + 1 - words[layout.PUBLISHED] > self._input_slots:
                self._await_room(1)
                words = self._words
            INPUT.pack_into(
                self._map_bytes,
                self._inputs_at + (number & self._input_mask) * INPUT_BYTES,
                self._clock() if stamp_ns is None else stamp_ns,
                offset,
                1,
                kind,
                size,
                value,
                0,
            )
        self._submitted = self._barrier = words[layout.SUBMITTED] = number + slots
        if FENCE is not None:
            with FENCE:
                pass
            if words[layout.WORKER_SLEEPS]:
                os.eventfd_write(self.doorbell_fd, 1)
        else:
            os.eventfd_write(self.doorbell_fd, 1)
        return number

    def _put_payload(self, number: int, kind: int, payload: bytes) -> int:
        slots = self._journal.slots_for(payload)
        out_of_line = slots > self._input_slots // INLINE_SHARE
        self._await_room(1 if out_of_line else slots)
        record = Input(number, kind, self._clock(), 0, 0, 0, payload)
        after = self._journal.put_input(record, out_of_line=out_of_line)
        if out_of_line:
            self._payloads[number] = payload
            self._port.tell_payload(self.name, number, payload)
        return after - number

    def _await_room(self, slots: int) -> None:
        need = self._submitted + slots - self._input_slots
        if need > self._words[layout.PUBLISHED]:
            self._await(need)

    def _capture(self, way: int, offset: int, size: int, value: int) -> None:
        """Latches the counter at once, and lets the worker do the same when it gets there.

        A capture that would latch what the one before has latched, at the same guest time and with nothing
        but captures in between, is done already: a guest that waits by polling a timer costs one record a
        step of guest time, not one a look.
        """
        counter_slot, into_slot, mask = self._captures[way]
        now_ns = self._clock()
        number, _value, then_ns = self._latched.get(into_slot, NEVER_LATCHED)
        if then_ns == now_ns and number > self._barrier and self._gone is None:
            return
        self._settle_counters()
        barrier = self._barrier
        latched = self._evaluate(counter_slot, mask, now_ns)
        self._submit(InputKind.POSTED, offset, size, value, stamp_ns=now_ns)
        self._barrier = barrier
        self._latched[into_slot] = (self._submitted, latched, now_ns)

    def _read_captured(self, slot: int) -> int:
        number, value, _then_ns = self._latched.get(slot, NEVER_LATCHED)
        if number > self._words[layout.PUBLISHED] and number > self._barrier:
            return value
        if self._words[layout.PUBLISHED] != self._submitted:
            self._settle()
        return self._registers[slot]

    def _evaluate(self, slot: int, mask: int, now_ns: int) -> int:
        base, since_ns, ticks, per_ns, narrowed = self._registers[slot : slot + 5]
        return evaluate_counter(base, since_ns, ticks, per_ns or 1, now_ns, mask & narrowed)

    # -- waiting ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Returns when everything submitted is published."""
        self._await(self._submitted)

    def _settle_counters(self) -> None:
        if self._words[layout.PUBLISHED] < self._barrier:
            self._await(self._barrier)

    def _answer(self, number: int) -> bytes:
        """Waits for the reply to record ``number``; raises the fault that it ended in."""
        self._await(self._submitted, number)
        self.collect()
        fault = self._given_up.pop(number, None)
        if fault is not None:
            raise fault
        reply = self._replies.pop(number, None)
        if reply is None:
            raise JournalCorrupt(f"{self.name}: record {number} was applied without a reply")
        return reply

    def _await(self, published: int, number: int | None = None) -> None:
        """Returns once ``PUBLISHED`` is at ``published``, or the caller's record ``number`` is given up.

        Past ``request_timeout`` the worker is killed: then the journal says whether the record has happened.
        """
        words = self._words
        for _ in range(SPIN_LOOKS):
            if words[layout.PUBLISHED] >= published:
                return
        deadline_ns = time.monotonic_ns() + self._request_timeout_ns
        try:
            while not self._arrived(published) and number not in self._given_up:
                if self._gone is not None:
                    raise self._gone
                left_ns = deadline_ns - time.monotonic_ns()
                if left_ns <= 0:
                    self._time_out(number)
                    deadline_ns += self._request_timeout_ns
                    continue
                self._port.pump(left_ns)
                self.collect()  # or a worker that waits for room would wait for ever
        finally:
            self._words[layout.WANTED] = self._submitted if self._waiters else 0

    def _arrived(self, published: int) -> bool:
        """Asks to be rung for ``published``; true if that is not needed any more."""
        words = self._words
        words[layout.WANTED] = published
        if FENCE is not None:
            with FENCE:
                pass
        return words[layout.PUBLISHED] >= published

    def _time_out(self, number: int | None) -> None:
        if self._overdue is not None:
            return  # it is being killed, and the kernel takes its time
        self._overdue = -1 if number is None else number
        if self._port.overdue(self.name):
            return
        self._overdue = None
        fault = self._timeout_fault()
        if number is None:
            raise fault
        self._give_up(number, fault)

    def _timeout_fault(self) -> RequestTimeout:
        seconds = self._request_timeout_ns / 1e9
        text = f"{self.name}: no answer within {seconds:g} s; the request took no effect"
        return RequestTimeout(text)

    # -- what comes back -------------------------------------------------------------------------

    @property
    def has_outputs(self) -> bool:
        self._watch_outstanding()
        self.collect()
        return super().has_outputs

    def deliver_outputs(self) -> bool:
        self._watch_outstanding()
        self.collect()
        return super().deliver_outputs()

    def collect(self) -> None:
        """Takes everything out of the output ring. A ring that cannot be is the worker's end."""
        try:
            self._collect()
        except JournalCorrupt as error:
            self._words[layout.CONSUMED] = self._words[layout.OUTPUT_END]
            self._port.corrupt(self.name, error)

    def _collect(self) -> None:
        words = self._words
        position, end = words[layout.CONSUMED], words[layout.OUTPUT_END]
        if position == end:
            return
        if not position <= end <= position + self._journal.layout.output_bytes:
            raise JournalCorrupt(f"{self.name}: outputs from {position} to {end}")
        while position < end:
            output, position = self._journal.get_output(position, end)
            if output.kind == OutputKind.BYTES or output.kind == OutputKind.IRQ:
                self._outputs.append(output)
                continue
            waiter = self._waiters.pop(output.number, None)
            if waiter is not None:
                waiter(output.payload)
            else:
                self._replies[output.number] = output.payload
        words[layout.CONSUMED] = end
        if FENCE is not None:
            with FENCE:
                pass
        if FENCE is None or words[layout.WORKER_SLEEPS]:
            os.eventfd_write(self.doorbell_fd, 1)
        if self._payloads:
            published = words[layout.PUBLISHED]
            for number in [number for number in self._payloads if number < published]:
                del self._payloads[number]

    def _watch_outstanding(self) -> None:
        """Sees to it that a posted write on which the worker hangs is noticed though nobody waits."""
        published = self._words[layout.PUBLISHED]
        if published == self._submitted or self._watching_outstanding or self._gone is not None:
            return
        self._watching_outstanding = True
        at_ns = time.monotonic_ns() + self._request_timeout_ns
        self._port.call_at(at_ns, lambda: self._judge_outstanding(published))

    def _judge_outstanding(self, published_then: int) -> None:
        self._watching_outstanding = False
        published = self._words[layout.PUBLISHED]
        if published == published_then and published != self._submitted and self._overdue is None:
            self._overdue = -1
            if not self._port.overdue(self.name):
                self._overdue = None  # no worker to be stuck: the policy has it waiting
        self._watch_outstanding()

    @property
    def register_capacity(self) -> int:
        """How many register words the journal has room for."""
        return self._journal.layout.register_words

    @property
    def heartbeat(self) -> int:
        """The worker's heartbeat counter."""
        return self._words[layout.HEARTBEAT]

    def set_map(self, register_map: RegisterMap) -> None:
        """The worker has said what its registers are."""
        if register_map != self._map:
            self._map = register_map
            self._set_tables()

    # -- generations -----------------------------------------------------------------------------

    def settle_dead(self, *, charged: bool) -> list[DeviceFault]:
        """No worker lives: publishes what the last one committed, and gives up what must not run again.

        Returns what was given up. Raises :class:`JournalCorrupt` where the journal cannot be believed.
        """
        commit = self._journal.read_commit()
        words = self._words
        applied = 0
        if commit is not None:
            applied = commit.applied
            if applied > self._submitted or applied < words[layout.PUBLISHED]:
                published = words[layout.PUBLISHED]
                raise JournalCorrupt(
                    f"{self.name}: applied {applied} of {self._submitted}, published {published}"
                )
            if len(commit.registers) > len(self._registers_bytes):
                raise JournalCorrupt(f"{self.name}: {len(commit.registers)} bytes of registers")
            self._registers_bytes[: len(commit.registers)] = commit.registers
            words[layout.IRQ_LEVELS] = commit.irq_levels
            words[layout.NEXT_ALARM] = commit.next_alarm_ns
            words[layout.OUTPUT_END] = commit.output_end
            words[layout.PUBLISHED] = applied
        words[layout.WORKER_SLEEPS] = 0
        given_up = self._judge_blame(applied, charged=charged)
        words[layout.HANDLING] = 0
        self.collect()
        return given_up

    def _judge_blame(self, applied: int, *, charged: bool) -> list[DeviceFault]:
        given_up: list[DeviceFault] = []
        for number in [number for number in self._blame if number < applied]:
            del self._blame[number]
        handling = self._words[layout.HANDLING] - 1
        overdue, self._overdue = self._overdue, None
        guilty = applied <= handling < self._submitted
        if overdue is not None:
            stuck = {number for number in (overdue, handling if guilty else -1) if number >= applied}
            for number in sorted(stuck):
                given_up.append(self._give_up(number, self._timeout_fault()))
        elif guilty and charged:
            count = self._blame[handling] = self._blame.get(handling, 0) + 1
            if count >= self._poison:
                what = self._describe_input(handling)
                fault = DeviceError(f"{self.name}: {what} has killed {count} workers; it was dropped")
                given_up.append(self._give_up(handling, fault))
        return given_up

    def _describe_input(self, number: int) -> str:
        record, _after, _out_of_line = self._journal.get_input(number)
        kind = _KIND_NAMES.get(record.kind, "input")
        if record.kind in (InputKind.READ, InputKind.WRITE, InputKind.POSTED):
            return f"{kind} of {record.size} bytes at {record.offset:#x}"
        return f"{kind} number {number}"

    def _give_up(self, number: int, fault: DeviceFault) -> DeviceFault:
        record, _after, _out_of_line = self._journal.get_input(number)
        self._journal.skip_input(number)
        self._blame.pop(number, None)
        waiter = self._waiters.pop(number, None)
        if waiter is not None:
            waiter(fault)
        elif record.kind in (InputKind.READ, InputKind.WRITE, InputKind.CALL):
            self._given_up[number] = fault
        return fault

    def pending_payloads(self) -> Iterator[tuple[int, bytes]]:
        """Out-of-line payloads that a new worker will ask for."""
        published = self._words[layout.PUBLISHED]
        return ((number, data) for number, data in self._payloads.items() if number >= published)

    def grow(self, *, state_bytes: int, output_bytes: int, register_words: int) -> int:
        """Replaces the journal by one that has room for that much; returns its descriptor.

        Only while the worker waits for it. Raises :class:`JournalCorrupt` over the limit.
        """
        old, now = self._journal, self._journal.layout
        grown = Layout(
            register_words=_power_of_two(max(register_words, now.register_words)),
            input_slots=now.input_slots,
            output_bytes=_power_of_two(max(output_bytes, now.output_bytes)),
            state_bytes=_power_of_two(max(state_bytes, now.state_bytes)),
        )
        self.collect()
        fd, journal = create_journal(self.name, grown)
        old.copy_to(journal, self._submitted)
        os.close(self.journal_fd)
        self.journal_fd, self._journal = fd, journal
        self._bind()
        old.close()
        return fd

    def go(self, reason: str) -> None:
        """The device is stopped or given up: every request from now on, and every waiting one, is told so."""
        self._gone = DeviceGone(f"{self.name}: {reason}")
        self._set_tables()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            waiter(self._gone)

    def revive(self) -> None:
        """The device is started again after ``go``."""
        self._gone = None
        self._set_tables()

    def close(self) -> None:
        """Gives the shared memory and the descriptors back."""
        self.go("the supervisor has stopped")
        for fd in (self.journal_fd, self.doorbell_fd, self.answer_fd):
            os.close(fd)
        self._registers_bytes.release()
        self._journal.close()
        self._words = memoryview(bytearray(layout.HEADER_BYTES)).cast("Q")
        self._words[layout.PUBLISHED] = self._submitted
        self._words[layout.NEXT_ALARM] = NO_ALARM

    # -- tables ----------------------------------------------------------------------------------

    def _bind(self) -> None:
        journal = self._journal
        self._words = journal.words
        self._registers = journal.registers
        self._registers_bytes: memoryview = journal.bytes[layout.HEADER_BYTES : journal.layout.inputs_at]
        self._map_bytes: memoryview = journal.bytes
        self._inputs_at = journal.layout.inputs_at
        self._input_slots = journal.layout.input_slots
        self._input_mask = journal.layout.input_slots - 1

    def _set_tables(self) -> None:
        """Sorts the data sheet by what can be answered here. A device that is gone answers nothing."""
        self._plain: dict[int, int] = {}
        self._captured: dict[int, int] = {}
        self._counters: dict[int, tuple[int, int]] = {}
        self._writes: dict[int, int] = {}
        self._captures: list[tuple[int, int, int]] = []
        self._latched: dict[int, tuple[int, int, int]] = {}
        if self._gone is not None:
            return
        captured_slots: set[int] = set()
        for entry in self._map.entries:
            if entry.offset < 0:
                continue
            for index in range(entry.count):
                offset = entry.offset + index * entry.stride
                if entry.read == Access.PLAIN:
                    self._plain[offset] = entry.slot + index
                elif entry.read == Access.COUNTER:
                    self._counters[offset] = (entry.slot, entry.mask)
                if entry.write == Access.POSTED:
                    self._writes[offset] = -1
                elif entry.write == Access.CAPTURE:
                    self._writes[offset] = len(self._captures)
                    self._captures.append((entry.counter_slot, entry.into_slot + index, entry.mask))
                    captured_slots.add(entry.into_slot + index)
        self._captured = {offset: slot for offset, slot in self._plain.items() if slot in captured_slots}
        for offset in self._captured:
            del self._plain[offset]


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
