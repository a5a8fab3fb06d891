"""What a virtio device is to those who write one: features, a configuration space, and requests of queues.

A virtio device is a ``Device`` like any other; what it has besides is here. The runtime attaches queues when
the driver has set them up, calls ``process`` for each when there may be something in it, and detaches
them by ending the process: a process serves one set-up of the driver.
"""

from __future__ import annotations

from typing import ClassVar

from supervisor.device import Device
from supervisor.vhost_user.virtqueue import SplitQueue

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


class VirtioDevice(Device):
    """A device with virtqueues. ``device_id`` is virtio's; ``features`` are those of its own kind.

    ``in_order`` devices complete requests in the order of the ring and can be resumed without a log.
    """

    device_id: ClassVar[int] = 0
    in_order: ClassVar[bool] = True

    negotiated: int = 0
    """The features that the driver has accepted."""

    def features(self) -> int:
        """What is offered to the driver, without what the transport adds."""
        return 0

    def queue_count(self) -> int:
        """How many queues there are at most."""
        return 1

    def config_space(self) -> bytes:
        """The configuration space as the driver reads it."""
        return b""

    def write_config(self, offset: int, data: bytes) -> bool:
        """The driver writes to the configuration space; false refuses it."""
        return False

    def attached(self, features: int, queues: dict[int, SplitQueue]) -> None:
        """The driver has accepted ``features`` and set ``queues`` up; by their indices."""
        self.negotiated = features

    def process(self, queue: SplitQueue, index: int) -> None:
        """There may be requests in queue ``index``: takes them until there are none."""

    def resume(self, queue: SplitQueue, index: int, heads: list[int]) -> None:
        """Requests that the process before had under way; they count as fetched. Before any ``process``."""
