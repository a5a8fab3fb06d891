"""The supervisor's side of launching: starts the zygote through multiprocess, orders forks, learns of ends.

Never blocks: an order goes out when the zygote has room for it, an answer comes in through ``fileno()``. A
worker's end is known from its pidfd; its exit status is a note that the zygote sends, or, where the zygote
has died as well, what the kernel still tells (PIDFD_GET_INFO, Linux 6.15), or nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from supervisor.errors import EnvironmentFault, PeerError
from supervisor.launch.spawn import ZygoteProcess
from supervisor.messages_pb2 import Fork, ZygoteReport
from supervisor.tube import Descriptor, Disconnected, ProtoTube, TubeError, TubeSystemError, TubeTimeout
from supervisor.tube.process import exit_of_the_leaving, exit_of_the_reaped, kill_process_group
from supervisor.worker.entry import PROTOCOL_VERSION

__all__ = ["Exited", "ForkFailed", "Forked", "LaunchReport", "Launcher", "WorkerProcess"]

ORDERS_IN_FLIGHT = 64  # a default socket queue holds 278 packets; each order carries two descriptors
ZYGOTE_END_WAIT_S = 2.0  # it ends within milliseconds, unless something that it imports never returns


@dataclass(eq=False, slots=True)
class WorkerProcess:
    """A process that was ordered: its ticket, our end of its Tube, its log; later its pid and pidfd."""

    ticket: int
    tube: ProtoTube
    log: Descriptor
    pid: int = 0
    pidfd: Descriptor | None = None
    wait_status: int | None = None
    hello: bool = False
    lost: bool = False  # the zygote died before it could report the fork
    mute: bool = False  # its Tube is at its end
    broke: str = ""  # how it has broken the contract, if it has
    spare: bool = False  # was ordered before anybody needed it
    exclusive: bool = True  # what it holds only one process can have: until it is known not to
    noticed_ns: int = 0  # when its death was (host monotonic)
    left_core: int | None = None  # on which it is being taken apart

    def kill(self) -> None:
        """SIGKILL through the pidfd, so that no stranger can be hit. A process that is gone is no error."""
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd.fileno(), signal.SIGKILL)

    def kill_family(self) -> None:
        """SIGKILL to the process group of the dead worker, which its pidfd names safely (Linux 6.9).

        The zygote does the same before it reaps; this is for when the zygote is gone.
        """
        if self.pidfd is not None:
            kill_process_group(self.pidfd.fileno())

    def close(self) -> None:
        """Closes what we hold of it."""
        self.tube.close()
        self.log.close()
        if self.pidfd is not None:
            self.pidfd.close()


@dataclass(frozen=True, slots=True)
class Forked:
    """The process exists: ``worker.pid`` and ``worker.pidfd`` are known."""

    worker: WorkerProcess


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """There is no process and there will be none."""

    worker: WorkerProcess
    why: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The zygote has reaped the process: ``worker.wait_status`` is known."""

    worker: WorkerProcess


LaunchReport = Forked | ForkFailed | Exited


