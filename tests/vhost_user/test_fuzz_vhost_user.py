"""Anything at all, into everything that takes something from a VMM or a guest.

The parsers and the queue get their bytes from Hypothesis, and, where it is installed, from atheris, which is
guided by what it has covered (``fuzzers``). A real keeper with a real worker gets well-formed messages that
make no sense, and streams that are not even well formed. Nothing hangs, nothing leaks, nobody dies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from supervisor.vhost_user.areas import Inflight, MemoryTable, Region, SingleRegion
from supervisor.vhost_user.messages import U64, Config, Header, Payload, VringAddr, VringFd, VringState
from supervisor.vhost_user.requests import FrontEndRequest
from tests.vhost_user.driver import GUEST_BASE
from tests.vhost_user.fuzzers.targets import SEEDS, TARGETS
from tests.vhost_user.hostile import KINDS, LOG_BYTES, Hostile, besieged, is_unharmed
from tests.vhost_user.test_worker_rings import MEMORY_BYTES, QUEUE, USER_BASE

F = FrontEndRequest
ROOT = Path(__file__).parents[2]
ATHERIS_S = 4
NONSENSE_S = 5.0
SLOWLY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def _bytes(target: str) -> st.SearchStrategy[bytes]:
    """Noise, and seeds with some noise in them."""

    def spoil(data: bytes, noise: list[tuple[int, bytes]]) -> bytes:
        spoilt = bytearray(data)
        for at, piece in noise:
            spoilt[at % len(data) : at % len(data) + len(piece)] = piece
        return bytes(spoilt)

    noise = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=8)), max_size=4)
    return st.binary(max_size=400) | st.builds(spoil, st.sampled_from(SEEDS[target]), noise)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.timeout(60)
def test_given_any_bytes_what_was_promised_holds(target: str) -> None:
    """What that is stands with each of the targets."""

    @SLOWLY
    @given(_bytes(target))
    @example(b"")
    def hold(data: bytes) -> None:
        TARGETS[target](data)

    for seed in SEEDS[target]:
        TARGETS[target](seed)
    hold()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.timeout(90)
def test_given_fuzzer_that_is_guided_by_coverage_it_finds_nothing(target: str, tmp_path: Path) -> None:
    """A bounded while of libFuzzer on the same targets; what it finds is in its output, to be run again."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("no atheris: pip install '.[fuzz]'")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, seed in enumerate(SEEDS[target]):
        (corpus / str(index)).write_bytes(seed)
    command = [sys.executable, "-m", "tests.vhost_user.fuzzers.run", target, str(corpus)]
    limits = [
        f"-max_total_time={ATHERIS_S}",
        "-max_len=600",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]
    done = subprocess.run(
        [*command, *limits, f"-artifact_prefix={tmp_path}/"],
        capture_output=True, text=True, cwd=ROOT, timeout=80, check=False,
    )  # fmt: skip
    found = [path.read_bytes() for path in tmp_path.iterdir() if path.is_file()]
    assert (done.returncode, found) == (0, []), done.stderr[-4000:]


