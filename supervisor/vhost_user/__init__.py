"""vhost-user: devices of real virtual machines, served by workers that may die.

From the bottom: ``inflight`` (what was fetched and not completed) · ``virtqueue`` (a split ring as the device
sees it) · ``device`` (what a virtio device is to those who write one).
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
