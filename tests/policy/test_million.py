"""A million simulated deaths: whatever happens to whatever tree of supervisors, the promises hold."""

from __future__ import annotations

import random

import pytest

from tests.policy.simulator import World

CHUNKS = 25
DEATHS = 40_000
"""A chunk's share of a million."""
DEATHS_A_WORLD = 400


@pytest.mark.timeout(300)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_given_a_million_deaths_every_promise_is_kept(chunk: int) -> None:
    """One process at a time, generations that rise, budgets, order, quiet at the end: see the simulator."""
    seeds = random.Random(random.SystemRandom().randrange(2**48))
    deaths = 0
    while deaths < DEATHS:
        deaths += World(seeds.randrange(2**48)).live(DEATHS_A_WORLD)


def test_given_seed_the_world_is_the_same_again() -> None:
    """What a failing run prints is enough to see it once more."""
    told: list[list[object]] = []
    for _ in range(2):
        world = World(4)
        world.live(100)
        told.append(list(world.log))
    assert told[0] == told[1]
