"""Kill → first completed request of a disk, as seen from the guest's memory: used.idx moves again.

Here there is no guest but our own front-end (``disk_ring``) on a keeper and its supervised worker, with
little guest memory and with much: a process whose memory is gigabytes takes its time to die.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks import peers as others
from benchmarks.disk_board import board, start_daemon
from benchmarks.disk_ring import MIB, Ring, attach, memory_file
from benchmarks.measure import Contender, Plan, Subject, Table, measure
from benchmarks.peers import wait_readable
from benchmarks.restart import FLOOR
from supervisor import Supervisor
from supervisor.tube.process import exit_of_the_leaving

__all__ = ["SPARES", "Served", "kill_daemon", "recovery_table", "with_worst"]

SPARES = 2
DEPTH, BLOCK = 32, 4096
DISK_BYTES = 64 * MIB
SMALL_BYTES = 16 * MIB  # of guest memory
ROUNDS = 4  # at most: to touch gigabytes takes seconds
PAUSE_S = (0.02, 0.05)  # between two kills: spares are filled up again
OUTAGE_S = 30.0  # longer is not waited for
HOW = """\
From SIGKILL for the process that serves a disk until used.idx, in the guest's memory, moves for the first
time after that process's death, with 32 random reads of 4 KiB under way all the while, and 20 to 50 ms of
such reading before the next kill. The guest is our own front-end, in the supervisor's process; the
connection outlives the kill. Two spares, no delay between restarts; in some rows a standby, which has mapped
the guest's memory. With so many GiB the disk has been made to write to every page of the guest before each
kill: the kernel then takes long to take the dead process apart. qemu-storage-daemon cannot outlive itself: it
is started again as soon as it is dead, our front-end connects as soon as it listens and gives it the ring
afresh. The bare fork loop is that of kill → answer, and has no disk."""


class Served:
    """A supervised disk whose guest works, and which is killed under it."""

    def __init__(self, sup: Supervisor, name: str, used_idx: Callable[[], int]) -> None:
        self._sup = sup
        self._name = name
        self._used_idx = used_idx

    def kill(self, go_on: Callable[[], None]) -> int:
        """ns until the next process has completed a request; ``go_on`` waits a moment for what comes.

        What the old process still completes before it is dead does not count: only from the moment on at
        which the kernel says that it executes nothing any more is used.idx compared.
        """
        pid = self._sup[self._name].pid
        assert pid is not None
        last = -1
        began_ns = time.monotonic_ns()
        self._sup.kill(self._name, charged=False)
        while time.monotonic_ns() - began_ns < 1e9 * OUTAGE_S:
            go_on()
            if last >= 0 and self._used_idx() != last:
                return time.monotonic_ns() - began_ns
            if last < 0 and _is_dead(pid):
                last = self._used_idx()
            self._sup.dispatch(0)
        raise TimeoutError(f"{self._name} has not come back in {OUTAGE_S:g} s")


def _is_dead(pid: int) -> bool:
    """True once the process is gone, or is being taken apart."""
    return not os.path.exists(f"/proc/{pid}") or exit_of_the_leaving(pid) is not None


def recovery_table(plan: Plan, forks: others.Family, *, with_daemon: bool) -> Table:
    """Little memory, much memory, the floor, and qemu-storage-daemon if it is there."""
    subject = Subject(
        key="disk.kill",
        title="kill → first completed request of a disk",
        ours=("tubevisor, a standby", "tubevisor"),
        floor=FLOOR,
        how=HOW,
    )
    effort = plan.effort
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        image = stack.enter_context(memory_file(DISK_BYTES)).path
        contenders = [Contender(FLOOR, lambda: _fork_again(plan, forks))]
        sizes = [(0, effort.kills), *((mib, 1) for mib in effort.disk_memory_mib)]
        for standby, (mib, kills) in itertools.product((True, False), sizes):
            name = "tubevisor, a standby" if standby else "tubevisor"
            name += f", {_gib(mib)} of guest memory in use" if mib else ""
            rig = _Rig(plan, folder / f"of{mib}{standby}", image, MIB * mib, standby=standby)
            stack.callback(rig.close)
            contenders.append(Contender(name, lambda rig=rig, kills=kills: rig.take(kills)))  # type: ignore[misc]
        if with_daemon:
            peer = _Daemon(plan, folder / "daemon", image)
            stack.callback(peer.close)
            name = "qemu-storage-daemon, started again"
            contenders.append(Contender(name, lambda: [peer.kill() for _ in range(2)]))
        return with_worst(measure(subject, contenders, min(ROUNDS, effort.rounds), plan))


def with_worst(table: Table) -> Table:
    """Says in each row's note what its longest took: of who is away, the worst counts as well."""
    rows = [
        replace(row, note="; ".join(filter(None, (f"worst {max(row.samples) / 1e6:.1f} ms", row.note))))
        for row in table.rows
    ]
    return replace(table, rows=rows)


