"""The console, driven through real rings in this process: both directions, and deaths before any line."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from devices.virtio import console
from devices.virtio.console import F_SIZE, PIECE_BYTES, RX, TX, WAITING_BYTES, Console
from supervisor.errors import LocalError
from supervisor.vhost_user import BrokenRing, CorruptLog, virtqueue
from supervisor.vhost_user import device as virtio_device
from supervisor.worker.session import Launch, Session
from tests.vhost_user import test_recovery
from tests.vhost_user.cards import Loop
from tests.vhost_user.driver import GUEST_BASE
from tests.vhost_user.terminals import Desk
from tests.vhost_user.test_recovery import Fuse, Killed

pytestmark = pytest.mark.usefixtures("census")


@pytest.fixture(params=[False, True], ids=["flags", "event_idx"])
def desk(census: None, request: pytest.FixtureRequest) -> Iterator[Desk]:
    made = Desk(size=64, event_idx=request.param)
    made.boot()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"cols": 80}, "cols and rows are given both, or neither"),
        ({"rows": 25}, "cols and rows are given both, or neither"),
        ({"cols": 65536, "rows": 25}, "cols is 65536, but must be from 1 to 65535"),
        ({"cols": 80, "rows": -1}, "rows is -1"),
    ],
)
def test_given_wrong_options_the_error_says_what_would_be_right(options: dict[str, int], what: str) -> None:
    """A size is two numbers of 16 bits."""
    session = Session(Console, Launch(name="console0", options=options), Loop("console0", {}))
    with pytest.raises(LocalError, match=what):
        session.start(0)


def test_given_size_it_is_offered() -> None:
    """Columns and rows in the configuration space; no more than one port is offered."""
    sized = Desk(cols=132, rows=43)
    sized.boot()
    assert sized.device.features() == F_SIZE
    assert sized.device.config_space() == bytes([132, 0, 43, 0, *bytes(8)])
    assert sized.device.queue_count() == 2
    sized.close()


def test_given_text_of_any_cut_it_is_emitted_in_order(desk: Desk) -> None:
    """Whatever buffers it lies in; used lengths are zero, since nothing is written."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    expected = b""
    for _ in range(50):
        for _ in range(chooser.randint(1, 8)):
            parts = [chooser.randbytes(chooser.randint(1, 300)) for _ in range(chooser.randint(1, 4))]
            expected += b"".join(parts)
            desk.say(*parts)
        desk.work()
        assert {written for _head, written in desk.drivers[TX].take()} == {0}
        desk.guest._free = max(place for driver in desk.drivers for place in driver.places) + 4096
    assert desk.said == expected


def test_given_long_text_it_is_emitted_in_pieces_that_a_journal_takes(desk: Desk) -> None:
    """No commit has more outputs than half of a journal's default room, whatever a request says."""
    most = 0
    commit = desk.device.commit

    def measured() -> None:
        nonlocal most
        most = max(most, sum(len(one.payload) for one in desk.session.outputs))
        commit()

    desk.device.commit = measured
    text = random.Random(1).randbytes(10 * PIECE_BYTES + 7)
    desk.say(text[:100], text[100:-1], text[-1:])
    desk.say(*(bytes([number]) for number in range(60)))
    desk.work()
    assert desk.said == text + bytes(range(60))
    assert PIECE_BYTES // 2 < most <= PIECE_BYTES


def test_given_input_it_fills_buffers_of_any_cut(desk: Desk) -> None:
    """What does not fit waits for the next buffer, and what finds none waits for one."""
    desk.inputs += [b"hello, ", b"world: ", bytes(range(200))]
    desk.work()
    assert desk.read() == []
    desk.post(3, 4)
    desk.post(1)
    desk.work()
    assert desk.read() == [7, 1]
    desk.post(4096)
    desk.work()
    assert desk.read() == [206]
    assert desk.heard == b"hello, world: " + bytes(range(200))
    desk.post(16)
    desk.inputs.append(b"more")
    desk.work()
    assert desk.read() == [4]


