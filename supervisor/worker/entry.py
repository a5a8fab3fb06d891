"""From a freshly forked process to a serving device: what a worker does with its life.

fork → own session, bound to the zygote's life → Hello → Assign → class, options, state → Ready → serve.

A worker owns three descriptors when it is born: its end of the Tube, and the log pipe as stdout and stderr.
The last words of one that fails (phase, exception, traceback) go through the Tube; it then exits with 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import gc
import importlib
import json
import logging
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any

import msgspec

from supervisor.device import Device, Ignore
from supervisor.errors import LocalError, TubevisorError
from supervisor.messages_pb2 import Assign, Failed, Ready, SupervisorMessage, WorkerMessage
from supervisor.tube import Disconnected, FlushOnDropTube, ProtoTube, TubeError, TubeTimeout
from supervisor.worker.journal import Journal
from supervisor.worker.rehearsal import rehearse_life
from supervisor.worker.runtime import DeviceCrashed, Runtime
from supervisor.worker.session import Launch, Session, build_options

__all__ = ["PROTOCOL_VERSION", "rehearse", "run_worker"]

PROTOCOL_VERSION = 1
EXIT_CRASHED = 1
EXIT_ORPHANED = 3  # the supervisor went away
LAST_WORDS_WAIT_S = 1.0  # until the supervisor has taken them: it is busy, or stopped, or gone
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
TUBE_FD = 3
FIRST_FREE_FD = 4  # 0 to 2 are stdio, 3 is the Tube
MAX_PASSED_FDS = 253  # what one packet can carry

_descriptions: dict[type[Device], Ready] = {}  # filled in the zygote, by ``rehearse``
_libc = ctypes.CDLL(None, use_errno=True)


class _Tube:
    """The worker's ProtoTube as the runtime wants it."""

    def __init__(self, tube: ProtoTube) -> None:
        self._tube = tube

    def fileno(self) -> int:
        return self._tube.fileno()

    def tell(self, message: WorkerMessage, fds: tuple[int, ...] = ()) -> None:
        self._tube.send_proto(message, fds=fds)

    def hear(self, timeout: float | None) -> tuple[SupervisorMessage, list[Any]] | None:
        try:
            received = self._tube.recv_proto_with_fds(
                SupervisorMessage, timeout=timeout, max_fds=MAX_PASSED_FDS
            )
        except TubeTimeout:
            return None
        return received.message, received.descriptors


def run_worker(tube_fd: int, log_fd: int, ticket: int, zygote_pid: int, *, rehearses: bool) -> None:
    """The whole life of a forked worker; never returns. ``rehearses``: nobody waits for it yet."""
    code = EXIT_CRASHED
    try:
        _settle_in(tube_fd, log_fd, zygote_pid)
        tube = ProtoTube.from_fd(TUBE_FD)
        kept = FlushOnDropTube(tube, timeout=LAST_WORDS_WAIT_S)
        try:
            if rehearses:
                with contextlib.suppress(OSError, TubevisorError):  # refused: then it is as slow as any other
                    rehearse_life(lambda tube: _live(_Tube(tube)))
                gc.collect()
            _say_hello(_Tube(tube), ticket)
            code = _live(_Tube(tube))
        finally:  # not closed here: a mute worker is killed, and its exit code would stay unsaid
            with contextlib.suppress(TubeError):
                kept.flush()
    except Disconnected:
        code = EXIT_ORPHANED
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else EXIT_CRASHED if leaving.code else 0
    except BaseException:  # noqa: BLE001 - the last frame of a process: whatever it was, say it
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _settle_in(tube_fd: int, log_fd: int, zygote_pid: int) -> None:
    """Own session, death with the zygote, clean signals, and no descriptor but one's own."""
    os.setsid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != zygote_pid:
        os._exit(EXIT_ORPHANED)  # it died before the line above could bind us to it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    null = os.open("/dev/null", os.O_RDWR)
    kept = os.dup(tube_fd), os.dup(log_fd)
    os.dup2(null, 0)
    os.dup2(kept[1], 1)
    os.dup2(kept[1], 2)
    os.dup2(kept[0], TUBE_FD, inheritable=False)
    _close_from(FIRST_FREE_FD)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)


