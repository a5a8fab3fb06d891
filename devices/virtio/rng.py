"""An entropy source: virtio's entropy device (virtio 1.2, section 5.4), from the kernel's own.

Randomness is nothing to keep: a request that is executed again after a death gets other bytes, and the guest
has never seen the first ones.
"""

from __future__ import annotations

import os
from typing import Final

from supervisor.vhost_user import Chain, VirtioDevice

MAX_BYTES: Final = 1 << 16  # of one request: a guest that asks for more gets this much, and asks again


class Rng(VirtioDevice):
    """One queue, whose buffers are filled with random bytes."""

    device_id = 4

    def execute(self, chain: Chain, index: int) -> int:
        written = 0
        for buffer in chain.writable:
            piece = os.urandom(min(len(buffer), MAX_BYTES - written))
            buffer[: len(piece)] = piece
            written += len(piece)
        return written


DEVICE = Rng
