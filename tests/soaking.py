"""Many devices under load, killed again and again; every answer and output is checked, what is used watched.

Shared by the short soak in the tests and by ``benchmarks/soak.py``. Each round gives every device a burst of
requests of all kinds, whose answers are known beforehand since a counting device counts; some workers are
killed at random instants of it; the round is over when everything has been answered.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from supervisor.errors import DeviceFault
from supervisor.events import DeviceDied, DeviceFailed, ExitKind, GaveUp, Impossible, InputGivenUp
from supervisor.host import Supervisor
from supervisor.remote import RemoteHandle
from supervisor.worker.records import InputKind
from tests.chaos import board, living_descendants, mapped_journals, open_descriptors

__all__ = ["Sample", "Soak", "soak_board"]

COUNT, NEXT, ADD, TRACE, ADD_AND_WAIT, FIRE = range(0, 24, 4)
BURST = 6  # requests for each device and round
KILL_SHARE = 0.5  # of the devices, in each round
KILL_WITHIN_S = 0.0004  # after the burst: about as long as it takes
DEADLINE_S = 60.0
SPARES = 4


def soak_board(devices: int) -> Supervisor:
    """A supervisor of so many counting devices."""
    inside = 'device: "tests.devices.counting:Counting", backoff: {max: 0s}'
    names = [f"name: d{number}, {inside}" for number in range(devices)]
    whole = f"intensity: 1, period: 60s, spares: {SPARES}, preload: [tests.devices.counting]"
    return Supervisor(board(*names, supervisor=whole))


@dataclass(frozen=True, slots=True)
class Sample:
    """What is in use at one moment, when every device serves. Sizes are KiB, of the supervisor's process."""

    kills: int
    requests: int
    seconds: float
    rss_kib: int
    pss_kib: int
    zygote_rss_kib: int
    descriptors: int
    journals: int
    processes: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class _Load:
    """One device, and what it must answer and emit."""

    def __init__(self, handle: RemoteHandle, chooser: random.Random) -> None:
        self.handle = handle
        self.outstanding = 0
        self._chooser = chooser
        self._total = 0
        self._bytes: deque[bytes] = deque()
        self._edges: deque[tuple[int, bool]] = deque()
        self._raised = False
        handle.on_output(self._take)
        handle.on_irq(self._take_edge)

    def burst(self) -> int:
        """Asks for this and that; returns how many requests there were."""
        for _ in range(BURST):
            self._ask(self._chooser.randrange(7))
        self._expect(InputKind.READ, self._count(), offset=NEXT)
        return BURST + 1

    def check_quiet(self) -> None:
        """Everything has arrived, and the plain register says the same."""
        self.handle.deliver_outputs()
        assert not self._bytes, f"{self.handle.name}: {len(self._bytes)} outputs are missing"
        assert not self._edges, f"{self.handle.name}: {len(self._edges)} edges are missing"
        assert self.handle.read(COUNT, 4) == self._total

    def _ask(self, kind: int) -> None:
        match kind:
            case 0:
                self._expect(InputKind.READ, self._count(), offset=NEXT)
            case 1:
                self.handle.write(ADD, 4, 1)
                self._total += 1
            case 2:
                self.handle.write(TRACE, 4, 1)
                self._total += 1
                self._bytes.append(struct.pack("<I", self._total))
            case 3:
                self._total += 1
                self._expect(InputKind.WRITE, b"", offset=ADD_AND_WAIT, value=1)
            case 4 | 5:
                payload = bytes([self._total & 0xFF]) * (40 if kind == 4 else 10_000)
                self._total += 1
                self._expect(InputKind.CALL, struct.pack("<I", self._total) + payload, payload=payload)
            case 6:
                self._raised = not self._raised
                self.handle.write(FIRE, 4, int(self._raised))
                self._edges.append((3, self._raised))

    def _count(self) -> bytes:
        self._total += 1
        return self._total.to_bytes(8, "little")

    def _expect(
        self, kind: InputKind, wanted: bytes, *, offset: int = 0, value: int = 0, payload: bytes = b""
    ) -> None:
        def done(answer: bytes | DeviceFault) -> None:
            self.outstanding -= 1
            assert answer == wanted, f"{self.handle.name}: {kind.name} gave {answer!r}, not {wanted!r}"

        self.outstanding += 1
        self.handle.submit(kind, done, offset=offset, size=4, value=value, payload=payload)

    def _take(self, data: bytes) -> None:
        wanted = self._bytes.popleft() if self._bytes else b"nothing"
        assert data == wanted, f"{self.handle.name} emitted {data!r}, not {wanted!r}"

    def _take_edge(self, line: int, raised: bool) -> None:
        wanted = self._edges.popleft() if self._edges else None
        assert (line, raised) == wanted, f"{self.handle.name}: edge {(line, raised)}, not {wanted}"


