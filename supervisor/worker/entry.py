"""From a freshly forked process to a serving device: what a worker does with its life.

fork → own session, bound to the zygote's life → Hello → Assign → (a standby waits) → Ready → serve.

A worker owns three descriptors when it is born: its end of the Tube, and the log pipe as stdout and stderr.
The last words of one that fails (phase, exception, traceback) go through the Tube; it then exits with 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from typing import Any

from supervisor.device import Ignore
from supervisor.errors import LocalError, TubevisorError
from supervisor.messages_pb2 import Begin, SupervisorMessage, WorkerMessage
from supervisor.tube import Disconnected, FlushOnDropTube, ProtoTube, TubeError, TubeTimeout
from supervisor.worker.assignment import PR_SET_NAME, Prepared, begin, name_process, prepare
from supervisor.worker.rehearsal import rehearse_life
from supervisor.worker.runtime import DeviceCrashed

__all__ = ["PROTOCOL_VERSION", "rehearse_for_all", "run_worker", "settle_for_all"]

PROTOCOL_VERSION = 1
EXIT_CRASHED = 1
EXIT_ORPHANED = 3  # the supervisor went away
LAST_WORDS_WAIT_S = 1.0  # until the supervisor has taken them: it is busy, or stopped, or gone
PR_SET_PDEATHSIG = 1
PR_GET_NAME, NAME_BYTES = 16, 16
SIGKILL = int(signal.SIGKILL)
TUBE_FD = 3
FIRST_FREE_FD = 4  # 0 to 2 are stdio, 3 is the Tube
LIVES_FOR_ALL = 4  # after which nearly all code that they share has its final shape: 20 ms
MAX_PASSED_FDS = 253  # what one packet can carry

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


def settle_for_all() -> None:
    """What every worker would do for itself, done in the zygote: signals as at first, stdio's objects.

    Behind its descriptors 0 to 2 a worker has other files, and the same objects for them.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)


def _settle_in(tube_fd: int, log_fd: int, zygote_pid: int) -> None:
    """Own session, death with the zygote, and no descriptor but one's own; the zygote's stdin is nothing."""
    os.setsid()
    _libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != zygote_pid:
        os._exit(EXIT_ORPHANED)  # it died before the line above could bind us to it
    kept = os.dup(tube_fd), os.dup(log_fd)
    os.dup2(kept[1], 1)
    os.dup2(kept[1], 2)
    os.dup2(kept[0], TUBE_FD, inheritable=False)
    _close_from(FIRST_FREE_FD)


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

        name_process("witness")
        serve_as_witness(tube, descriptors[0].fileno())
    if message.WhichOneof("body") != "assign":
        return 0  # asked to stop while it was a spare
    try:
        prepared = prepare(tube, message.generation, message.assign, descriptors)
        moment = message.assign.begin
        if not message.assign.HasField("begin"):
            told = _stand_by(tube, message.generation, prepared)
            if told is None:
                return 0
            message, moment = told, told.begin
            prepared.heard_ns = time.monotonic_ns()
        runtime = begin(tube, message.generation, prepared, moment)
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


def _stand_by(tube: _Tube, generation: int, prepared: Prepared) -> SupervisorMessage | None:
    """Waits until the predecessor is dead and the supervisor says so, or has allowed to go on without that.

    ``None``: nobody is needed any more.
    """
    ready = WorkerMessage(generation=generation)
    ready.standing_by.SetInParent()
    tube.tell(ready)
    heir = prepared.heir
    while heir is not None and heir.await_bell(tube.fileno()):
        claimed = heir.claim(prepared.journal)
        if claimed is not None:
            ended, now_ns = claimed
            word = Begin(restart_count=generation - 1, last_exit=ended, now_ns=now_ns)
            return SupervisorMessage(generation=generation, begin=word)
    if heir is not None:
        heir.close()
        prepared.heir = None  # who is told to begin has nothing to note
    heard = tube.hear(None)
    return heard[0] if heard is not None and heard[0].WhichOneof("body") == "begin" else None


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


def rehearse_for_all() -> None:
    """Lives a worker's life, in the zygote, so that what it leaves in memory is there for every fork.

    The interpreter rewrites code as it comes to know it (PEP 659) and fills caches of its own: in each worker
    for itself those would be copies of pages that they now share. The log stays as a worker's is.
    """
    name = ctypes.create_string_buffer(NAME_BYTES)
    _libc.prctl(PR_GET_NAME, name, 0, 0, 0)
    with contextlib.suppress(OSError, TubevisorError):  # refused: then each worker learns for itself
        rehearse_life(lambda tube: _live(_Tube(tube)), LIVES_FOR_ALL)
    _libc.prctl(PR_SET_NAME, name, 0, 0, 0)
