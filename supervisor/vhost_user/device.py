"""What a virtio device is to those who write one: features, a configuration space, and requests of queues.

A virtio device is a ``Device`` like any other; what it has besides is here. The runtime attaches queues when
the driver has set them up, calls ``process`` for each when there may be something in it, and detaches
them by ending the process: a process serves one set-up of the driver.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, ClassVar

from supervisor.device import Device
from supervisor.vhost_user.virtqueue import BrokenChain, Chain, SplitQueue

__all__ = [
    "F_EVENT_IDX",
    "F_INDIRECT_DESC",
    "F_PROTOCOL_FEATURES",
    "F_VERSION_1",
    "TRANSPORT_FEATURES",
    "VirtioDevice",
]

F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_PROTOCOL_FEATURES = 1 << 30  # of vhost-user, not of virtio: there is a second round of negotiation
F_VERSION_1 = 1 << 32
TRANSPORT_FEATURES = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_PROTOCOL_FEATURES

BATCH_NS = 50_000  # after which requests are published: the first ones do not wait for what takes long
TURN = 256  # requests of a queue, after which it is the turn of others, and of the supervisor


class VirtioDevice(Device):
    """A device with virtqueues. ``device_id`` is virtio's.

    Most devices override :meth:`execute`, which handles one request, and say what they offer. ``in_order``
    devices complete requests in the order of the ring and can be resumed without a log.
    """

    device_id: ClassVar[int] = 0
    in_order: ClassVar[bool] = True
    input_queues: ClassVar[tuple[int, ...]] = ()
    """Queues in which inputs may show (``receive``): processed again whenever inputs have been committed."""

    batch: ClassVar[int] = 8
    """Requests that are published together: more only makes the first one wait (measured for disks)."""

    commit: Callable[[], None]
    """Commits state and outputs now, for a device that must not publish a request before; the runtime's.

    Only from what the driver has caused (``attached``, ``resume``, ``process``): an input is committed as a
    whole. What is committed has happened, whatever becomes of the rest of the method.
    """

    negotiated: int = 0
    """The features that the driver has accepted."""

    # -- what is offered -------------------------------------------------------------------------

    def features(self) -> int:
        """What is offered to the driver, without what the transport adds."""
        return 0

    def queue_count(self) -> int:
        """How many queues there are at most."""
        return 1

    def config_space(self) -> bytes:
        """The configuration space as the driver reads it."""
        return b""

    def config_writable(self) -> bytes:
        """A byte for each of the configuration space: 1 where the driver may write."""
        return bytes(len(self.config_space()))

    def write_config(self, offset: int, data: bytes) -> bool:
        """The driver writes to the configuration space; false refuses it."""
        return False

    def offer(self, into: Any) -> None:
        """Writes what is offered ``into`` a ``VirtioOffer``."""
        into.device_id = self.device_id
        into.features = self.features() | TRANSPORT_FEATURES
        into.queues = self.queue_count()
        into.config = self.config_space()
        into.config_writable = self.config_writable()
        into.in_order = self.in_order

    # -- requests --------------------------------------------------------------------------------

    def attached(self, features: int, queues: dict[int, SplitQueue]) -> None:
        """The driver has accepted ``features`` and set ``queues`` up; by their indices."""
        self.negotiated = features

    def execute(self, chain: Chain, index: int) -> int:
        """Handles one request of queue ``index``; returns how many bytes it has written."""
        return 0

    def fail(self, chain: Chain, index: int) -> int:
        """Says in a request that it has failed, and does nothing of it; returns how much was written."""
        return 0

    def give_up(self, queue: SplitQueue, index: int, head: int) -> None:
        """A request that keeps killing its processes: completed with an error, not executed again."""
        written = 0
        with contextlib.suppress(BrokenChain, OSError):
            written = self.fail(queue.chain(head), index)
        queue.complete(head, written)
        queue.flush()

    def resume(self, queue: SplitQueue, index: int, heads: list[int]) -> None:
        """Executes what the process before had under way, in its order; before any ``process``.

        Each is published before the next is begun: should one of them kill, it is known which.
        """
        for head in heads:
            self._execute(queue, index, head)
            queue.flush()

    def process(self, queue: SplitQueue, index: int) -> bool:
        """Takes requests until there are none, and asks for a kick when there are new ones; then false.

        True if its turn is over before that: it is called again when others have had theirs.
        """
        queue.ignore_kicks()
        for _ in range(TURN // self.batch):
            heads = queue.fetch(self.batch)
            if heads:
                self.execute_batch(queue, index, heads)
            elif queue.wait_for_kick():
                return False
            else:
                queue.ignore_kicks()
        return True

    def execute_batch(self, queue: SplitQueue, index: int, heads: list[int]) -> None:
        """Handles ``heads`` in their order and publishes them."""
        begun_ns = monotonic_ns()
        for head in heads:
            self._execute(queue, index, head)
            if monotonic_ns() - begun_ns > BATCH_NS:
                queue.flush()
                begun_ns = monotonic_ns()
        queue.flush()

    def _execute(self, queue: SplitQueue, index: int, head: int) -> None:
        try:
            chain = queue.chain(head)
        except (BrokenChain, OSError) as error:
            self.ctx.logger.warning("queue %d, request %d is broken: %s", index, head, error)
            queue.complete(head, 0)
        else:
            queue.complete(head, self.execute(chain, index))
