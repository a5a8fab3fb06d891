"""A disk whose processes, but for the first, take their time to start."""

from __future__ import annotations

import time

from devices.virtio.blk import Blk
from supervisor.device import Context

START_S = 0.05


class Slow(Blk):
    """Sleeps before it opens its image."""

    def start(self, ctx: Context) -> None:
        if ctx.restarts:
            time.sleep(START_S)
        super().start(ctx)
