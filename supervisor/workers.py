"""The devices' processes: launches them, hears them, buries them. The reactor's executor.

For each device there is a seat: its handle (journal, requests), and the worker that sits in it now, if any.
A worker is on its way (ordered), has said Hello (who it is was checked against the kernel's credentials), was
assigned, is ready. A spare is a worker that has said Hello and has no seat yet.

The witness of death is the pidfd. Its exit status comes from the zygote a moment later, and the last words
from its Tube and its log: all of it is taken in before the policy is told, and before a successor is spawned
the handle has settled what the dead one committed. A worker whose Tube is at its end is mute and is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from supervisor.config import Config, DeviceConfig
from supervisor.errors import DeviceFault
from supervisor.handle import Clock
from supervisor.launch.launcher import Exited, Forked, ForkFailed, Launcher, WorkerProcess
from supervisor.messages_pb2 import Assign, Failed, SupervisorMessage, WorkerMessage
from supervisor.policy.actions import (
    DeviceFailed,
    DeviceReady,
    DeviceRestarted,
    DeviceStopped,
    GaveUp,
    Record,
    SupervisorStopped,
)
from supervisor.policy.events import (
    ExitKind,
    ExitReason,
    Gone,
    Hello,
    Ready,
    Refused,
    Silent,
    SpawnFailed,
)
from supervisor.reactor import Reactor, Timer
from supervisor.registers import RegisterMap
from supervisor.remote import Port, RemoteHandle
from supervisor.switchboard import Switchboard
from supervisor.tube import Descriptor, Disconnected, TubeError, TubeTimeout
from supervisor.worker.entry import PROTOCOL_VERSION
from supervisor.worker.journal import JournalCorrupt

__all__ = ["DeviceCrashed", "InputGivenUp", "Workers"]

EXIT_STATUS_WAIT_NS = 100_000_000  # the zygote reports within a fraction of a millisecond, if it lives
LOG_LINES_KEPT = 50  # what a crash report shows: a dump of faulthandler's with its stack
LOG_LINE_BYTES = 8192  # a longer line is cut: a device that never ends its line fills no memory
LOG_CHUNK_BYTES = 65536
MESSAGES_PER_ROUND = 64  # of one worker: a flood must not keep the others waiting

_EDGE = select.EPOLLIN | select.EPOLLET  # a bell that is never read: each ring is one wake-up
_HOPELESS = {
    Failed.PHASE_ASSIGN: "the worker cannot take its place",
    Failed.PHASE_IMPORT: "the class is not there",
    Failed.PHASE_OPTIONS: "the class refuses its options",
    Failed.PHASE_RESTORE: "the class refuses its state",
}
_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
_log = logging.getLogger("tubevisor")
_decode_map = msgspec.msgpack.Decoder(RegisterMap).decode


@dataclass(frozen=True, slots=True)
class DeviceCrashed(Record):
    """A worker's last words and its last log lines; the death itself is ``DeviceDied``."""

    name: str
    generation: int
    exception: str
    traceback: str
    log: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InputGivenUp(Record):
    """An input that kept killing or blocking its workers was dropped."""

    name: str
    why: str


@dataclass(eq=False, slots=True)
class _Seat:
    config: DeviceConfig
    handle: RemoteHandle
    worker: WorkerProcess | None = None
    generation: int = 0
    assigned: bool = False
    ready: bool = False
    kill_wanted: bool = False
    stop_wanted: bool = False
    uncharged: bool = False  # a chaos monkey announced the next death
    refused: bool = False
    start_fresh: bool = False
    restarts: int = 0
    last_exit: str = ""
    last_words: Failed | None = None
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES_KEPT))
    log_rest: bytes = b""
    heartbeat: tuple[int, int] = (0, 0)
    watch_timer: Timer | None = None


