"""The network card, driven through real rings in this process: two of them, and the link in between."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator

import pytest

from devices.virtio import _ports, net
from devices.virtio.net import F_CSUM, F_MAC, F_MRG_RXBUF, RX, TURN, TX, Net
from supervisor.errors import LocalError
from supervisor.vhost_user import F_VERSION_1, virtqueue
from supervisor.worker.session import Launch, Session
from tests.vhost_user import test_recovery
from tests.vhost_user.cards import HEADER, Card, Loop, pair_of_cards
from tests.vhost_user.driver import GUEST_BASE
from tests.vhost_user.test_recovery import Fuse, Killed

pytestmark = pytest.mark.usefixtures("census")

PLAIN = bytes(HEADER)


def _frame(chooser: random.Random, most: int = 1514) -> bytes:
    return chooser.randbytes(chooser.randint(14, most))


@pytest.fixture(params=[F_VERSION_1, F_VERSION_1 | F_MRG_RXBUF], ids=["plain", "mergeable"])
def cards(census: None, request: pytest.FixtureRequest) -> Iterator[tuple[Card, Card]]:
    made = pair_of_cards(features=request.param)
    yield made
    for card in made:
        card.close()


WRONG: list[tuple[dict[str, str], str]] = [
    ({}, "exactly one of tap and peer"),
    ({"tap": "tap0", "peer": "b"}, "exactly one of tap and peer"),
    ({"peer": "card"}, "itself"),
    ({"peer": "b", "mac": "52:54:00"}, "mac is 52:54:00"),
    ({"peer": "b", "mac": "01:00:00:00:00:01"}, "mac is"),
    ({"peer": "b", "mac": "00:00:00:00:00:00"}, "mac is"),
    ({"peer": "b", "mac": "52:54:00:12:34:5g"}, "mac is"),
    ({"tap": "tv-nowhere"}, "ip tuntap add dev tv-nowhere mode tap"),
    ({"tap": "x" * 16}, "cannot be an interface's name"),
    ({"tap": "lo"}, "lo: "),
]


@pytest.mark.parametrize(("options", "what"), WRONG)
def test_given_wrong_options_the_error_says_what_would_be_right(options: dict[str, str], what: str) -> None:
    """Both cables or none, an address that is none, an interface that is not there or no tap."""
    session = Session(Net, Launch(name="card", options=options), Loop("card", {}))
    with pytest.raises(LocalError, match=what):
        session.start(0)


def test_given_mac_it_is_offered_and_a_peer_is_offered_no_offloads() -> None:
    """Another guest could not take half a checksum, so nobody is told that it might."""
    session = Session(Net, Launch(name="a", options={"peer": "b", "mac": "52:54:00:12:34:56"}), Loop("a", {}))
    session.start(0)
    device = session.device
    assert isinstance(device, Net)
    assert device.features() == F_MRG_RXBUF | F_MAC
    assert not device.features() & F_CSUM
    assert device.config_space() == bytes.fromhex("525400123456")
    assert device.queue_count() == 2
    device.stop()


def test_given_frames_of_any_cut_they_arrive_in_order_and_unchanged(cards: tuple[Card, Card]) -> None:
    """Headers and frames cut anywhere (CVE-2022-2132), buffers of any sizes; headers are ours, not theirs."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    for sender, receiver in itertools.islice(itertools.cycle([cards, cards[::-1]]), 40):
        frames = []
        for _ in range(chooser.randint(1, 12)):
            first = chooser.randint(1, 40)
            receiver.post(first, 13, 2000)
            frames.append(_frame(chooser))
            data = chooser.randbytes(HEADER) + frames[-1]
            cuts = sorted({chooser.randrange(1, len(data)) for _ in range(chooser.randrange(4))})
            sender.send(data, *cuts, kick=False)
        receiver.kick(RX)
        sender.kick(TX)
        while receiver.loop.turn():
            pass
        assert receiver.frames() == frames
        assert [written for _head, written in sender.drivers[TX].take()] == [0] * len(frames)
        for card in cards:
            card.reuse_memory()


def test_given_what_is_no_frame_it_is_refused_and_the_next_is_sent(cards: tuple[Card, Card]) -> None:
    """Shorter than a header, shorter than header and addresses, nowhere: used, and nothing is sent."""
    a, b = cards
    for _ in range(4):
        b.post(2000)
    a.send(PLAIN[:5], kick=False)
    a.send(PLAIN + bytes(13), 3, 12, kick=False)
    head = a.drivers[TX].offer((GUEST_BASE + (64 << 20), 64, False))
    a.drivers[TX].offer((a.guest.allocate(100), 100, True))
    a.send(PLAIN + bytes(range(60)))
    assert len(a.drivers[TX].take()) == 5
    assert head in {used for used, _written in a.drivers[TX].used}
    b.kick(RX)
    assert b.frames() == [bytes(range(60))]


