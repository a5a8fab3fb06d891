"""The page that a result makes, ratios first: a pure function, so it can be made again from the file."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from benchmarks.aims import CLAIMS, verdicts
from benchmarks.measure import Result, Summary, Table, group_of

__all__ = ["capital", "claims", "markdown", "page", "ratios", "rounded", "shown"]

TIME_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))
SIZE_UNITS = ((2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
DIGITS = 3
_NONE: Mapping[str, str] = MappingProxyType({})
LINE = 110  # characters

INTRODUCTION = """\
What it costs to run a device in a process of its own, beside what else there is. Everything in one table
was measured in the same run, in turns and in random order, so the ratios mean more than the figures: those
are of one machine, on one day. They are measured, not promised."""

RATIOS = """\
The ratio is that of the medians, tubevisor's to the other's: above 1 the other takes less."""

AIMED = """\
What the project set itself, most of it long before it could be measured. Why some are not met, and what was
tried, is in [Performance](performance.md)."""

RULE = """\
- Contenders take turns, in an order that is drawn anew in each round, so that what else the machine does hits
  all alike. Nothing is dropped. A table whose floor has a p95 of more than three times its median is given
  as many rounds again, once; medians and percentiles are taken over all rounds.
- Times are of the monotonic clock. The range holds the middle half of the samples. With fewer than ten of
  them it is from the smallest to the largest, and the p95 is the largest.
- The floor of a table is what the ratios in it refer to; a floor of 0 has none."""

REPEAT = """\
`make bench` takes all figures again, in some minutes, and writes this page and the file with every sample,
[benchmarks.json](benchmarks.json). It installs the peers into a virtualenv of their own, and goes on
without one that cannot be had; disks in a guest need QEMU and `make guests`. `python -m benchmarks --only
restart,tube` takes a part and prints it, with `--merge` it puts that part into the file; `--seed` repeats
the order of kills and turns; `--render` makes page and pictures again from the file. `make bench-compare
OLD=before.json NEW=after.json` tells what has got slower from one file to another, in units of each table's
floor. No test depends on a time."""


def page(result: Result, pictures: Mapping[str, str] = _NONE) -> str:
    """The whole page in Markdown. ``pictures``: the file name of each group's, where there is one."""
    parts = ["# Benchmarks", INTRODUCTION, "## Ratios", RATIOS, ratios(result)]
    parts += ["## Aims", AIMED, _aims(result), "## Figures"]
    drawn = set()
    for table in result.tables:
        group = group_of(table)
        if group in pictures and group not in drawn:
            drawn.add(group)
            parts.append(f"![Medians, middle halves and 95th percentiles]({pictures[group]})")
        parts += [f"### {capital(table.subject.title)}", _figures(table), _notes(table)]
    parts += ["## Machine", _machine(result)]
    if result.missing:
        lines = [f"- {name}: {_cell(why)}" for name, why in result.missing.items()]
        parts += ["Not measured:", "\n".join(lines)]
    parts += ["## How the figures were taken", RULE, _filled(_quiet(result))]
    parts += [_filled(f"**{capital(titles)}.** {how}") for how, titles in _ways(result)]
    parts += ["## How to repeat it", REPEAT]
    return "\n\n".join(parts) + "\n"


def _aims(result: Result) -> str:
    lines = [["what", "beside", "met", "at most", "measured"]]
    for verdict in verdicts(result):
        aim, unit = verdict.aim, verdict.unit
        what = f"{verdict.title}, {aim.what}" if aim.what else verdict.title
        figures = [shown(value, unit) if unit else rounded(value) for value in (aim.most, verdict.value)]
        lines.append([what, aim.beside or "–", "yes" if verdict.met else "no", *figures])
    return markdown(lines, left=3)


def claims(result: Result) -> str:
    """The lines of the ratios that the README repeats."""
    return ratios(result, CLAIMS)


