"""Measures, prints the ratios, and writes a file with every sample and a page that is made of it.

A whole run writes ``docs/benchmarks.json`` and ``docs/benchmarks.md`` unless ``--json`` names another place;
a part of one writes only where ``--json`` says, or, with ``--merge``, into what is there.
The page is beside the file. With ``docs/benchmarks.json`` goes the README's short table of it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import disk, idle, machine, requests, restart, scale, session, tube
from benchmarks.measure import FULL, QUICK, Plan, Result, Table, merged, read_result, write_result
from benchmarks.peers import NO_PEERS, Peers, install
from benchmarks.plots import draw
from benchmarks.report import claims, page, ratios

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "benchmarks.json"
README = ROOT / "README.md"
CLAIMS_BEGIN, CLAIMS_END = "<!-- make bench writes from here -->", "<!-- to here -->"
PEERS = ROOT / ".cache" / "bench-venv"
DESCRIPTORS = 16384  # about 9 a device, with its journal and its worker, and as much for successors
QUIET_LOAD = 1.0
GROUPS: dict[str, Callable[[Plan, Peers], Iterator[Table]]] = {
    "restart": restart.tables,
    "tube": tube.tables,
    "requests": requests.tables,
    "session": session.tables,
    "idle": idle.tables,
    "scale": scale.tables,
    "disk": disk.tables,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the command line asks for."""
    asked = _parse(arguments)
    if asked.render:
        path = asked.json or FILE
        _write_page(read_result(path), path)
        return
    groups = asked.only.split(",") if asked.only else list(GROUPS)
    whole = groups == list(GROUPS) and not asked.quick
    path = asked.json or (FILE if whole or asked.merge else None)
    result = _measure(groups, asked)
    print(ratios(result), flush=True)
    for name, why in result.missing.items():
        print(f"not measured: {name}: {why}")
    if asked.merge and path is not None:
        result = merged(read_result(path), result)
    if path is not None:
        write_result(result, path)
        _write_page(result, path)


def _write_page(result: Result, path: Path) -> None:
    """The page, and its pictures where there is something to draw them with."""
    try:
        pictures = {made.stem.removeprefix(f"{path.stem}-"): made.name for made in draw(result, path)}
    except ImportError as error:
        _say(f"no pictures: {error}")
        pictures = {}
    path.with_suffix(".md").write_text(page(result, pictures))
    if path == FILE:
        README.write_text(with_claims(README.read_text(), result))


def with_claims(readme: str, result: Result) -> str:
    """The README with the figures of ``result`` between its two marks."""
    before, rest = readme.split(CLAIMS_BEGIN)
    return f"{before}{CLAIMS_BEGIN}\n{claims(result)}\n{CLAIMS_END}{rest.split(CLAIMS_END)[1]}"


def _measure(groups: Sequence[str], asked: argparse.Namespace) -> Result:
    peers = NO_PEERS if asked.no_peers else install(PEERS)
    for name, why in _called(peers.missing).items():
        print(f"WITHOUT {name}: {why}", flush=True)
    print(f"seed={asked.seed}", flush=True)
    _allow_descriptors()
    _await_quiet(asked.patience)
    load, began, commit = os.getloadavg(), time.monotonic(), machine.commit()
    plan = Plan(QUICK if asked.quick else FULL, random.Random(asked.seed), _say)
    taken = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    tables = [table for name in groups for table in GROUPS[name](plan, peers)]
    return Result(
        taken=taken,
        seconds=round(time.monotonic() - began),
        seed=asked.seed,
        commit=commit,
        load=(round(load[0], 2), round(load[1], 2), round(load[2], 2)),
        machine=machine.facts(),
        versions={**machine.versions(), **_called(peers.versions)},
        missing={**_called(peers.missing), **plan.missing},
        tables=tables,
    )


def _allow_descriptors() -> None:
    """Raises the soft limit, which is low for the sake of select(2), to what two boards need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        limit = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _await_quiet(patience_s: float) -> None:
    """Waits for others to end what they do: looks at the load, never at a figure."""
    until = time.monotonic() + patience_s
    while os.getloadavg()[0] > QUIET_LOAD and time.monotonic() < until:
        time.sleep(1)


def _called(by_distribution: dict[str, str]) -> dict[str, str]:
    """supervisord is distributed under a name that is ours as well."""
    return {"supervisord" if name == "supervisor" else name: what for name, what in by_distribution.items()}


def _say(text: str) -> None:
    print(text, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="GROUP,...", help=f"some of {', '.join(GROUPS)}")
    parser.add_argument(
        "--quick", action="store_true", help="hardly any samples: shows that it works, no more"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the samples go, and the page")
    parser.add_argument("--merge", action="store_true", help="into the file, for what it has of these")
    parser.add_argument("--no-peers", action="store_true", help="without supervisord, circus and pyzmq")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument(
        "--patience", type=float, default=0, metavar="SECONDS", help="waits for a quiet machine"
    )
    parser.add_argument("--render", action="store_true", help="only makes the page from the file")
    asked = parser.parse_args(arguments)
    unknown = set(asked.only.split(",") if asked.only else ()) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    return asked


if __name__ == "__main__":
    main()