def test_given_buffers_that_cannot_be_received_into_they_are_used_empty(cards: tuple[Card, Card]) -> None:
    """Too short for a header, nowhere, or not writable: given back, and the frame goes into the next one."""
    a, b = cards
    heads = [b.post(5), b.post(3, 4, 10)]
    b.drivers[RX].offer((b.guest.allocate(2000), 2000, False))
    b.drivers[RX].offer((GUEST_BASE + (64 << 20), 2000, True))
    good = b.post(2000)
    a.send(PLAIN + bytes(range(60)))
    b.kick(RX)
    used = b.drivers[RX].take()
    assert [written for _head, written in used] == [0, 0, 0, 0, HEADER + 60]
    assert [head for head, _written in used][:2] == heads
    assert used[-1][0] == good


def test_given_frame_longer_than_its_buffers_only_mergeable_ones_take_it(cards: tuple[Card, Card]) -> None:
    """Spread over as many as it needs, and the header says how many; else it is dropped, and its buffer is
    used for the next."""
    a, b = cards
    mergeable = bool(b.device.negotiated & F_MRG_RXBUF)
    for _ in range(50):
        b.post(256)
    long = random.Random(1).randbytes(9000)
    a.send(PLAIN + long)
    a.send(PLAIN + bytes(range(60)))
    b.kick(RX)
    assert b.frames() == ([long, bytes(range(60))] if mergeable else [bytes(range(60))])
    assert b.device.dropped == (0 if mergeable else 1)
    a.send(PLAIN + random.Random(1).randbytes(50 * 256))
    a.send(PLAIN + bytes(range(61)))
    b.kick(RX)
    assert b.frames() == [bytes(range(61))]


def test_given_old_driver_its_header_has_no_number_of_buffers() -> None:
    """Ten bytes, for one who has negotiated nothing; the other side may be newer."""
    a, b = pair_of_cards(features=0)
    b.post(10, 100)
    b.kick(RX)
    a.send(b"\xff" * 10 + bytes(range(60)))
    b.loop.turn()
    assert [data for _head, data in b.received()] == [bytes(10) + bytes(range(60))]
    for card in (a, b):
        card.close()


def test_given_empty_ring_the_port_is_left_alone_until_the_guest_kicks(cards: tuple[Card, Card]) -> None:
    """Frames wait in the link, none is lost, and nobody is woken for what cannot be taken."""
    a, b = cards
    frames = [bytes([number]) * 60 for number in range(5)]
    for frame in frames:
        a.send(PLAIN + frame)
    assert not b.loop.turn()
    assert b.drivers[RX].used_words[0] == 0  # a kick is wanted
    for count in (2, 3, 1):
        for _ in range(count):
            b.post(2000)
        b.kick(RX)
    assert b.frames() == frames
    assert b.drivers[RX].used_words[0] == virtqueue.USED_NO_NOTIFY
    a.send(PLAIN + frames[0])
    assert b.loop.turn()
    assert b.frames() == [frames[0]]


def test_given_nothing_to_receive_no_buffer_is_held(cards: tuple[Card, Card]) -> None:
    """A ring that is stopped at any time has all its buffers, and the log is empty."""
    a, b = cards
    for _ in range(10):
        b.post(2000)
    b.kick(RX)
    for _ in range(3):
        a.send(PLAIN + bytes(60))
        b.loop.turn()
        queue = b.queues[RX]
        assert queue.position == queue.used_idx
        assert queue.log is not None
        assert not any(queue.log.is_in_flight(head) for head in range(queue.size))
    assert len(b.frames()) == 3


def test_given_buffers_that_the_dead_had_fetched_frames_come_into_them(cards: tuple[Card, Card]) -> None:
    """They are in the ring again, in their order, or are used empty where the ring does not say so."""
    a, b = cards
    heads = [b.post(2000) for _ in range(4)]
    assert b.queues[RX].fetch() == heads
    for swapped in (False, True):
        queue = b.drivers[RX].device()
        left = queue.recover()
        assert left == heads
        if swapped:
            left = [left[1], left[0], *left[2:]]
        b.queues[RX] = b.device._rx = queue
        b.device.resume(queue, RX, left)
        if not swapped:
            a.send(PLAIN + bytes(60))
            b.kick(RX)
            assert b.received()[0][0] == heads.pop(0)
            queue.fetch()
    assert [written for _head, written in b.drivers[RX].take()] == [0] * 3


def test_given_broken_ring_the_card_lives(cards: tuple[Card, Card]) -> None:
    """A frame that comes finds the ring broken: nothing ends, and the other direction goes on."""
    a, b = cards
    b.post(2000)
    b.kick(RX)
    b.drivers[RX].avail[1] = 60_000
    a.send(PLAIN + bytes(60))
    b.loop.turn()
    assert not b.loop.turn()
    a.post(2000)
    a.kick(RX)
    b.send(PLAIN + bytes(range(60)))
    a.loop.turn()
    assert a.frames() == [bytes(range(60))]


def test_given_full_link_frames_are_dropped_and_nobody_waits(cards: tuple[Card, Card]) -> None:
    """As with a cable whose other end does not listen; what fits arrives, in order."""
    a, b = cards
    for number in range(40):
        for _ in range(63):
            a.send(PLAIN + bytes([number]) * 8000, kick=False)
        a.kick(TX)
        assert len(a.drivers[TX].take()) == 63
        a.reuse_memory()
    arrived = []
    while True:
        for _ in range(8):
            b.post(10_000)
        b.kick(RX)
        got = b.frames()
        arrived += [frame[0] for frame in got]
        if len(got) < 8:
            break
        b.reuse_memory()
    assert arrived == sorted(arrived)
    assert 0 < len(arrived) < 40 * 63