def ratios(result: Result, only: Sequence[tuple[str, str]] = ()) -> str:
    """The first table: each of our figures beside every other contender's. ``only``: (table, beside whom)."""
    lines = [["what", "beside", "ratio", "tubevisor", "the other"]]
    for table in result.tables:
        ours = [row for row in table.rows if row.name in table.subject.ours]
        for row in ours:
            what = table.subject.title if len(ours) == 1 else f"{table.subject.title}, {row.name}"
            for other in table.rows:
                if only and ((table.subject.key, other.name) not in only or row is not ours[0]):
                    continue
                if other not in ours and not other.name.startswith("tubevisor"):
                    medians = [Summary.of(one.samples).median for one in (row, other)]
                    figures = [shown(median, table.subject.unit) for median in medians]
                    lines.append([what, other.name, _ratio(*medians), *figures])
    return markdown(lines, left=2)


def _figures(table: Table) -> str:
    floor = next((row for row in table.rows if row.name == table.subject.floor), None)
    lowest = Summary.of(floor.samples).median if floor else 0
    lines = [["", "ratio to the floor", "median", "p95", "range", "samples"]]
    for row in table.rows:
        summary, unit = Summary.of(row.samples), table.subject.unit
        values = [shown(value, unit) for value in (summary.median, summary.p95)]
        spread = f"{shown(summary.low, unit)} – {shown(summary.high, unit)}"
        mark = " (floor)" if row is floor else ""
        ratio = _ratio(summary.median, lowest)
        lines.append([f"{row.name}{mark}", ratio, *values, spread, str(summary.count)])
    return markdown(lines, left=1)


def _notes(table: Table) -> str:
    notes = [f"- {row.name}: {row.note}." for row in table.rows if row.note]
    rounds = "1 round" if table.rounds == 1 else f"{table.rounds} rounds"
    notes.append(f"- {rounds}; load average {table.load[0]:g} before, {table.load[1]:g} after.")
    if table.run:
        notes.append(f"- Measured apart from the others: {table.run}.")
    return "\n".join(notes)


def _machine(result: Result) -> str:
    load = ", ".join(f"{average:g}" for average in result.load)
    facts = {
        **result.machine,
        **result.versions,
        "commit": result.commit or "unknown",
        "measured": f"{result.taken}, in {result.seconds} s, seed {result.seed}",
        "load average before": f"{load} (over 1, 5 and 15 minutes)",
    }
    return markdown([["", ""], *([name, _cell(what)] for name, what in facts.items())], left=2)


def _quiet(result: Result) -> str:
    """Whether something else was going on. The rule is about the machine and not about the figures."""
    highest = max((load for table in result.tables for load in table.load), default=0.0)
    cores = int(result.machine.get("cores", "1"))
    verdict = "This one was quiet." if highest <= cores else "THIS ONE WAS NOT."
    rule = "A run is quiet if no table's load average is above the number of cores."
    return f"{rule} {verdict} The highest was {highest:g}, of {cores} cores."


def _ways(result: Result) -> list[tuple[str, str]]:
    """Each explanation with the titles of the tables that it explains."""
    titles: dict[str, list[str]] = {}
    for table in result.tables:
        if table.subject.how:
            titles.setdefault(table.subject.how, []).append(table.subject.title)
    return [(how, "; ".join(those)) for how, those in titles.items()]


def shown(value: float, unit: str) -> str:
    """A figure of a table in the unit that suits it."""
    units = TIME_UNITS if unit == "ns" else SIZE_UNITS
    size, name = next(((size, name) for size, name in units if value >= size), units[-1])
    return f"{rounded(value / size)} {name}"


def _ratio(ours: float, theirs: float) -> str:
    if not theirs:
        return "–"
    if ours and ours / theirs < 0.1:
        return f"1/{rounded(theirs / ours)}"
    return rounded(ours / theirs)


def rounded(value: float) -> str:
    """To three digits, without an exponent."""
    whole = len(str(int(value))) if value >= 1 else 0
    return f"{value:,.{max(0, DIGITS - max(1, whole))}f}" if value else "0"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def capital(text: str) -> str:
    """With a capital letter, and otherwise as it is."""
    return text[:1].upper() + text[1:]


def _filled(text: str) -> str:
    return textwrap.fill(text, LINE, break_long_words=False, break_on_hyphens=False)


def markdown(lines: Sequence[Sequence[str]], *, left: int) -> str:
    """A table; the first ``left`` columns are of words, the rest of figures."""
    marks = [" --- " if column < left else " ---: " for column in range(len(lines[0]))]
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], f"|{'|'.join(marks)}|", *rows[1:]])