def _close_from(lowest: int) -> None:
    """Closes every descriptor from ``lowest`` on: the zygote has one for each of its workers."""
    try:
        refused = _libc.close_range(ctypes.c_uint(lowest), ctypes.c_uint(-1), 0)  # Linux 5.9
    except AttributeError:
        refused = -1
    if refused:
        os.closerange(lowest, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)


def _live(tube: _Tube) -> int:
    """What comes after Hello; returns the exit code."""
    heard = tube.hear(None)
    if heard is None:
        return EXIT_ORPHANED
    message, descriptors = heard
    if message.WhichOneof("body") == "witness":
        from supervisor.worker.witness import serve_as_witness  # one process of them all

        _name_process("witness")
        serve_as_witness(tube, descriptors[0].fileno())
    if message.WhichOneof("body") != "assign":
        return 0  # asked to stop while it was a spare
    assign = message.assign
    try:
        runtime = _build(tube, message.generation, assign, descriptors)
        runtime.serve()
    except DeviceCrashed as crash:
        _say_last_words(tube, message.generation, crash)
        return EXIT_CRASHED
    except Ignore as nothing_to_do:
        ignored = WorkerMessage(generation=message.generation)
        ignored.ignored.why = str(nothing_to_do)
        tube.tell(ignored)
        return 0
    stopped = WorkerMessage(generation=message.generation)
    stopped.stopped.SetInParent()
    for index, position in runtime.ring_positions:
        stopped.stopped.rings.add(index=index, position=position)
    tube.tell(stopped)
    runtime.close()
    return 0


def _say_hello(tube: _Tube, ticket: int) -> None:
    pid = os.getpid()
    hello = WorkerMessage()
    hello.hello.protocol_version = PROTOCOL_VERSION
    hello.hello.ticket = ticket
    hello.hello.pid = pid
    pidfd = os.pidfd_open(pid)
    try:
        tube.tell(hello, fds=(pidfd,))
    finally:
        os.close(pidfd)


def _say_last_words(tube: _Tube, generation: int, crash: DeviceCrashed) -> None:
    cause = crash.__cause__ or crash
    words = WorkerMessage(generation=generation)
    words.failed.phase = crash.phase
    if isinstance(cause, LocalError):  # our own words to whoever wrote the configuration: nothing to trace
        words.failed.exception = str(cause)
    else:
        words.failed.exception = "".join(traceback.format_exception_only(cause)).strip()
        words.failed.traceback = "".join(traceback.format_exception(cause))
    words.failed.number = crash.number
    tube.tell(words)


def _build(tube: _Tube, generation: int, assign: Assign, descriptors: list[Any]) -> Runtime:
    """Turns this process into the device that ``assign`` describes; says Ready."""
    assigned_ns = time.monotonic_ns()
    with _phase(Failed.PHASE_ASSIGN):
        _apply_surroundings(assign)
        journal = Journal.attach(descriptors[0].fileno())
        descriptors[0].close()
        doorbell, answer = descriptors[1].detach(), descriptors[2].detach()
        queues_at = 3 + len(assign.passed_names)
        named = zip(assign.passed_names, descriptors[3:queues_at], strict=True)
        passed = {name: held.detach() for name, held in named}
    with _phase(Failed.PHASE_IMPORT):
        device_class = _find_class(assign.device_class)
    with _phase(Failed.PHASE_OPTIONS):
        options = msgspec.msgpack.decode(assign.options_msgpack)
        launch = Launch(
            name=assign.name,
            options=options,
            restarts=assign.restart_count,
            last_exit=assign.last_exit,
            passed=passed,
        )
        runtime = Runtime(
            tube,
            generation,
            journal,
            doorbell_fd=doorbell,
            answer_fd=answer,
            heartbeat_every_ns=assign.heartbeat_every_ns,
        )
        free_before = _lowest_free_descriptor()
        try:
            session = Session(device_class, launch, runtime)
        except LocalError:
            raise
        except Exception as error:
            raise DeviceCrashed(Failed.PHASE_START) from error
    if assign.HasField("attach"):
        runtime.attach_when_ready(assign.attach, descriptors[queues_at:])
    started_ns = time.monotonic_ns()
    runtime.adopt(session, now_ns=assign.now_ns, fresh=assign.start_fresh)
    ready = WorkerMessage(generation=generation)
    ready.ready.CopyFrom(_describe(device_class))
    ready.ready.assigned_ns, ready.ready.started_ns = assigned_ns, started_ns
    ready.ready.restored_ns = time.monotonic_ns()
    device: Any = session.device
    if hasattr(device, "offer"):  # a virtio device: what it offers is known once it has started
        device.offer(ready.ready.virtio)
    exclusive = device.exclusive
    if exclusive is None:
        opened = set(range(free_before, _lowest_free_descriptor()))
        exclusive = bool(opened - runtime.kept)
    ready.ready.lifeline = not exclusive and runtime.hold_lifeline()
    tube.tell(ready)
    return runtime


