"""The page by which a standby may take over: one of two wins, and what is noted can be read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from supervisor.worker.succession import REQUESTS_MAX, Bequest, Succession

ROUNDS = 2000
TAKER = f"""
import sys
from supervisor.worker.succession import Succession
page = Succession(int(sys.argv[1]))
taken = 0
print("looks", flush=True)
while taken < {ROUNDS}:
    taken += page.take()
"""


@pytest.fixture
def page() -> Iterator[int]:
    fd = Succession.create()
    yield fd
    os.close(fd)


def test_given_page_it_is_closed_until_it_is_opened_and_taken_once(page: int) -> None:
    """And who is too late to take it back is told so, every time. Nobody can make it shorter."""
    with pytest.raises(PermissionError):
        os.ftruncate(page, 0)
    ours, theirs = Succession(page), Succession(page)
    seen = [theirs.take(), ours.close()]
    assert seen == [False, False]
    ours.open()
    seen = [ours.is_open, ours.is_taken, ours.close(), theirs.take()]
    assert seen == [True, False, False, False]
    ours.open()
    seen = [theirs.take(), theirs.take(), ours.is_taken, ours.close()]
    assert seen == [True, False, True, True]
    ours.open()  # which changes nothing any more
    assert ours.close()
    ours.unmap()
    theirs.unmap()


def test_given_two_processes_who_close_and_take_at_once_one_of_them_has_it(page: int) -> None:
    """Never both, never neither: as often as it was too late to close it, it was taken."""
    ours = Succession(page)
    with subprocess.Popen(
        [sys.executable, "-c", TAKER, str(page)], pass_fds=[page], stdout=subprocess.PIPE
    ) as taker:
        assert taker.stdout is not None
        taker.stdout.readline()
        too_late = rounds = 0
        while too_late < ROUNDS:
            rounds += 1
            ours.open()
            if ours.close():
                too_late += 1
                os.pwrite(page, bytes(4), 0)  # closed, for the next round
            else:
                assert not ours.is_taken
        assert taker.wait(timeout=30) == 0
    print(f"{too_late} of {rounds} taken")
    ours.unmap()


def test_given_what_a_successor_has_found_it_can_be_read(page: int) -> None:
    """Inputs first, requests later; and no more of them than there is room for."""
    ours, theirs = Succession(page), Succession(page)
    assert ours.bequest() is None
    theirs.note_inputs(2**63 + 1, 7)
    assert ours.bequest() == Bequest(2**63 + 1, 7, None)
    theirs.note_requests([])
    assert ours.bequest() == Bequest(2**63 + 1, 7, ())
    found = [(ring, ring + 1, 2**40 + ring) for ring in range(REQUESTS_MAX + 5)]
    theirs.note_requests(found)
    assert ours.bequest() == Bequest(2**63 + 1, 7, tuple(found[:REQUESTS_MAX]))
    ours.unmap()
    theirs.unmap()
