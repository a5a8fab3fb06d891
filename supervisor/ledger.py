"""The supervisor's side of one device's journal: what was asked, what came back, what is owed.

Appends inputs, takes outputs and replies out, and, while no worker lives, settles what the last one left:
what it committed is published on its behalf, what it did not commit is left for the next one, unless it is
the record that keeps killing workers (poison) or the one that the worker was stuck in. Never waits and knows
no policy; the handle above it waits and looks things up.

The journal is the worker's to write, and a worker is not trusted: a number or a length that cannot be raises
:class:`~supervisor.worker.journal.JournalCorrupt`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from supervisor.device import NO_ALARM
from supervisor.errors import DeviceError, DeviceFault, LocalError, RequestTimeout
from supervisor.memory.fence import FENCE
from supervisor.worker import layout
from supervisor.worker.doorbell import make_doorbell, ring_doorbell
from supervisor.worker.journal import JournalCorrupt, create_journal
from supervisor.worker.layout import (
    CONSUMED,
    OUTPUT_END,
    SUBMITTED,
    WANTED,
    WORKER_SLEEPS,
    Layout,
)
from supervisor.worker.records import IRQ_LINES, Input, InputKind, Output, OutputKind

__all__ = ["Ledger", "Waiter"]

Waiter = Callable[[bytes | DeviceFault], None]

INLINE_SHARE = 4  # a payload may take a quarter of the input ring; a larger one goes through the Tube
SOMETHING = -1  # overdue, but no record of its own: a posted write, or whatever is being handled
VALUE, REPLY, IRQ = (
    int(OutputKind.VALUE),
    int(OutputKind.REPLY),
    int(OutputKind.IRQ),
)  # which are in this order
_ANSWERED = (InputKind.READ, InputKind.WRITE, InputKind.CALL)
_KIND_NAMES: dict[int, str] = {kind: kind.name.lower() for kind in InputKind}


class Ledger:
    """One journal, its bells, and the bookkeeping of requests.

    ``submitted`` is the number behind the last input. ``overdue`` is the record that somebody waited for
    until the worker was ordered killed, or ``SOMETHING``. ``outputs`` is where bytes and edges go.
    """

    def __init__(self, name: str, outputs: deque[Output], *, poison: int, request_timeout_ns: int) -> None:
        self.name = name
        self.submitted = 0
        self.overdue: int | None = None
        self.replies: dict[int, bytes] = {}
        self.waiters: dict[int, Waiter] = {}
        self.given_up: dict[int, DeviceFault] = {}
        self.outputs_bytes = 0  # collected since the outputs were last found empty
        self._outputs = outputs
        self._poison = poison
        self._request_timeout_ns = request_timeout_ns
        self._blame: dict[tuple[int, bool], int] = {}  # by record, and whether it was an alarm before it
        self._payloads: dict[int, bytes] = {}
        self.journal_fd, self.journal = create_journal(name)
        opened = [self.journal_fd]
        try:
            opened += make_doorbell()
            opened.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError:
            for fd in opened:
                os.close(fd)
            self.journal.close()
            raise
        self.door_fd, self.doorbell_fd, self.answer_fd = opened[1:]
        self._bind()

    # -- inputs ----------------------------------------------------------------------------------

    def lacks(self, slots: int) -> int:
        """The number that has to be published before ``slots`` more have room; at most 0: there is room."""
        return self.submitted + slots - self.input_slots

    def put(self, kind: int, stamp_ns: int, offset: int, size: int, value: int) -> int:
        """Appends a record without a payload, for which there is room; returns its number."""
        number = self.submitted
        try:
            sleeps = self.mailbox.submit(number, kind, stamp_ns, offset, size, value)
        except ValueError:
            what = f"offset {offset:#x}, {size} bytes or value {value:#x}"
            raise LocalError(f"{self.name}: {what} is out of range") from None
        except BaseException:  # a signal's handler, that of Ctrl-C say: the record may be there all the same
            if self.words[SUBMITTED] == number + 1:
                self.submitted = number + 1
                self._ring_sleeper()
            raise
        self.submitted = number + 1
        if sleeps:
            ring_doorbell(self.doorbell_fd)
        return number

    def slots_for(self, payload: bytes) -> tuple[int, bool]:
        """(Ring slots that a record with ``payload`` takes, whether the payload goes out of line)."""
        slots = self.journal.slots_for(payload)
        return (1, True) if slots > self.input_slots // INLINE_SHARE else (slots, False)

    def put_payload(self, kind: int, stamp_ns: int, payload: bytes, *, out_of_line: bool) -> int:
        """Appends a record with a payload, for which there is room; returns its number."""
        number = self.submitted
        record = Input(number, kind, stamp_ns, 0, 0, 0, payload)
        after = self.journal.put_input(record, out_of_line=out_of_line)
        if out_of_line:
            self._payloads[number] = payload
        self.submitted = self.words[SUBMITTED] = after
        self._ring_sleeper()
        return number

    def payload_of(self, number: int) -> bytes:
        """The out-of-line payload of record ``number``. Raises :class:`JournalCorrupt` if it has none."""
        try:
            return self._payloads[number]
        except KeyError:
            raise JournalCorrupt(f"{self.name}: record {number} has no payload out of line") from None

    def _ring_sleeper(self) -> None:
        """Rings the doorbell if the worker sleeps; without a fence nobody can know, so always."""
        if FENCE is not None:
            with FENCE:
                pass
            if not self.words[WORKER_SLEEPS]:
                return
        ring_doorbell(self.doorbell_fd)

    # -- outputs ---------------------------------------------------------------------------------

    def collect(self) -> None:
        """Takes everything out of the output ring: replies to those who wait, the rest to ``outputs``."""
        words = self.words
        position, end = words[CONSUMED], words[OUTPUT_END]
        if position == end:
            return
        if not position <= end <= position + self.journal.layout.output_bytes:
            words[layout.CONSUMED] = end
            raise JournalCorrupt(f"{self.name}: outputs from {position} to {end}")
        answered: list[tuple[Waiter, bytes]] = []
        try:
            while position < end:
                output, position = self.journal.get_output(position, end)
                kind, _detail, number, payload = output
                if not VALUE <= kind <= REPLY:
                    if not REPLY < kind <= IRQ:
                        raise JournalCorrupt(f"{self.name}: an output of kind {kind}")
                    if output.detail >= 2 * IRQ_LINES:
                        raise JournalCorrupt(f"{self.name}: an edge of interrupt line {output.detail >> 1}")
                    self._outputs.append(output)
                    self.outputs_bytes += len(output.payload)
                    continue
                waiter = self.waiters.pop(number, None)
                if waiter is not None:
                    answered.append((waiter, payload))
                else:
                    # It waits for its caller, who is waiting for it: there cannot be many.
                    if number >= self.submitted or len(self.replies) > self.input_slots:
                        raise JournalCorrupt(f"{self.name}: an answer to {number}, which nobody asked")
                    self.replies[number] = payload
        finally:
            words[CONSUMED] = end  # before anybody is called: a waiter may come back to here
            if answered and not self.waiters:
                words[WANTED] = 0
            self._ring_sleeper()
            if self._payloads:
                published = words[layout.PUBLISHED]
                for number in [number for number in self._payloads if number < published]:
                    del self._payloads[number]
            for waiter, payload in answered:
                waiter(payload)

    # -- between two workers ---------------------------------------------------------------------

    def settle_dead(self, *, charged: bool, handling: int | None = None) -> list[DeviceFault]:
        """No worker lives: publishes what the last one committed, and gives up what must not run again.

        ``handling`` is what the one to be judged was at, where another one has been there since.
        Returns what was given up. Raises :class:`JournalCorrupt` where the journal cannot be believed.
        """
        commit = self.journal.read_commit()
        words = self.words
        applied = 0
        if commit is not None:
            applied = commit.applied
            if not words[layout.PUBLISHED] <= applied <= self.submitted:
                published = words[layout.PUBLISHED]
                raise JournalCorrupt(
                    f"{self.name}: applied {applied} of {self.submitted}, published {published}"
                )
            if len(commit.registers) > 8 * len(self.journal.registers):
                raise JournalCorrupt(f"{self.name}: {len(commit.registers)} bytes of registers")
            self.journal.put_registers(commit.registers)
            words[layout.IRQ_LEVELS] = commit.irq_levels
            words[layout.NEXT_ALARM] = commit.next_alarm_ns
            words[layout.OUTPUT_END] = commit.output_end
            words[layout.PUBLISHED] = applied
        words[layout.WORKER_SLEEPS] = words[layout.RUNS_ON] = 0
        word = words[layout.HANDLING] if handling is None else handling
        given_up = self._judge_blame(applied, word, charged=charged)
        words[layout.HANDLING] = 0
        self.collect()
        return given_up

    def settle_succession(self, applied: int, handling: int, *, charged: bool) -> None:
        """A worker has died and another one serves already: keeps account of who is to blame for that.

        ``applied`` and ``handling`` are as the dead one has left them. To give anything up it is too late.
        Raises :class:`JournalCorrupt` where ``applied`` cannot be.
        """
        if not 0 <= applied <= self.submitted:
            raise JournalCorrupt(f"{self.name}: applied {applied} of {self.submitted}")
        self._acquit(applied)
        blamed = number, _firing = _at_work(handling)
        if charged and applied <= number < self.submitted:
            self._charge(blamed)
        self.collect()

    @property
    def is_blameless(self) -> bool:
        """True if no record that is not published yet could be given up at the next death."""
        published = self.words[layout.PUBLISHED]
        blamed = any(number >= published for number, _firing in self._blame)
        return not blamed and self.overdue is None and self._poison > 1

    def _judge_blame(self, applied: int, word: int, *, charged: bool) -> list[DeviceFault]:
        given_up: list[DeviceFault] = []
        self._acquit(applied)
        handling, firing = _at_work(word)
        overdue, self.overdue = self.overdue, None
        guilty = applied <= handling < self.submitted
        if overdue is not None:
            at_work = handling if guilty and not firing else SOMETHING
            stuck = {number for number in (overdue, at_work) if number >= applied}
            given_up += [self.give_up(number, self.timeout_fault()) for number in sorted(stuck)]
            if guilty and firing:
                what = self._describe_input(handling, firing=True)
                fault = DeviceError(f"{self.name}: {what} did not come to an end; it was dropped")
                given_up.append(self._drop_alarms(handling, fault))
        elif guilty and charged:
            blamed = (handling, firing)
            count = self._charge(blamed)
            if count >= self._poison:
                what = self._describe_input(handling, firing=firing)
                fault = DeviceError(f"{self.name}: {what} has killed {count} workers; it was dropped")
                give_up = self._drop_alarms if firing else self.give_up
                given_up.append(give_up(handling, fault))
        return given_up

    def _charge(self, blamed: tuple[int, bool]) -> int:
        """One more death while that was at work; returns how many by now."""
        count = self._blame[blamed] = self._blame.get(blamed, 0) + 1
        return count

    def _acquit(self, applied: int) -> None:
        """What has been applied has killed nobody in the end."""
        for blamed in [blamed for blamed in self._blame if blamed[0] < applied]:
            del self._blame[blamed]

    def _drop_alarms(self, number: int, fault: DeviceFault) -> DeviceFault:
        """The alarms that are due before record ``number`` will not fire; the record itself is handled."""
        self.journal.drop_alarms(number)
        self._blame.pop((number, True), None)
        return fault

    def give_up(self, number: int, fault: DeviceFault) -> DeviceFault:
        """Record ``number`` will never be handled: whoever waits for it gets ``fault``. No worker lives."""
        record, _after, _out_of_line = self.journal.get_input(number)
        self.journal.skip_input(number)
        self._blame.pop((number, False), None)
        waiter = self.waiters.pop(number, None)
        if waiter is not None:
            waiter(fault)
        elif record.kind in _ANSWERED:
            self.given_up[number] = fault
        return fault

    def abandon(self, fault: DeviceFault) -> None:
        """No worker lives and none is wanted: no request that somebody waits for may happen later.

        Whoever waits is told even where the journal cannot be believed (:class:`JournalCorrupt`).
        """
        try:
            self._give_up_unanswered(fault)
        finally:
            waiters, self.waiters = self.waiters, {}
            for waiter in waiters.values():
                waiter(fault)

    def _give_up_unanswered(self, fault: DeviceFault) -> None:
        commit = self.journal.read_commit()
        number = 0 if commit is None else commit.applied
        number = max(number, self.submitted - self.input_slots)  # nothing older can be in the ring
        while number < self.submitted:
            record, after, _out_of_line = self.journal.get_input(number)
            if record.kind in _ANSWERED:
                self.give_up(number, fault)
            number = after

    def timeout_fault(self) -> RequestTimeout:
        """What a request ends in that was past its time and took no effect."""
        seconds = self._request_timeout_ns / 1e9
        text = f"{self.name}: no answer within {seconds:g} s; the request took no effect"
        return RequestTimeout(text)

    def _describe_input(self, number: int, *, firing: bool) -> str:
        record, _after, _out_of_line = self.journal.get_input(number)
        if firing:
            return f"an alarm that was due by {record.stamp_ns} ns of guest time"
        kind = _KIND_NAMES.get(record.kind, "input")
        if record.kind in (InputKind.READ, InputKind.WRITE, InputKind.POSTED):
            return f"{kind} of {record.size} bytes at {record.offset:#x}"
        return f"{kind} number {number + 1}"

    def grow(self, *, state_bytes: int, output_bytes: int, register_words: int) -> int:
        """Replaces the journal by one that has room for that much; returns its descriptor.

        Only while the worker waits for it. Raises :class:`JournalCorrupt` over the limit, and where there
        is room for that much already.
        """
        old, now = self.journal, self.journal.layout
        grown = Layout(
            register_words=_power_of_two(max(register_words, now.register_words)),
            input_slots=now.input_slots,
            output_bytes=_power_of_two(max(output_bytes, now.output_bytes)),
            state_bytes=_power_of_two(max(state_bytes, now.state_bytes)),
        )
        if grown == now:
            raise JournalCorrupt(f"{self.name}: its journal has room for what it asks for")
        self.collect()
        fd, journal = create_journal(self.name, grown)
        try:
            old.copy_to(journal)
        except BaseException:
            journal.close()
            os.close(fd)
            raise
        os.close(self.journal_fd)
        self.journal_fd, self.journal = fd, journal
        self._bind()
        return fd

    def reconfigure(self, *, request_timeout_ns: int, poison: int) -> None:
        """Other limits from now on."""
        self._request_timeout_ns = request_timeout_ns
        self._poison = poison

    def close(self) -> None:
        """Gives the shared memory and the descriptors back; a handle's views must be gone."""
        for fd in (self.journal_fd, self.door_fd, self.doorbell_fd, self.answer_fd):
            os.close(fd)
        self.journal.close()
        self.words = memoryview(bytearray(layout.HEADER_BYTES)).cast("Q")
        self.words[layout.PUBLISHED] = self.submitted
        self.words[layout.NEXT_ALARM] = NO_ALARM

    def _bind(self) -> None:
        journal = self.journal
        self.words = journal.words
        self.mailbox = journal.mailbox
        self.input_slots = journal.layout.input_slots


def _at_work(word: int) -> tuple[int, bool]:
    """(The record that HANDLING names, whether it is the alarms due before it); -1 where it names none."""
    return (word & ~layout.FIRING) - 1, bool(word & layout.FIRING)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
