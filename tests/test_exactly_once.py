"""Nothing lost, nothing twice: requests, replies and outputs across random kills, on real processes."""

from __future__ import annotations

import contextlib
import random
import struct
import threading
import time

import pytest

from supervisor.handle import DeviceHandle
from supervisor.host import Supervisor
from supervisor.tube import TubeError
from tests.chaos import COUNTING, RandomKills, board, census

COUNT, NEXT, ADD, TRACE, ADD_AND_WAIT, FIRE = range(0, 24, 4)


class _Killer(threading.Thread):
    """Kills the worker at random instants from beside, whatever the supervisor is doing. Test only."""

    def __init__(self, sup: Supervisor, name: str, seed: int, mean_s: float) -> None:
        super().__init__(daemon=True)
        self._sup, self._name = sup, name
        self._random = random.Random(seed)
        self._mean_s = mean_s
        self._ended = threading.Event()
        self.kills = 0

    def run(self) -> None:
        while not self._ended.wait(self._random.expovariate(1 / self._mean_s)):
            # The supervisor is not made for two threads: it may be putting that very worker away just now.
            with contextlib.suppress(TubeError, ValueError, OSError):
                if self._kill():
                    self.kills += 1

    def _kill(self) -> bool:
        return self._sup.kill(self._name, charged=False) is not None

    def end(self) -> None:
        self._ended.set()
        self.join()


@pytest.mark.chaos
def test_given_counting_device_killed_at_random_ten_thousand_requests_count_exactly() -> None:
    """10,000 requests and 30 kills or more: the count, each reply and the sequence of outputs are exact."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    with census(), Supervisor(board(COUNTING, supervisor="intensity: 100000, period: 1s, spares: 2")) as sup:
        counter = sup["counter"]
        traced: list[int] = []
        counter.on_output(lambda data: traced.append(struct.unpack("<I", data)[0]))
        killer = _Killer(sup, "counter", seed, 0.01)
        killer.start()
        expected_traces: list[int] = []
        total = 0
        deadline = time.monotonic() + 60
        while total < 10_000 or killer.kills < 30:
            total += 1
            _one_request(chooser.randrange(6), counter, total, expected_traces)
            if chooser.random() < 0.01:
                sup.dispatch(0)
            assert time.monotonic() < deadline, f"{total} requests in 60 s"
        assert counter.read(COUNT, 4) == total
        killer.end()
        sup.dispatch(0)
        assert traced == expected_traces


def _one_request(kind: int, counter: DeviceHandle, total: int, traces: list[int]) -> None:
    match kind:
        case 0:
            assert counter.read(NEXT, 4) == total
        case 1:
            counter.write(ADD, 4, 1)
        case 2:
            counter.write(TRACE, 4, 1)
            traces.append(total)
        case 3:
            counter.write(ADD_AND_WAIT, 4, 1)
        case 4:
            assert counter.call_bytes(b"x" * (total % 300)) == struct.pack("<I", total) + b"x" * (total % 300)
        case 5:
            counter.send(b"!")


def test_given_kill_between_requests_next_read_returns_committed_value() -> None:
    """A plain register keeps its last committed value while nobody serves."""
    with census(), Supervisor(board(COUNTING)) as sup:
        counter = sup["counter"]
        counter.write(ADD, 4, 5)
        kills = RandomKills(sup, "counter", seed=1, chance=1.0)
        for expected in range(6, 16):
            kills.maybe()
            counter.write(ADD, 4, 1)
            assert counter.read(COUNT, 4) == expected
        assert kills.kills
