"""Worker processes as such: ordered, heard, mute, dead. Knows no devices.

A worker is ordered from the zygote; it says Hello, which is checked against the kernel's credentials; what
it says from then on, and what it logs, goes to the owner. The witness of death is its pidfd. The exit status
comes from the zygote a moment later, and last words from Tube and log: all of it is taken in before the owner
hears that the process is gone. A worker that breaks the contract, or whose Tube's close notifier fires and
whose last words have been heard, is mute: it can be of no use any more, and is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from supervisor.errors import EnvironmentFault
from supervisor.launch.launcher import Exited, Forked, ForkFailed, Launcher, WorkerProcess
from supervisor.lull import Lull
from supervisor.messages_pb2 import WorkerMessage
from supervisor.reactor import Reactor
from supervisor.tube import (
    Descriptor,
    DescriptorsLost,
    Disconnected,
    TubeError,
    TubeSystemError,
    TubeTimeout,
)
from supervisor.tube.process import exit_of_the_leaving, process_of_pidfd
from supervisor.worker.entry import PROTOCOL_VERSION

__all__ = ["BrokenContract", "Owner", "Processes"]

EXIT_STATUS_WAIT_NS = 100_000_000  # the zygote reports within a fraction of a millisecond, if it lives
ZYGOTE_GRACE_NS = 500_000_000  # to finish an import, once somebody who waits for it is to be killed
HEAD_START_NS = 1_000_000  # of who takes over, from when the death is known here: it has known for longer
MANY_HEAD_START_NS = 20_000_000  # where several die at once: no core is free, and we hear of each late
LONGEST_PUT_OFF_NS = 100_000_000  # while others go on dying
ANOTHER_LOOK_NS = 1_000_000
LOG_CHUNK_BYTES = 65536
LOG_CHUNKS_AFTER_DEATH = 16  # a pipe holds 64 KiB; a grandchild that writes on must not keep us here
ZYGOTE_SILENCE_NS = 5_000_000_000  # a loaded one reports a fork every few ms
ZYGOTE_LOSSES_FORGIVEN = 3
ZYGOTE_LOSSES_PERIOD_NS = 60_000_000_000
MESSAGES_PER_ROUND = 64  # of one worker: a flood must not keep the others waiting

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
_log = logging.getLogger("tubevisor")


class BrokenContract(Exception):
    """A worker did what no worker of ours does."""


class Owner(Protocol):
    """Who is told of a worker that it has taken. ``on_message`` may raise :class:`BrokenContract`."""

    def on_forked(self, worker: WorkerProcess) -> None: ...

    def on_hello(self, worker: WorkerProcess) -> None: ...

    def on_message(
        self, worker: WorkerProcess, message: WorkerMessage, descriptors: list[Descriptor]
    ) -> None: ...

    def on_log(self, worker: WorkerProcess, data: bytes) -> None: ...

    def is_followed(self, worker: WorkerProcess) -> bool:
        """True if somebody takes the place of a worker that is dead: there is no hurry to be told then."""

    def awaits_another(self, worker: WorkerProcess, wait_status: int | None) -> bool:
        """True while one who has taken a dead worker's place, and is not wanted, has still to end."""

    def on_gone(self, worker: WorkerProcess, wait_status: int | None) -> None: ...

    def on_fork_failed(self, worker: WorkerProcess, why: str) -> None: ...


