"""Pictures of a result: one for each group of tables, beside the file, made of nothing but the file.

Each table is a set of bars, on a logarithmic scale where they differ by much: the median, a line over the
middle half of the samples and a tick at the 95th percentile. Where a restart's time goes is a single bar of
its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import Result, Summary, Table, group_of
from benchmarks.report import capital, shown

__all__ = ["draw", "draw_soak", "picture"]

OURS, OURS_TOO, FLOOR, OTHERS = "#1f6f8b", "#7fb3c4", "#8d99a6", "#d9822b"
LOGARITHMIC = 20  # times the least: then a linear scale would hide it
SOAK_CURVES = (
    {
        "rss_kib": "resident memory of the supervisor",
        "pss_kib": "its proportional share",
        "zygote_rss_kib": "resident memory of the zygote",
    },
    {
        "descriptors": "open descriptors",
        "journals": "journals mapped",
        "processes": "processes below the supervisor",
    },
)
WIDTH_IN, BAR_IN, TITLE_IN = 9.0, 0.28, 0.75
DOTS_PER_INCH = 110


def picture(path: Path, group: str) -> Path:
    """Where the picture of ``group`` is, for the file at ``path``."""
    return path.with_name(f"{path.stem}-{group}.png")


def draw(result: Result, path: Path) -> list[Path]:
    """Draws every group of ``result`` beside ``path``, its file; returns the pictures.

    Raises ``ImportError`` without matplotlib.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    groups: dict[str, list[Table]] = {}
    for table in result.tables:
        groups.setdefault(group_of(table), []).append(table)
    made = []
    for group, tables in groups.items():
        heights = [TITLE_IN + BAR_IN * (1 if table.subject.steps else len(table.rows)) for table in tables]
        figure, axes = plt.subplots(
            len(tables),
            1,
            figsize=(WIDTH_IN, sum(heights)),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        for table, one in zip(tables, axes[:, 0], strict=True):
            (_steps if table.subject.steps else _bars)(one, table)
        figure.savefig(picture(path, group), dpi=DOTS_PER_INCH, metadata={"Software": None})
        plt.close(figure)
        made.append(picture(path, group))
    return made


def draw_soak(soak: Mapping[str, Any], path: Path) -> None:
    """Draws what was in use over the kills of a soak (``soak.json``) into ``path``.

    Raises ``ImportError`` without matplotlib.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    samples = soak["samples"]
    kills = [sample["kills"] for sample in samples]
    figure, panels = plt.subplots(2, 1, figsize=(WIDTH_IN, 5), sharex=True, layout="constrained")
    for axes, unit, curves in zip(panels, ("MiB", ""), SOAK_CURVES, strict=True):
        for (name, title), colour in zip(curves.items(), (OURS, OURS_TOO, OTHERS), strict=True):
            divisor = 1024 if name.endswith("_kib") else 1
            axes.plot(kills, [sample[name] / divisor for sample in samples], color=colour, label=title)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(unit, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.15))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[1].xaxis.set_major_formatter(lambda value, _at: f"{value:,.0f}")
    minutes = f"{soak['kills']:,} kills of {soak['devices']} devices, {soak['seconds'] / 60:.0f} minutes"
    panels[1].set_xlabel(minutes, fontsize=8)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)


def _bars(axes: Any, table: Table) -> None:
    names = [row.name for row in table.rows]
    summaries = [Summary.of(row.samples) for row in table.rows]
    least = min((summary.median for summary in summaries if summary.median), default=1.0)
    for place, (row, summary) in enumerate(zip(table.rows, summaries, strict=True)):
        colour = _colour(row.name, table)
        median = max(summary.median, least / 10)
        axes.barh(place, median, color=colour, height=0.7)
        axes.plot(
            [max(summary.low, least / 10), max(summary.high, least / 10)], [place] * 2, color="black", lw=1
        )
        axes.plot([max(summary.p95, least / 10)], [place], marker="|", color="black", ms=8)
        axes.annotate(
            f" {shown(summary.median, table.subject.unit)}",
            (max(median, summary.p95), place),
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    if max(summary.p95 for summary in summaries) > LOGARITHMIC * least:
        axes.set_xscale("log")
        left, right = axes.get_xlim()
        axes.set_xlim(left, right * 3)  # room for the figures
    else:
        axes.set_xlim(0, axes.get_xlim()[1] * 1.15)
    axes.xaxis.set_major_formatter(lambda value, _at: shown(value, table.subject.unit))
    axes.xaxis.set_minor_formatter(lambda _value, _at: "")
    _finish(axes, table)


def _colour(name: str, table: Table) -> str:
    if name == table.subject.floor:
        return FLOOR
    if name in table.subject.ours:
        return OURS
    return OURS_TOO if name.startswith("tubevisor") else OTHERS


def _steps(axes: Any, table: Table) -> None:
    """One bar of all steps, in their order."""
    begun = 0.0
    for place, row in enumerate(table.rows):
        median = Summary.of(row.samples).median
        axes.barh(0, median / 1e6, left=begun / 1e6, color=OURS, alpha=1.0 if place % 2 else 0.7, height=0.6)
        axes.annotate(
            f"{row.name}\n{shown(median, table.subject.unit)}",
            ((begun + median / 2) / 1e6, 0),
            ha="center",
            va="center",
            fontsize=7,
            color="white",
        )
        begun += median
    axes.set_yticks([])
    axes.set_xlabel("ms", fontsize=8)
    _finish(axes, table)


def _finish(axes: Any, table: Table) -> None:
    axes.set_title(capital(table.subject.title), fontsize=9, loc="left")
    axes.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
