"""What idle devices cost: processor time of everybody involved, and memory of a worker."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil

from benchmarks import peers as others
from benchmarks.measure import Contender, Plan, Subject, Table, measure
from benchmarks.peers import Family, Peers, wait_readable

__all__ = ["pss_bytes", "run_ns", "tables"]

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 60.0
SETTLE_S = 1.0  # spares are filled up, and spinning is given up
OURS, FLOOR = "tubevisor, all processes", "bare fork loop"
WORKER, SPAWNED = "tubevisor, a worker", "spawned python -S"
CPU = """\
{0} devices that nobody asks anything, for {1:g} s at a time; all contenders at the same time, since they do
next to nothing. It is the run time of every thread, as in schedstat; of the other supervisors without their
children, which are blocked. 0 means that nothing ran at all."""
PSS = """\
Proportional set size of each process (smaps_rollup), while {0} devices are idle: its own pages, and of each
page that it shares (with the zygote, with its siblings, its journal with the supervisor) its part. So it is
less the more devices there are. A child of the bare fork loop has imported nothing and does nothing; the
spawned one is `python -S`."""

Watched = Mapping[str, Sequence[int]]  # pids of each contender


def tables(plan: Plan, peers: Peers) -> Iterator[Table]:
    """A table of processor time, then one of memory."""
    count = plan.effort.idle_devices
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(_our_board(count))
        forks, spawns, daemons = _others(stack, count, peers)
        time.sleep(min(SETTLE_S, 10 * plan.effort.window_s))
        supervisors = {name: [_parent(family)] for name, family in daemons.items()}
        yield _cpu_table(plan, {**_roles(ours), FLOOR: [_parent(forks)], **supervisors})
        yield _memory_table(plan, ours, forks, spawns)


def _others(
    stack: contextlib.ExitStack, count: int, peers: Peers
) -> tuple[Family, Family, dict[str, Family]]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))

    def family(name: str, start: Callable[[Family], None]) -> Family:
        made = stack.enter_context(others.running(folder / name, count))
        start(made)
        return made

    forks, spawns = family("fork", others.fork_floor), family("spawn", others.spawn_floor)
    daemons = {}
    if peers.has("supervisor"):
        daemons["supervisord"] = family("supervisord", lambda it: others.supervisord(it, peers))
    if peers.has("circus"):
        for name, delay_s in (("circus", 5.0), ("circus, check_delay 10 ms", 0.01)):
            start = _circus(peers, delay_s)
            daemons[name] = family(f"circus-{delay_s:g}", start)
    return forks, spawns, daemons


def _circus(peers: Peers, delay_s: float) -> Callable[[Family], None]:
    return lambda family: others.circus(family, peers, check_delay_s=delay_s)


@contextlib.contextmanager
def _our_board(count: int) -> Iterator[dict[str, list[int]]]:
    """Pids of supervisor, zygote, workers and spares of a board in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.board", str(count)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not wait_readable(process.stdout.fileno(), START_TIMEOUT_S):
            raise TimeoutError(f"{count} devices have not started in {START_TIMEOUT_S:g} s")
        who = json.loads(process.stdout.readline())
        yield {"supervisor": [process.pid], "zygote": [who["zygote"]], WORKER: who["workers"]}
    finally:
        process.kill()
        process.communicate()


def _roles(ours: Mapping[str, list[int]]) -> dict[str, list[int]]:
    zygote = ours["zygote"][0]
    everybody = [*ours["supervisor"], zygote, *(child.pid for child in psutil.Process(zygote).children())]
    return {
        OURS: everybody,
        "tubevisor, the supervisor": ours["supervisor"],
        "tubevisor, the workers": ours[WORKER],
    }


def _parent(family: Family) -> int:
    assert family.parent is not None
    return family.parent.pid


def _cpu_table(plan: Plan, watched: Watched) -> Table:
    """All windows are the same for all contenders: the first turn of a round waits for it."""
    effort = plan.effort
    seen: dict[str, list[int]] = {}

    def take(name: str) -> list[int]:
        if not seen:
            before = {name: run_ns(pids) for name, pids in watched.items()}
            time.sleep(effort.window_s)
            seen.update({name: [run_ns(pids) - before[name]] for name, pids in watched.items()})
        return seen.pop(name)

    subject = Subject(
        key="idle.cpu",
        title=f"processor time of {effort.idle_devices} idle devices in {effort.window_s:g} s",
        ours=(OURS,),
        how=CPU.format(effort.idle_devices, effort.window_s),
    )
    contenders = [Contender(name, partial(take, name)) for name in watched]
    return measure(subject, contenders, effort.windows, plan)


def _memory_table(plan: Plan, ours: Mapping[str, list[int]], forks: Family, spawns: Family) -> Table:
    count = plan.effort.idle_devices
    subject = Subject(
        key="idle.pss",
        title=f"memory of a worker, of {count} (PSS)",
        ours=(WORKER,),
        floor=SPAWNED,
        unit="bytes",
        how=PSS.format(count),
    )
    rows = {
        WORKER: ours[WORKER],
        "tubevisor, the zygote": ours["zygote"],
        "tubevisor, the supervisor": ours["supervisor"],
        "child of the bare fork loop": list(forks.pids.values()),
        SPAWNED: list(spawns.pids.values()),
    }
    contenders = [Contender(name, partial(_all_pss_bytes, pids)) for name, pids in rows.items()]
    return measure(subject, contenders, 1, plan)


def run_ns(pids: Sequence[int]) -> int:
    """ns that all threads of these processes have run."""
    return sum(
        int((task / "schedstat").read_text().split()[0])
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


def _all_pss_bytes(pids: Sequence[int]) -> list[int]:
    return [pss_bytes(pid) for pid in pids]


def pss_bytes(pid: int) -> int:
    """The proportional set size of a process, in bytes. Raises ``LookupError``."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"no Pss of {pid}")