class Launcher:
    """Owns the zygote. ``fileno()`` is readable when there are reports; each new zygote brings a new one.

    The zygote reports a fork with a pidfd. For each one that is due a descriptor is kept free from the order
    on (``_kept_free``): where none is left the order is refused, and no report is ever lost.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._preload = tuple(preload)
        self._tickets = 0
        self._waiting: deque[tuple[WorkerProcess, tuple[Any, ...]]] = deque()
        self._ordered: dict[int, WorkerProcess | None] = {}  # of whom no report has come; ``None``: forgotten
        self._alive: dict[int, WorkerProcess] = {}
        self._kept_free: list[int] = []
        self._process: Any = None
        self._tube: ProtoTube | None = None
        self._ready = False
        self._leaving = False  # the kernel says that it does nothing more

    @property
    def running(self) -> bool:
        """True while there is a zygote."""
        return self._tube is not None

    @property
    def ready(self) -> bool:
        """True once the zygote has imported what it was told to, and forks."""
        return self._tube is not None and self._ready

    @property
    def pid(self) -> int | None:
        """The zygote's pid."""
        return None if self._process is None else int(self._process.pid)

    def fileno(self) -> int:
        """Readable when :meth:`reports` has something. Only while :attr:`running`."""
        if self._tube is None:
            raise ValueError("no zygote is running")
        return self._tube.fileno()

    @property
    def bereft(self) -> bool:
        """True if the zygote has died, as it has before any worker that dies of that.

        Its Tube need not be at its end by then: a process that it was forking has a copy. Also true where
        the system does not tell: then :meth:`reports` does.
        """
        if self._tube is None:
            return False
        self._leaving = self._leaving or exit_of_the_leaving(self._process.pid) is not None
        if self._leaving:
            return True
        poller = select.poll()
        poller.register(self._tube.fileno(), 0)
        try:
            return bool(poller.poll(0))
        except OSError:  # under a limit of no descriptors at all
            return True

    def start(self) -> None:
        """Starts the zygote unless it runs; returns at once.

        Raises :class:`~supervisor.errors.EnvironmentFault` where the system refuses.
        """
        if self._tube is not None:
            return
        with _refusals("the zygote cannot be started"):
            self._start()

    def _start(self) -> None:
        ours, theirs = ProtoTube.pair()
        try:
            process = ZygoteProcess(theirs.fileno(), self._preload)
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process, self._tube = process, ours
        self._ready = self._leaving = False

    def fork(self, *, spare: bool = False) -> WorkerProcess:
        """Orders a worker; :class:`Forked` or :class:`ForkFailed` follows, unless it :meth:`learns` before.

        Starts a zygote if there is none.

        ``spare``: nobody waits for it, so it takes its time to get ready.
        Raises :class:`~supervisor.errors.EnvironmentFault` where the system has no descriptors left.
        """
        self.start()
        with _refusals("no worker can be ordered"):
            worker = self._order(spare)
        self._send_orders()
        return worker

    def _order(self, spare: bool) -> WorkerProcess:
        """Everything that a worker will need of us, now or never."""
        with contextlib.ExitStack() as undo:
            ours, theirs = ProtoTube.pair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            ours.close_notifier.fileno()  # it is made when it is first asked for
            read_end, write_end = (Descriptor(fd) for fd in os.pipe2(os.O_CLOEXEC))
            undo.callback(read_end.close)
            undo.callback(write_end.close)
            self._kept_free.append(os.dup(read_end.fileno()))
            undo.pop_all()
        os.set_blocking(read_end.fileno(), False)
        self._tickets += 1
        worker = WorkerProcess(self._tickets, ours, read_end, spare=spare)
        self._waiting.append((worker, (theirs, write_end)))
        return worker

    def reports(self) -> list[LaunchReport]:
        """What the zygote has reported since, without blocking."""
        found: list[LaunchReport] = []
        while self._tube is not None:
            if self._kept_free:
                os.close(self._kept_free.pop())
            try:
                received = self._tube.recv_proto_with_fds(ZygoteReport, timeout=0, max_fds=1)
            except TubeTimeout:
                if self._leaving:
                    found += self._lose_zygote()
                break
            except Disconnected:
                found += self._lose_zygote()
                break
            except TubeError:  # whatever it was about, nobody will ever know
                self.kill_zygote()
                found += self._lose_zygote()
                break
            if received.pidfd is not None:
                received.pidfd.close()
            found += self._judge(received.message, received.descriptors)
            self._keep_free()
        self._keep_free()
        try:
            self._send_orders()
        except EnvironmentFault as error:  # there is no zygote, and none can be had
            found += self._refuse_waiting(f"{error}: {error.__cause__}")
        return found

    def _keep_free(self) -> None:
        """As many descriptors as forks will be reported; fewer, where somebody else has taken them."""
        while len(self._kept_free) > len(self._waiting) + len(self._ordered):
            os.close(self._kept_free.pop())
        with contextlib.suppress(OSError):
            while len(self._kept_free) < len(self._waiting) + len(self._ordered):
                self._kept_free.append(os.dup(0 if self._tube is None else self._tube.fileno()))

    def learns(self, worker: WorkerProcess, pidfd: Descriptor | None) -> bool:
        """``worker`` has brought its pidfd along, which is ours to close; true if it is the first we have.

        A child may have said much before its parent, the zygote, gets around to reporting the fork.
        """
        if pidfd is None:
            return False
        if worker.pidfd is not None:
            pidfd.close()
            return False
        worker.pidfd = pidfd
        return True

    def awaits_exit(self, worker: WorkerProcess) -> bool:
        """True while the zygote that forked ``worker`` lives and has not reported its end."""
        return worker.ticket in self._alive or self._ordered.get(worker.ticket) is not None

    def read_exit(self, worker: WorkerProcess) -> int | None:
        """The wait status of a dead worker whose zygote is gone, if the kernel still knows it."""
        if worker.wait_status is None and worker.pidfd is not None:
            worker.wait_status = exit_of_the_reaped(worker.pidfd.fileno())
        return worker.wait_status

    def forget(self, worker: WorkerProcess) -> None:
        """The worker is done with. A late report of it is of no interest, but has to have room."""
        self._alive.pop(worker.ticket, None)
        if worker.ticket in self._ordered:
            self._ordered[worker.ticket] = None

    def kill_zygote(self) -> None:
        """SIGKILL for the zygote, if there is one; what follows is in the reports."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the zygote, and with it every worker that is left; returns when it is gone.

        Politely at first, so that it can end and reap its workers; a killed one leaves that to the kernel.
        """
        for worker, ends in self._waiting:
            for end in ends:
                end.close()
            worker.close()
        self._waiting.clear()
        self._ordered.clear()
        self._keep_free()
        if self._tube is not None:
            self._tube.close()
            self._tube = None
        if self._process is not None:
            self._process.join(ZYGOTE_END_WAIT_S)
            if self._process.is_alive():  # still busy importing what it was told to preload
                self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None

    def _send_orders(self) -> None:
        tube = self._tube
        if tube is None:
            if not self._waiting:
                return
            self.start()
            tube = self._tube
            assert tube is not None  # noqa: S101 - just started
        while self._waiting and len(self._ordered) < ORDERS_IN_FLIGHT:
            worker, ends = self._waiting[0]
            try:
                order = Fork(ticket=worker.ticket, spare=worker.spare)
                tube.send_proto(order, fds=[end.fileno() for end in ends], timeout=0)
            except TubeTimeout:
                return
            except Disconnected:
                return  # ``reports`` will see it, and start another zygote
            self._waiting.popleft()
            self._ordered[worker.ticket] = worker
            for end in ends:
                end.close()

    def _judge(self, report: ZygoteReport, descriptors: list[Descriptor]) -> list[LaunchReport]:
        match report.WhichOneof("report"):
            case "ready":
                self._ready = True
                if report.ready.protocol_version != PROTOCOL_VERSION:
                    raise PeerError(
                        f"the zygote speaks version {report.ready.protocol_version}, we {PROTOCOL_VERSION}"
                    )
            case "forked":
                worker = self._ordered.pop(report.forked.ticket, None)
                if worker is not None:
                    worker.pid = report.forked.pid
                    self._alive[worker.ticket] = worker
                    if self.learns(worker, descriptors.pop()):
                        return [Forked(worker)]
            case "fork_failed":
                worker = self._ordered.pop(report.fork_failed.ticket, None)
                if worker is not None:
                    return [ForkFailed(worker, f"fork: {report.fork_failed.message}")]
            case "exited":
                worker = self._alive.pop(report.exited.ticket, None)
                if worker is not None:
                    worker.wait_status = report.exited.wait_status
                    return [Exited(worker)]
        for descriptor in descriptors:
            descriptor.close()
        return []

    def _lose_zygote(self) -> list[LaunchReport]:
        """The zygote is gone: its workers are dying; what it never reported is known by its Tube's end.

        One that never got ready will not do better next time: nothing was forked, and all orders fail.
        """
        assert self._tube is not None  # noqa: S101 - the caller read from it
        self._tube.close()
        self._tube = None
        self._process.join()
        exitcode = self._process.exitcode
        self._process.close()
        self._process = None
        for worker in self._alive.values():
            worker.lost = True
        self._alive.clear()
        failed: list[LaunchReport] = []
        if not self._ready:
            why = f"the zygote ended with exit code {exitcode} before it was ready"
            failed += self._refuse_waiting(why)
            failed += [ForkFailed(worker, why) for worker in self._ordered.values() if worker is not None]
        else:
            for worker in filter(None, self._ordered.values()):
                worker.lost = True
        self._ordered.clear()
        return failed

    def _refuse_waiting(self, why: str) -> list[LaunchReport]:
        """Orders that have not been sent, and never will be."""
        failed: list[LaunchReport] = []
        for worker, ends in self._waiting:
            for end in ends:
                end.close()
            failed.append(ForkFailed(worker, why))
        self._waiting.clear()
        return failed


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """What the system refuses leaves as one kind of error."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(what) from error
    except TubeSystemError as error:
        raise EnvironmentFault(what) from error.__cause__ or error
