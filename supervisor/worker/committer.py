"""A worker's commits: the one atomic step, and what is shown after it.

The order is the promise of the project, so it stands here in one place:

1. outputs are written beyond the visible end of the output ring;
2. the whole state is written into the free slot, then ``COMMIT`` is stored: now it has happened;
3. registers, levels, outputs are shown, and last of all the number of the last input applied.

Where outputs find no room the worker waits for the supervisor (back-pressure); where a commit could never
find any it asks for a larger journal.
"""

from __future__ import annotations

import os
from typing import Protocol

import msgspec

from supervisor.device import NO_ALARM
from supervisor.memory.fence import FENCE
from supervisor.worker import layout
from supervisor.worker.journal import Journal
from supervisor.worker.layout import (
    SLOT,
)
from supervisor.worker.mailbox import LACKS_ROOM, RING
from supervisor.worker.records import Commit
from supervisor.worker.session import Session

__all__ = ["Committer", "Waiting", "unpack_state"]

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[dict[int, int], bytes]).decode


class Waiting(Protocol):
    """What a commit may have to wait for."""

    def wait_for_bell(self) -> None:
        """Returns after the doorbell, the Tube or some time."""

    def ask_for_growth(self, *, output_bytes: int, state_bytes: int, register_words: int) -> None:
        """Returns once a larger journal has been given to :meth:`Committer.use`."""


def unpack_state(commit: Commit) -> tuple[dict[int, int], bytes]:
    """(Alarms by token, the device's own snapshot). Raises ``msgspec.DecodeError``."""
    return _unpack(commit.state)


class Committer:
    """Writes one session's state and outputs into its journal. ``applied``: inputs below it have happened."""

    def __init__(self, journal: Journal, answer_fd: int, waiting: Waiting) -> None:
        self.applied = 0
        self._answer_fd = answer_fd
        self._waiting = waiting
        self._take(journal)

    def use(self, journal: Journal) -> None:
        """Commits into ``journal``, a larger copy of the one before, from now on."""
        journal.mailbox.output_end = self.mailbox.output_end
        self._take(journal)

    def _take(self, journal: Journal) -> None:
        self.journal, self.words, self.mailbox = journal, journal.words, journal.mailbox
        self._commit = journal.mailbox.commit

    def go_on_from(self, commit: Commit) -> None:
        """Takes up where the worker before this one has left."""
        self.applied = commit.applied
        self.mailbox.output_end = commit.output_end

    def commit(self, session: Session, applied: int) -> None:
        """Makes everything up to ``applied`` happen at once, then shows it. Raises what ``snapshot`` does."""
        device, alarms = session.device, session.alarms
        outputs, registers = session.outputs, session.register_bytes
        packed = _pack((alarms, device.snapshot()))
        next_alarm_ns = session.next_alarm_ns if alarms else NO_ALARM
        levels, version = session.irq_levels, device.state_version
        rings = self._commit(outputs, registers, packed, applied, levels, next_alarm_ns, version)
        while rings == LACKS_ROOM:
            output_needs = sum([self.journal.output_needs(output) for output in outputs])
            self._make_room(output_needs, SLOT.size + len(registers) + len(packed), len(session.words))
            rings = self._commit(outputs, registers, packed, applied, levels, next_alarm_ns, version)
        self.applied = applied
        if outputs:
            outputs.clear()
        if rings == RING:
            self._ring()

    def _ring(self) -> None:
        try:
            os.eventfd_write(self._answer_fd, 1)
        except BlockingIOError:
            pass  # it has been rung 2^64 times: the supervisor will look

    def _make_room(self, output_bytes: int, state_bytes: int, register_words: int) -> None:
        """Returns when the journal can take the commit: grown if it never could, else drained enough."""
        sizes = self.journal.layout
        if output_bytes > sizes.output_bytes or state_bytes > sizes.state_bytes:
            self._waiting.ask_for_growth(
                output_bytes=output_bytes, state_bytes=state_bytes, register_words=register_words
            )
        while True:
            words = self.words
            used = self.mailbox.output_end - words[layout.CONSUMED]
            if used + output_bytes <= self.journal.layout.output_bytes:
                return
            words[layout.WORKER_SLEEPS] = 1
            if FENCE is not None:
                with FENCE:
                    pass
            if used == self.mailbox.output_end - words[layout.CONSUMED]:
                self._ring()
                self._waiting.wait_for_bell()
            words[layout.WORKER_SLEEPS] = 0
            words[layout.HEARTBEAT] += 1
