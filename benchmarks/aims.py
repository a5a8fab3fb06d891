"""What the project aims at, held against a result: met or not, with the figure beside it.

Also the short table of the README, which says nothing that is not on the page.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.disk import OWN
from benchmarks.disk_board import DAEMON
from benchmarks.measure import Result, Row, Summary, Table
from benchmarks.requests import FLOOR as HERE
from benchmarks.requests import PACKETS
from benchmarks.restart import FIRST, LARGE, LATER

__all__ = ["AIMS", "CLAIMS", "Aim", "Verdict", "verdicts"]

Figure = Callable[[Sequence[int]], float]
MS = 1e6
NO_SLOWER = 1.1  # of two rows that are to be the same, each with its noise


def median(samples: Sequence[int]) -> float:
    """The median."""
    return Summary.of(samples).median


def percentile_99(samples: Sequence[int]) -> float:
    """The 99th percentile; the largest of fewer than a hundred."""
    return statistics.quantiles(samples, n=100, method="inclusive")[98]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """``figure`` of the table's own row is to be at most ``most``: of that of ``beside``, or in its unit."""

    table: str
    most: float
    beside: str = ""
    figure: Figure = median
    what: str = ""  # of the figure, where it is not the median
    row: str = ""  # where it is not the first of the table's own


@dataclass(frozen=True, slots=True)
class Verdict:
    """An aim and what was measured; ``value`` is a ratio where the aim is one."""

    title: str
    aim: Aim
    value: float
    unit: str

    @property
    def met(self) -> bool:
        """True if it is."""
        return self.value <= self.aim.most


def _aims() -> Iterator[Aim]:
    yield Aim(table="restart.1", most=1, beside="bare fork loop")
    yield Aim(table="restart.50", most=1, beside="bare fork loop")
    yield Aim(table="restart.50", most=3 * MS, figure=percentile_99, what="99th percentile")
    for row in (LATER, LARGE):
        yield Aim(table="restart.each", most=NO_SLOWER, row=row, beside=FIRST, what=row)
    yield Aim(table="restart.all", most=1.3, beside="bare fork loop")
    yield Aim(table="requests.polled", most=1.2, beside=HERE)
    yield Aim(table="requests.posted", most=1e9 / 1.5e6)
    yield Aim(table="requests.request", most=3000)
    yield Aim(table="requests.request-one-core", most=1.1, beside=PACKETS)
    yield Aim(table="session", most=1.2, beside="in the emulator's process")
    yield Aim(table="scale.start", most=1.5, beside="board of 100")
    yield Aim(table="scale.kill-→-answer-on-a-board", most=1.5, beside="board of 100")
    yield Aim(table="scale.stop", most=1.5, beside="board of 100")
    yield Aim(table="scale.processor-time-of-an-idle-supervisor-in-10-s", most=10 * MS)
    yield Aim(table="scale.memory-of-a-worker-on-a-board-(PSS)", most=3e6)
    yield Aim(table="disk.kill", most=2 * MS)
    yield Aim(table="disk.kill", most=8 * MS, figure=max, what="worst")
    for how in ("read32", "write32", "read1", "p99"):
        yield Aim(table=f"disk.direct.{how}", most=1, beside=DAEMON)
    for how in ("randread1", "randwrite1", "randread32", "randwrite32", "randread4", "randwrite4"):
        yield from (Aim(table=f"disk.guest.{how}", most=1, beside=peer) for peer in (DAEMON, OWN))
    for how in ("read", "write"):
        yield from (Aim(table=f"disk.guest.{how}", most=1, beside=peer) for peer in (DAEMON, OWN))


AIMS = tuple(_aims())
CLAIMS = (
    ("restart.50", "supervisord"),
    ("restart.50", "bare fork loop"),
    ("requests.request", HERE),
    ("requests.request", "a round trip of multiprocessing.Pipe"),
    ("requests.posted", HERE),
    ("session", "in the emulator's process"),
    ("disk.direct.read32", DAEMON),
    ("disk.guest.kill", "qemu-storage-daemon, reconnect=1"),
)
"""(Table, beside whom): the lines of the page's ratios that the README repeats."""


def verdicts(result: Result) -> list[Verdict]:
    """Of every aim whose table was measured. A row that is not there leaves its aim out."""
    tables = {table.subject.key: table for table in result.tables}
    found = []
    for aim in AIMS:
        table = tables.get(aim.table)
        ours = None if table is None else _row(table, aim.row or table.subject.ours[0])
        if table is None or ours is None:
            continue
        value, unit = aim.figure(ours.samples), table.subject.unit
        if aim.beside:
            other = _row(table, aim.beside)
            if other is None:
                continue
            value, unit = value / (aim.figure(other.samples) or math.inf), ""
        found.append(Verdict(table.subject.title, aim, value, unit))
    return found


def _row(table: Table, name: str) -> Row | None:
    return next((row for row in table.rows if row.name == name), None)