class Soak:
    """Rounds of load and kills on a started supervisor; ``kills`` are deaths that the supervisor has seen."""

    def __init__(self, sup: Supervisor, seed: int) -> None:
        self.kills = self.requests = 0
        self.samples: list[Sample] = []
        self._sup = sup
        self._random = random.Random(seed)
        self._loads = [_Load(handle, self._random) for handle in _remote(sup)]
        self._began = time.monotonic()

    def run(self, kills: int, *, samples: int, on_sample: Callable[[Sample], None] = lambda _s: None) -> None:
        """Goes on until there have been so many kills; looks so many times at what is in use."""
        self._sample(on_sample)
        while self.kills < kills:
            self._round()
            if self.kills * samples >= kills * len(self.samples):
                self._sample(on_sample)

    def _round(self) -> None:
        self._random.shuffle(self._loads)
        for load in self._loads:
            self.requests += load.burst()
        for load in self._loads:
            if self._random.random() < KILL_SHARE:
                _let_pass(self._random.random() * KILL_WITHIN_S)
                self._sup.kill(load.handle.name, charged=False)
        self._dispatch_until(lambda: not any(load.outstanding for load in self._loads), "unanswered requests")
        for load in self._loads:
            load.check_quiet()
        self._read_news()

    def _dispatch_until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            self._sup.dispatch(0.05)
            assert time.monotonic() < deadline, f"{what} after {DEADLINE_S:g} s"

    def _read_news(self) -> None:
        for record in self._sup.events():
            if isinstance(record, DeviceDied):
                self.kills += 1
                late = record.exit.kind is ExitKind.UNKNOWN  # the zygote had no turn to say: a busy machine
                assert late or record.exit.code == signal.SIGKILL, record
            assert not isinstance(record, DeviceFailed | GaveUp | InputGivenUp | Impossible), record

    def _sample(self, on_sample: Callable[[Sample], None]) -> None:
        everybody = len(self._loads) + SPARES + 2  # and the zygote and the witness
        self._dispatch_until(lambda: len(living_descendants()) == everybody, "not everybody is back")
        self._dispatch_until(lambda: all(load.handle.state == "ready" for load in self._loads), "not ready")
        assert self._sup._workers is not None
        processes = self._sup._workers.processes
        self._dispatch_until(lambda: len(processes._spares) == SPARES, "not all spares have said Hello")
        for load in self._loads:
            load.check_quiet()
        self._read_news()
        zygote = self._sup.zygote_pid
        assert zygote is not None
        taken = Sample(
            kills=self.kills,
            requests=self.requests,
            seconds=round(time.monotonic() - self._began, 1),
            rss_kib=_memory("self", "Rss"),
            pss_kib=_memory("self", "Pss"),
            zygote_rss_kib=_memory(str(zygote), "Rss"),
            descriptors=len(open_descriptors()),
            journals=mapped_journals(),
            processes=everybody,
        )
        self.samples.append(taken)
        on_sample(taken)

    def check_flat(self, *, rss_kib: int) -> None:
        """Descriptors and mappings are what they were; memory has grown by ``rss_kib`` at most since the
        first fifth, in which caches fill."""
        first, settled, last = self.samples[0], self.samples[len(self.samples) // 5], self.samples[-1]
        assert last.journals == first.journals, (first, last)
        assert last.descriptors == first.descriptors, (first, last)
        assert last.rss_kib - settled.rss_kib <= rss_kib, (settled, last)
        assert last.zygote_rss_kib - settled.zygote_rss_kib <= rss_kib, (settled, last)


def _remote(sup: Supervisor) -> list[RemoteHandle]:
    return [handle for handle in sup.devices.values() if isinstance(handle, RemoteHandle)]


def _let_pass(seconds: float) -> None:
    """Lets the workers come on a little, without giving the processor away."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        os.getpid()


def _memory(process: str, what: str) -> int:
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1])
    raise LookupError(f"no {what} in smaps_rollup")
