"""Two supervised cards with a cable between them: frames flow, whoever is killed."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.virtio.net import F_MAC, F_MRG_RXBUF, RX, TX
from supervisor.host import Supervisor
from tests.chaos import board, census
from tests.vhost_user.stations import FEATURES, Station, is_whole, numbered, stations, until, wait

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(150)]

FRAME = bytes(range(60))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Supervisor, list[Station]]]:
    """Two guests, not yet set up."""
    devices = [
        f"name: {name}, device: virtio.net, options: {{peer: {peer}}}, backoff: {{max: 0s}}, "
        f'vhost_user: {{socket: "{tmp_path / name}.sock"}}'
        for name, peer in (("one", "two"), ("two", "one"))
    ]
    with (
        census(),
        Supervisor(board(*devices)) as sup,
        stations(sup, tmp_path / "one.sock", tmp_path / "two.sock") as made,
    ):
        yield sup, made


def _flows(sup: Supervisor, sender: Station, receiver: Station) -> None:
    """Frames are sent until one arrives."""
    before = len(receiver.received)

    def arrived() -> bool:
        if not sender.slots[TX]:
            sender.send(FRAME)
        return len(receiver.received) > before

    until(arrived, sup, sender, receiver)


def test_given_two_cards_frames_flow_both_ways(pair: tuple[Supervisor, list[Station]]) -> None:
    """Undisturbed nothing is lost: what one sends, the other receives, in order."""
    sup, (one, two) = pair
    for station in (one, two):
        station.bring_up()
        station.post()
    for sender, receiver in ((one, two), (two, one)):
        _flows(sup, sender, receiver)
        chooser = random.Random(1)
        frames = [numbered(chooser, number) for number in range(300)]
        left = list(frames)

        def arrived() -> bool:
            got = [frame for frame in receiver.received if frame != FRAME]  # noqa: B023 - called in this turn
            while left and len(frames) - len(left) - len(got) < 32 and sender.send(left[0]):  # noqa: B023
                left.pop(0)  # noqa: B023
            return got == frames  # noqa: B023

        until(arrived, sup, one, two)


def test_given_either_killed_again_and_again_the_link_comes_back(
    pair: tuple[Supervisor, list[Station]],
) -> None:
    """Frames may be lost with the dead, or come twice. None is changed, no buffer is lost or used twice."""
    sup, both = pair
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    for station in both:
        station.bring_up()
        station.post()
    kills = number = 0

    def enough() -> bool:
        nonlocal kills, number
        for station in both:
            for _ in range(8):
                number += station.send(numbered(chooser, number))
        if chooser.random() < 0.03:
            kills += sup.kill(chooser.choice(["one", "two"]), charged=False) is not None
        return kills >= 60 and min(len(station.received) for station in both) > 500

    until(enough, sup, *both, seconds=120)
    print(f"kills={kills} sent={number} received={[len(station.received) for station in both]}")
    assert all(is_whole(frame) for station in both for frame in station.received)
    until(lambda: not any(station.slots[TX] for station in both), sup, *both)
    for sender, receiver in (both, both[::-1]):
        _flows(sup, sender, receiver)


def test_given_guests_come_one_after_the_other_they_find_each_other(
    pair: tuple[Supervisor, list[Station]],
) -> None:
    """Who has no guest yet is no peer yet; a guest that leaves and comes back has its link again."""
    sup, (one, two) = pair
    one.bring_up()
    one.post()
    for _ in range(100):
        one.send(FRAME)
        wait(sup, one, timeout=0.001)
    until(lambda: not one.slots[TX], sup, one)  # sent into nowhere, not kept
    two.bring_up(rings=(RX,))
    two.post()
    two.start_ring(TX)
    _flows(sup, one, two)
    _flows(sup, two, one)


def test_given_stopped_peer_sending_goes_on(pair: tuple[Supervisor, list[Station]]) -> None:
    """A process that takes nothing fills the link: what does not fit is dropped, and nobody waits."""
    sup, (one, two) = pair
    for station in (one, two):
        station.bring_up()
        station.post()
    _flows(sup, one, two)
    sup.kill("two", send_signal=signal.SIGSTOP, charged=False)
    before = one.sent

    def sent() -> bool:
        while one.send(bytes(1500)):
            pass
        return one.sent > before + 6000

    until(sent, sup, one)
    sup.kill("two", charged=False)
    _flows(sup, one, two)
    _flows(sup, two, one)


def test_given_card_its_vmm_is_told_what_it_can_and_where_its_rings_stand(
    pair: tuple[Supervisor, list[Station]],
) -> None:
    """No buffer is held while nothing comes: a stopped ring stands where it was used."""
    sup, (one, two) = pair
    for station in (one, two):
        station.bring_up()
        station.post()
    offered = one.ask(one.front.get_features)
    assert offered & F_MRG_RXBUF
    assert not offered & F_MAC
    assert offered & FEATURES == FEATURES
    assert one.ask(one.front.get_queue_num) == 2
    _flows(sup, one, two)
    base = two.ask(lambda: two.front.get_vring_base(RX))
    assert base == two.drivers[RX].used_words[1]
    two.start_ring(RX, base)
    _flows(sup, one, two)
    assert {*two.received} == {FRAME}
