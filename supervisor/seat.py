"""A device's place in the supervisor: its handle, and the worker that sits in it now, if any.

What is known of a generation lives here and is forgotten when the next one sits down: whether it was
assigned, is ready, was asked to stop, what its last words were. What outlasts a generation is the handle
(journal, requests) and how the last process ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from supervisor.config import DeviceConfig
from supervisor.launch.launcher import WorkerProcess
from supervisor.messages_pb2 import Assign, Begin, Failed, Ready, VirtioOffer
from supervisor.policy import ChildSpec
from supervisor.policy.events import ExitKind, ExitReason
from supervisor.policy.records import Record
from supervisor.reactor import Timer
from supervisor.remote import RemoteHandle
from supervisor.timeline import RestartTimeline
from supervisor.tube import Descriptor

__all__ = ["MOST_KEPT", "DeviceCrashed", "InputGivenUp", "LogTail", "Seat", "Surroundings", "exit_reason"]

LOG_LINES_KEPT = 50  # what a crash report shows: a dump of faulthandler's with its stack
MOST_KEPT, KEPT_NAME_BYTES = 32, 255  # descriptors of a device: they go to it in one packet
LOG_LINE_BYTES = 8192  # a longer line is cut: a device that never ends its line fills no memory
_MARK = re.compile(r"<([0-9]{1,9})>")


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


class LogTail:
    """Turns what a worker prints into lines with levels, and keeps the last ones."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, str]]:
        """Takes bytes; returns the lines that they complete, as (level, text)."""
        raw = (self._rest + data).split(b"\n")
        self._rest = raw.pop()[-LOG_LINE_BYTES:]
        lines = [_level_of(line[:LOG_LINE_BYTES].decode(errors="replace")) for line in raw]
        self.lines.extend(text for _level, text in lines)
        return lines

    def finish(self) -> list[tuple[int, str]]:
        """The process is gone: what it left without a line's end is a line."""
        return self.feed(b"\n") if self._rest else []

    def clear(self) -> None:
        """Forgets everything: another process speaks from now on."""
        self.lines.clear()
        self._rest = b""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a device's processes all find, whatever becomes of the supervisor's own after its start.

    The directory is empty where it has been removed: a worker then stays where the zygote is.
    """

    working_directory: str
    umask: int

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process."""
        return cls(_working_directory(), _umask())


