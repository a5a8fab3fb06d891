"""The zygote: one lean, single-threaded process that has everything imported and forks workers.

It lives for its supervisor. It is asked through a ProtoTube to fork, answers with a pidfd of the child, reaps
it and reports how it ended. When the supervisor is gone (its Tube is at its end, or its pidfd says so) the
zygote kills what it forked and exits; when the zygote itself is killed, the kernel kills the workers
(PR_SET_PDEATHSIG), so that a restarted zygote can never lead to two copies of a device.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import sys
import time
from collections.abc import Sequence

from supervisor.messages_pb2 import Fork, ZygoteReport
from supervisor.tube import Disconnected, ProtoTube, TubeTimeout
from supervisor.worker.assignment import rehearse
from supervisor.worker.entry import (
    PR_SET_PDEATHSIG,
    PROTOCOL_VERSION,
    rehearse_for_all,
    run_worker,
    settle_for_all,
)

__all__ = ["zygote_main"]

PR_SET_CHILD_SUBREAPER = 36
FAMILY_END_WAIT_S = 0.05  # less than the supervisor waits for the exit status
JOURNAL = "/memfd:tubevisor-"  # as proc(5) shows it
FDS_PER_FORK = 2  # the worker's end of its Tube, and its log pipe


class _Zygote:
    def __init__(self, tube: ProtoTube, supervisor_pidfd: int) -> None:
        self._tube = tube
        self._supervisor_pidfd = supervisor_pidfd
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> (pid, ticket)
        self._epoll = select.epoll()
        self._epoll.register(tube.fileno(), select.EPOLLIN)
        self._epoll.register(supervisor_pidfd, select.EPOLLIN)

    def serve(self) -> None:
        """Forks and reaps until the supervisor is gone."""
        greeting = ZygoteReport()
        greeting.ready.protocol_version = PROTOCOL_VERSION
        self._tube.send_proto(greeting)
        while True:
            ready = [fd for fd, _mask in self._epoll.poll()]
            self._reap([fd for fd in ready if fd in self._children])
            if self._supervisor_pidfd in ready or (self._tube.fileno() in ready and not self._take_orders()):
                self._end_all()
                return

    def _take_orders(self) -> bool:
        try:
            received = self._tube.recv_proto_with_fds(Fork, timeout=0, max_fds=FDS_PER_FORK)
        except TubeTimeout:
            return True
        except Disconnected:
            return False
        tube, log = received.descriptors
        self._fork(received.message, tube.fileno(), log.fileno())
        tube.close()
        log.close()
        return True

    def _fork(self, order: Fork, tube_fd: int, log_fd: int) -> None:
        ticket = order.ticket
        report = ZygoteReport()
        own_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            report.fork_failed.ticket = ticket
            report.fork_failed.errno = error.errno or 0
            report.fork_failed.message = error.strerror or ""
            self._tube.send_proto(report)
            return
        if pid == 0:
            run_worker(tube_fd, log_fd, ticket, own_pid, rehearses=order.spare)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (pid, ticket)
        self._epoll.register(pidfd, select.EPOLLIN)
        report.forked.ticket = ticket
        report.forked.pid = pid
        self._tube.send_proto(report, fds=(pidfd,))

    def _reap(self, pidfds: list[int]) -> None:
        """Takes the dead in, with all that they have left; reports them when nothing of that lives."""
        if not pidfds:
            return
        reports = []
        for pidfd in pidfds:
            pid, ticket = self._children.pop(pidfd)
            self._epoll.unregister(pidfd)
            os.close(pidfd)
            _kill_family(pid)
            _pid, status = os.waitpid(pid, 0)
            _reap_family(pid)
            report = ZygoteReport()
            report.exited.ticket = ticket
            report.exited.pid = pid
            report.exited.wait_status = status
            reports.append(report)
        _end_copies({known for known, _ticket in self._children.values()})  # once: it looks at each of them
        with contextlib.suppress(Disconnected):
            for report in reports:
                self._tube.send_proto(report)

    def _end_all(self) -> None:
        """Kills every worker, then whatever of their families is left: all of it is ours to reap."""
        for pidfd, (pid, _ticket) in self._children.items():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            _kill_family(pid)
        with contextlib.suppress(ChildProcessError):
            while True:
                for pid in _living_children():
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(-1, 0)


def _kill_family(pid: int) -> None:
    """Kills what a worker has forked, by its process group. Before the worker is reaped: until then its
    number, and so the group's, cannot belong to anybody else."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _reap_family(pid: int) -> None:
    """Waits, for a bounded time, until nobody of a dead worker's group is left, so that what it had open is
    closed when the next generation begins. They are ours to reap, since the zygote is their subreaper
    (prctl(2))."""
    deadline = time.monotonic() + FAMILY_END_WAIT_S
    try:
        while os.waitpid(-pid, os.WNOHANG)[0] or time.monotonic() < deadline:
            pass  # they have been killed and are microseconds from their end: not worth a sleep
    except ChildProcessError:
        pass


def _end_copies(workers: set[int]) -> None:
    """Ends those whom dead workers have left to us out of their group: a fork of a worker has its journal's
    descriptor, as it has the others, and is of no use to anybody. What a device has started as a program of
    its own has none of them, and lives on; one that has ended is reaped."""
    deadline = time.monotonic() + FAMILY_END_WAIT_S
    for pid in set(_living_children()) - workers:
        with contextlib.suppress(ChildProcessError):
            if _has_journal(pid):
                os.kill(pid, signal.SIGKILL)
                while not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < deadline:
                    pass
            else:
                os.waitpid(pid, os.WNOHANG)


def _has_journal(pid: int) -> bool:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}").startswith(JOURNAL):
                    return True
    return False


def _living_children() -> list[int]:
    """Our children, adopted ones too; none where the kernel does not list them (CONFIG_PROC_CHILDREN)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            return [int(pid) for pid in children.read().split()]
    except OSError:
        return []


def _open_stdio() -> None:
    """Nothing to read, nothing to write to but stderr, and that only if the supervisor had one."""
    null = os.open("/dev/null", os.O_RDWR)
    try:
        os.fstat(2)
        closed = {0, 1}
    except OSError:
        closed = {0, 1, 2}
    for fd in closed - {null}:
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def zygote_main(tube_fd: int, supervisor_pid: int, preload: Sequence[str]) -> None:
    """Entry point of the zygote. ``preload`` names modules that workers will want."""
    os.setsid()  # a Ctrl-C on the terminal is the command's business
    os.set_inheritable(tube_fd, False)
    _open_stdio()
    settle_for_all()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # While modules are imported nobody looks at the pidfd below. Not for longer: this signal is bound to the
    # supervisor's thread that has started us, which may end before the supervisor does.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    supervisor_pidfd = os.pidfd_open(supervisor_pid)
    if os.getppid() != supervisor_pid:
        return
    for name in preload:
        try:
            module = importlib.import_module(name)
            if hasattr(module, "DEVICE"):
                rehearse(module.DEVICE)
        except Exception as error:  # noqa: BLE001 - the worker that needs it will say so, with its name
            print(f"preload of {name}: {error!r}", file=sys.stderr)  # noqa: T201 - before any logging
    settle_for_all()  # again: a module may have set itself up
    rehearse_for_all()
    libc.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    gc.collect()
    gc.freeze()
    with contextlib.suppress(Disconnected):
        _Zygote(ProtoTube.from_fd(tube_fd), supervisor_pidfd).serve()
