"""The benchmarks work, leave nothing behind, and their page is what their file gives. No time is asserted."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from benchmarks import compare, disk_guest
from benchmarks.__main__ import FILE, GROUPS
from benchmarks.aims import AIMS, CLAIMS, verdicts
from benchmarks.measure import (
    QUICK,
    Contender,
    Plan,
    Result,
    Row,
    Subject,
    Summary,
    Table,
    group_of,
    measure,
    merged,
    read_result,
    write_result,
)
from benchmarks.peers import PINNED, install
from benchmarks.plots import picture
from benchmarks.report import claims, page

if TYPE_CHECKING:  # programs: checked, not imported
    from benchmarks import board, child, echo, floor

    __all__ = ["board", "child", "echo", "floor"]

ROOT = Path(__file__).parent.parent
RUN_TIMEOUT_S = 100
END_TIMEOUT_S = 20
PNG = b"\x89PNG"
MARK = "TUBEVISOR_BENCHMARK_TEST"

SMALL = """
{"format": 1, "taken": "2026-01-02", "seconds": 3, "seed": 4, "commit": "abc", "load": [0.5, 0.25, 0.1],
 "machine": {"processor": "of wood"}, "versions": {"Python": "3.11"}, "missing": {"circus": "pip | failed"},
 "tables": [
  {"subject": {"key": "a", "title": "kill → answer", "ours": ["tubevisor"], "floor": "fork", "unit": "ns",
               "how": "By hand."},
   "rounds": 2, "load": [0.5, 0.75],
   "rows": [{"name": "tubevisor", "samples": [3000, 1000, 2000], "note": ""},
            {"name": "tubevisor, slow", "samples": [9000], "note": ""},
            {"name": "fork", "samples": [500, 1500, 1000], "note": "forks"},
            {"name": "other", "samples": [1200000000], "note": ""}]},
  {"subject": {"key": "b", "title": "memory", "ours": ["worker"], "floor": "", "unit": "bytes", "how": ""},
   "rounds": 1, "load": [0, 0],
   "rows": [{"name": "worker", "samples": [3145728], "note": ""},
            {"name": "idle", "samples": [0], "note": ""}]}
 ]}
"""
SMALL_RATIOS = """
| what | beside | ratio | tubevisor | the other |
| --- | --- | ---: | ---: | ---: |
| kill → answer | fork | 2.00 | 2.00 µs | 1.00 µs |
| kill → answer | other | 1/600,000 | 2.00 µs | 1.20 s |
| memory | idle | – | 3.00 MiB | 0 bytes |
"""
SMALL_FIGURES = """
### Kill → answer

|  | ratio to the floor | median | p95 | range | samples |
| --- | ---: | ---: | ---: | ---: | ---: |
| tubevisor | 2.00 | 2.00 µs | 3.00 µs | 1.00 µs – 3.00 µs | 3 |
| tubevisor, slow | 9.00 | 9.00 µs | 9.00 µs | 9.00 µs – 9.00 µs | 1 |
| fork (floor) | 1.00 | 1.00 µs | 1.50 µs | 500 ns – 1.50 µs | 3 |
| other | 1,200,000 | 1.20 s | 1.20 s | 1.20 s – 1.20 s | 1 |

- fork: forks.
- 2 rounds; load average 0.5 before, 0.75 after.
"""
SMALL_MACHINE = """
| processor | of wood |
| Python | 3.11 |
| commit | abc |
| measured | 2026-01-02, in 3 s, seed 4 |
| load average before | 0.5, 0.25, 0.1 (over 1, 5 and 15 minutes) |

Not measured:

- circus: pip / failed
"""


def _small() -> Result:
    return msgspec.json.decode(SMALL, type=Result)


def test_given_small_file_page_is_made_of_it_ratios_first() -> None:
    """The tables of the page are the file's, to the letter, and in this order."""
    made = page(_small())
    places = [
        made.index(part) for part in (SMALL_RATIOS, SMALL_FIGURES, SMALL_MACHINE, "**Kill → answer.** By")
    ]
    assert places == sorted(places)
    assert "This one was quiet. The highest was 0.75, of 1 cores." in " ".join(made.split())


