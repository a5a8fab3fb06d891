"""Where everything lies in a journal: words of its header, bits of its records, sizes of its parts.

``journal.py`` says what they are for; ``_mailbox.c`` has the same numbers, and a test compares them. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = 0x314C4E524A425554  # "TUBJRNL1"
HEADER_BYTES = 4096

# Words of the header. The supervisor writes the first group, the worker the second.
(MAGIC_WORD, REGISTER_WORDS, INPUT_SLOTS, OUTPUT_BYTES, STATE_BYTES) = range(5)
(SUBMITTED, CONSUMED, WANTED) = range(8, 11)
(COMMIT, PUBLISHED, OUTPUT_END, WORKER_SLEEPS, HEARTBEAT, IRQ_LEVELS, NEXT_ALARM, HANDLING) = range(16, 24)
RUNS_ON = 24  # the core, and 1, on which the worker has last taken an input; 0: it does not say

HEADER_WORDS = 25
LIFELINE_AT = 2048  # the mutex that tells of the worker's death, on cache lines of its own
LIFELINE_WORD = LIFELINE_AT // 8

INPUT_WORDS = 4  # stamp_ns, head, value, payload bytes: a posted write is half a cache line
INPUT_BYTES = 8 * INPUT_WORDS
SLOTS_SHIFT, KIND_SHIFT, SIZE_SHIFT = 32, 48, 56  # in the head, above the offset's 32 bits
OFFSET_MAX, SIZE_MAX = 2**32 - 1, 8
DROPS_ALARMS = 0x80  # beside a record's kind: alarms that are due before it are dropped instead of fired
FIRING = 1 << 63  # beside HANDLING: not the input itself but the alarms due before it are at work
OUT_OF_LINE = 1 << 63  # in "payload bytes": the payload comes through the Tube
OUTPUT = struct.Struct("<IHHQ")  # payload bytes, kind, detail, number
SLOT = struct.Struct("<QQQQQQQ")  # applied, output end, irq levels, next alarm, state version, sizes (2)

REGISTER_WORDS_DEFAULT = 512  # one page: the largest built-in data sheet has some 150 words
INPUT_SLOTS_DEFAULT = 1024  # a burst of posted writes; 32 KiB, touched by and by
OUTPUT_BYTES_DEFAULT = 32768
STATE_BYTES_DEFAULT = 8192
JOURNAL_BYTES_MAX = 1 << 30  # a state over 256 MiB is a mistake of the device


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The sizes of a journal's parts."""

    register_words: int = REGISTER_WORDS_DEFAULT
    input_slots: int = INPUT_SLOTS_DEFAULT
    output_bytes: int = OUTPUT_BYTES_DEFAULT
    state_bytes: int = STATE_BYTES_DEFAULT

    @property
    def inputs_at(self) -> int:
        """Where the input ring begins, in bytes."""
        return HEADER_BYTES + 8 * self.register_words

    @property
    def outputs_at(self) -> int:
        """Where the output ring begins, in bytes."""
        return self.inputs_at + INPUT_BYTES * self.input_slots

    def slot_at(self, commit: int) -> int:
        """Where the state of commit number ``commit`` lies, in bytes."""
        return self.outputs_at + self.output_bytes + (commit & 1) * self.state_bytes

    @property
    def total_bytes(self) -> int:
        """The size of the whole journal, in bytes."""
        return self.slot_at(0) + 2 * self.state_bytes


def input_head(kind: int, offset: int, size: int, slots: int = 1) -> int:
    """The second word of an input's record."""
    return offset | slots << SLOTS_SHIFT | kind << KIND_SHIFT | size << SIZE_SHIFT
