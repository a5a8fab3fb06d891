"""Virtual disks: how long one is away, how fast one is, and what idle ones cost, beside QEMU's own.

The same images, in memory, are served by a supervised worker of ours, by ``qemu-storage-daemon``, and (to a
guest) by QEMU itself. What cannot be had is left out, and said.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks import disk_guest
from benchmarks import peers as others
from benchmarks.disk_board import DAEMON, Served, board, daemon, start_daemon, supervised
from benchmarks.disk_guest import PATTERNS, Guest, Outcome, Pattern
from benchmarks.disk_recovery import SPARES, kill_daemon, recovery_table, with_worst
from benchmarks.disk_recovery import Served as Killed
from benchmarks.disk_ring import IN, MIB, OUT, Ring, attach, memory_file
from benchmarks.idle import run_ns
from benchmarks.measure import Contender, Plan, Row, Subject, Summary, Table, measure
from benchmarks.peers import Peers

__all__ = ["tables"]

OURS, THEIRS, OWN = "tubevisor", DAEMON, "QEMU's own virtio-blk"
DISK_BYTES = 256 * MIB
RING_BYTES = MIB  # of the memory of a guest that is none
BLOCK = 4096
PAUSE_S = (0.02, 0.05)
GUEST_KILLS, DAEMON_KILLS = 48, 6  # of ours, of who is away for a second
GUEST_WORK_S = 15.0
GUEST_OUTAGE_S = 10.0  # longer is not waited for
DIRECT = """\
Our own front-end instead of a guest: 4 KiB at random places of an image of 256 MiB in memory, {0} at a
time. The front-end asks for interrupts and sleeps when there is nothing to collect, as Linux's driver does.
It is one thread and so is our worker, {1} has a pool of them; nobody is pinned to a core. The time of a
request is that of {2:,} requests divided by their number."""
TAIL = """\
Requests one after the other, by the same front-end, each timed alone; a sample is the 99th percentile of
{0} of them."""
FIO = """\
fio in a Linux guest in QEMU, without KVM: libaio, O_DIRECT, {0:g} s at a time. The guest has three disks,
each on an image of 256 MiB in memory: ours and {1}'s over vhost-user, and QEMU's own (`virtio-blk-pci`,
cache=writeback, aio=threads); they take turns in the same guest. The time of a request is the whole time
divided by the number of requests. The emulated processor and the machine's two cores are a part of it:
QEMU's threads and the disk's share them."""
GUEST_TAIL = "As fio has it (clat), in the same runs; a sample is the 99th percentile of a run."
GUEST_KILL = """\
From SIGKILL for the process that serves a guest's disk until used.idx moves again in the guest's memory,
which is shared and looked at every 0.1 ms; QEMU says where it is. fio in the guest keeps 32 random reads of
4 KiB under way all the while, and has to end without an error. tubevisor with two spares, and no delay
between restarts; {0} is started again as soon as it is dead, and QEMU's `reconnect=1` looks for it every
second, its shortest. The other way round, with QEMU as the server (`server=on`), it cannot be had: {0} only
listens. A disk that is not back in {1:g} s counts as that, and is killed no more."""
IDLE = """\
{0} disks, each attached by our front-end to a ring of its own, and then left alone for {1:g} s: the run
time of every thread (schedstat) of supervisor, zygote, workers and spares, and of one {2} with as many
exports."""


def tables(plan: Plan, peers: Peers) -> Iterator[Table]:
    """Away, fast, idle; without a guest, then in one."""
    has_daemon = shutil.which(DAEMON) is not None
    if not has_daemon:
        plan.go_without(DAEMON, "it is not installed (Debian: qemu-system-common)")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        forks = stack.enter_context(others.running(folder / "fork", 1))
        others.fork_floor(forks)
        yield recovery_table(plan, forks, with_daemon=has_daemon)
    yield from _direct(plan, has_daemon)
    yield _idle(plan, has_daemon)
    why = disk_guest.why_not() if plan.effort.guest_rounds else "not with so little effort"
    if why or not has_daemon:
        plan.go_without("disks in a guest", why or f"there is no {DAEMON} to compare with")
    else:
        yield from _in_guest(plan)


@contextlib.contextmanager
def _both(count: int, size: int, has_daemon: bool) -> Iterator[dict[str, Served]]:
    """Who serves so many disks."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        ways = {OURS: supervised, THEIRS: daemon} if has_daemon else {OURS: supervised}
        served = {}
        for number, (name, serve) in enumerate(ways.items()):
            images = [stack.enter_context(memory_file(size)).path for _ in range(count)]
            served[name] = stack.enter_context(serve(folder / f"of{number}", images))
        yield served