class Nonsense:
    """A VMM that means nothing of what it says: each message is one that could be, and no two go together."""

    def __init__(self, vmm: Hostile, seed: int) -> None:
        self.random = random.Random(seed)
        self.vmm = vmm
        self.files = [vmm.fds["memory"]] * 6 + [vmm.fd(kind) for kind in KINDS]
        self.bells = [vmm.fds["kick"], vmm.fds["call"]] * 6 + [vmm.fd(kind) for kind in KINDS]

    def region(self) -> Region:
        page, choose = 4096, self.random.choice
        at = choose([0, 0, 0, page, 16 * page])
        size = choose([MEMORY_BYTES, MEMORY_BYTES, MEMORY_BYTES - at, page, MEMORY_BYTES + page, 1 << 40])
        return Region(GUEST_BASE + at, size, USER_BASE + choose([at, at, 0]), choose([at, at, 0, 1 << 62]))

    def message(self) -> tuple[int, Payload | None, list[int]]:
        one, choose = self.random, self.random.choice
        ring = choose([0, 0, 0, 0, 0, 1, 255])
        desc, avail, used = (
            choose([place - GUEST_BASE + USER_BASE] * 8 + [USER_BASE, USER_BASE + MEMORY_BYTES - 16, 0])
            for place in self.vmm.driver.places
        )
        log = Inflight(
            choose([LOG_BYTES, 1 << 20]), choose([0, 0, 4096, 1 << 63]), 1, choose([QUEUE, QUEUE, 4])
        )
        regions = tuple(self.region() for _ in range(choose([1, 1, 1, 2, 3])))
        bell = one.random() < 0.9
        said: list[tuple[int, Payload | None, list[int]]] = [
            (F.SET_FEATURES, U64(choose([1 << 32, 1 << 30, 3 << 29, 1 << 63])), []),
            (F.SET_MEM_TABLE, MemoryTable(regions), [choose(self.files) for _ in regions]),
            (F.ADD_MEM_REG, SingleRegion(self.region()), [choose(self.files)]),
            (F.REM_MEM_REG, SingleRegion(self.region()), []),
            (F.SET_VRING_NUM, VringState(ring, choose([QUEUE, QUEUE, 8, 32768, 3])), []),
            (F.SET_VRING_ADDR, VringAddr(ring, 0, desc & ~15, used & ~3, avail & ~1), []),
            (F.SET_VRING_BASE, VringState(ring, choose([0, 0, one.randrange(1 << 16)])), []),
            (F.GET_VRING_BASE, VringState(ring, 0), []),
            *[
                (code, VringFd(ring, bell), [choose(self.bells)] * bell)
                for code in (F.SET_VRING_KICK, F.SET_VRING_KICK, F.SET_VRING_CALL, F.SET_VRING_ERR)
            ],
            (F.SET_VRING_ENABLE, VringState(ring, choose([0, 1, 1])), []),
            (F.GET_INFLIGHT_FD, Inflight(0, 0, 1, choose([QUEUE, 8, 32768])), []),
            (F.SET_INFLIGHT_FD, log, [choose([self.vmm.fds["log"]] * 8 + self.files)]),
            (F.SET_CONFIG, Config(choose([32, 32, 0]), bytes([choose([0, 1, 2])])), []),
            (F.SET_BACKEND_REQ_FD, None, [choose(self.bells)]),
            (choose([F.RESET_OWNER, F.RESET_DEVICE, F.GET_QUEUE_NUM, F.GET_STATUS]), None, []),
        ]
        return choose(said)

    def scribble(self) -> None:
        """The guest has its part in it: rings and log of any content."""
        driver, one = self.vmm.driver, self.random
        if one.random() < 0.5:
            driver.avail[1] = (driver.avail[1] + one.choice([1, 2, QUEUE])) & 0xFFFF
            address, flags = GUEST_BASE + one.randrange(MEMORY_BYTES), one.randrange(8)
            driver.write_descriptor(one.randrange(QUEUE), address, one.randrange(1 << 12), flags, 1)
            driver.avail[2 + one.randrange(QUEUE)] = one.choice([0, 1, one.randrange(1 << 16)])
        elif one.random() < 0.3:
            driver.used_words[1] = one.randrange(1 << 16)
        else:
            os.pwrite(self.vmm.fds["log"], one.randbytes(16), 16 * one.randrange(LOG_BYTES // 16))
        self.vmm.kick()


def _put(sock: socket.socket, vmm: Hostile, data: bytes, fds: list[int]) -> None:
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    deadline = time.monotonic() + 10
    while True:
        try:
            sock.sendmsg([data], control)
            return
        except BlockingIOError:
            vmm.sup.dispatch(0.002)
        assert time.monotonic() < deadline, "the supervisor does not read any more"


def _hear(sock: socket.socket, vmm: Hostile, seconds: float) -> bool:
    """Takes what is answered within that time, if anything is; raises once the connection is over."""
    until = time.monotonic() + seconds
    while True:
        vmm.sup.dispatch(0.001)
        with contextlib.suppress(BlockingIOError):
            if not sock.recv(1 << 16):  # descriptors that come along are closed by the kernel
                raise ConnectionResetError
            return True
        if time.monotonic() > until:
            return False


def _converse(vmm: Hostile, speak: Callable[[socket.socket], bool]) -> None:
    """Speaks until the time is up; a connection that was ended is followed by the next one.

    What says that it wants an answer gets one, or the connection ends for it.
    """
    until = time.monotonic() + NONSENSE_S
    began = vmm.sup["disk"].generation
    connections = 0
    while time.monotonic() < until:
        vmm.connect()
        connections += 1
        if connections % 4:
            vmm.bring_up()  # so that there is something to lose
        with socket.socket(fileno=os.dup(vmm.front.endpoint.wire.fileno())) as sock:
            sock.setblocking(False)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(60):
                    wants = speak(sock)
                    assert _hear(sock, vmm, 10.0 if wants else 0) or not wants, "neither answer nor end"
    workers = vmm.sup["disk"].generation - began
    print(f"{connections} connections, {workers} workers")
    assert workers > 3


@pytest.mark.chaos
@pytest.mark.timeout(60)
def test_given_messages_that_make_no_sense_together_nobody_dies_of_them(tmp_path: Path) -> None:
    """Any order, ring and descriptor, while the guest writes what it likes into its rings and its log."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    with besieged(tmp_path) as vmm:
        nonsense = Nonsense(vmm, seed)

        def speak(sock: socket.socket) -> bool:
            code, payload, fds = nonsense.message()
            body = b"" if payload is None else payload.pack()
            _put(sock, vmm, Header(code, len(body), need_reply=True).pack() + body, fds)
            nonsense.scribble()
            return nonsense.random.random() < 0.8

        _converse(vmm, speak)
        is_unharmed(vmm)


@pytest.mark.chaos
@pytest.mark.timeout(60)
def test_given_streams_that_are_no_messages_nobody_dies_of_them(tmp_path: Path) -> None:
    """Noise, and messages with noise in them, with descriptors anywhere."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    with besieged(tmp_path) as vmm:
        nonsense, one = Nonsense(vmm, seed), random.Random(seed)

        def speak(sock: socket.socket) -> bool:
            code, payload, fds = nonsense.message()
            body = b"" if payload is None else payload.pack()
            data = bytearray(Header(code, len(body)).pack() + body)
            for _ in range(one.choice([0, 0, 1, 3])):
                data[one.randrange(len(data))] = one.randrange(256)
            if one.random() < 0.1:
                data = data[: one.randrange(1, len(data))]
            more = one.choice([0, 0, 0, 0, 1, 40])
            _put(sock, vmm, bytes(data), fds + [vmm.fds["kick"]] * more)
            return False

        _converse(vmm, speak)
        is_unharmed(vmm)