def test_given_run_on_a_busy_machine_page_says_so() -> None:
    """Whoever reads the figures learns that others were at work."""
    small = _small()
    busy = replace(small, tables=[replace(table, load=(0.5, 1.5)) for table in small.tables])
    assert "THIS ONE WAS NOT. The highest was 1.5" in " ".join(page(busy).split())


def test_given_result_written_it_is_read_as_it_was(tmp_path: Path) -> None:
    """Nothing is lost on the way to the page, and samples stand on one line."""
    path = tmp_path / "result.json"
    write_result(_small(), path)
    assert read_result(path) == _small()
    assert "[3000, 1000, 2000]" in path.read_text()


def _scaled(result: Result, name: str, factor: int) -> Result:
    """With the samples of all rows of that name multiplied."""
    return replace(
        result,
        tables=[
            replace(
                table,
                rows=[
                    replace(row, samples=[factor * one for one in row.samples]) if row.name == name else row
                    for row in table.rows
                ],
            )
            for table in result.tables
        ],
    )


@pytest.mark.parametrize(
    ("name", "verdict", "ratio"), [("tubevisor", "slower", 4), ("fork", "faster", 0.25), ("other", "", 1)]
)
def test_given_two_results_what_got_slower_is_told_in_units_of_the_floor(
    name: str, verdict: str, ratio: float
) -> None:
    """A floor that got slower too is the machine's doing; what is not ours is not compared."""
    found = compare.changes(_small(), _scaled(_small(), name, 4))
    assert [change.what for change in found if change.what.startswith("kill")] == ["kill → answer, tubevisor"]
    change = next(change for change in found if change.what.startswith("kill"))
    assert (change.verdict, change.ratio, change.unit) == (verdict, ratio, "")


def test_given_overlapping_samples_no_change_is_claimed() -> None:
    """The medians may differ as they like: the middle halves must not touch."""
    before = _small()
    rows = before.tables[0].rows
    wide = [replace(rows[0], samples=[1000, 2500, 9000]), *rows[1:]]
    after = replace(before, tables=[replace(before.tables[0], rows=wide), before.tables[1]])
    assert [change.verdict for change in compare.changes(before, after)] == ["", ""]


