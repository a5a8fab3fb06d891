"""What a spare rehearses with where a board has virtio devices: one with a guest of a few pages."""

from __future__ import annotations

import mmap
import os
import struct

from supervisor.messages_pb2 import Attach
from supervisor.vhost_user import Chain, VirtioDevice, region_bytes
from supervisor.vhost_user.device import F_EVENT_IDX, F_VERSION_1
from supervisor.worker import rehearsal
from supervisor.worker.virtio import Attachment

__all__ = ["Attachment", "Understudy", "set_up"]

ENTRIES = 8
PAGES = 4
HEADER_BYTES, STATUS_BYTES, DATA_BYTES = 16, 1, 512
AVAIL_AT, USED_AT, HEADER_AT, STATUS_AT, DATA_AT = 256, 512, 1024, 2048, 4096
NEXT, WRITE = 1, 2  # of a descriptor


class Understudy(rehearsal.Understudy, VirtioDevice):
    """As the other one, with a queue whose requests are those of a disk: header, data, status."""

    device_id = 2

    def execute(self, chain: Chain, index: int) -> int:
        data, status = chain.writable
        kind, _priority, sector = struct.unpack("<IIQ", chain.readable[0])
        with open("/dev/zero", "rb", buffering=0) as file:
            done = os.preadv(file.fileno(), [data], kind + sector)
        status[0] = 0
        return done + 1


def set_up() -> tuple[Attach, list[int]]:
    """A guest that has made a request available, and descriptors for it, which are the caller's to close."""
    memory_fd, log_fd = (os.memfd_create(rehearsal.NAME, os.MFD_CLOEXEC) for _ in range(2))
    os.ftruncate(memory_fd, PAGES * mmap.PAGESIZE)
    log_bytes = region_bytes(ENTRIES)
    os.ftruncate(log_fd, log_bytes)
    request = (
        struct.pack("<QIHH", HEADER_AT, HEADER_BYTES, NEXT, 1)
        + struct.pack("<QIHH", DATA_AT, DATA_BYTES, NEXT | WRITE, 2)
        + struct.pack("<QIHH", STATUS_AT, STATUS_BYTES, WRITE, 0)
    )
    os.pwrite(memory_fd, request, 0)
    os.pwrite(memory_fd, struct.pack("<HHH", 0, 1, 0), AVAIL_AT)
    attach = Attach(features=F_VERSION_1 | F_EVENT_IDX)
    attach.regions.add(size_bytes=PAGES * mmap.PAGESIZE)
    attach.rings.add(size=ENTRIES, desc=0, avail=AVAIL_AT, used=USED_AT, has_kick=True, has_call=True)
    attach.inflight.size_bytes = log_bytes
    attach.inflight.queues = 1
    attach.inflight.queue_size = ENTRIES
    bells = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)]
    return attach, [memory_fd, log_fd, *bells]
