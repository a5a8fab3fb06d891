"""A disk that has itself taken for dead, by the mark of the kernel in its mutex. For workers to import."""

from __future__ import annotations

import ctypes
import gc
from typing import NoReturn

from devices.virtio.blk import Blk
from supervisor.vhost_user import SplitQueue
from supervisor.worker import lifeline
from supervisor.worker.journal import Journal
from supervisor.worker.witness import SYS_FUTEX

FUTEX_WAKE = 1


class Liar(Blk):
    """Says with its first request that it is dead, and lives on."""

    def process(self, queue: SplitQueue, index: int) -> NoReturn:
        journal = next(one for one in gc.get_objects() if isinstance(one, Journal) and one._lifeline)
        word = ctypes.c_uint32.from_address(journal._lifeline)
        word.value |= lifeline.OWNER_DIED
        ctypes.CDLL(None).syscall(SYS_FUTEX, ctypes.byref(word), FUTEX_WAKE, 1, None, None, 0)
        while True:
            super().process(queue, index)
