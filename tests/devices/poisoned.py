"""A disk that dies of one sector, as a bug in a driver would have it."""

from __future__ import annotations

import os

from devices.virtio.blk import Blk
from supervisor.vhost_user import Chain

DEADLY_SECTOR = 77


class Poisoned(Blk):
    """Reading or writing at ``DEADLY_SECTOR`` ends the process."""

    def execute(self, chain: Chain, index: int) -> int:
        if int.from_bytes(chain.readable[0][8:16], "little") == DEADLY_SECTOR:
            os._exit(9)
        return super().execute(chain, index)
