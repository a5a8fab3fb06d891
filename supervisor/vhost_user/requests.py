"""The numbers of vhost-user: requests of both sides, feature bits, limits. Pure.

From the specification's sections "Front-end message types", "Back-end message types" and "Protocol features".
Two names changed over time, their numbers did not: what is BACKEND here was SLAVE once.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = [
    "BackEndRequest",
    "FrontEndRequest",
    "MAX_CONFIG_BYTES",
    "MAX_FDS",
    "MAX_MEM_SLOTS",
    "MAX_PAYLOAD_BYTES",
    "MAX_REGIONS",
    "MAX_REGIONS_BASELINE",
    "MAX_RING_SIZE",
    "MAX_VRINGS",
    "ProtocolFeature",
]

MAX_CONFIG_BYTES = 4096
"""Of a configuration space, and how far one may be addressed: a page. QEMU stops at 256, crosvm at this."""

MAX_PAYLOAD_BYTES = 12 + MAX_CONFIG_BYTES
"""What a header may announce: the largest message there is, a whole configuration space behind its header.
So this much, and no more, is what an unknown peer can make us keep for it."""

MAX_FDS = 32
"""Descriptors with one message, the same as crosvm allows: as many as a memory table has regions."""

MAX_REGIONS_BASELINE = 8
"""Regions of one memory table, as the specification has it for peers without CONFIGURE_MEM_SLOTS."""

MAX_REGIONS = MAX_FDS
"""Regions of one memory table in any case: each has a descriptor. QEMU sends up to 8, crosvm up to 32."""

MAX_MEM_SLOTS = 509
"""Regions in all, added one by one with CONFIGURE_MEM_SLOTS: KVM gives a guest as many."""

MAX_VRINGS = 32768
"""Rings of one device. An index beyond is a mistake or an attack (CVE-2020-10723: it was cut to 16 bits)."""

MAX_RING_SIZE = 32768
"""Entries of one ring (virtio 1.2, sections 2.7 and 2.8)."""


class FrontEndRequest(IntEnum):
    """What a VMM asks of a device. 41 and up are younger than QEMU 8.1."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackEndRequest(IntEnum):
    """What a device asks of its VMM, over the channel of SET_BACKEND_REQ_FD."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class ProtocolFeature(IntFlag):
    """What both sides can do besides the first version of the protocol."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    SHMEM = 1 << 21