# -- without a guest -----------------------------------------------------------------------------------------


def _direct(plan: Plan, has_daemon: bool) -> Iterator[Table]:
    count = plan.effort.disk_requests
    floor = THEIRS if has_daemon else ""
    with _both(1, DISK_BYTES, has_daemon) as served:
        for depth, kind, title in (
            (32, IN, "random read of 4 KiB without a guest, depth 32"),
            (32, OUT, "random write of 4 KiB without a guest, depth 32"),
            (1, IN, "random read of 4 KiB without a guest, depth 1"),
        ):
            key = f"disk.direct.{'write' if kind == OUT else 'read'}{depth}"
            how = DIRECT.format(depth, DAEMON, count if depth > 1 else count // 10)
            subject = Subject(key=key, title=title, ours=(OURS,), floor=floor, how=how)
            with _rings(plan, served, depth, kind) as rings:
                take = partial(_mean, count if depth > 1 else count // 10)
                yield _with_rates(_measured(subject, rings, take, plan), BLOCK)
                if depth == 1:
                    tail = replace(
                        subject,
                        key="disk.direct.p99",
                        title=f"99th percentile of a {title}",
                        how=TAIL.format(count // 20),
                    )
                    yield _measured(tail, rings, partial(_p99, count // 20), plan)


@contextlib.contextmanager
def _rings(plan: Plan, served: dict[str, Served], depth: int, kind: int) -> Iterator[dict[str, Ring]]:
    """A ring for each who serves, attached and warm."""
    with contextlib.ExitStack() as stack:
        rings = {}
        for name, who in served.items():
            ring = _ring(stack, plan, who.sockets[0], DISK_BYTES, depth)
            ring.aim(kind)
            ring.run(10 * depth)
            rings[name] = ring
        yield rings
        for ring in rings.values():
            ring.check()


def _ring(stack: contextlib.ExitStack, plan: Plan, socket: str, disk_bytes: int, depth: int) -> Ring:
    ring = Ring(disk_bytes, depth=depth, block=BLOCK, memory=RING_BYTES, chooser=plan.chooser)
    stack.callback(ring.close)
    stack.callback(attach(socket, ring).close)
    return ring


def _measured(
    subject: Subject, rings: dict[str, Ring], take: Callable[[Ring], Sequence[int]], plan: Plan
) -> Table:
    contenders = [Contender(name, partial(take, ring)) for name, ring in rings.items()]
    return measure(subject, contenders, 2 * plan.effort.rounds, plan)


def _mean(requests: int, ring: Ring) -> list[int]:
    return [round(ring.run(requests) / requests)]


def _p99(requests: int, ring: Ring) -> list[int]:
    return [sorted(ring.run_each(requests))[requests * 99 // 100]]


def _with_rates(table: Table, block: int) -> Table:
    """Says in a row's note what its median comes to in a second."""
    rows = []
    for row in table.rows:
        rate = 1e9 / Summary.of(row.samples).median
        shown = (
            f"{rate * block / 1e9:.2f} GB/s" if block > BLOCK else f"{round(rate, -2):,.0f} requests a second"
        )
        rows.append(replace(row, note=shown))
    return replace(table, rows=rows)


def _idle(plan: Plan, has_daemon: bool) -> Table:
    """Processor time; all at once, since they do next to nothing."""
    effort = plan.effort
    seen: dict[str, list[int]] = {}
    window_s = effort.window_s / 2
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(_both(effort.disks, 2 * MIB, has_daemon))
        for who in served.values():
            for socket in who.sockets:
                _ring(stack, plan, socket, 2 * MIB, 1).run(10)
        time.sleep(min(1.0, window_s))
        watched = {name: who.everybody() for name, who in served.items()}

        def take(name: str) -> list[int]:
            if not seen:
                before = {name: run_ns(pids) for name, pids in watched.items()}
                time.sleep(window_s)
                seen.update({name: [run_ns(pids) - before[name]] for name, pids in watched.items()})
            return seen.pop(name)

        subject = Subject(
            key="disk.idle",
            title=f"processor time of {effort.disks} idle disks in {window_s:g} s",
            ours=(OURS,),
            how=IDLE.format(effort.disks, window_s, DAEMON),
        )
        return measure(
            subject, [Contender(name, partial(take, name)) for name in watched], effort.windows, plan
        )


# -- in a guest ----------------------------------------------------------------------------------------------


def _in_guest(plan: Plan) -> Iterator[Table]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        images = [stack.enter_context(memory_file(DISK_BYTES)).path for _ in range(3)]
        for name in ("ours", "theirs"):
            (folder / name).mkdir()
        sup = stack.enter_context(board(str(folder / "ours"), images[:1], spares=SPARES, standby=True))
        start = partial(start_daemon, folder / "theirs", images[1:2])
        process = [start()]
        stack.callback(lambda: (process[0].kill(), process[0].wait()))
        sockets = [str(folder / "ours" / "disk0"), str(folder / "theirs" / "disk0")]
        others.wait_for(sockets[1])
        plan.say("a guest in QEMU boots")
        guest = Guest(folder, sockets, images[2], (sup.fileno, lambda: sup.dispatch(0)))
        stack.callback(guest.close)
        yield from _speed(plan, guest)
        ours = Killed(sup, "disk0", guest.watch_ring(0))
        yield _guest_kills(
            plan, guest, ours, partial(_kill_theirs, guest, guest.watch_ring(1), process, start)
        )


def _speed(plan: Plan, guest: Guest) -> Iterator[Table]:
    """Each disk in turn has a go at every pattern."""
    effort, load = plan.effort, os.getloadavg()[0]
    names = (OURS, THEIRS, OWN)
    plan.say(f"fio in a guest: {'; '.join(names)}")
    taken: dict[str, list[dict[str, Outcome]]] = {name: [] for name in names}
    for _ in range(effort.guest_rounds):
        for disk in plan.chooser.sample(range(3), 3):
            taken[names[disk]].append(guest.fio(disk, PATTERNS, effort.guest_s))
    loads = (round(load, 2), round(os.getloadavg()[0], 2))

    def table(one: Pattern, title: str, how: str, what: Literal["request_ns", "p99_ns"]) -> Table:
        key = f"disk.guest.{one.key}" if what == "request_ns" else f"disk.guest.{one.key}.p99"
        subject = Subject(key=key, title=title, ours=(OURS,), floor=OWN, how=how)
        rows = [Row(name, [getattr(got[one.key], what) for got in taken[name]]) for name in names]
        return Table(subject=subject, rounds=effort.guest_rounds, load=loads, rows=rows)

    how = FIO.format(effort.guest_s, DAEMON)
    for one in PATTERNS:
        yield _with_rates(table(one, one.title, how, "request_ns"), one.block)
    for one in PATTERNS[:2]:
        yield table(one, f"99th percentile of a {one.title}", GUEST_TAIL, "p99_ns")


def _guest_kills(plan: Plan, guest: Guest, ours: Killed, theirs: Callable[[], int]) -> Table:
    """Each has its own load, ours first: the other's may never end. Few kills of who is away for a second."""
    floor = f"{THEIRS}, reconnect=1"
    subject = Subject(
        key="disk.guest.kill",
        title="kill → first completed request of a guest's disk",
        ours=(OURS,),
        floor=floor,
        how=GUEST_KILL.format(DAEMON, GUEST_OUTAGE_S),
    )
    plan.say(f"{subject.title}: {OURS}; {floor}")
    load = os.getloadavg()[0]
    away = partial(ours.kill, lambda: guest.hear(0.0001))
    rows = [
        _guest_row(plan, guest, OURS, 0, [away] * GUEST_KILLS),
        _guest_row(plan, guest, floor, 1, [theirs] * DAEMON_KILLS),
    ]
    loads = (round(load, 2), round(os.getloadavg()[0], 2))
    return with_worst(Table(subject=subject, rounds=1, load=loads, rows=rows))


def _guest_row(plan: Plan, guest: Guest, name: str, disk: int, kills: Sequence[Callable[[], int]]) -> Row:
    """A row of kills; ends early, and says so, where the disk does not come back."""
    guest.work(disk, GUEST_WORK_S)
    guest.rest(2.0)  # until fio is at work
    samples, note = [], "the guest has seen no error"
    for kill in kills:
        guest.rest(plan.chooser.uniform(*PAUSE_S))
        try:
            samples.append(kill())
        except TimeoutError:
            samples.append(round(1e9 * GUEST_OUTAGE_S))
            note = f"after the last kill it did not come back in {GUEST_OUTAGE_S:g} s, and the guest hung"
            return Row(name, samples, note)
    guest.finish(GUEST_WORK_S + 30)
    return Row(name, samples, note)


def _kill_theirs(
    guest: Guest,
    used_idx: Callable[[], int],
    process: list[subprocess.Popen[bytes]],
    start: Callable[[], subprocess.Popen[bytes]],
) -> int:
    before: list[int] = []

    def start_again() -> subprocess.Popen[bytes]:
        before.append(used_idx())
        process[0] = start()
        return process[0]

    def go_on() -> bool:
        guest.hear(0.0001)
        return used_idx() != before[0]

    return kill_daemon(process[0], start_again, go_on, patience_s=GUEST_OUTAGE_S)[0]
