"""A disk whose module takes its time to be imported, as one does that brings a large library along."""

from __future__ import annotations

import time

from devices.virtio.blk import Blk

IMPORT_S = 0.2  # more than a start may take that is taken for fast
time.sleep(IMPORT_S)


class Heavy(Blk):
    """A disk as any other, once it is there."""