def kill_daemon(
    process: subprocess.Popen[bytes],
    start: Callable[[], subprocess.Popen[bytes]],
    go_on: Callable[[], bool],
    *,
    patience_s: float = OUTAGE_S,
) -> tuple[int, subprocess.Popen[bytes]]:
    """ns from the kill until ``go_on`` is true, and the process that ``start`` has made when it was dead."""
    pidfd = os.pidfd_open(process.pid)
    began_ns = time.monotonic_ns()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    wait_readable(pidfd, OUTAGE_S)
    os.close(pidfd)
    process.wait()
    after = start()
    while not go_on():
        if time.monotonic_ns() - began_ns > 1e9 * patience_s:
            raise TimeoutError(f"no request was completed in {patience_s:g} s")
    return time.monotonic_ns() - began_ns, after


def _fork_again(plan: Plan, forks: others.Family) -> list[int]:
    took_ns = []
    for _ in range(plan.effort.kills):
        time.sleep(plan.chooser.uniform(*PAUSE_S))
        took_ns.append(forks.kill_one(plan.chooser))
    return took_ns


def _gib(mib: int) -> str:
    return f"{mib // 1024} GiB" if mib >= 1024 else f"{mib} MiB"


class _Rig:
    """A supervisor with a disk, and a ring of its, both in this process."""

    def __init__(self, plan: Plan, folder: Path, image: str, touched: int, *, standby: bool) -> None:
        self._plan = plan
        self._touched = bool(touched)
        folder.mkdir()
        self._stack = contextlib.ExitStack()
        self._sup = self._stack.enter_context(board(str(folder), [image], spares=SPARES, standby=standby))
        size = touched or SMALL_BYTES
        self._ring = Ring(DISK_BYTES, depth=DEPTH, block=BLOCK, memory=size, chooser=plan.chooser)
        self._stack.callback(self._ring.close)
        with ThreadPoolExecutor(1) as pool:  # the keeper that answers is in this process
            made = pool.submit(attach, folder / "disk0", self._ring)
            while not made.done():
                self._sup.dispatch(0.001)
        self._front = made.result()
        self._stack.callback(self._front.close)
        self._served = Served(self._sup, "disk0", lambda: self._ring.used_idx)

    def take(self, kills: int) -> list[int]:
        """A turn: ns of each kill."""
        ring, chooser = self._ring, self._plan.chooser
        took_ns = []
        for _ in range(kills):
            if self._touched:
                ring.touch()
            ring.submit(range(0, 3 * DEPTH, 3))
            until = time.monotonic() + chooser.uniform(*PAUSE_S)
            while time.monotonic() < until:
                self._go_on()
                self._sup.dispatch(0)
            took_ns.append(self._served.kill(self._go_on))
            while ring.under_way:
                ring.wait()
                ring.collect()
            ring.check()
        return took_ns

    def _go_on(self) -> None:
        """The guest's work: each request that is completed is followed by another one."""
        ring = self._ring
        if ring.want_interrupt():
            timeout = self._sup.next_timeout()
            select.select([ring.call_fd, self._sup.fileno()], [], [], 1.0 if timeout is None else timeout)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(ring.call_fd)
        ring.submit(ring.collect())

    def close(self) -> None:
        self._stack.close()


class _Daemon:
    """qemu-storage-daemon, started anew after each kill."""

    def __init__(self, plan: Plan, folder: Path, image: str) -> None:
        self._folder, self._image = folder, image
        folder.mkdir()
        self._ring = Ring(DISK_BYTES, depth=DEPTH, block=BLOCK, memory=SMALL_BYTES, chooser=plan.chooser)
        self._process = start_daemon(self._folder, [self._image])
        self._front = attach(self._folder / "disk0", self._ring)

    def kill(self) -> int:
        """ns from the kill to the first request that the next one has completed."""
        ring = self._ring
        ring.run(1000)
        ring.submit(range(0, 3 * DEPTH, 3))
        took_ns, self._process = kill_daemon(self._process, self._start, self._go_on)
        while ring.under_way:
            ring.wait()
            ring.collect()
        return took_ns

    def _start(self) -> subprocess.Popen[bytes]:
        self._front.close()
        self._ring.restart()
        return start_daemon(self._folder, [self._image])

    def _go_on(self) -> bool:
        ring = self._ring
        self._front = attach(self._folder / "disk0", ring)
        ring.submit(range(0, 3 * DEPTH, 3))
        ring.kick()
        ring.wait()
        return True

    def close(self) -> None:
        self._front.close()
        self._process.kill()
        self._process.wait()
        self._ring.close()