class Processes:
    """All worker processes, spares included."""

    def __init__(self, reactor: Reactor, preload: Sequence[str]) -> None:
        self._reactor = reactor
        self._launcher = Launcher(preload)
        self._launcher_fd = -1
        self._known: dict[int, WorkerProcess] = {}
        self._owners: dict[int, Owner] = {}  # of those that have been taken, by ticket
        self._kill_wanted: set[int] = set()
        self._finishing: set[int] = set()
        self._put_off: dict[int, int] = {}  # since when, of those who are dead: their successors go first
        self._last_put_off_ns = 0
        self._spares: deque[WorkerProcess] = deque()
        self._departed: list[WorkerProcess] = []
        self._zygote_losses: deque[int] = deque(maxlen=ZYGOTE_LOSSES_FORGIVEN + 1)
        self._zygote_heard = 0
        self._zygote_watched = False
        self._spares_wanted = 0
        self._lull = Lull(reactor, self.refill, lambda: self.is_busy)

    @property
    def zygote_pid(self) -> int | None:
        """The process that forks the workers."""
        return self._launcher.pid

    def start(self) -> None:
        """Starts the zygote. Raises :class:`~supervisor.errors.EnvironmentFault` where the system refuses."""
        self._launcher.start()
        self._follow_launcher()

    @property
    def is_busy(self) -> bool:
        """True while some are dead whose successors go first."""
        return bool(self._put_off)

    def take(self, owner: Owner) -> WorkerProcess:
        """A worker for ``owner``: a spare that has said Hello, or else one that is ordered now.

        Raises :class:`~supervisor.errors.EnvironmentFault` where the system has no descriptors left.
        """
        worker = self._spares.popleft() if self._spares else self._order()
        self._owners[worker.ticket] = owner
        return worker

    def order(self, owner: Owner) -> WorkerProcess:
        """A worker for ``owner`` that nobody waits for: it rehearses first. Raises as :meth:`take` does."""
        worker = self._order(spare=True)
        self.hand_on(worker, owner)
        return worker

    def hand_on(self, worker: WorkerProcess, owner: Owner) -> None:
        """From now on ``owner`` is told of ``worker``."""
        self._owners[worker.ticket] = owner

    def hear_again(
        self, worker: WorkerProcess, said: Iterable[tuple[WorkerMessage, list[Descriptor]]]
    ) -> None:
        """What a worker has ``said`` to an owner before this one: the present one hears it, too."""
        owner = self._owners[worker.ticket]
        try:
            for message, descriptors in said:
                owner.on_message(worker, message, descriptors)
        except Disconnected:
            self._on_mute(worker)
        except (TubeError, BrokenContract) as error:
            self._break(worker, error)

    def hear(self, worker: WorkerProcess) -> None:
        """Takes in what a worker has said by now: so much at a time."""
        if worker.ticket not in self._known:
            return
        try:
            for _ in range(MESSAGES_PER_ROUND):
                received = worker.tube.recv_proto_with_fds(WorkerMessage, timeout=0)
                with received.pidfd or _NOTHING:
                    self._judge(worker, received.message, received.pid, received.descriptors)
        except TubeTimeout:
            return
        except Disconnected:
            self._on_mute(worker)
        except (TubeError, BrokenContract) as error:
            self._break(worker, error)

    def keep_spares(self, count: int) -> None:
        """From now on keeps ``count`` workers ready; :meth:`refill` makes up for those taken."""
        self._spares_wanted = count
        self.refill()

    def refill_soon(self) -> None:
        """As :meth:`refill`, once those devices that are being restarted have had time to answer."""
        if len(self._known) - len(self._owners) < self._spares_wanted:
            self._lull.ask()

    def refill(self) -> None:
        """Orders what is missing in spares."""
        with contextlib.suppress(EnvironmentFault):  # no descriptors to spare: the next death forks on demand
            for _ in range(self._spares_wanted - (len(self._known) - len(self._owners))):
                self._order(spare=True)

    def kill(self, worker: WorkerProcess) -> None:
        """SIGKILL, now or as soon as there is a process."""
        self._kill_wanted.add(worker.ticket)
        worker.kill()
        if worker.pidfd is None and not self._launcher.ready:
            self._reactor.call_at(time.monotonic_ns() + ZYGOTE_GRACE_NS, self._give_zygote_up)

    def forgives(self, worker: WorkerProcess) -> bool:
        """True if the worker died of its zygote's death, which is no device's fault; not too often, though:
        a device that kills zygotes must not do so for ever."""
        since_ns = time.monotonic_ns() - ZYGOTE_LOSSES_PERIOD_NS
        recent = sum(lost_ns > since_ns for lost_ns in self._zygote_losses)
        return worker.lost and recent <= ZYGOTE_LOSSES_FORGIVEN

    def _give_zygote_up(self) -> None:
        """A zygote that is still not ready is stuck in an import, and those it was to fork never come."""
        if not self._launcher.ready:
            self._launcher.kill_zygote()

    def _watch_zygote(self) -> None:
        """A zygote that says nothing although workers are ordered (stopped, or stuck) is replaced."""
        if self._zygote_watched or all(worker.pidfd or worker.lost for worker in self._known.values()):
            return
        self._zygote_watched = True
        heard_then = self._zygote_heard

        def judge() -> None:
            self._zygote_watched = False
            if self._launcher.ready and self._zygote_heard == heard_then:
                self._launcher.kill_zygote()
            self._watch_zygote()

        self._reactor.call_at(time.monotonic_ns() + ZYGOTE_SILENCE_NS, judge)

    def close(self) -> None:
        """Ends every process that is left, and the zygote; returns when they are gone."""
        for worker in list(self._known.values()):
            worker.kill()
            self._forget(worker)
        self._see_off()
        if self._launcher_fd >= 0:
            self._reactor.unwatch(self._launcher_fd)
            self._launcher_fd = -1
        self._launcher.close()

    # -- launching -------------------------------------------------------------------------------

    def _order(self, *, spare: bool = False) -> WorkerProcess:
        worker = self._launcher.fork(spare=spare)
        self._follow_launcher()
        self._known[worker.ticket] = worker
        self._watch_zygote()
        self._reactor.watch(worker.tube.read_notifier.fileno(), lambda _mask: self.hear(worker))
        self._reactor.watch(worker.tube.close_notifier.fileno(), lambda _mask: self.hear(worker))
        self._reactor.watch(worker.log.fileno(), lambda _mask: self._hear_log(worker))
        return worker

    def _follow_launcher(self) -> None:
        fd = self._launcher.fileno() if self._launcher.running else -1
        if fd != self._launcher_fd:
            if self._launcher_fd >= 0:
                self._reactor.unwatch(self._launcher_fd)
            if fd >= 0:
                self._reactor.watch(fd, lambda _mask: self._hear_launcher())
            self._launcher_fd = fd

    def _hear_launcher(self) -> None:
        self._reactor.unwatch(self._launcher_fd)  # before a lost zygote's Tube is closed
        self._launcher_fd = -1
        self._zygote_heard += 1
        for report in self._launcher.reports():
            if report.worker.ticket not in self._known:
                continue
            match report:
                case Forked(worker):
                    self._on_forked(worker)
                case ForkFailed(worker, why):
                    self._fail(worker, why)
                case Exited(worker):
                    self._finish(worker)
        if not self._launcher.running:
            self._zygote_losses.append(time.monotonic_ns())
        for worker in list(self._known.values()):
            if worker.lost and worker.mute and worker.pidfd is None:
                self._lose(worker)
        self._follow_launcher()

    def _on_forked(self, worker: WorkerProcess) -> None:
        assert worker.pidfd is not None  # noqa: S101 - the report says so
        worker.tube.target_pid = worker.pid
        self._reactor.watch(worker.pidfd.fileno(), lambda _mask: self._on_death(worker))
        owner = self._owners.get(worker.ticket)
        if owner is not None:
            owner.on_forked(worker)
        if worker.ticket in self._kill_wanted or worker.mute:
            worker.kill()

    def _fail(self, worker: WorkerProcess, why: str) -> None:
        owner = self._forget(worker)
        if owner is not None:
            owner.on_fork_failed(worker, why)

    def _lose(self, worker: WorkerProcess) -> None:
        """Its zygote died before it could say whose it is, and so, by the kernel's hand, did the worker."""
        owner = self._forget(worker)
        if owner is not None:
            owner.on_gone(worker, None)

    # -- hearing ---------------------------------------------------------------------------------

    def _break(self, worker: WorkerProcess, error: Exception) -> None:
        """What a worker says cannot be heard, or is what no worker of ours would say."""
        ours = isinstance(error, DescriptorsLost | TubeSystemError)
        worker.broke = f"cannot be heard: {error}" if ours else f"broke the contract: {error}"
        _log.warning("worker %d %s", worker.pid, worker.broke)
        self._on_mute(worker)

    def _judge(
        self, worker: WorkerProcess, message: WorkerMessage, pid: int | None, descriptors: list[Descriptor]
    ) -> None:
        owner = self._owners.get(worker.ticket)
        if message.WhichOneof("body") != "hello":
            if owner is None:
                raise BrokenContract("it speaks without a device")
            owner.on_message(worker, message, descriptors)
            return
        hello = message.hello
        if hello.protocol_version != PROTOCOL_VERSION:
            raise BrokenContract(f"it speaks version {hello.protocol_version}, we {PROTOCOL_VERSION}")
        if worker.hello or hello.ticket != worker.ticket or (worker.pid and pid not in (worker.pid, None)):
            raise BrokenContract(f"Hello with ticket {hello.ticket} from pid {pid}")
        pidfd = _pidfd_of_sender(descriptors, pid)
        worker.hello = True
        worker.pid = worker.pid or pid or 0
        if self._launcher.learns(worker, pidfd):  # its zygote's report is late
            self._on_forked(worker)
        if owner is not None:
            owner.on_hello(worker)
        else:
            self._spares.append(worker)

    def _hear_log(self, worker: WorkerProcess) -> None:
        if worker.ticket in self._known:
            self._drain_log(worker, 1)

    def _drain_log(self, worker: WorkerProcess, chunks: int) -> None:
        for _ in range(chunks):
            if not self._read_log(worker):
                return

    def _read_log(self, worker: WorkerProcess) -> bool:
        """Reads a chunk; false when there is nothing."""
        try:
            data = os.read(worker.log.fileno(), LOG_CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._reactor.unwatch(worker.log.fileno())
            return False
        owner = self._owners.get(worker.ticket)
        if owner is not None:
            owner.on_log(worker, data)
        else:
            _log.warning("a spare worker says: %s", data.decode(errors="replace").rstrip())
        return True

    # -- ends ------------------------------------------------------------------------------------

    def _on_mute(self, worker: WorkerProcess) -> None:
        """Everything that it said has been heard, and there will be no more."""
        self._unwatch_tube(worker)
        worker.mute = True
        worker.kill()  # without a pidfd yet: ``_on_forked`` does it, or the zygote is lost
        if worker.lost and worker.pidfd is None:
            self._lose(worker)

    def _on_death(self, worker: WorkerProcess) -> None:
        """The pidfd says so; the exit status follows from the zygote, or from the kernel, or never."""
        if worker.ticket not in self._known:
            return
        assert worker.pidfd is not None  # noqa: S101 - its callback
        worker.noticed_ns = worker.noticed_ns or time.monotonic_ns()
        worker.kill_family()
        self._reactor.unwatch(worker.pidfd.fileno())
        if not worker.exclusive and self._exit_now(worker):  # it leaves nothing that its successor waits for
            self._finish(worker)
        elif self._launcher.awaits_exit(worker):
            self._reactor.call_at(time.monotonic_ns() + EXIT_STATUS_WAIT_NS, lambda: self._finish(worker))
        else:
            self._finish(worker)

    def _exit_now(self, worker: WorkerProcess) -> bool:
        """True if the kernel tells how it ended, whether the zygote has reaped it or not."""
        if self._launcher.bereft:  # then it has died of that, which is to be known first
            self._hear_launcher()
        if self._launcher.read_exit(worker) is None:
            leaving = exit_of_the_leaving(worker.pid)
            if leaving is not None:
                worker.wait_status, worker.left_core = leaving
        return worker.wait_status is not None

    def on_witnessed(self, ticket: int) -> None:
        """A worker is said to execute no more instruction, though it may take long to be taken apart.

        Believed where the kernel says that its last thread is on its way out, which nothing can undo.
        """
        worker = self._known.get(ticket)
        if worker is None or worker.pidfd is None:
            return
        worker.noticed_ns = worker.noticed_ns or time.monotonic_ns()
        worker.kill()  # whoever only says so is dead all the same
        if not self._exit_now(worker):
            return  # another thread of it may still write: its pidfd will tell
        worker.kill_family()
        self._finish(worker)

    def on_followed(self, ticket: int) -> None:
        """Somebody has taken a worker's place, after the kernel had said that it was dead."""
        self._put_off[ticket] = 0  # long enough
        self.on_witnessed(ticket)
        if ticket in self._known and self._launcher.running:
            self._hear_launcher()  # it is reaped already, and its zygote has told how it ended

    def _finish(self, worker: WorkerProcess) -> None:
        """All that a dead worker left behind is taken in; then its owner learns of it.

        Its last words may lead to here again, be it by way of another that has died with it.
        """
        if worker.ticket not in self._known or worker.ticket in self._finishing:
            return
        owner = self._owners.get(worker.ticket)
        if owner is not None and self._is_put_off(worker, owner):
            return
        self._finishing.add(worker.ticket)
        try:
            self._take_in(worker, owner)
        finally:
            self._finishing.discard(worker.ticket)

    def _take_in(self, worker: WorkerProcess, owner: Owner | None) -> None:
        if not worker.mute:
            self.hear(worker)
        wait_status = self._launcher.read_exit(worker)
        if owner is not None and owner.awaits_another(worker, wait_status):
            self._reactor.call_at(time.monotonic_ns() + ANOTHER_LOOK_NS, lambda: self._finish(worker))
            return
        if worker.ticket not in self._known:  # what was decided on the way has led here already
            return
        self._drain_log(worker, LOG_CHUNKS_AFTER_DEATH)
        owner = self._forget(worker)
        if owner is not None:
            owner.on_gone(worker, wait_status)
        else:
            self.refill()

    def _is_put_off(self, worker: WorkerProcess, owner: Owner) -> bool:
        """True while its successor, and those of others who die with it, need the core more than we do."""
        if worker.ticket in self._put_off:
            return time.monotonic_ns() < self._turn_ns(worker)
        if not owner.is_followed(worker):
            return False
        self._put_off[worker.ticket] = self._last_put_off_ns = time.monotonic_ns()
        self._await_turn(worker)
        return True

    def _turn_ns(self, worker: WorkerProcess) -> int:
        """When it is the turn of one that is put off, unless somebody else dies before that."""
        head_start_ns = HEAD_START_NS if len(self._put_off) == 1 else MANY_HEAD_START_NS
        return min(self._last_put_off_ns + head_start_ns, self._put_off[worker.ticket] + LONGEST_PUT_OFF_NS)

    def _await_turn(self, worker: WorkerProcess) -> None:
        if worker.ticket not in self._put_off:
            return
        turn_ns = self._turn_ns(worker)
        if time.monotonic_ns() < turn_ns:
            self._reactor.call_at(turn_ns, lambda: self._await_turn(worker))
        else:
            self._finish(worker)

    def hurry(self, worker: WorkerProcess) -> None:
        """Nobody follows a worker by itself any more: if it is dead, it is put off no longer."""
        if self._put_off.get(worker.ticket):
            self._put_off[worker.ticket] = 0
            self._reactor.call_at(0, lambda: self._finish(worker))

    def _unwatch_tube(self, worker: WorkerProcess) -> None:
        self._reactor.unwatch(worker.tube.read_notifier.fileno())
        self._reactor.unwatch(worker.tube.close_notifier.fileno())

    def _forget(self, worker: WorkerProcess) -> Owner | None:
        """It is done with; returns who has taken it and is to be told. Tidying up comes after that."""
        self._launcher.forget(worker)
        del self._known[worker.ticket]
        self._put_off.pop(worker.ticket, None)
        owner = self._owners.pop(worker.ticket, None)
        self._kill_wanted.discard(worker.ticket)
        if worker in self._spares:
            self._spares.remove(worker)
        if not self._departed:
            self._reactor.call_at(0, self._see_off)
        self._departed.append(worker)
        return owner

    def _see_off(self) -> None:
        """Closes what we hold of those that are gone."""
        while self._departed:
            worker = self._departed.pop()
            self._unwatch_tube(worker)
            self._reactor.unwatch(worker.log.fileno())
            if worker.pidfd is not None:
                self._reactor.unwatch(worker.pidfd.fileno())
            worker.close()


def _pidfd_of_sender(descriptors: list[Descriptor], pid: int | None) -> Descriptor | None:
    """The pidfd that a Hello carries, if the kernel says that it is of the process that has sent it; ``None``
    where it does not say. Raises :class:`BrokenContract` where it says otherwise."""
    if len(descriptors) != 1:
        raise BrokenContract(f"Hello with {len(descriptors)} descriptors, not its own pidfd")
    (pidfd,) = descriptors
    try:
        named = process_of_pidfd(pidfd.fileno()).pid
    except OSError as error:
        pidfd.close()
        raise BrokenContract("Hello with a descriptor that is no pidfd") from error
    if pid and named == pid:
        return pidfd
    pidfd.close()
    if pid and named:  # 0: it is dead already
        raise BrokenContract(f"Hello from {pid} with the pidfd of {named}")
    return None