def test_given_files_compare_prints_and_its_exit_code_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 where something got slower, 0 where nothing did, 2 for what is no file of results."""
    old, new, broken = (tmp_path / name for name in ("old.json", "new.json", "broken.json"))
    write_result(_small(), old)
    write_result(_scaled(_small(), "worker", 2), new)
    broken.write_text("{}")
    assert compare.main([str(old), str(new)]) == 1
    assert "| memory, worker | slower | 2.00 | 3.00 MiB | 6.00 MiB |" in capsys.readouterr().out
    assert compare.main([str(new), str(old)]) == 0
    assert "0 slower, 1 faster" in capsys.readouterr().out
    for path in (broken, tmp_path / "none.json"):
        with pytest.raises(SystemExit) as ended:
            compare.main([str(old), str(path)])
        assert ended.value.code == 2


def test_given_result_each_group_has_its_picture(tmp_path: Path) -> None:
    """Steps of one time as one bar, everything else as a bar each; a figure of 0 is drawn as well."""
    plots = pytest.importorskip("benchmarks.plots")
    pytest.importorskip("matplotlib")
    small = _small()
    steps = replace(small.tables[0], subject=replace(small.tables[0].subject, key="c", steps=True))
    drawn = plots.draw(replace(small, tables=[*small.tables, steps]), tmp_path / "result.json")
    assert [path.name for path in drawn] == ["result-a.png", "result-b.png", "result-c.png"]
    assert all(path.read_bytes().startswith(PNG) for path in drawn)


def test_given_part_that_was_measured_later_it_replaces_its_group_and_says_so() -> None:
    """Other groups stay as they were; a table of another run names that run."""
    whole = _small()
    old, memory = whole.tables
    fresh = replace(old, subject=replace(old.subject, key="b.new", title="disk"))
    part = replace(whole, tables=[fresh], commit="def", versions={"QEMU": "7.2"}, missing={"guest": "no"})
    made = merged(whole, part)
    assert made.tables == [old, replace(fresh, run="2026-01-02, in 3 s, seed 4, commit def")]
    assert memory not in made.tables
    assert (made.commit, made.versions) == ("abc", {"Python": "3.11", "QEMU": "7.2"})
    assert made.missing == {"circus": "pip | failed", "guest": "no"}
    assert "- Measured apart from the others: 2026-01-02, in 3 s, seed 4, commit def." in page(made)


def test_given_no_guests_it_is_said_what_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step: QEMU, then `make guests`, then fio."""
    monkeypatch.setattr(disk_guest, "GUESTS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "is not installed" in disk_guest.why_not()
    (tmp_path / disk_guest.QEMU).touch(mode=0o755)
    assert "make guests" in disk_guest.why_not()
    for name in ("vmlinuz", "initramfs-qemu.gz"):
        (tmp_path / name).touch()
    assert "fio.sh" in disk_guest.why_not()
    (tmp_path / "fio.cpio").touch()
    assert disk_guest.why_not() == ""


def test_given_what_fio_says_time_is_that_of_all_requests() -> None:
    """One side has been at work, and the percentile is its own."""
    idle = {"total_ios": 0, "iops": 0.0, "clat_ns": {}}
    busy = {"total_ios": 9, "iops": 20_000.0, "clat_ns": {"percentile": {"99.000000": 70_000}}}
    for job in ({"read": idle, "write": busy}, {"read": busy, "write": idle}):
        assert disk_guest.outcome({"error": 0, **job}) == disk_guest.Outcome(50_000, 70_000)


def _pictures(result: Result, path: Path) -> dict[str, str]:
    return {group: picture(path, group).name for group in map(group_of, result.tables)}


def test_given_committed_page_it_is_what_the_committed_file_gives() -> None:
    """Nobody has touched up a figure."""
    result = read_result(FILE)
    pictures = _pictures(result, FILE)
    assert FILE.with_suffix(".md").read_text() == page(result, pictures)
    assert all((FILE.parent / name).read_bytes().startswith(PNG) for name in pictures.values())


def test_given_committed_file_every_aim_and_claim_is_judged_by_it() -> None:
    """None drops out in silence: each has its table and its rows."""
    result = read_result(FILE)
    assert [verdict.aim for verdict in verdicts(result)] == list(AIMS)
    assert len(claims(result).splitlines()) == 2 + len(CLAIMS)


def test_given_figures_aims_are_met_or_not() -> None:
    """A ratio beside a ratio, a figure beside a figure; the 99th percentile is not the median."""
    ours, floor = [900_000] * 98 + [5_000_000] * 2, [1_000_000] * 100
    tables = [
        Table(
            subject=Subject(key="restart.50", title="killed", ours=("tubevisor",), floor="bare fork loop"),
            rounds=1,
            load=(0.0, 0.0),
            rows=[Row("tubevisor", ours), Row("bare fork loop", floor)],
        )
    ]
    judged = verdicts(replace(_small(), tables=tables))
    assert [(verdict.met, verdict.unit) for verdict in judged] == [(True, ""), (False, "ns")]
    assert judged[0].value == 0.9
    assert judged[1].value > 3e6


def test_given_committed_file_it_is_small_and_of_everything() -> None:
    """A whole run: no row of more than 200 samples, no table without its floor, nothing left out."""
    result = read_result(FILE)
    assert {table.subject.key.split(".")[0] for table in result.tables} == set(GROUPS)
    assert result.missing == {}
    for table in result.tables:
        names = [row.name for row in table.rows]
        assert {*table.subject.ours, table.subject.floor} <= {*names, ""}
        assert all(0 < len(row.samples) <= 200 for row in table.rows)


def _measured(floor: Sequence[int]) -> tuple[Table, list[str]]:
    turns: list[str] = []

    def take(name: str, samples: Sequence[int]) -> Sequence[int]:
        turns.append(name)
        return samples

    contenders = [
        Contender("ours", lambda: take("ours", [7])),
        Contender("floor", lambda: take("floor", floor)),
    ]
    subject = Subject(key="a", title="a", ours=("ours",), floor="floor")
    plan = Plan(QUICK, random.Random(1), lambda _text: None)
    return measure(subject, contenders, 5, plan), turns


def test_given_quiet_floor_each_round_gives_everybody_a_turn() -> None:
    """Turns are interleaved, not one contender after the other, and all samples are kept."""
    table, turns = _measured([10, 11])
    assert table.rounds == 5
    assert [row.samples for row in table.rows] == [[7] * 5, [10, 11] * 5]
    rounds = [turns[at : at + 2] for at in range(0, 10, 2)]
    assert all(sorted(turn) == ["floor", "ours"] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) == 2


def test_given_disturbed_floor_all_contenders_get_as_many_rounds_again_once() -> None:
    """The rule for noise: more samples for everybody, none dropped."""
    table, turns = _measured([10, 1000, 10])
    assert table.rounds == 10
    assert [len(row.samples) for row in table.rows] == [10, 30]
    assert len(turns) == 20


@pytest.mark.parametrize(
    ("samples", "summary"),
    [([3], (3, 3, 3, 3, 1)), ([1, 9, 5], (5, 9, 1, 9, 3)), (list(range(101)), (50, 95, 25, 75, 101))],
)
def test_given_samples_summary_is_of_all_of_them(
    samples: list[int], summary: tuple[float, float, float, float, int]
) -> None:
    """Percentiles where there are enough samples, the extremes where there are not."""
    assert Summary.of(samples) == Summary(*summary)


def test_given_pip_that_fails_each_peer_is_named_with_the_reason(tmp_path: Path) -> None:
    """What cannot be installed is missing, which is no error."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 1\n")
    python.chmod(0o755)
    peers = install(tmp_path)
    assert not any(peers.has(name) for name in PINNED)
    assert set(peers.missing) == set(PINNED)
    assert all("no such thing" in why for why in peers.missing.values())


def _start(group: str, path: Path, mark: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--quick",
        "--no-peers",
        "--only",
        group,
        "--json",
        str(path),
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, MARK: mark, "TMPDIR": str(path.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _marked(mark: str) -> dict[int, str]:
    """Everything that a benchmark has started and that still lives, wherever its parents are."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def _left(mark: str) -> dict[int, str]:
    deadline = time.monotonic() + END_TIMEOUT_S
    while (found := _marked(mark)) and time.monotonic() < deadline:
        os.sched_yield()  # the kernel ends them, and takes a moment for it
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_given_quick_run_it_measures_writes_and_leaves_nothing(group: str, tmp_path: Path) -> None:
    """Every group works from end to end without peers; its processes and folders are gone afterwards."""
    mark, path = uuid.uuid4().hex, tmp_path / "benchmarks.json"
    process = _start(group, path, mark)
    try:
        printed, _ = process.communicate(timeout=RUN_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, printed
    assert "WITHOUT circus" in printed
    result = read_result(path)
    assert {table.subject.key.split(".")[0] for table in result.tables} == {group}
    assert all(row.samples for table in result.tables for row in table.rows)
    pictures = _pictures(result, path) if importlib.util.find_spec("matplotlib") else {}
    assert path.with_suffix(".md").read_text() == page(result, pictures)
    assert _left(mark) == {}
    written = {"benchmarks.json", "benchmarks.md", *pictures.values()}
    assert {entry.name for entry in tmp_path.iterdir()} == written


@pytest.mark.chaos
def test_given_benchmark_killed_nothing_of_it_lives_on(tmp_path: Path) -> None:
    """Floors and their children, zygotes and workers end with the process that has started them."""
    mark = uuid.uuid4().hex
    process = _start("restart", tmp_path / "benchmarks.json", mark)
    try:
        assert process.stdout is not None
        while "kill" not in (line := process.stdout.readline()):  # now all contenders have been started
            assert line, "it has ended too early"
        assert len(_marked(mark)) > 5
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    assert _left(mark) == {}
