"""A device process that dies between any two stores: each request is completed once, and none is lost.

A death is an exception before the n-th line that the queue and its log run: what was stored is stored, what
comes after never happens, and the next "process" is a new queue over the same memory. The device executes a
request by adding to a sum that the guest never sees, and writes its answer, so that a lost request is one
that is never used, and a doubled one shows in the used ring.
"""

from __future__ import annotations

import random
import sys
from types import FrameType
from typing import Any

import pytest

from supervisor.vhost_user import inflight, virtqueue
from supervisor.vhost_user.inflight import CorruptLog, InflightLog, region_bytes
from supervisor.vhost_user.virtqueue import SplitQueue
from tests.vhost_user.driver import Driver, Guest

SIZE = 8
FILES = (inflight.__file__, virtqueue.__file__)


@pytest.fixture(autouse=True)
def _no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fence is a lock: a "process" that dies while it holds one would leave it to the next."""
    monkeypatch.setattr(virtqueue, "FENCE", None)


class Killed(Exception):
    """The process is no more."""


class Fuse:
    """Dies before the ``at``-th line of the watched files; ``lines`` counts them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines = 0

    def __enter__(self) -> Fuse:
        sys.settrace(self._call)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in FILES else None

    def _line(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                raise Killed
        return self._line


class Board:
    """A guest with requests of one answer byte each, and a device that lives again after each death."""

    def __init__(self, *, shuffled: bool, log: bool, seed: int) -> None:
        self.guest = Guest()
        self.driver = Driver(self.guest, SIZE)
        self.shuffled = shuffled
        self.log = log
        self.random = random.Random(seed)
        self.position = 0
        self.executed: list[int] = []

    def boot(self) -> tuple[SplitQueue, list[int]]:
        device = self.driver.device(position=self.position, log=self.log)
        return device, device.recover()

    def work(self, device: SplitQueue, heads: list[int]) -> None:
        """Executes what is left of the process before, then what is new, in batches of up to three."""
        while heads:
            self._batch(device, heads)
        while True:
            heads = device.fetch()
            if not heads and device.wait_for_kick():
                return
            while heads:
                self._batch(device, heads)

    def _batch(self, device: SplitQueue, heads: list[int]) -> None:
        if self.shuffled:
            self.random.shuffle(heads)
        batch, heads[:] = heads[:3], heads[3:]
        for head in batch:
            chain = device.chain(head)
            chain.writable[0][0] = head + 1
            self.executed.append(head)
            device.complete(head, 1)
        device.flush()


def _dies(board: Board, at: int) -> bool:
    """One process of the device; whether it was killed before line ``at``, or came through."""
    with Fuse(at):
        try:
            device, left = board.boot()
            board.work(device, left)
        except Killed:
            return True
    return False


def _live_through(board: Board, at: int) -> tuple[bool, list[tuple[int, int]]]:
    """A life that ends before line ``at``, and one that does not; whether it ended, and what was used."""
    used: list[tuple[int, int]] = []
    heads = []
    for _ in range(SIZE):
        heads.append(board.driver.offer((board.guest.allocate(16), 16, True)))
    died = _dies(board, at)
    used += board.driver.take()
    if died:
        device, left = board.boot()
        board.work(device, left)
        used += board.driver.take()
    return died, used


@pytest.mark.parametrize("shuffled", [False, True])
def test_given_death_before_any_line_each_request_is_used_once(shuffled: bool) -> None:
    """In order and out of order, through fetch, execution, publication and recovery."""
    at, died = 0, True
    while died:
        at += 1
        board = Board(shuffled=shuffled, log=True, seed=at)
        first = [board.driver.offer((board.guest.allocate(16), 16, True)) for _ in range(2)]
        device, left = board.boot()
        board.work(device, left)  # something has been done before: used.idx is not 0
        assert sorted(head for head, _written in board.driver.take()) == first
        died, used = _live_through(board, at)
        assert sorted(head for head, _written in used) == list(range(SIZE)), f"line {at}: {used}"
        assert {written for _head, written in used} == {1}
    assert at > 300


def test_given_deaths_in_recovery_itself_each_request_is_used_once() -> None:
    """Dead again and again, each time a few lines further, and at last it comes through."""
    for step in (3, 7, 20, 50):
        board = Board(shuffled=True, log=True, seed=step)
        for _ in range(SIZE):
            board.driver.offer((board.guest.allocate(16), 16, True))
        used: list[tuple[int, int]] = []
        at, died = step, True
        while died:
            died = _dies(board, at)
            used += board.driver.take()
            at += step
        assert sorted(head for head, _written in used) == list(range(SIZE))


def test_given_no_log_and_no_order_something_is_lost() -> None:
    """The control: without the log the same deaths do harm, so the tests above test the log."""
    harmed = 0
    for at in range(1, 400):
        board = Board(shuffled=True, log=False, seed=at)
        try:
            _died, used = _live_through(board, at)
        except KeyError:  # used twice: the driver has no such request any more
            harmed += 1
            continue
        harmed += sorted(head for head, _written in used) != list(range(SIZE))
    assert harmed > 10


def test_given_no_log_but_order_nothing_is_lost() -> None:
    """A device that completes in order can do without: used.idx says it all."""
    at, died = 0, True
    while died:
        at += 1
        board = Board(shuffled=False, log=False, seed=at)
        died, used = _live_through(board, at)
        assert [head for head, _written in used] == list(range(SIZE)), f"line {at}"


def test_given_fresh_log_of_a_ring_in_use_it_begins_there() -> None:
    """used.idx need not be 0: a log that began with 0 would take all that was before for a batch."""
    guest = Guest()
    driver = Driver(guest, SIZE, first=1234)
    device = driver.device(position=1234)
    assert device.recover() == []
    head = driver.offer((guest.allocate(16), 16, True))
    assert device.fetch() == [head]
    again = driver.device(position=0)
    assert again.recover() == [head]
    assert again.position == 1235


def test_given_requests_in_the_log_they_come_in_the_order_of_fetching() -> None:
    """By their counters, whatever their numbers; and the next one is behind them."""
    log = InflightLog(memoryview(bytearray(region_bytes(SIZE))), SIZE)
    log.begin(0)
    for head in (5, 1, 7):
        log.fetched(head)
    again = InflightLog(log._bytes, SIZE)
    assert again.recover(0) == [5, 1, 7]
    assert again.counter == 3


@pytest.mark.parametrize(
    ("used_idx", "last", "nexts", "told"),
    [
        (9, 0, {}, "a batch of 9 requests in a log of 8"),
        (1, 8, {}, "leads to 8"),
        (2, 3, {3: 3}, "leads to 3 after"),
        (3, 0, {0: 1, 1: 0}, "leads to 0 after"),
        (2, 1, {1: 65535}, "leads to 65535 after"),
    ],
)
def test_given_log_that_cannot_be_it_is_refused_unchanged(
    used_idx: int, last: int, nexts: dict[int, int], told: str
) -> None:
    """What a peer hands over may be anything: loops, heads out of range, batches longer than the ring."""
    memory = memoryview(bytearray(region_bytes(SIZE)))
    log = InflightLog(memory, SIZE)
    log.begin(0)
    log.fetched(2)
    words = memory.cast("H")
    words[6] = last
    for head, following in nexts.items():
        words[11 + 8 * head] = following
    before = bytes(memory)
    with pytest.raises(CorruptLog, match=told):
        log.recover(used_idx)
    assert bytes(memory) == before


@pytest.mark.parametrize("counter", [1 << 63, 2**64 - 1])
def test_given_log_whose_order_has_come_to_its_end_it_is_refused_unchanged(counter: int) -> None:
    """The next request would have no number: no log comes so far, unless somebody has made it up."""
    memory = memoryview(bytearray(region_bytes(SIZE)))
    log = InflightLog(memory, SIZE)
    log.begin(0)
    log.fetched(2)
    memory.cast("Q")[3 + 2 * 2] = counter
    before = bytes(memory)
    with pytest.raises(CorruptLog, match="in the order of fetching"):
        log.recover(0)
    assert bytes(memory) == before


def test_given_sizes_regions_have_the_strides_of_other_back_ends() -> None:
    """128 entries take 2,112 bytes (measured with DPDK and libvhost-user)."""
    assert [region_bytes(size) for size in (1, 3, 4, 128, 256, 1024)] == [64, 64, 128, 2112, 4160, 16448]
