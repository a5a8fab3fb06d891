"""The journal: sizes, growth, corruption, and a kill before each of its stores."""

from __future__ import annotations

import contextlib
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.errors import DeviceGone
from supervisor.host import Supervisor
from supervisor.policy.records import DeviceDied
from supervisor.worker import layout
from supervisor.worker.journal import Journal, JournalCorrupt, create_journal
from supervisor.worker.layout import (
    Layout,
)
from supervisor.worker.mailbox import PURE
from supervisor.worker.records import Commit, Input, InputKind, Output, OutputKind
from tests.chaos import COUNTING, board, census

LARGE = 'name: large, device: "tests.devices.naughty:Large", backoff: {max: 0s}'
STORES_OF_A_REQUEST = 30  # more than one commit with its publication makes
HALVES = {"python": "1", "compiled": ""}  # of the mailbox, and what TUBEVISOR_PURE is set to for them


@pytest.mark.chaos
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("kill_at", range(1, STORES_OF_A_REQUEST))
def test_given_kill_before_each_store_counts_replies_and_outputs_are_exact(
    kill_at: int, half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dying before the n-th store of header, registers, ring or slot loses and doubles nothing."""
    monkeypatch.setenv(PURE, HALVES[half])
    device = f'device: "tests.devices.naughty:Sabotaged", options: {{kill_at: {kill_at}}}'
    config = board(f"name: counter, {device}, backoff: {{max: 0s}}, poison: 2")
    with census(), Supervisor(config) as sup:
        counter = sup["counter"]
        traced: list[int] = []
        edges: list[tuple[int, bool]] = []
        counter.on_output(lambda data: traced.append(struct.unpack("<I", data)[0]))
        counter.on_irq(lambda line, raised: edges.append((line, raised)))
        counter.send(b"go")
        assert counter.read(0x04, 4) == 3
        counter.write(0x0C, 4, 1)
        counter.write(0x14, 4, 1)
        counter.write(0x08, 4, 1)
        assert counter.irq_levels == 8
        assert counter.call_bytes(b"?") == struct.pack("<I", 6) + b"?"
        counter.write(0x14, 4, 0)
        assert counter.read(0x00, 4) == 6
        assert counter.irq_levels == 0
        sup.dispatch(0)
        assert (traced, edges) == ([4], [(3, True), (3, False)])
        deaths = [record for record in sup.events() if isinstance(record, DeviceDied)]
        assert len(deaths) == 1, "the fuse must have burnt down within these requests"


def test_given_state_replies_and_outputs_over_the_default_sizes_journal_grows() -> None:
    """A state, a reply, a payload and an output larger than the journal: it grows, and survives a kill."""
    with census(), Supervisor(board(LARGE)) as sup:
        large = sup["large"]
        emitted: list[bytes] = []
        large.on_output(emitted.append)
        large.write(0, 4, 300_000)
        assert large.read(0, 4) == 300_000
        question = os.urandom(200_000)
        assert large.call_bytes(question) == question[::-1]
        large.write(4, 4, 100_000)
        large.flush()
        sup.dispatch(0)
        assert emitted == [struct.pack("<I", 100_000) + b"." * 100_000]
        assert sup.kill("large", charged=False)
        assert large.read(0, 4) == 300_000
        large.send(b"x" * 5_000_000)
        assert large.read(8, 4) == 5_200_000


def test_given_kill_with_payloads_outstanding_each_is_received_once() -> None:
    """Out-of-line payloads are sent again to the next worker, and once."""
    with census(), Supervisor(board(LARGE)) as sup:
        large = sup["large"]
        for _ in range(5):
            large.send(b"x" * 100_000)
            sup.kill("large", charged=False)
        assert large.read(8, 4) == 500_000


def test_given_nobody_takes_outputs_they_wait_and_none_is_lost() -> None:
    """Far more output than the ring holds, taken late: every byte arrives, in order."""
    with census(), Supervisor(board(COUNTING)) as sup:
        counter = sup["counter"]
        for _ in range(5_000):
            counter.write(0x0C, 4, 1)
        counter.flush()
        traced: list[int] = []
        counter.on_output(lambda data: traced.append(struct.unpack("<I", data)[0]))
        sup.dispatch(0)
        assert traced == list(range(1, 5_001))


def test_given_more_posted_writes_than_the_ring_they_all_count() -> None:
    """The input ring wraps many times; a full one makes the writer wait."""
    with census(), Supervisor(board(COUNTING)) as sup:
        counter = sup["counter"]
        for _ in range(20_000):
            counter.write(0x08, 4, 1)
        assert counter.read(0x00, 4) == 20_000


@pytest.mark.parametrize("word", [layout.OUTPUT_END, layout.PUBLISHED, layout.COMMIT])
def test_given_journal_scribbled_on_others_go_on(word: int) -> None:
    """Nonsense in a journal costs its device at most: it fails, or goes on from its last commit."""
    with census(), Supervisor(board(LARGE, COUNTING)) as sup:
        large = sup["large"]
        assert large.read(0, 4) == 0
        journal: Journal = large.ledger.journal  # type: ignore[attr-defined]
        before = journal.words[word]
        journal.words[word] = before + (1 << 40)
        if word == layout.COMMIT:
            journal.bytes[journal.layout.slot_at(before) : journal.layout.slot_at(before) + 56] = b"\xff" * 56
        sup.kill("large")
        with contextlib.suppress(DeviceGone, JournalCorrupt):
            for _ in range(20):  # or the last commit, which is whole, has repaired it meanwhile
                large.write(0, 4, 1)
                sup.dispatch(0)
        assert sup["counter"].read(0x04, 4) == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=900), max_size=30), st.integers(0, 2**40))
def test_given_any_payloads_rings_return_them_in_order(payloads: list[bytes], start: int) -> None:
    """Records of any size come out of the rings as they went in, across the wrap."""
    fd, journal = create_journal("test", Layout(input_slots=32, output_bytes=1024))
    try:
        number, position = start, start * 16
        for payload in payloads:
            record = Input(number, InputKind.CALL, 7, 1, 2, 3, payload)
            after = journal.put_input(record)
            assert journal.get_input(number) == (record, after, False)
            number = after
            output = Output(OutputKind.BYTES, 5, number, payload)
            end = journal.put_output(position, output)
            assert journal.get_output(position, end) == (output, end)
            position = end
    finally:
        journal.close()
        os.close(fd)


@given(st.binary(max_size=200), st.binary(max_size=25).map(lambda data: data * 8))
def test_given_commit_it_is_read_back_and_survives_growth(state: bytes, registers: bytes) -> None:
    """What was committed is what is restored, also from a larger journal."""
    fd, journal = create_journal("test")
    other_fd, other = create_journal("test", Layout(state_bytes=65536, output_bytes=65536))
    try:
        assert journal.read_commit() is None
        commit = Commit(
            applied=3,
            output_end=0,
            irq_levels=5,
            next_alarm_ns=9,
            state_version=2,
            registers=registers,
            state=state,
        )
        journal.write_slot(1, commit)
        journal.words[layout.COMMIT] = 1
        assert journal.read_commit() == commit
        journal.copy_to(other)
        assert other.read_commit() == commit
    finally:
        for each, each_fd in ((journal, fd), (other, other_fd)):
            each.close()
            os.close(each_fd)


def test_given_journal_its_file_cannot_be_shrunk() -> None:
    """The memfd is sealed: a worker cannot pull the supervisor's mapping from under it."""
    fd, journal = create_journal("test")
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 100)
    journal.close()
    os.close(fd)


def test_given_file_that_is_no_journal_attach_refuses() -> None:
    """A wrong magic number or size is named."""
    fd = os.memfd_create("no journal")
    os.ftruncate(fd, 4096)
    with pytest.raises(JournalCorrupt, match="it begins with 0x0"):
        Journal.attach(fd)
    os.pwrite(fd, struct.pack("<5Q", layout.MAGIC, 512, 1024, 32768, 8192), 0)
    with pytest.raises(JournalCorrupt, match="a journal of 4096 bytes claims"):
        Journal.attach(fd)
    os.close(fd)