class Workers:
    """All devices of a configuration as processes."""

    def __init__(self, config: Config, reactor: Reactor, clock: Clock) -> None:
        self._config = config
        self._reactor = reactor
        self._clock = clock
        self.launcher = Launcher(self._preload(config))
        self._seats: dict[str, _Seat] = {}
        self._by_ticket: dict[int, _Seat | None] = {}
        self._workers: dict[int, WorkerProcess] = {}
        self._spares: deque[WorkerProcess] = deque()
        self._spares_wanted = 0
        self._launcher_fd = -1
        self._switchboard = Switchboard()
        port = Port(
            pump=reactor.poll,
            tell_payload=self._tell_payload,
            overdue=self._overdue,
            corrupt=self._corrupt,
            clock=lambda: self._clock(),
        )
        for device in config.devices:
            handle = RemoteHandle(
                device.name,
                device.mmio,
                port,
                request_timeout_ns=device.request_timeout_ns,
                poison=device.poison,
            )
            self._seats[device.name] = _Seat(device, handle)
            reactor.watch(handle.answer_fd, _ignore, _EDGE)

    @staticmethod
    def _preload(config: Config) -> list[str]:
        """Modules that the zygote imports: what the user names, and built-in devices, which are ours."""
        built_in = {
            device.device_class.partition(":")[0]
            for device in config.devices
            if device.device_class.startswith("devices.")
        }
        return [*config.supervisor.preload, *sorted(built_in)]

    @property
    def handles(self) -> Mapping[str, RemoteHandle]:
        """The handles by name, in the configuration's order."""
        return {name: seat.handle for name, seat in self._seats.items()}

    def start(self) -> None:
        """Starts the zygote; devices are the policy's business."""
        self.launcher.start()
        self._follow_launcher()

    def keep_spares(self, count: int) -> None:
        """From now on keeps ``count`` workers ready for the next death."""
        self._spares_wanted = count
        self._refill()

    # -- what others ask -------------------------------------------------------------------------

    def worker_of(self, name: str) -> WorkerProcess | None:
        """The process that sits in the device's seat now."""
        return self._seats[name].worker

    def facts(self, name: str) -> tuple[int | None, int, int, str]:
        """(pid, generation, restarts, last exit) of a device."""
        seat = self._seats[name]
        pid = seat.worker.pid if seat.worker is not None and seat.worker.pid else None
        return pid, seat.generation, seat.restarts, seat.last_exit

    def send_signal(self, name: str, number: int, *, charged: bool) -> int | None:
        """Sends a signal to the worker that serves; returns its pid, or ``None`` where none does."""
        seat = self._seats[name]
        worker = seat.worker
        if worker is None or worker.pidfd is None or not seat.ready:
            return None
        seat.uncharged |= not charged
        try:
            signal.pidfd_send_signal(worker.pidfd.fileno(), number)
        except ProcessLookupError:
            return None
        return worker.pid

    # -- Executor --------------------------------------------------------------------------------

    def spawn(self, name: str, generation: int) -> None:
        seat = self._seats[name]
        seat.generation = generation
        seat.assigned = seat.ready = seat.kill_wanted = seat.stop_wanted = False
        seat.uncharged = seat.refused = False
        seat.last_words = None
        seat.log.clear()
        seat.handle.revive()
        try:
            worker = self._spares.popleft() if self._spares else self._order()
        except OSError as error:
            self._reactor.post(SpawnFailed(name, generation, str(error)))
            return
        seat.worker = worker
        self._by_ticket[worker.ticket] = seat
        if worker.hello:
            self._assign(seat)

    def ask_stop(self, name: str, generation: int) -> None:
        seat = self._seats[name]
        if seat.generation != generation or seat.worker is None:
            return
        seat.stop_wanted = True
        if seat.assigned:
            message = SupervisorMessage(generation=generation)
            message.stop.SetInParent()
            self._tell(seat, message)
        elif seat.worker.pidfd is not None:
            seat.worker.kill()  # it has no device yet: nothing to drain
        else:
            seat.kill_wanted = True

    def kill(self, name: str, generation: int, why: str) -> None:
        seat = self._seats[name]
        if seat.generation != generation or seat.worker is None:
            return
        seat.kill_wanted = True
        seat.worker.kill()

    def published(self, record: Record) -> None:
        match record:
            case DeviceReady() | DeviceRestarted():
                self._seats[record.name].restarts = record.restarts
            case GaveUp():
                self._seats[record.culprit].handle.go("its restart budget is spent")
            case SupervisorStopped():
                for seat in self._seats.values():
                    seat.handle.go("the supervisor has stopped")
            case DeviceFailed():
                self._seats[record.name].handle.go(record.why)
            case DeviceStopped():
                self._seats[record.name].handle.go("the device is stopped")

    # -- launching -------------------------------------------------------------------------------

    def _order(self) -> WorkerProcess:
        worker = self.launcher.fork()
        self._follow_launcher()
        self._by_ticket[worker.ticket] = None
        self._workers[worker.ticket] = worker
        self._reactor.watch(worker.tube.fileno(), lambda _mask: self._hear(worker))
        self._reactor.watch(worker.log.fileno(), lambda _mask: self._read_log(worker))
        return worker

    def _follow_launcher(self) -> None:
        fd = self.launcher.fileno() if self.launcher.running else -1
        if fd != self._launcher_fd:
            if self._launcher_fd >= 0:
                self._reactor.unwatch(self._launcher_fd)
            if fd >= 0:
                self._reactor.watch(fd, lambda _mask: self._hear_launcher())
            self._launcher_fd = fd

    def _hear_launcher(self) -> None:
        fd, self._launcher_fd = self._launcher_fd, -1
        self._reactor.unwatch(fd)  # a lost zygote closes it
        for report in self.launcher.reports():
            worker = report.worker
            if worker.ticket not in self._workers:
                continue
            match report:
                case Forked():
                    self._on_forked(worker)
                case ForkFailed():
                    self._on_fork_failed(worker, report.why)
                case Exited():
                    self._on_exit_known(worker)
        self._follow_launcher()

    def _on_forked(self, worker: WorkerProcess) -> None:
        assert worker.pidfd is not None  # noqa: S101 - the report says so
        worker.tube.target_pid = worker.pid
        self._reactor.watch(worker.pidfd.fileno(), lambda _mask: self._on_death(worker))
        seat = self._by_ticket[worker.ticket]
        if seat is not None and seat.kill_wanted:
            worker.kill()

    def _on_fork_failed(self, worker: WorkerProcess, why: str) -> None:
        seat = self._bury(worker)
        if seat is not None:
            self._reactor.post(SpawnFailed(seat.config.name, seat.generation, why))

    def _refill(self) -> None:
        on_the_way = sum(1 for seat in self._by_ticket.values() if seat is None)
        try:
            for _ in range(self._spares_wanted - on_the_way):
                self._order()
        except OSError:
            pass  # no descriptors to spare: the next death forks on demand

    # -- hearing ---------------------------------------------------------------------------------

    def _hear(self, worker: WorkerProcess) -> None:
        """Takes in what a worker says. Garbage, a stranger's packet or silence for good: it is killed."""
        try:
            for _ in range(MESSAGES_PER_ROUND):
                received = worker.tube.recv_proto_with_fds(WorkerMessage, timeout=0)
                with received.pidfd or _NOTHING:
                    self._judge(worker, received.message, received.pid, received.descriptors)
        except TubeTimeout:
            return
        except Disconnected:
            self._on_mute(worker)
        except (TubeError, _BrokenContract) as error:
            _log.warning("worker %d broke the contract: %s", worker.pid, error)
            self._on_mute(worker)

    def _judge(
        self, worker: WorkerProcess, message: WorkerMessage, pid: int | None, descriptors: list[Descriptor]
    ) -> None:
        body = message.WhichOneof("body")
        if body == "hello":
            self._on_hello(worker, message, pid)
            return
        seat = self._by_ticket[worker.ticket]
        if seat is None or message.generation != seat.generation:
            raise _BrokenContract(f"{body or 'an empty message'} of generation {message.generation}")
        name = seat.config.name
        match body:
            case "ready":
                self._on_ready(seat, message)
            case "failed":
                seat.last_words = message.failed
                self._judge_failure(seat, message.failed)
            case "journal_full":
                self._grow(seat, message)
            case "stopped":
                pass
            case "duplicate":
                self._hand_over(seat, message, descriptors)
            case "connect":
                self._introduce(seat, message.connect.peer)
            case _:
                raise _BrokenContract(f"{name} says something unknown")

    def _on_hello(self, worker: WorkerProcess, message: WorkerMessage, pid: int | None) -> None:
        hello = message.hello
        if hello.protocol_version != PROTOCOL_VERSION:
            raise _BrokenContract(f"it speaks version {hello.protocol_version}, we {PROTOCOL_VERSION}")
        if worker.hello or hello.ticket != worker.ticket or (worker.pid and pid not in (worker.pid, None)):
            raise _BrokenContract(f"Hello with ticket {hello.ticket} from pid {pid}")
        worker.hello = True
        seat = self._by_ticket[worker.ticket]
        if seat is not None:
            self._assign(seat)
        elif worker not in self._spares:
            self._spares.append(worker)

    def _assign(self, seat: _Seat) -> None:
        name, config, handle = seat.config.name, seat.config, seat.handle
        self._reactor.post(Hello(name, seat.generation))
        assign = Assign(
            name=name,
            device_class=config.device_class,
            options_msgpack=msgspec.msgpack.encode(config.options),
            restart_count=seat.generation - 1,
            last_exit=seat.last_exit,
            heartbeat_every_ns=config.child.heartbeat.every_ns if config.child.heartbeat else 0,
            start_fresh=seat.start_fresh,
            working_directory=os.getcwd(),
            environment=dict(config.env),
            log_level=logging.getLogger(f"tubevisor.device.{name}").getEffectiveLevel(),
            now_ns=self._clock(),
            umask=_umask(),
        )
        if config.limits.open_files is not None:
            assign.limits.open_files = config.limits.open_files
        if config.limits.data_bytes is not None:
            assign.limits.data_bytes = config.limits.data_bytes
        message = SupervisorMessage(generation=seat.generation, assign=assign)
        seat.assigned = True
        self._tell(seat, message, (handle.journal_fd, handle.doorbell_fd, handle.answer_fd))
        for number, data in handle.pending_payloads():
            self._tell_payload(name, number, data)
        if seat.stop_wanted:
            self.ask_stop(name, seat.generation)

    def _on_ready(self, seat: _Seat, message: WorkerMessage) -> None:
        try:
            register_map = _decode_map(message.ready.register_map_msgpack)
        except msgspec.DecodeError as error:
            raise _BrokenContract(f"a register map that cannot be: {error}") from error
        if register_map.words > seat.handle.register_capacity:
            raise _BrokenContract(f"{register_map.words} register words")
        seat.handle.set_map(register_map)
        seat.ready = True
        seat.start_fresh = False
        seat.heartbeat = (seat.handle.heartbeat, time.monotonic_ns())
        assert seat.worker is not None  # noqa: S101 - it speaks
        tube = seat.worker.tube
        self._switchboard.plug_in(
            seat.config.name,
            seat.worker.pid,
            seat.generation,
            lambda message, fds: tube.send_proto_nowait(message, fds=fds),
        )
        self._reactor.post(Ready(seat.config.name, seat.generation))
        self._keep_watch(seat)
        self._refill()

    def _judge_failure(self, seat: _Seat, failed: Failed) -> None:
        """A class, options or a state that the device refuses will be refused again: no restart helps."""
        phase = failed.phase
        if phase == Failed.PHASE_RESTORE and seat.config.on_bad_state == "fresh":
            seat.start_fresh = True
            return
        if phase in _HOPELESS:
            seat.refused = True
            why = f"{_HOPELESS[phase]}: {failed.exception}"
            self._reactor.post(Refused(seat.config.name, seat.generation, why))

    def _grow(self, seat: _Seat, message: WorkerMessage) -> None:
        full = message.journal_full
        try:
            fd = seat.handle.grow(
                state_bytes=full.state_bytes,
                output_bytes=full.output_bytes,
                register_words=full.register_words,
            )
        except (JournalCorrupt, OSError) as error:
            raise _BrokenContract(str(error)) from error
        answer = SupervisorMessage(generation=seat.generation)
        answer.journal_grown.journal_bytes = os.fstat(fd).st_size
        self._tell(seat, answer, (fd,))

    def _introduce(self, seat: _Seat, peer: str) -> None:
        def answer(error: str, ends: tuple[object, ...]) -> None:
            message = SupervisorMessage(generation=seat.generation)
            message.connected.peer = peer
            message.connected.error = error
            self._tell(seat, message, ends)

        self._switchboard.connect(seat.config.name, peer, answer)

    def _hand_over(self, seat: _Seat, message: WorkerMessage, descriptors: list[Descriptor]) -> None:
        asked = message.duplicate
        if len(descriptors) != 1 or seat.worker is None:
            raise _BrokenContract(f"hands over {len(descriptors)} descriptors at once")
        answer = SupervisorMessage(generation=seat.generation)
        answer.duplicated.request = asked.request
        answer.duplicated.error = self._switchboard.hand_over(
            asked.request, seat.worker.pid, asked.target_pid, descriptors[0]
        )
        self._tell(seat, answer)

    # -- telling ---------------------------------------------------------------------------------

    def _tell(self, seat: _Seat, message: SupervisorMessage, fds: tuple[object, ...] = ()) -> None:
        """Sends without waiting: a worker whose queue is full does not read, and is killed for it."""
        worker = seat.worker
        if worker is None:
            return
        try:
            worker.tube.send_proto_nowait(message, fds=fds)
        except Disconnected:
            pass  # its death is on the way
        except TubeTimeout:
            self._reactor.post(Silent(seat.config.name, seat.generation))

    def _tell_payload(self, name: str, number: int, data: bytes) -> None:
        seat = self._seats[name]
        if seat.assigned:
            message = SupervisorMessage(generation=seat.generation)
            message.payload.number = number
            message.payload.data = data
            self._tell(seat, message)

    def _overdue(self, name: str) -> bool:
        seat = self._seats[name]
        if seat.worker is None:
            return False
        self._reactor.post(Silent(name, seat.generation))
        return True

    def _corrupt(self, name: str, error: JournalCorrupt) -> None:
        seat = self._seats[name]
        _log.error("%s: %s", name, error)
        if not seat.refused:
            seat.refused = True
            self._reactor.post(Refused(name, seat.generation, f"corrupt journal: {error}"))
        if seat.worker is not None:
            seat.worker.kill()

    # -- watching --------------------------------------------------------------------------------

    def _keep_watch(self, seat: _Seat) -> None:
        """Looks now and then whether the heart beats and whether anything outstanding moves."""
        if seat.watch_timer is not None:
            seat.watch_timer.cancel()
        heartbeat = seat.config.child.heartbeat
        if heartbeat is not None:
            at_ns = time.monotonic_ns() + heartbeat.every_ns
            seat.watch_timer = self._reactor.call_at(at_ns, lambda: self._look_after(seat))

    def _look_after(self, seat: _Seat) -> None:
        heartbeat = seat.config.child.heartbeat
        if not seat.ready or heartbeat is None:
            return
        now_ns = time.monotonic_ns()
        beats = seat.handle.heartbeat
        if beats != seat.heartbeat[0]:
            seat.heartbeat = (beats, now_ns)
        elif now_ns - seat.heartbeat[1] >= heartbeat.timeout_ns:
            self._reactor.post(Silent(seat.config.name, seat.generation))
            return
        self._keep_watch(seat)

    def _read_log(self, worker: WorkerProcess) -> None:
        try:
            data = os.read(worker.log.fileno(), LOG_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._reactor.unwatch(worker.log.fileno())
            return
        seat = self._by_ticket.get(worker.ticket)
        if seat is None:
            _log.warning("a spare worker says: %s", data.decode(errors="replace").rstrip())
            return
        lines = (seat.log_rest + data).split(b"\n")
        seat.log_rest = lines.pop()[-LOG_LINE_BYTES:]
        logger = logging.getLogger(f"tubevisor.device.{seat.config.name}")
        for line in lines:
            level, text = _level_of(line[:LOG_LINE_BYTES].decode(errors="replace"))
            seat.log.append(text)
            logger.log(level, "%s", text)

    # -- death -----------------------------------------------------------------------------------

    def _on_mute(self, worker: WorkerProcess) -> None:
        """Its Tube is at its end: it can be of no use any more, whether it lives or not."""
        self._reactor.unwatch(worker.tube.fileno())
        if worker.pidfd is not None:
            worker.kill()
        elif worker.lost:
            self._on_fork_failed(worker, "the zygote died")
        else:
            seat = self._by_ticket.get(worker.ticket)
            if seat is not None:
                seat.kill_wanted = True

    def _on_death(self, worker: WorkerProcess) -> None:
        """The pidfd says so. The exit status follows from the zygote, or from the kernel, or never."""
        assert worker.pidfd is not None  # noqa: S101 - its callback
        self._reactor.unwatch(worker.pidfd.fileno())
        if worker.wait_status is not None or not self.launcher.running:
            self._finish(worker)
            return
        self._reactor.call_at(time.monotonic_ns() + EXIT_STATUS_WAIT_NS, lambda: self._finish(worker))

    def _on_exit_known(self, worker: WorkerProcess) -> None:
        if worker.pidfd is not None:
            self._reactor.unwatch(worker.pidfd.fileno())
        self._finish(worker)

    def _finish(self, worker: WorkerProcess) -> None:
        """All that a dead worker left behind is taken in; then the policy learns of it."""
        if worker.ticket not in self._workers:
            return
        self._hear(worker)
        self._drain_log(worker)
        exit_reason = _exit_reason(self.launcher.read_exit(worker))
        seat = self._bury(worker)
        if seat is None:
            self._refill()
            return
        charged = not seat.uncharged
        name = seat.config.name
        seat.last_exit = str(exit_reason)
        if seat.last_words is not None:
            seat.last_exit = f"{seat.last_exit}: {seat.last_words.exception}"
        self._settle(seat, charged=charged)
        self._report_crash(seat, exit_reason)
        self._reactor.post(Gone(name, seat.generation, exit_reason, charged))

    def _settle(self, seat: _Seat, *, charged: bool) -> None:
        try:
            for fault in seat.handle.settle_dead(charged=charged):
                self._give_up_input(seat, fault)
        except JournalCorrupt as error:
            self._corrupt(seat.config.name, error)

    def _give_up_input(self, seat: _Seat, fault: DeviceFault) -> None:
        self._reactor.publish(InputGivenUp(seat.config.name, str(fault), at_ns=time.monotonic_ns()))

    def _report_crash(self, seat: _Seat, exit_reason: ExitReason) -> None:
        words = seat.last_words
        if words is None and (seat.stop_wanted or seat.uncharged or exit_reason.clean(seat.config.child)):
            return
        self._reactor.publish(
            DeviceCrashed(
                seat.config.name,
                seat.generation,
                words.exception if words else str(exit_reason),
                words.traceback if words else "",
                tuple(seat.log),
                at_ns=time.monotonic_ns(),
            )
        )

    def _drain_log(self, worker: WorkerProcess) -> None:
        fd = worker.log.fileno()
        for _ in range(16):  # a pipe holds 64 KiB; a grandchild may hold it open
            before = self._reactor.watches(fd)
            if not before:
                return
            self._read_log(worker)

    def _bury(self, worker: WorkerProcess) -> _Seat | None:
        """Closes what we hold of it; returns the seat that it sat in."""
        self._reactor.unwatch(worker.tube.fileno())
        self._reactor.unwatch(worker.log.fileno())
        if worker.pidfd is not None:
            self._reactor.unwatch(worker.pidfd.fileno())
        self.launcher.forget(worker)
        self._workers.pop(worker.ticket, None)
        seat = self._by_ticket.pop(worker.ticket, None)
        if worker in self._spares:
            self._spares.remove(worker)
        worker.close()
        if seat is not None:
            self._switchboard.unplug(seat.config.name)
            seat.worker = None
            seat.assigned = seat.ready = False
            if seat.watch_timer is not None:
                seat.watch_timer.cancel()
        return seat

    def close(self) -> None:
        """Ends every process that is left, and gives descriptors and memory back."""
        for worker in list(self._workers.values()):
            worker.kill()
            self._bury(worker)
        if self._launcher_fd >= 0:
            self._reactor.unwatch(self._launcher_fd)
            self._launcher_fd = -1
        self.launcher.close()
        for seat in self._seats.values():
            self._reactor.unwatch(seat.handle.answer_fd)
            seat.handle.close()


class _BrokenContract(Exception):
    """A worker did what no worker of ours does."""


def _ignore(_mask: int) -> None:
    """The wake-up itself is what a bell is for."""


def _umask() -> int:
    """The process's umask, read without changing it (umask(2) can only exchange it)."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _level_of(line: str) -> tuple[int, str]:
    """Splits ``<30>text`` into level and text; a line without a mark was printed."""
    if line.startswith("<"):
        mark, found, text = line[1:].partition(">")
        if found and mark.isdigit():
            return int(mark), text
    return logging.INFO, line


def _exit_reason(wait_status: int | None) -> ExitReason:
    if wait_status is None:
        return ExitReason(ExitKind.UNKNOWN)
    code = os.waitstatus_to_exitcode(wait_status)
    if code >= 0:
        return ExitReason(ExitKind.EXITED, code)
    return ExitReason(ExitKind.SIGNALED, -code)
