"""The journal of one device: shared memory that outlives its workers.

One memfd a device, owned by the supervisor, mapped by both sides::

    header | registers | input ring | output ring | slot A | slot B

- The supervisor appends numbered inputs to the input ring; the number is a position in the ring, so what
  a dead worker did not get to is still there for the next one.
- The worker handles inputs, writes their outputs and replies beyond the visible end of the output ring,
  writes the whole state into the slot that is not current, and then stores one 64-bit word, ``COMMIT``.
  That store is the atomic step: before it none of the inputs has happened, after it all of them have.
- Then it publishes, in this order: registers, outputs, and the number up to which inputs are answered.
  A worker that dies in between leaves it to the next one, which publishes the last commit again first of
  all; since outputs live at fixed positions, nothing is doubled by that.

The memory is the worker's to write, and a worker is not trusted: the supervisor checks each number and
length that it reads (:class:`JournalCorrupt`), and the memfd is sealed, so that it cannot be shrunk under
the supervisor's mapping. A journal grows by replacement.

A 64-bit word is read and written through a ``memoryview`` cast to "Q", which does not tear; the order of
stores is x86's and, for a process that is killed, program order on every machine, since all of what it
stored is in the page cache. Who sleeps waits with the flags ``WORKER_SLEEPS`` and ``WANTED`` and a fence.
The header's second half is the lifeline, the mutex by which a worker's death is known.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

from supervisor.device import NO_ALARM
from supervisor.errors import PeerError
from supervisor.worker import lifeline
from supervisor.worker.layout import (
    COMMIT,
    CONSUMED,
    DROPS_ALARMS,
    HEADER_BYTES,
    HEADER_WORDS,
    INPUT_BYTES,
    INPUT_SLOTS,
    INPUT_WORDS,
    JOURNAL_BYTES_MAX,
    KIND_SHIFT,
    LIFELINE_AT,
    MAGIC,
    MAGIC_WORD,
    NEXT_ALARM,
    OUT_OF_LINE,
    OUTPUT,
    OUTPUT_BYTES,
    OUTPUT_END,
    REGISTER_WORDS,
    SIZE_SHIFT,
    SLOT,
    SLOTS_SHIFT,
    STATE_BYTES,
    SUBMITTED,
    Layout,
    input_head,
)
from supervisor.worker.mailbox import open_mailbox
from supervisor.worker.records import Commit, Input, InputKind, Output

__all__ = ["Journal", "JournalCorrupt", "create_journal"]

_input = struct.Struct("=4Q").unpack_from
_new = tuple.__new__  # what a NamedTuple's own constructor does, at a third of the price
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class JournalCorrupt(PeerError):
    """The worker wrote something into its journal that cannot be."""


class Journal:
    """A mapped journal: positions, records and commits, without any policy.

    ``words`` is the header, ``registers`` the published register words (both as 64-bit words), ``mailbox``
    the hot path.
    """

    def __init__(self, fd: int, layout: Layout) -> None:
        self.layout = layout
        self._map = mmap.mmap(fd, layout.total_bytes)
        self._lifeline = 0  # the address of the mutex, while this process holds it
        view = memoryview(self._map)
        self.words = view[:HEADER_BYTES].cast("Q")
        self.registers = view[HEADER_BYTES : layout.inputs_at].cast("Q")
        self.inputs = view[layout.inputs_at : layout.outputs_at].cast("Q")
        self.bytes = view
        self._slots_at = layout.slot_at(0), layout.slot_at(1)
        self._input_mask = layout.input_slots - 1
        self._inputs_at = layout.inputs_at
        self._outputs_at = layout.outputs_at
        self._output_mask = layout.output_bytes - 1
        self.mailbox = open_mailbox(self, self._map)

    @classmethod
    def attach(cls, fd: int) -> Journal:
        """Maps the journal behind ``fd``, whose header says how it is laid out; for the worker.

        A fork of the worker does not have it: it may be alive when the next worker writes. Raises
        :class:`JournalCorrupt` where the header does not fit the file.
        """
        header = struct.unpack("<5Q", os.pread(fd, 40, 0))
        if header[0] != MAGIC:
            raise JournalCorrupt(f"no journal: it begins with {header[0]:#x}, not {MAGIC:#x}")
        layout = Layout(
            register_words=header[1], input_slots=header[2], output_bytes=header[3], state_bytes=header[4]
        )
        if layout.total_bytes != os.fstat(fd).st_size:
            raise JournalCorrupt(f"a journal of {os.fstat(fd).st_size} bytes claims {layout.total_bytes}")
        journal = cls(fd, layout)
        journal._map.madvise(mmap.MADV_DONTFORK)
        return journal

    def hold_lifeline(self) -> bool:
        """Has the kernel mark this thread's death in the journal; false where it cannot. For the worker."""
        address = ctypes.addressof(ctypes.c_uint32.from_buffer(self._map, LIFELINE_AT))
        if lifeline.hold(address):
            self._lifeline = address
        return bool(self._lifeline)

    def close(self) -> None:
        """Unmaps. The views must not be used any more."""
        if self._lifeline:
            lifeline.give_back(self._lifeline)
        self.mailbox.release()
        self.words.release()
        self.registers.release()
        self.inputs.release()
        self.bytes.release()
        self._map.close()

    # -- inputs ----------------------------------------------------------------------------------

    def slots_for(self, payload: bytes) -> int:
        """Ring slots that a record with ``payload`` takes, if it travels inline."""
        return 1 + -(-len(payload) // INPUT_BYTES)

    def put_input(self, record: Input, *, out_of_line: bool = False) -> int:
        """Writes ``record`` at its number; returns the number after it. ``SUBMITTED`` is the caller's."""
        payload = b"" if out_of_line else record.payload
        slots = self.slots_for(payload)
        length = len(record.payload) | (OUT_OF_LINE if out_of_line else 0)
        at, inputs = self._input_word(record.number), self.inputs
        inputs[at] = record.stamp_ns
        inputs[at + 1] = input_head(record.kind, record.offset, record.size, slots)
        inputs[at + 2] = record.value
        inputs[at + 3] = length
        if payload:
            self._copy_in(self.layout.inputs_at, self._input_span, (record.number + 1) * INPUT_BYTES, payload)
        return record.number + slots

    def get_input(self, number: int) -> tuple[Input, int, bool]:
        """The record at ``number``, the number after it, and whether its payload is out of line."""
        at = self._inputs_at + (number & self._input_mask) * INPUT_BYTES
        stamp_ns, head, value, length = _input(self._map, at)
        slots = head >> SLOTS_SHIFT & 0xFFFF
        if not slots:
            raise JournalCorrupt(f"input {number} takes no room")
        kind, size = head >> KIND_SHIFT & 0x7F, head >> SIZE_SHIFT
        if not length:
            record = _new(Input, (number, kind, stamp_ns, head & 0xFFFFFFFF, size, value, b""))
            return record, number + slots, False
        payload = b""
        out_of_line = bool(length & OUT_OF_LINE)
        if not out_of_line:
            payload = self._copy_out(self._inputs_at, self._input_span, (number + 1) * INPUT_BYTES, length)
        record = Input(number, kind, stamp_ns, head & 0xFFFFFFFF, size, value, payload)
        return record, number + slots, out_of_line

    def stamp_of(self, number: int) -> int:
        """The guest time (ns) at which the record at ``number`` was submitted."""
        return self.inputs[self._input_word(number)]

    def drops_alarms(self, number: int) -> bool:
        """True if alarms that are due before the record at ``number`` are given up."""
        return bool(self.inputs[self._input_word(number) + 1] >> KIND_SHIFT & DROPS_ALARMS)

    def drop_alarms(self, number: int) -> None:
        """Gives up the alarms that are due before the record at ``number``. Only while no worker is alive."""
        self.inputs[self._input_word(number) + 1] |= DROPS_ALARMS << KIND_SHIFT

    def _input_word(self, number: int) -> int:
        return (number & self._input_mask) * INPUT_WORDS

    def skip_input(self, number: int) -> None:
        """Turns the record at ``number`` into one that does nothing. Only while no worker is alive."""
        at, inputs = self._input_word(number), self.inputs
        kept = inputs[at + 1] & ~((0xFF ^ DROPS_ALARMS) << KIND_SHIFT)
        inputs[at + 1] = kept | InputKind.SKIP << KIND_SHIFT
        inputs[at + 3] = 0

    # -- outputs ---------------------------------------------------------------------------------

    def output_needs(self, output: Output) -> int:
        """Bytes that ``output`` takes in the ring."""
        return OUTPUT.size + (len(output.payload) + 15 & ~15)

    def put_output(self, end: int, output: Output) -> int:
        """Writes ``output`` at position ``end``, which nobody sees yet; returns the position after it."""
        at = self._outputs_at + (end & self._output_mask)
        kind, detail, number, payload = output
        length = len(payload)
        OUTPUT.pack_into(self._map, at, length, kind, detail, number)
        if not length:
            return end + OUTPUT.size
        self._copy_in(self._outputs_at, self.layout.output_bytes, end + OUTPUT.size, payload)
        return end + OUTPUT.size + (length + 15 & ~15)

    def get_output(self, position: int, end: int) -> tuple[Output, int]:
        """The output at ``position``, and the position after it, which is at most ``end``."""
        at = self._outputs_at + (position & self._output_mask)
        length, kind, detail, number = OUTPUT.unpack_from(self._map, at)
        after = position + OUTPUT.size + (length + 15 & ~15)
        if after > end:
            raise JournalCorrupt(f"an output of {length} bytes at {position} reaches past the end at {end}")
        payload = b""
        if length:
            payload = self._copy_out(self._outputs_at, self._output_mask + 1, position + OUTPUT.size, length)
        return _new(Output, (kind, detail, number, payload)), after

    # -- state -----------------------------------------------------------------------------------

    def write_slot(self, commit: int, state: Commit) -> None:
        """Writes the state of commit number ``commit`` into the slot that is not current."""
        applied, output_end, irq_levels, next_alarm_ns, version, registers, packed = state
        at = self._slots_at[commit & 1]
        middle = at + SLOT.size + len(registers)
        length = len(packed)
        sizes = len(registers), length
        SLOT.pack_into(self._map, at, applied, output_end, irq_levels, next_alarm_ns, version, *sizes)
        self._map[at + SLOT.size : middle] = registers
        self._map[middle : middle + length] = packed

    def read_commit(self) -> Commit | None:
        """The committed state, or ``None`` before the first commit.

        Raises :class:`JournalCorrupt` where its sizes cannot be.
        """
        commit = self.words[COMMIT]
        if not commit:
            return None
        at = self.layout.slot_at(commit)
        applied, output_end, irq_levels, next_alarm_ns, version, n_registers, n_state = SLOT.unpack_from(
            self._map, at
        )
        at += SLOT.size
        if SLOT.size + n_registers + n_state > self.layout.state_bytes:
            raise JournalCorrupt(f"a state of {n_registers} + {n_state} bytes in {self.layout.state_bytes}")
        middle = at + n_registers
        return Commit(
            applied=applied,
            output_end=output_end,
            irq_levels=irq_levels,
            next_alarm_ns=next_alarm_ns,
            state_version=version,
            registers=self._map[at:middle],
            state=self._map[middle : middle + n_state],
        )

    def put_registers(self, registers: bytes | memoryview) -> None:
        """Publishes register words as committed. Only while no worker lives."""
        self.bytes[HEADER_BYTES : HEADER_BYTES + len(registers)] = registers

    # -- growth ----------------------------------------------------------------------------------

    def copy_to(self, other: Journal) -> None:
        """Copies everything that counts into ``other``, a larger journal. Only while the worker waits.

        The input ring keeps its size and is copied as it stands, given-up records and all.
        """
        ours, theirs = self.words, other.words
        for word in range(SUBMITTED, HEADER_WORDS):
            theirs[word] = ours[word]
        other.registers[: len(self.registers)] = self.registers
        begin, end = self.layout.inputs_at, self.layout.outputs_at
        at = other.layout.inputs_at
        other.bytes[at : at + end - begin] = self.bytes[begin:end]
        position, end = ours[CONSUMED], ours[OUTPUT_END]
        if not 0 <= end - position <= self.layout.output_bytes:
            raise JournalCorrupt(f"outputs from {position} to {end}")
        while position < end:
            output, after = self.get_output(position, end)
            other.put_output(position, output)
            position = after
        state = self.read_commit()
        if state is not None:
            other.write_slot(ours[COMMIT], state)

    # -- rings -----------------------------------------------------------------------------------

    @property
    def _input_span(self) -> int:
        return self.layout.input_slots * INPUT_BYTES

    def _copy_in(self, base: int, span: int, position: int, data: bytes) -> None:
        at = position % span
        first = min(len(data), span - at)
        self._map[base + at : base + at + first] = data[:first]
        if first < len(data):
            self._map[base : base + len(data) - first] = data[first:]

    def _copy_out(self, base: int, span: int, position: int, length: int) -> bytes:
        if length > span:
            raise JournalCorrupt(f"a payload of {length} bytes in a ring of {span}")
        at = position % span
        first = min(length, span - at)
        data = self._map[base + at : base + at + first]
        return data if first == length else data + self._map[base : base + length - first]


def create_journal(name: str, layout: Layout | None = None) -> tuple[int, Journal]:
    """A new, empty journal: its memfd (close-on-exec, sealed against resizing) and the mapping.

    Raises ``OSError`` where the system has no descriptor or memory left.
    """
    layout = layout or Layout()
    for what, size in (("input_slots", layout.input_slots), ("output_bytes", layout.output_bytes)):
        if size & (size - 1):
            raise ValueError(f"{what} must be a power of two, not {size}")
    if layout.total_bytes > JOURNAL_BYTES_MAX:
        raise JournalCorrupt(f"a journal of {layout.total_bytes} bytes; the limit is {JOURNAL_BYTES_MAX}")
    fd = os.memfd_create(f"tubevisor-{name}"[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, layout.total_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        journal = Journal(fd, layout)
    except BaseException:
        os.close(fd)
        raise
    words = journal.words
    words[REGISTER_WORDS] = layout.register_words
    words[INPUT_SLOTS] = layout.input_slots
    words[OUTPUT_BYTES] = layout.output_bytes
    words[STATE_BYTES] = layout.state_bytes
    words[NEXT_ALARM] = NO_ALARM
    words[MAGIC_WORD] = MAGIC
    return fd, journal
