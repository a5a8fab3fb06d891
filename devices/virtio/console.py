"""A console: virtio's console device (virtio 1.2, section 5.3) with one port.

What the guest writes is emitted, to whoever listens to this device; what is sent to the device, the guest
reads. Neither is lost or doubled by a death, which takes two orders, since a ring lies in the guest's memory
and is not part of a commit:

* Transmitting: outputs are committed together with ``taken``, what used.idx will be once their requests are
  given back; only then they are given back. A process that finds used.idx behind ``taken`` gives so many
  requests back without emitting them again. Of a long request ``sent`` bytes are committed.
* Receiving: ``waiting`` is committed together with what used.idx is then. A buffer is filled and given back,
  and then that is committed. A process that finds used.idx ahead reads in the used ring how much the guest
  has got since.

Both compare with one set-up of the ring. Another driver gets an in-flight log that nobody has begun; then
``taken`` is begun anew, and committed before the log is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from supervisor.device import Context
from supervisor.errors import LocalError
from supervisor.vhost_user import BrokenChain, SplitQueue, VirtioDevice

RX, TX = 0, 1

F_SIZE = 1 << 0

PIECE_BYTES: Final = 1 << 14  # emitted between two commits: half of what a journal has room for
OUTPUT_COSTS = 32  # of a piece, beside its bytes: a guest may cut what it says into single ones
WAITING_BYTES: Final = 1 << 20  # for a guest that does not read, or is not there: it is all in each commit

_CONFIG = struct.Struct("<HHII")  # columns, rows, ports, emergency write: the last two are not offered


class Console(VirtioDevice):
    """One port. ``cols`` and ``rows`` are the size that the guest is told, if it is told one."""

    device_id = 3
    state = ("waiting", "taken", "sent")
    input_queues = (RX,)

    @dataclass
    class Options:
        cols: int = 0
        rows: int = 0

    def start(self, ctx: Context) -> None:
        options = ctx.options
        for name, value in (("cols", options.cols), ("rows", options.rows)):
            if not 0 <= value <= 0xFFFF:
                raise LocalError(f"{name} is {value}, but must be from 1 to 65535, or 0 for no size")
        if bool(options.cols) != bool(options.rows):
            raise LocalError("cols and rows are given both, or neither")
        self.waiting = b""
        self.taken = [-1, -1]  # by queue; negative until a driver has set it up
        self.sent = 0
        self._behind = 0  # requests whose outputs are committed, to be given back

    def features(self) -> int:
        return F_SIZE if self.ctx.options.cols else 0

    def queue_count(self) -> int:
        return 2

    def config_space(self) -> bytes:
        return _CONFIG.pack(self.ctx.options.cols, self.ctx.options.rows, 0, 0)

    # -- the guest -------------------------------------------------------------------------------

    def attached(self, features: int, queues: dict[int, SplitQueue]) -> None:
        super().attached(features, queues)
        for index, queue in queues.items():
            is_another = self.taken[index] < 0 or (queue.log is not None and queue.log.is_fresh)
            if not is_another and index == RX:
                got = sum(queue.published_since(self.taken[RX]))
                self.waiting = self.waiting[got:]
            elif not is_another:
                self._behind = (self.taken[TX] - queue.used_idx) & 0xFFFF
                is_another = self._behind > queue.size  # which nobody but the guest can have made so
            if is_another and index == TX:
                self._behind = self.sent = 0
            if is_another or index == RX:
                self.taken[index] = queue.used_idx
        self.commit()

    def process(self, queue: SplitQueue, index: int) -> bool:
        if index == TX:
            return super().process(queue, index)
        self._receive(queue)
        return False

    def resume(self, queue: SplitQueue, index: int, heads: list[int]) -> None:
        """What the process before had fetched comes first; an empty buffer is as good in the ring."""
        if index == TX:
            for head in heads:
                self.execute_batch(queue, TX, [head])
        elif not queue.put_back(heads):
            for head in heads:
                self._fill(queue, head)

    def give_up(self, queue: SplitQueue, index: int, head: int) -> None:
        """What keeps killing is given back as it is: nothing of it, or no more of it, is emitted."""
        if index == RX:
            queue.complete(head, 0)
            queue.flush()
            self.taken[RX] = queue.used_idx
            return
        self._finish()
        queue.complete(head, 0)
        self.commit()
        queue.flush()

    # -- from the guest --------------------------------------------------------------------------

    def execute_batch(self, queue: SplitQueue, index: int, heads: list[int]) -> None:
        """Emits what requests say, commits that, and then gives them back."""
        uncommitted = 0
        for head in heads:
            if not self._behind:
                uncommitted = self._emit(queue, head, uncommitted)
            self._finish()
            queue.complete(head, 0)
        self.commit()
        queue.flush()

    def _finish(self) -> None:
        """The next request will be given back, and is not to be emitted by anybody else."""
        if self._behind:
            self._behind -= 1
        else:
            self.taken[TX] = (self.taken[TX] + 1) & 0xFFFF
            self.sent = 0

    def _emit(self, queue: SplitQueue, head: int, uncommitted: int) -> int:
        """Emits one request from ``sent`` on, in pieces that a journal can take.

        ``uncommitted`` is how many bytes of its room are used already; returns how many are then.
        """
        at = 0
        for view in self._text(queue, head):
            for begin in range(0, len(view), PIECE_BYTES):
                piece = view[begin : begin + PIECE_BYTES]
                missing = at + len(piece) - self.sent
                at += len(piece)
                if missing <= 0:
                    continue
                if uncommitted + len(piece) + OUTPUT_COSTS > PIECE_BYTES:
                    self.commit()
                    uncommitted = 0
                self.ctx.emit(bytes(piece[-missing:]))
                uncommitted += len(piece) + OUTPUT_COSTS
                self.sent = at
        return uncommitted

    def _text(self, queue: SplitQueue, head: int) -> list[memoryview]:
        try:
            return queue.chain(head).readable
        except (BrokenChain, OSError) as error:
            self.ctx.logger.warning("queue %d, request %d is broken: %s", TX, head, error)
            return []

    # -- to the guest ----------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """The guest gets it once this is committed: the runtime then has queue 0 processed."""
        room = WAITING_BYTES - len(self.waiting)
        if len(data) > room:
            lost = len(data) - room
            self.ctx.logger.warning("%d bytes are dropped: the guest has not read those before", lost)
        self.waiting += data[:room]

    def _receive(self, queue: SplitQueue) -> None:
        while self.waiting:
            heads = queue.fetch(1)
            if heads:
                self._fill(queue, heads[0])
            elif queue.wait_for_kick():
                return

    def _fill(self, queue: SplitQueue, head: int) -> None:
        """Gives one buffer back with what there is for it, then commits that: in this order."""
        written = 0
        try:
            for view in queue.chain(head).writable:
                piece = self.waiting[written : written + len(view)]
                view[: len(piece)] = piece
                written += len(piece)
        except (BrokenChain, OSError) as error:
            self.ctx.logger.warning("queue %d, request %d is broken: %s", RX, head, error)
        queue.complete(head, written)
        queue.flush()
        self.waiting = self.waiting[written:]
        self.taken[RX] = queue.used_idx
        self.commit()


DEVICE = Console
