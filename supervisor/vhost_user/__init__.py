"""vhost-user: devices of real virtual machines, served by workers that may die.

The door for those who write devices. From the bottom: ``inflight`` (what was fetched and not completed) ·
``virtqueue`` (a split ring as the device sees it) · ``device`` (what a virtio device is to those who write
one).

The connection to the VMM is the supervisor's and not a device's: it is imported from its modules, so that a
device does not load it. Pure: ``errors``, ``requests`` (numbers and limits), ``messages`` and ``areas``
(payloads as values), ``rules`` (what each request looks like), ``assembler`` (messages out of pieces). System
calls: ``wire`` (one send, one receive), ``stream`` and ``endpoint`` (blocking, whole messages), ``listener``,
``frontend`` (the VMM's side).
"""

from __future__ import annotations

from supervisor.vhost_user.device import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_PROTOCOL_FEATURES,
    F_VERSION_1,
    TRANSPORT_FEATURES,
    VirtioDevice,
)
from supervisor.vhost_user.inflight import CorruptLog, InflightLog, region_bytes
from supervisor.vhost_user.virtqueue import BrokenChain, BrokenRing, Chain, RingAreas, SplitQueue

__all__ = [
    "F_EVENT_IDX",
    "F_INDIRECT_DESC",
    "F_PROTOCOL_FEATURES",
    "F_VERSION_1",
    "TRANSPORT_FEATURES",
    "BrokenChain",
    "BrokenRing",
    "Chain",
    "CorruptLog",
    "InflightLog",
    "RingAreas",
    "SplitQueue",
    "VirtioDevice",
    "region_bytes",
]
