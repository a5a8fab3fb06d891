"""A disk that has itself taken for dead, by the mark of the kernel in its mutex. For workers to import."""

from __future__ import annotations

import ctypes
from typing import NoReturn

from devices.virtio.blk import Blk
from supervisor.vhost_user import SplitQueue
from supervisor.worker import lifeline
from supervisor.worker.witness import SYS_FUTEX

FUTEX_WAKE = 1


class Liar(Blk):
    """Says with its first request that it is dead, and lives on."""

    def process(self, queue: SplitQueue, index: int) -> NoReturn:
        word = ctypes.c_uint32.from_buffer(lifeline._held[0][1])
        word.value |= lifeline.OWNER_DIED
        ctypes.CDLL(None).syscall(SYS_FUTEX, ctypes.byref(word), FUTEX_WAKE, 1, None, None, 0)
        del word
        while True:
            super().process(queue, index)