@dataclass(eq=False, slots=True)
class Seat:
    """One device's place. ``child`` is what the present process lives by, whatever ``config`` says by now.

    ``uncharged``: a chaos monkey has announced the next death. ``ended``: its end has been told. ``offer`` is
    what a virtio device has to offer, kept while no worker lives; ``ring_positions`` is where the last worker
    that was asked to stop has left its rings, empty where it did not say. ``kept`` is what the processes have
    had kept for the next ones.
    """

    config: DeviceConfig
    handle: RemoteHandle
    child: ChildSpec
    worker: WorkerProcess | None = None
    generation: int = 0
    assigned: bool = False
    ready: bool = False
    stop_wanted: bool = False
    uncharged: bool = False
    killed_ns: int = 0  # when the supervisor last sent SIGKILL to a worker that served; all in host time
    noticed_ns: int = 0  # when its death was heard of
    settled_ns: int = 0  # when what it had committed was published
    left_core: int | None = None  # on which the last worker is being taken apart, if that is known
    refused: bool = False
    ended: bool = False
    start_fresh: bool = False
    last_exit: str = ""
    last_words: Failed | None = None
    offer: VirtioOffer | None = None
    ring_positions: dict[int, int] = field(default_factory=dict)
    kept: dict[str, Descriptor] = field(default_factory=dict)
    log: LogTail = field(default_factory=LogTail)
    heartbeat: tuple[int, int] = (0, 0)  # the counter, and when it was seen to move (host ns)
    look_due_ns: int = 0
    assigned_ns: int = 0  # when the present worker was told
    stood_by: bool = False  # it had everything ready by then
    start_ns: int = 0  # from Assign until ready, and from when a standby would begin: see ``note_start``
    begin_ns: int = 0
    watch_timer: Timer | None = None
    last_restart: RestartTimeline | None = None

    @property
    def name(self) -> str:
        """The device's name."""
        return self.config.name

    def prepare(self, generation: int) -> None:
        """A new generation is on its way: what was known of the last one is forgotten."""
        self.generation = generation
        self.assigned = self.ready = self.stop_wanted = False
        self.uncharged = self.refused = self.ended = False
        self.child = self.config.child
        self.last_words = None
        self.ring_positions = {}
        self.log.clear()
        self.handle.revive()

    def timeline(self, ready: Ready) -> RestartTimeline | None:
        """Of the restart that has just come to its end; ``None`` where it is the device's first start."""
        if not self.noticed_ns:
            return None
        now_ns = time.monotonic_ns()
        timeline = RestartTimeline(
            self.name,
            self.generation,
            self.killed_ns,
            self.noticed_ns,
            self.settled_ns,
            self.assigned_ns,
            ready.assigned_ns,
            ready.started_ns,
            ready.restored_ns,
            now_ns,
            at_ns=now_ns,
        )
        self.killed_ns = self.noticed_ns = 0
        return timeline

    def note_start(self, ready: Ready) -> None:
        """The present worker has become ready; remembered is how long that takes.

        One start that takes long may have had no core: it takes several of them to be taken for the rule.
        """
        self.begin_ns = _typical(self.begin_ns, ready.restored_ns - ready.begun_ns)
        if not self.stood_by:
            self.start_ns = _typical(self.start_ns, time.monotonic_ns() - self.assigned_ns)

    def leave(self) -> None:
        """The worker is gone."""
        self.worker = None
        self.assigned = self.ready = False
        if self.watch_timer is not None:
            self.watch_timer.cancel()

    def keep(self, name: str, descriptor: Descriptor | None) -> bool:
        """Keeps a descriptor for the next processes, or gives up the one of that name; false: too many."""
        before = self.kept.pop(name, None)
        if before is not None:
            before.close()
        if descriptor is not None:
            self.kept[name] = descriptor
        return len(self.kept) <= MOST_KEPT and len(name.encode()) <= KEPT_NAME_BYTES

    def keep_nothing(self) -> None:
        """Gives up everything that was kept: nobody is to come after."""
        for descriptor in self.kept.values():
            descriptor.close()
        self.kept.clear()

    def assignment(self, child: ChildSpec, surroundings: Surroundings) -> Assign:
        """What makes a worker this device, which lives by ``child``, as soon as it is told to begin."""
        config = self.config
        assign = Assign(
            name=config.name,
            device_class=config.device_class,
            options_msgpack=msgspec.msgpack.encode(config.options),
            passed_names=list(self.kept),
            heartbeat_every_ns=child.heartbeat.every_ns if child.heartbeat else 0,
            working_directory=surroundings.working_directory,
            environment=dict(config.env),
            log_level=self.log_level,
            umask=surroundings.umask,
        )
        if config.limits.open_files is not None:
            assign.limits.open_files = config.limits.open_files
        if config.limits.data_bytes is not None:
            assign.limits.data_bytes = config.limits.data_bytes
        return assign

    def beginning(self, now_ns: int) -> Begin:
        """What the present generation is told at its beginning; ``now_ns`` is guest time."""
        return Begin(
            restart_count=self.generation - 1,
            last_exit=self.last_exit,
            start_fresh=self.start_fresh,
            now_ns=now_ns,
        )

    @property
    def log_level(self) -> int:
        """What the device's logger lets through just now."""
        return logging.getLogger(f"tubevisor.device.{self.name}").getEffectiveLevel()

    def crash_report(self, ended: ExitReason, broke: str, at_ns: int) -> DeviceCrashed | None:
        """The report of a death that nobody wanted; ``None`` for any other.

        ``broke`` says how the worker has broken the contract, if it was killed for that.
        """
        words = self.last_words
        expected = self.stop_wanted or self.uncharged or ended.clean(self.child)
        if words is None and not broke and expected:
            return None
        return DeviceCrashed(
            self.name,
            self.generation,
            broke or (words.exception if words else str(ended)),
            words.traceback if words else "",
            tuple(self.log.lines),
            at_ns=at_ns,
        )


def exit_reason(wait_status: int | None) -> ExitReason:
    """A wait status (waitpid(2)) in the policy's words; ``None``: nobody knows."""
    if wait_status is None:
        return ExitReason(ExitKind.UNKNOWN)
    code = os.waitstatus_to_exitcode(wait_status)
    return ExitReason(ExitKind.EXITED, code) if code >= 0 else ExitReason(ExitKind.SIGNALED, -code)


def _typical(before_ns: int, now_ns: int) -> int:
    """What a duration is taken to be that was taken to be ``before_ns`` (0: nothing), and is now another."""
    return max(1, min(now_ns, 2 * before_ns) if before_ns else now_ns)


def _working_directory() -> str:
    """Where we are; empty where that directory has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _umask() -> int:
    """The process's umask. Read; umask(2) can only exchange it, which other threads may notice."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _level_of(line: str) -> tuple[int, str]:
    """Splits ``<30>text`` into level and text; a line without a mark was printed."""
    mark = _MARK.match(line)
    return (logging.INFO, line) if mark is None else (int(mark[1]), line[mark.end() :])
