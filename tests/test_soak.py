"""A short soak: many kills over twenty devices; the long one is ``benchmarks/soak.py``."""

from __future__ import annotations

import random

import pytest

from tests.chaos import census
from tests.soaking import Soak, soak_board

KILLS = 500
GROWTH_KIB = 4096  # pages that the allocator keeps; a leak of 10 KiB a kill would show


@pytest.mark.chaos
def test_given_twenty_devices_and_many_kills_nothing_is_lost_doubled_or_left() -> None:
    """Every answer and output is exact; memory, descriptors, mappings and processes stay what they were."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    with census(), soak_board(20) as sup:
        soak = Soak(sup, seed)
        soak.run(KILLS, samples=10)
        soak.check_flat(rss_kib=GROWTH_KIB)
    assert soak.kills >= KILLS
    print(f"{soak.kills} kills, {soak.requests} requests")
