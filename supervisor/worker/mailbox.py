"""The hot path of a journal: what a request and a commit do between two processes, without a system call.

:class:`Mailbox` says it in Python, and runs where nothing was compiled. ``_mailbox.c`` does the same stores
in the same order at a tenth of the price; :func:`open_mailbox` takes it where it is. With ``TUBEVISOR_PURE``
in the environment it is left alone, so that both can be tested, and measured, on one machine.

A method that cannot do its part the short way says so (``None``, ``False``, ``LACKS_ROOM``); the caller then
goes the long way, record by record.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from supervisor.memory.fence import FENCE
from supervisor.worker.layout import (
    COMMIT,
    CONSUMED,
    HANDLING,
    HEARTBEAT,
    INPUT_WORDS,
    IRQ_LEVELS,
    NEXT_ALARM,
    OFFSET_MAX,
    OUTPUT_END,
    PUBLISHED,
    SIZE_MAX,
    SLOT,
    SUBMITTED,
    WANTED,
    WORKER_SLEEPS,
    input_head,
)
from supervisor.worker.records import Commit, Input, Output, OutputKind

if TYPE_CHECKING:
    from supervisor.worker.journal import Journal

__all__ = ["LACKS_ROOM", "PURE", "RING", "Mailbox", "compiled", "open_mailbox"]

REVISION = 2  # of what the two halves agree on; a compiled one that is older is not taken
PURE = "TUBEVISOR_PURE"  # the environment variable
LACKS_ROOM, QUIET, RING = -1, 0, 1  # what a commit comes to
LOOKS = 40  # at a word between two looks at the clock
REPLY = int(OutputKind.REPLY)  # the last kind of output that somebody waits for


class Mailbox:
    """One side's way into a mapped journal. ``output_end`` is where the last commit's outputs end."""

    def __init__(self, journal: Journal) -> None:
        self.output_end = 0
        self._journal = journal
        self._input_mask = journal.layout.input_slots - 1

    def release(self) -> None:
        """Lets the memory go, before it is unmapped."""

    # -- the supervisor's side -------------------------------------------------------------------

    def submit(self, number: int, kind: int, stamp_ns: int, offset: int, size: int, value: int) -> bool:
        """Shows input ``number``, one without a payload; true if the worker may sleep and has to be rung.

        Raises ``ValueError`` where a field is out of range.
        """
        journal = self._journal
        at, inputs = (number & self._input_mask) * INPUT_WORDS, journal.inputs
        if not 0 <= offset <= OFFSET_MAX or not 0 <= size <= SIZE_MAX:
            raise ValueError("out of range")
        inputs[at + 2] = value
        inputs[at] = stamp_ns
        inputs[at + 1] = input_head(kind, offset, size)
        inputs[at + 3] = 0
        journal.words[SUBMITTED] = number + 1
        if FENCE is None:  # then nobody can know whether it sleeps
            return True
        with FENCE:
            pass
        return journal.words[WORKER_SLEEPS] != 0

    def take_value(self, number: int, spin_ns: int, doorbell_fd: int) -> int | None:
        """Waits ``spin_ns`` for the value that input ``number`` is answered with, and takes it.

        ``None`` where it has not come, or not alone: nothing has been taken then. Whoever waits for room is
        rung. The Python half always leaves it to the long way.
        """
        return None

    def await_published(self, number: int, spin_ns: int) -> bool:
        """Looks for about ``spin_ns``, if not once, whether the inputs below ``number`` are answered."""
        words = self._journal.words
        return _look(lambda: words[PUBLISHED] >= number, spin_ns)

    def shares_core(self) -> bool:
        """True if the worker was last seen on the core that the caller runs on. Python cannot see that."""
        return False

    # -- the worker's side -----------------------------------------------------------------------

    def await_submitted(self, number: int, spin_ns: int) -> bool:
        """Looks for about ``spin_ns``, if not once, whether the inputs below ``number`` are there."""
        words = self._journal.words
        return _look(lambda: words[SUBMITTED] >= number, spin_ns)

    def take(self, number: int) -> Input | None:
        """Input ``number``, which is being handled from here on; ``None`` if it takes more room.

        The heart beats with every input.
        """
        journal = self._journal
        journal.words[HEARTBEAT] += 1
        journal.words[HANDLING] = number + 1
        if journal.inputs[(number & self._input_mask) * INPUT_WORDS + 3]:
            return None
        record, after, _out_of_line = journal.get_input(number)
        return record if after == number + 1 else None  # one that was given up keeps the room of its payload

    def commit(
        self,
        outputs: list[Output],
        registers: memoryview,
        packed: bytes,
        applied: int,
        levels: int,
        next_alarm_ns: int,
        state_version: int,
    ) -> int:
        """Makes everything below ``applied`` happen at once, then shows it; no input is to blame any more.

        ``RING`` if the supervisor has to be rung for it, ``QUIET`` if not; ``LACKS_ROOM`` if nothing has
        happened because outputs or state find none.
        """
        journal = self._journal
        words, sizes = journal.words, journal.layout
        words[HANDLING] = 0
        if SLOT.size + len(registers) + len(packed) > sizes.state_bytes:
            return LACKS_ROOM
        end = self.output_end
        noteworthy = False  # replies are not: who waits for one says so
        if outputs:
            needs = sum([journal.output_needs(output) for output in outputs])
            if end - words[CONSUMED] + needs > sizes.output_bytes:
                return LACKS_ROOM
            for output in outputs:
                end = journal.put_output(end, output)
                noteworthy |= output[0] > REPLY
        commit = words[COMMIT] + 1
        state = applied, end, levels, next_alarm_ns, state_version, registers, packed
        journal.write_slot(commit, tuple.__new__(Commit, state))
        words[COMMIT] = commit
        self.output_end = end
        journal.registers[: len(registers) // 8] = registers.cast("Q")
        noteworthy |= words[NEXT_ALARM] != next_alarm_ns
        words[IRQ_LEVELS] = levels
        words[NEXT_ALARM] = next_alarm_ns
        words[OUTPUT_END] = end
        words[PUBLISHED] = applied
        if FENCE is None:
            return RING
        with FENCE:
            pass
        wanted = words[WANTED]
        return RING if noteworthy or (wanted and wanted <= applied) else QUIET


def _look(is_there: Callable[[], bool], spin_ns: int) -> bool:
    begun_ns = time.monotonic_ns() if spin_ns else 0
    while not is_there():
        for _ in range(LOOKS if spin_ns else 0):
            if is_there():
                return True
        if not spin_ns or time.monotonic_ns() - begun_ns >= spin_ns:
            return False
    return True


def _load() -> Any:
    try:
        module = importlib.import_module("supervisor.worker._mailbox")
    except ImportError:
        return None
    return module if module.REVISION == REVISION else None


_compiled = _load()  # in the zygote, for all its workers


def compiled() -> Any:
    """The module of the compiled half; ``None`` where there is none, or it is not wanted."""
    return None if os.environ.get(PURE) else _compiled


def open_mailbox(journal: Journal, memory: Any) -> Mailbox:
    """The mailbox of a journal that is mapped as ``memory``: the compiled one where there is one."""
    module = compiled()
    if module is None or FENCE is None:  # whose fence the other side of a bell needs as well
        return Mailbox(journal)
    sizes = journal.layout
    mailbox: Mailbox = module.Mailbox(
        memory, Input, sizes.register_words, sizes.input_slots, sizes.output_bytes, sizes.state_bytes
    )
    return mailbox