def test_given_guest_that_never_reads_what_waits_is_bounded(desk: Desk) -> None:
    """A MiB is kept, from the first byte on; what comes later is dropped, as on any serial line."""
    desk.inputs += [bytes([number]) * (WAITING_BYTES // 2 + 1) for number in (1, 2, 3)]
    desk.work()
    kept = desk.device.waiting
    assert kept == (desk.inputs[0] + desk.inputs[1])[:WAITING_BYTES]


def test_given_broken_requests_they_are_given_back_and_the_next_is_served(desk: Desk) -> None:
    """Nowhere, the wrong direction, nothing at all."""
    nowhere = GUEST_BASE + (64 << 20)
    desk.drivers[TX].offer((nowhere, 64, False))
    desk.drivers[TX].offer((desk.guest.allocate(100), 100, True))
    desk.say(b"still here")
    desk.drivers[RX].offer((nowhere, 64, True))
    desk.drivers[RX].offer((desk.guest.allocate(8), 8, False))
    desk.inputs.append(b"input")
    desk.work()
    assert [written for _head, written in desk.drivers[RX].take()] == [0, 0]
    desk.post(8)
    desk.work()
    desk.read()
    assert len(desk.drivers[TX].take()) == 3
    assert (desk.said, desk.heard) == (b"still here", b"input")


def test_given_guest_that_does_not_stop_talking_others_get_their_turn(desk: Desk) -> None:
    """One look at the ring takes so many requests, and asks to be called again for the rest."""
    taken = 0

    def endless(_limit: int) -> list[int]:
        nonlocal taken
        desk.say(b"x" * 16)
        taken += 1
        heads = fetch(1)
        desk.drivers[TX].take()
        return heads

    fetch = desk.queues[TX].fetch
    desk.queues[TX].fetch = endless  # type: ignore[method-assign,assignment]
    for turns in (1, 2):
        assert desk.device.process(desk.queues[TX], TX)
        assert taken == turns * virtio_device.TURN // desk.device.batch


def test_given_another_guest_it_starts_anew_and_gets_what_waits(desk: Desk) -> None:
    """A reboot: rings that begin at 0, or anywhere, with a log that nobody has begun."""
    for first in (0, 1000, 65535):
        for _ in range(3):
            desk.say(b"boot ")
        desk.post(2)
        desk.inputs.append(b"ab")
        desk.work()
        desk.read()
        desk.inputs.append(b"!")  # this one finds no buffer, and is for the next guest
        desk.work()
        desk.plug_in(first)
        desk.say(b"again ")
        desk.boot()
        desk.post(1)
        desk.work()
        desk.read()
    assert desk.said == b"boot boot boot again " * 3
    assert desk.heard == b"ab!" * 3


def test_given_rings_that_tell_lies_nothing_but_the_guests_own_suffers(desk: Desk) -> None:
    """used.idx and the lengths in the used ring are in its memory."""
    desk.inputs.append(b"abcdef")
    desk.work()
    for index, used_idx in ((TX, 7), (RX, 40_000), (RX, 3)):
        desk.drivers[index].used_words[1] = used_idx
        with contextlib.suppress(BrokenRing, CorruptLog):
            desk.boot()
    assert desk.device.waiting == b"abcdef"
    desk.drivers[RX]._used_entries[8] = 0xFFFF_FFFF
    desk.drivers[RX].used_words[1] = 4
    with contextlib.suppress(BrokenRing, CorruptLog):
        desk.boot()
    assert desk.device.waiting == b""


# -- deaths ----------------------------------------------------------------------------------------


def _live(desk: Desk, at: int) -> bool:
    """One process; whether it was killed before line ``at``, or came through."""
    with Fuse(at):
        try:
            desk.boot()
        except Killed:
            return True
    return False


def _used(desk: Desk, expected: list[int]) -> list[int]:
    """Has each request of the guest's been used once? Returns what was not used yet."""
    taken = [head for head, _written in desk.drivers[TX].take()]
    assert taken == expected[: len(taken)]
    return expected[len(taken) :]


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deaths before the lines of the console, the ring and the log. A fence would be left locked."""
    monkeypatch.setattr(virtqueue, "FENCE", None)
    files = (*test_recovery.FILES, console.__file__, virtio_device.__file__)
    monkeypatch.setattr(test_recovery, "FILES", files)
    monkeypatch.setattr(console, "PIECE_BYTES", 64)


def _session(event_idx: bool, log: bool) -> None:
    """Both directions at once: lives that end before any line, until one comes through."""
    at, died = 0, True
    while died:
        at += 1
        with contextlib.closing(Desk(event_idx=event_idx, log=log)) as desk:
            desk.boot()
            desk.say(b"first ")
            desk.post(6)
            desk.inputs.append(b"FIRST ")
            desk.work()
            assert len(desk.drivers[TX].take()) == 1
            desk.read()
            texts = [bytes([number]) * length for number, length in enumerate((5, 200, 1, 30, 90))]
            heads = [desk.say(text) for text in texts]
            desk.inputs += [b"one ", b"two " * 10, b"three "]
            for length in (3, 7, 7, 100):
                desk.post(length)
            died = _live(desk, at)
            desk.read()
            heads = _used(desk, heads)
            desk.post(100)
            desk.boot()
            desk.read()
            assert _used(desk, heads) == []
            assert desk.said == b"first " + b"".join(texts), f"line {at}"
            assert desk.heard == b"FIRST one " + b"two " * 10 + b"three ", f"line {at}"
    assert at > 300


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.usefixtures("mortal")
def test_given_death_before_any_line_no_byte_is_lost_or_doubled(event_idx: bool, log: bool) -> None:
    """Through attaching, emitting, committing, publishing, filling and recovery, in both directions."""
    _session(event_idx, log)


@pytest.mark.parametrize("step", [7, 29, 83])
@pytest.mark.usefixtures("mortal")
def test_given_deaths_in_recovery_itself_no_byte_is_lost_or_doubled(step: int) -> None:
    """Dead again and again, each time a few lines further, and at last it comes through."""
    desk = Desk()
    desk.boot()
    texts = [bytes([number]) * length for number, length in enumerate((5, 200, 1, 30, 90))]
    heads = [desk.say(text) for text in texts]
    desk.inputs += [b"one ", b"two " * 10, b"three "]
    for length in (3, 7, 7, 100):
        desk.post(length)
    at, died = step, True
    while died:
        died = _live(desk, at)
        desk.read()
        heads = _used(desk, heads)
        at += step
    assert heads == []
    assert desk.said == b"".join(texts)
    assert desk.heard == b"one " + b"two " * 10 + b"three "
    desk.close()


@pytest.mark.usefixtures("mortal")
def test_given_death_in_the_set_up_of_another_guest_nothing_is_lost_or_doubled() -> None:
    """The first commit of a set-up comes before its log is begun: there is no moment in between."""
    at, died = 0, True
    while died:
        at += 1
        desk = Desk()
        desk.boot()
        for _ in range(5):
            desk.say(b"old ")
            desk.post(2)
        desk.inputs += [b"OLD ", b"OLD "]
        desk.work()
        desk.read()
        desk.plug_in()
        heads = [desk.say(b"new %d " % number) for number in range(3)]
        for _ in range(3):
            desk.post(2)
        desk.inputs.append(b"NEW ")
        died = _live(desk, at)
        desk.read()
        heads = _used(desk, heads)
        desk.boot()
        desk.read()
        assert _used(desk, heads) == []
        assert desk.said == b"old " * 5 + b"new 0 new 1 new 2 ", f"line {at}"
        assert desk.heard == b"OLD OLD NEW ", f"line {at}"
        desk.close()


@pytest.mark.usefixtures("mortal")
def test_given_no_memory_of_what_was_committed_some_is_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where ``taken`` is begun anew with each process, the same deaths do harm."""
    monkeypatch.setattr(Console, "state", ("waiting", "sent"))
    with pytest.raises(AssertionError, match="line"):
        _session(False, True)


@pytest.mark.parametrize("index", [RX, TX])
def test_given_request_that_kills_it_is_given_back_and_the_others_are_served(desk: Desk, index: int) -> None:
    """What the keeper calls poison: nothing of it is emitted, and nothing else is lost by that."""
    device, queue = desk.device, desk.queues[index]
    desk.inputs.append(b"input")
    if index == TX:
        desk.say(b"deadly")
        desk.say(b"harmless")
    else:
        desk.work()
        desk.post(8)
        desk.post(8)
    device.give_up(queue, index, *queue.fetch(1))
    desk.work()
    desk.boot()
    desk.read()
    assert (desk.said, desk.heard) == ((b"harmless", b"") if index == TX else (b"", b"input"))
