"""A worker that turns against its supervisor ends in a report and the policy's answer; others go on."""

from __future__ import annotations

import contextlib

import pytest

from supervisor.errors import DeviceFault, PeerError
from supervisor.host import Supervisor
from supervisor.policy.records import DeviceDied, DeviceFailed
from tests.chaos import COUNTING, board, census

HARMLESS = ("empty_packet", "flood", "flood_of_logs")
DEADLY = (
    "garbage",
    "huge_message",
    "many_descriptors",
    "other_generation",
    "second_hello",
    "unknown_message",
    "unasked_ready",
    "endless_journal",
    "reads_nothing",
    "closes_tube",
    "leaves",
    "output_end_far_away",
    "published_far_away",
    "whole_journal",
)


@pytest.mark.chaos
@pytest.mark.parametrize("attack", DEADLY)
def test_given_attack_the_worker_is_ended_and_the_others_serve_on(attack: str) -> None:
    """The attacker's death is reported, its successor or its failure follows, its neighbour is unharmed."""
    device = 'device: "tests.devices.hostile:Hostile", backoff: {max: 0s}, request_timeout: 500ms, poison: 1'
    config = board(f"name: hostile, {device}", COUNTING, supervisor="intensity: 5, on_give_up: isolate")
    with census(), Supervisor(config) as sup:
        with contextlib.suppress(DeviceFault, PeerError):
            sup["hostile"].call_bytes(attack.encode())
        assert sup["counter"].read(0x04, 4) == 1
        ended: list[object] = []
        while not any(isinstance(event, DeviceDied | DeviceFailed) for event in ended):
            sup.dispatch(1)
            ended += sup.events()
        assert sup.outcome is None
        assert sup["counter"].read(0x04, 4) == 2


@pytest.mark.chaos
@pytest.mark.parametrize("attack", HARMLESS)
def test_given_nuisance_it_is_borne_and_delays_nobody(attack: str) -> None:
    """Floods and empty packets are the worker's own trouble: requests to it and to others are answered."""
    device = 'device: "tests.devices.hostile:Hostile", backoff: {max: 0s}'
    with census(), Supervisor(board(f"name: hostile, {device}", COUNTING)) as sup:
        with contextlib.suppress(DeviceFault):
            sup["hostile"].call_bytes(attack.encode())
        assert sup["counter"].read(0x04, 4) == 1
        assert sup["hostile"].read(0x04, 4)


@pytest.mark.chaos
def test_given_worker_that_forks_away_no_second_copy_serves() -> None:
    """Its child holds Tube, journal and bells: it ends with the worker, and one generation serves."""
    device = 'device: "tests.devices.hostile:Hostile", backoff: {max: 0s}'
    with census(), Supervisor(board(f"name: hostile, {device}", COUNTING)) as sup:
        with contextlib.suppress(DeviceFault):
            sup["hostile"].call_bytes(b"forks_away")
        value = sup["hostile"].read(0x04, 4)
        assert sup["hostile"].read(0x04, 4) == value + 1
        assert sup["counter"].read(0x04, 4) == 1
