"""What has got slower, and what faster, from one file of results to another.

    python -m benchmarks.compare OLD NEW

Figures of two runs are of two days, perhaps of two machines; so what is compared is each contender of ours in
units of the floor of its table, which was measured in the same run, and only where there is no floor the
figure itself. A change counts if it is larger than ``LEAST`` and the middle halves of the samples do not
overlap. Ends with 1 if something has got slower.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.measure import Result, Row, Summary, Table, read_result
from benchmarks.report import markdown, rounded, shown

__all__ = ["Change", "changes", "main"]

LEAST = 1.10  # a ratio; quiet runs of the same commit differ by less


@dataclass(frozen=True, slots=True)
class Change:
    """One contender of ours in both files, in units of the floor, or as it is where there is none."""

    what: str
    old: Summary
    new: Summary
    unit: str  # "ns", "bytes", or "" in units of the floor

    @property
    def ratio(self) -> float:
        """New to old, of the medians: above 1 it has got slower, or larger."""
        return (
            self.new.median / self.old.median if self.old.median else float("inf" if self.new.median else 1)
        )

    @property
    def verdict(self) -> str:
        """``slower``, ``faster`` or nothing."""
        if self.ratio >= LEAST and self.new.low > self.old.high:
            return "slower"
        if self.ratio <= 1 / LEAST and self.new.high < self.old.low:
            return "faster"
        return ""


def changes(old: Result, new: Result) -> list[Change]:
    """Everything of ours that is in both, what has got slower first."""
    before = dict(_ours(old))
    found = [
        Change(what, before[what][0], summary, unit)
        for what, (summary, unit) in _ours(new)
        if what in before and before[what][1] == unit
    ]
    return sorted(found, key=lambda change: -change.ratio)


def _ours(result: Result) -> Iterator[tuple[str, tuple[Summary, str]]]:
    for table in result.tables:
        for row in table.rows:
            if row.name in table.subject.ours and row.samples:
                yield f"{table.subject.title}, {row.name}", _in_floors(table, row)


def _in_floors(table: Table, row: Row) -> tuple[Summary, str]:
    summary = Summary.of(row.samples)
    for floor in table.rows:
        if floor.name == table.subject.floor and (lowest := Summary.of(floor.samples).median):
            scaled = [value / lowest for value in (summary.median, summary.p95, summary.low, summary.high)]
            return Summary(*scaled, count=summary.count), ""
    return summary, table.subject.unit


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if something has got slower."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    asked = parser.parse_args(arguments)
    try:
        found = changes(read_result(asked.old), read_result(asked.new))
    except (OSError, msgspec.DecodeError) as error:
        parser.error(str(error))
    lines = [["what", "", "new / old", "old", "new"]]
    for change in found:
        figures = [_figure(summary.median, change.unit) for summary in (change.old, change.new)]
        lines.append([change.what, change.verdict, rounded(change.ratio), *figures])
    print(markdown(lines, left=2))
    slower = sum(change.verdict == "slower" for change in found)
    faster = sum(change.verdict == "faster" for change in found)
    print(f"\n{len(found)} figures in both: {slower} slower, {faster} faster, by {LEAST - 1:.0%} or more")
    return 1 if slower else 0


def _figure(value: float, unit: str) -> str:
    return shown(value, unit) if unit else f"{rounded(value)} floors"


if __name__ == "__main__":
    sys.exit(main())
