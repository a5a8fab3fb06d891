"""The in-flight log of one split virtqueue: what was fetched and not completed, in memory that outlives us.

Layout and order of stores are those of the vhost-user specification ("Inflight I/O tracking", split
virtqueue), so that a log begun by another back-end can be continued, and ours by another one:

====  ==================  =====================================================================
  0   u64 features        0
  8   u16 version         0: nothing is in it yet; 1
 10   u16 desc_num        how many states follow
 12   u16 last_batch_head the head completed last: the batch hangs at it by ``next``
 14   u16 used_idx        used.idx as it was after the last complete batch
 16   states, 16 B each   u8 inflight, 5 B of padding, u16 next, u64 counter
====  ==================  =====================================================================

A process that is killed leaves each of its stores or does not; nothing is half done. So the order is all:

* fetching: counter, then inflight: a request is either not in the log, or in it with its place in the order;
* completing a batch: link its heads, publish them in the used ring and move used.idx, clear their inflight
  marks, and last of all remember used.idx. Where it dies in between, used.idx tells how many of the linked
  heads were published, and ``recover`` clears just those.

A store is one store: fields are written through cast views, never by ``struct.pack_into``, which zeroes what
it is about to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from supervisor.errors import PeerError

__all__ = [
    "HEADER_BYTES",
    "STATE_BYTES",
    "CorruptLog",
    "InflightLog",
    "heads_in_flight",
    "region_bytes",
]

HEADER_BYTES = 16
STATE_BYTES = 16
MAX_COUNTER = 1 << 63  # nobody comes so far: beyond it a log has been made up, and there is room to count on
ALIGNMENT = 64  # of each queue's region, as DPDK and libvhost-user have it

_VERSION, _DESC_NUM, _LAST_BATCH_HEAD, _USED_IDX = 4, 5, 6, 7  # u16 words of the header
_NEXT_0, _NEXT_STEP = 11, 8  # the u16 word of the first state's ``next``, and the words to the following one
_COUNTER_0, _COUNTER_STEP = 3, 2  # likewise in u64 words


class CorruptLog(PeerError):
    """A log that cannot be: a loop in its batch, a head out of range, a batch longer than the ring."""


def region_bytes(desc_num: int) -> int:
    """Bytes of one queue's region in the shared memory: queues stand behind one another at this stride."""
    return -(-(HEADER_BYTES + STATE_BYTES * desc_num) // ALIGNMENT) * ALIGNMENT


def heads_in_flight(region: bytes, desc_num: int) -> list[tuple[int, int]]:
    """(Place in the order, head) of each request that a copy of a queue's region has under way.

    For somebody who only looks on: a request that was published already may still be marked.
    """
    found = []
    count = min(desc_num, (len(region) - HEADER_BYTES) // STATE_BYTES)
    for head in compress(range(count), region[HEADER_BYTES::STATE_BYTES]):
        at = HEADER_BYTES + STATE_BYTES * head
        found.append((int.from_bytes(region[at + 8 : at + 16], "little"), head))
    return found


class InflightLog:
    """The log of one queue over ``memory``, at least ``HEADER_BYTES + 16 * desc_num`` bytes of it.

    ``counter`` is the place in the order that the next fetched request gets.
    """

    def __init__(self, memory: memoryview, desc_num: int) -> None:
        size = HEADER_BYTES + STATE_BYTES * desc_num
        if len(memory) < size:
            raise CorruptLog(f"a log of {desc_num} requests needs {size} bytes, not {len(memory)}")
        self.desc_num = desc_num
        self.counter = 0
        self._bytes = memory[:size]
        self._words = self._bytes.cast("H")
        self._quads = self._bytes.cast("Q")

    @property
    def is_fresh(self) -> bool:
        """True while nobody has begun it."""
        return self._words[_VERSION] == 0

    def begin(self, used_idx: int) -> None:
        """Begins a fresh log for a ring whose used.idx is ``used_idx``.

        A log that said 0 there would take everything before for a batch under way.
        """
        self._bytes[:] = bytes(len(self._bytes))
        self._words[_DESC_NUM] = self.desc_num
        self._words[_USED_IDX] = used_idx
        self._words[_VERSION] = 1

    def recover(self, used_idx: int) -> list[int]:
        """What its last owner left: clears what it had published; returns the rest in the order of fetching.

        Raises :class:`CorruptLog` where the log cannot be believed; nothing has been changed then.
        """
        words, marks = self._words, self._bytes
        published = (used_idx - words[_USED_IDX]) & 0xFFFF
        batch = self._batch(published)
        done = set(batch)
        marked = compress(range(self.desc_num), bytes(marks[HEADER_BYTES::STATE_BYTES]))
        left = sorted((head for head in marked if head not in done), key=self.counter_of)
        counter = self.counter_of(left[-1]) + 1 if left else 0
        if counter > MAX_COUNTER:
            raise CorruptLog(f"request {left[-1]} is number {counter} in the order of fetching")
        for head in batch:
            marks[HEADER_BYTES + STATE_BYTES * head] = 0
        words[_USED_IDX] = used_idx
        self.counter = counter
        return left

    def _batch(self, length: int) -> list[int]:
        if length > self.desc_num:
            raise CorruptLog(f"a batch of {length} requests in a log of {self.desc_num}")
        batch: list[int] = []
        seen: set[int] = set()
        head = self._words[_LAST_BATCH_HEAD]
        for _ in range(length):
            if head >= self.desc_num or head in seen:
                raise CorruptLog(f"the batch leads to {head} after {batch}")
            seen.add(head)
            batch.append(head)
            head = self._words[_NEXT_0 + _NEXT_STEP * head]
        return batch

    def counter_of(self, head: int) -> int:
        """The place of a request in the order of fetching."""
        return self._quads[_COUNTER_0 + _COUNTER_STEP * head]

    def fetched(self, head: int) -> None:
        """Request ``head`` was taken from the ring."""
        self._quads[_COUNTER_0 + _COUNTER_STEP * head] = self.counter
        self._bytes[HEADER_BYTES + STATE_BYTES * head] = 1
        self.counter += 1

    def put_back(self, head: int) -> None:
        """Request ``head`` was not begun, and is in the ring as before."""
        self._bytes[HEADER_BYTES + STATE_BYTES * head] = 0

    def is_in_flight(self, head: int) -> bool:
        """True from :meth:`fetched` until :meth:`published` or :meth:`put_back`."""
        return bool(self._bytes[HEADER_BYTES + STATE_BYTES * head])

    def completing(self, heads: Sequence[int]) -> None:
        """These are about to be published together. Before the first store to the used ring."""
        words = self._words
        last = words[_LAST_BATCH_HEAD]
        for head in heads:
            words[_NEXT_0 + _NEXT_STEP * head] = last
            words[_LAST_BATCH_HEAD] = last = head

    def published(self, heads: Sequence[int], used_idx: int) -> None:
        """They are published: used.idx is ``used_idx`` now."""
        marks = self._bytes
        for head in heads:
            marks[HEADER_BYTES + STATE_BYTES * head] = 0
        self._words[_USED_IDX] = used_idx

    def close(self) -> None:
        """Lets go of the memory, so that it can be unmapped."""
        self._words.release()
        self._quads.release()
        self._bytes.release()
