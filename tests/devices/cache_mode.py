"""A disk that tells its guest, by its serial, whether its writes go through the cache."""

from __future__ import annotations

from devices.virtio.blk import GET_ID, ID_BYTES, Blk
from supervisor.vhost_user import Chain

THROUGH, BACK = (word.ljust(ID_BYTES, b"\0") for word in (b"write-through", b"write-back"))


class CacheMode(Blk):
    """The mode as the worker that serves has it."""

    def execute(self, chain: Chain, index: int) -> int:
        if int.from_bytes(chain.readable[0][:4], "little") == GET_ID:
            self._serial = THROUGH if self.write_through else BACK
        return super().execute(chain, index)