def test_given_flood_of_what_cannot_be_had_there_is_a_turn_for_others(cards: tuple[Card, Card]) -> None:
    """A peer that sends too short frames for ever keeps the card from nothing."""
    _a, b = cards
    end = b.device.port
    assert isinstance(end, _ports.Cable)
    flooder, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end._hang_up()
    end._use(link)
    b.post(2000)
    for _ in range(100):
        flooder.send(b"x")
    calls = itertools.count()
    real = end.receive

    def refilled(views: list[memoryview]) -> int:
        next(calls)
        flooder.send(b"x")
        return real(views)

    end.receive = refilled  # type: ignore[method-assign]
    b.kick(RX)
    assert next(calls) <= 2 * TURN
    flooder.close()


def test_given_much_to_send_the_other_direction_gets_its_turn(cards: tuple[Card, Card]) -> None:
    """A guest that makes frames available as fast as they are sent does not keep the loop for itself."""
    a, _b = cards
    driver, queue = a.drivers[TX], a.queues[TX]
    head = a.send(PLAIN + bytes(60), kick=False)
    real = queue.fetch

    def endless(limit: int = 1) -> list[int]:
        if driver.avail[1] == queue.position:
            driver.make_available(head)
        return real(limit)

    queue.fetch = endless  # type: ignore[method-assign]
    assert a.kick(TX)
    position = queue.position
    assert position < 2 * TURN
    assert a.kick(TX)
    assert queue.position > position


def test_given_peer_that_dies_the_link_is_made_anew_by_either_side() -> None:
    """The socket's end is seen, by frames or by their absence, and both dial until they have met."""
    for dies in (0, 1):
        pair = list(pair_of_cards())
        for _ in range(3):
            old = pair[dies]
            name = old.loop.name
            old.close()
            others = old.loop.others
            pair[dies] = Card({"peer": pair[1 - dies].loop.name}, Loop(name, others))
            arrived: list[bytes] = []
            pair[1].post(2000)
            pair[1].kick(RX)
            for _ in range(1000):
                pair[0].send(PLAIN + bytes(60))
                pair[0].drivers[TX].take()
                for one in pair:
                    one.loop.turn(0.001)
                arrived = pair[1].frames()
                if arrived:
                    break
                pair[0].reuse_memory()
            assert arrived == [bytes(60)]
        for one in pair:
            one.close()


def test_given_peer_that_gives_something_else_it_is_not_used() -> None:
    """A file in place of a link, a Tube that ends: dialled again, and nothing breaks."""
    others: dict[str, Loop] = {}
    a = Loop("a", others)
    b = Card({"peer": "a"}, Loop("b", others))
    end = b.device.port
    for gift in ("text", "datagrams", "nothing"):
        while "b" not in a.waiting:
            b.loop.turn(0.01)
        tube = a.waiting.pop("b")
        if gift == "text":
            tube.send("no link")
        elif gift == "datagrams":
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            tube.send(theirs)
            ours.close()
            theirs.close()
        tube.close()
        b.loop.turn(1)
        assert end.fd < 0
    b.close()


def test_given_death_before_any_line_no_buffer_is_lost_or_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of the card, the ring and the log: every buffer comes back once, filled or not."""
    monkeypatch.setattr(virtqueue, "FENCE", None)
    monkeypatch.setattr(test_recovery, "FILES", (*test_recovery.FILES, net.__file__))
    size, at = 8, 1
    while True:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = theirs.dup()
        card = _unplugged(size)
        for number in range(3):
            ours.send(bytes([number]) * 300)
        heads = [card.post(130) for _ in range(size)]
        died = False
        with Fuse(at):
            try:
                _use(card, theirs)
            except Killed:
                died = True
        again = _unplugged(size, card)
        for _ in range(8):
            ours.send(bytes(60))
        _use(again, inherited)
        used = card.drivers[RX].take()
        assert sorted(head for head, _written in used) == sorted(heads), at
        ours.close()
        for one in (card, again):
            one.close()
        if not died:
            break
        at += 1
    assert at > 100


def _unplugged(size: int, after: Card | None = None) -> Card:
    """A card, or the one that takes up its queues, whose peer is not there."""
    card = Card({"peer": "nobody"}, Loop("card", {}), features=F_VERSION_1 | F_MRG_RXBUF, size=size)
    if after is not None:
        card.guest, card.drivers = after.guest, after.drivers
    return card


def _use(card: Card, link: socket.socket) -> None:
    """What a worker does when it is attached: takes up what is left, and serves; then a frame comes."""
    end = card.device.port
    assert isinstance(end, _ports.Cable)
    end._use(link)
    queue = card.drivers[RX].device()
    card.device._rx = queue
    card.device.resume(queue, RX, queue.recover())
    card.device.process(queue, RX)
    while card.loop.turn():
        pass