def _lowest_free_descriptor() -> int:
    """The number that the next one to be opened will have: what was opened since fills those below it."""
    lowest = os.dup(0)
    os.close(lowest)
    return lowest


def _find_class(name: str) -> type[Device]:
    module_name, _, attribute = name.partition(":")
    module = sys.modules.get(module_name) or importlib.import_module(module_name)
    found = getattr(module, attribute, None)
    if found is None:
        raise LocalError(f"module {module_name} has no {attribute}")
    if not (isinstance(found, type) and issubclass(found, Device)):
        raise LocalError(f"{name} is not a subclass of supervisor.Device but {found!r}")
    return found


def rehearse(device_class: type[Device]) -> None:
    """Does, in the zygote, what every worker of this class would do again: its description, its options.

    msgspec keeps what it has learnt about a class, so a forked worker finds both done: a third of the time
    from Assign to Ready.
    """
    _describe(device_class)
    with contextlib.suppress(LocalError):  # options that have no default
        build_options(device_class, {})


def _describe(device_class: type[Device]) -> Ready:
    known = _descriptions.get(device_class)
    if known is not None:
        return known
    schema = {} if device_class.Options is None else msgspec.json.schema(device_class.Options)
    _descriptions[device_class] = known = Ready(
        register_map_msgpack=msgspec.msgpack.encode(device_class.sheet.map()),
        option_schema_json=json.dumps(schema).encode(),
        state_version=device_class.state_version,
    )
    return known


def _apply_surroundings(assign: Assign) -> None:
    _name_process(assign.name)
    if assign.environment:
        os.environ.update(assign.environment)
    os.umask(assign.umask)
    if assign.working_directory:
        os.chdir(assign.working_directory)
    for limit, field in ((resource.RLIMIT_NOFILE, "open_files"), (resource.RLIMIT_DATA, "data_bytes")):
        if assign.limits.HasField(field):  # type: ignore[arg-type]  # the names above
            value = getattr(assign.limits, field)
            resource.setrlimit(limit, (value, value))
    root = logging.getLogger()
    root.handlers[:] = [_log_handler()]
    root.setLevel(assign.log_level)


@functools.cache
def _log_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PriorityFormatter("%(message)s"))
    return handler


def _name_process(name: str) -> None:
    _libc.prctl(PR_SET_NAME, f"tv:{name}".encode()[:15], 0, 0, 0)


class _PriorityFormatter(logging.Formatter):
    """Marks each line with its level as ``<n>``, as sd-daemon(3) does, so that the supervisor can sort it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        mark = f"<{record.levelno}>"
        return "\n".join(mark + line for line in text.splitlines() or [""])


@contextlib.contextmanager
def _phase(phase: Failed.Phase.ValueType) -> Any:
    try:
        yield
    except (Disconnected, DeviceCrashed, Ignore):
        raise
    except (Exception, TubevisorError) as error:
        raise DeviceCrashed(phase) from error
