"""Measuring contenders beside each other, in turns and in random order, so that noise hits all alike.

The rule for noise, decided before anything is measured: nothing is dropped. A table whose floor is spread too
widely (``DISTURBED``) is given as many rounds again, once, and the medians are taken over all of them.
Samples are integers: nanoseconds, or bytes.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec

__all__ = [
    "FULL",
    "QUICK",
    "Contender",
    "Effort",
    "Plan",
    "Result",
    "Row",
    "Subject",
    "Summary",
    "Table",
    "group_of",
    "measure",
    "merged",
    "read_result",
    "write_result",
]

FORMAT = 1
DISTURBED = 3.0  # p95 over median of the floor; on a quiet machine it is below 2
NEEDED_FOR_SPREAD = 10  # samples; with fewer a p95 is the largest one


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured. A row has at most ``2 * rounds * samples a turn``: at most 200."""

    devices: tuple[int, ...]  # how many devices run while one of them is killed
    rounds: int
    kills: int  # a turn
    kills_before: int  # of a device that has been killed often
    large_kills: int  # a turn, of a worker
    held_mib: int  # that holds so much
    trips: int  # round trips, or requests, a turn
    batch: int  # calls too short to be timed alone that are timed together
    sessions: int  # rounds
    session_lines: int | None  # of the guest's input; ``None``: all of them
    windows: int
    window_s: float  # of idling
    idle_devices: int
    scale: tuple[int, int]  # sizes of two boards, the smaller one first
    scale_kills: int  # at random
    scale_s: float  # that they are spread over
    disk_memory_mib: tuple[int, ...]  # of guests whose memory is in use, while their disk is killed
    disk_requests: int  # a turn
    disks: int  # idle
    guest_rounds: int  # 0: without a guest
    guest_s: float  # of each way to read or write, in a guest


FULL = Effort(
    devices=(1, 50),
    rounds=6,
    kills=16,
    kills_before=100,
    large_kills=6,
    held_mib=1000,
    trips=16,
    batch=1000,
    sessions=7,
    session_lines=None,
    windows=3,
    window_s=10.0,
    idle_devices=50,
    scale=(100, 1000),
    scale_kills=200,
    scale_s=60.0,
    disk_memory_mib=(1024, 4096),
    disk_requests=30_000,
    disks=20,
    guest_rounds=3,
    guest_s=1.0,
)
QUICK = Effort(
    devices=(1, 3),
    rounds=1,
    kills=2,
    kills_before=3,
    large_kills=2,
    held_mib=8,
    trips=3,
    batch=20,
    sessions=1,
    session_lines=2,
    windows=1,
    window_s=0.05,
    idle_devices=3,
    scale=(2, 4),
    scale_kills=2,
    scale_s=0.02,
    disk_memory_mib=(64,),
    disk_requests=300,
    disks=2,
    guest_rounds=0,
    guest_s=0.1,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a group is to measure: how much, with which chance, and with which peers (see ``peers``)."""

    effort: Effort
    chooser: random.Random
    say: Callable[[str], None] = print
    missing: dict[str, str] = field(default_factory=dict)  # what cannot be measured here, and why

    def go_without(self, name: str, why: str) -> None:
        """Says so, and the page will."""
        self.missing[name] = why
        self.say(f"WITHOUT {name}: {why}")


@dataclass(frozen=True, slots=True)
class Contender:
    """One that is measured. ``take`` is its turn, and returns the turn's samples."""

    name: str
    take: Callable[[], Sequence[int]]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured, for the page. ``ours`` and ``floor`` are names of contenders."""

    key: str
    title: str
    ours: tuple[str, ...]
    floor: str = ""
    unit: str = "ns"
    how: str = ""
    steps: bool = False  # the rows are parts of one time, one after the other


@dataclass(frozen=True, slots=True)
class Row:
    """A contender's samples, in the order in which they were taken."""

    name: str
    samples: list[int]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A subject with all rows. ``load`` is the load average over a minute, before and after."""

    subject: Subject
    rounds: int
    load: tuple[float, float]
    rows: list[Row]
    run: str = ""  # which one, where it is not that of the whole file


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole run: everything that the page says is in here."""

    format: int = FORMAT
    taken: str  # a date
    seconds: int
    seed: int
    commit: str
    load: tuple[float, float, float]  # averages over 1, 5 and 15 minutes, before
    machine: dict[str, str]
    versions: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)  # what was not measured, and why
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a row's samples. ``p95`` is the largest where there are too few samples."""

    median: float
    p95: float
    low: float  # a quarter is below
    high: float  # a quarter is above
    count: int

    @classmethod
    def of(cls, samples: Sequence[int]) -> Summary:
        """The summary of at least one sample."""
        if len(samples) < NEEDED_FOR_SPREAD:
            return cls(statistics.median(samples), max(samples), min(samples), max(samples), len(samples))
        cuts = statistics.quantiles(samples, n=20, method="inclusive")
        return cls(statistics.median(samples), cuts[18], cuts[4], cuts[14], len(samples))


def measure(subject: Subject, contenders: Sequence[Contender], rounds: int, plan: Plan) -> Table:
    """Gives every contender a turn in each round, in an order drawn anew each time."""
    plan.say(f"{subject.title}: {'; '.join(contender.name for contender in contenders)}")
    samples: dict[str, list[int]] = {contender.name: [] for contender in contenders}
    load_before = os.getloadavg()[0]
    done = 0
    for again in (False, True):
        if again and not _disturbed(samples.get(subject.floor, [])):
            break
        for _ in range(rounds):
            for contender in plan.chooser.sample(contenders, len(contenders)):
                samples[contender.name] += contender.take()
        done += rounds
    return Table(
        subject=subject,
        rounds=done,
        load=(_rounded(load_before), _rounded(os.getloadavg()[0])),
        rows=[Row(contender.name, samples[contender.name], contender.note) for contender in contenders],
    )


def _disturbed(floor: Sequence[int]) -> bool:
    if len(floor) < NEEDED_FOR_SPREAD:
        return False
    summary = Summary.of(floor)
    return summary.p95 > DISTURBED * summary.median


def _rounded(load: float) -> float:
    return round(load, 2)


def write_result(result: Result, path: Path) -> None:
    """Writes the file, a row's samples on one line."""
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False)
    path.write_text(re.sub(r"\[\s+([\d\s.,]+?)\s+\]", _on_one_line, text) + "\n")


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{' '.join(numbers[1].split())}]"


def merged(whole: Result, part: Result) -> Result:
    """``whole`` with the groups of ``part`` in place of its own; their tables say of which run they are."""
    run = f"{part.taken}, in {part.seconds} s, seed {part.seed}, commit {part.commit or 'unknown'}"
    groups = {group_of(table) for table in part.tables}
    kept = [table for table in whole.tables if group_of(table) not in groups]
    versions = {**whole.versions, **part.versions}
    missing = {name: why for name, why in whole.missing.items() if name not in versions}
    return replace(
        whole,
        versions=versions,
        missing={**missing, **part.missing},
        tables=[*kept, *(replace(table, run=run) for table in part.tables)],
    )


def group_of(table: Table) -> str:
    """The group that a table belongs to: the first word of its key."""
    return table.subject.key.split(".")[0]


def read_result(path: Path) -> Result:
    """Reads the file. Raises ``msgspec.ValidationError`` where it is not one."""
    return msgspec.json.decode(path.read_bytes(), type=Result)
