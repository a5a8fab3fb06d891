"""Faults placed before a chosen step of a process: kill -9 or SIGSTOP before the n-th run of a line.

Every store, send and receive lies between two lines, so a fault before each line that one input makes a
process run is a fault before and after each of them. ``StepTracer`` is told of every line (``sys.settrace``)
of the files that it is given; either it notes where a process comes along, or it strikes at one point.

A worker and its zygote are traced from within (``tests.devices.stepped``, preloaded) and are told through a
file that they share with the test (``Control``); the supervisor is traced in the test's own process.
"""

from __future__ import annotations

import ast
import mmap
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import supervisor

__all__ = ["CONTROL", "Control", "Point", "StepTracer", "choose", "stores_and_sends", "trace_here"]

CONTROL = "TUBEVISOR_STEPS"  # the environment variable that names the control file
EXHAUSTIVE = bool(os.environ.get("TUBEVISOR_EXHAUSTIVE"))
TIMEOUT_S = 7200 if EXHAUSTIVE else 120
TIMES = 3  # a line in a loop is struck the first so many times that it is run

ROOM = Path(supervisor.__file__).parent
FILES = sorted(str(path) for path in ROOM.rglob("*.py"))
_INDEX = {name: index for index, name in enumerate(FILES)}
_INSTRUCTION_FILES = {str(ROOM / "worker" / "committer.py"), str(ROOM / "worker" / "journal.py")}
_SENDS = {"send", "sendmsg", "recvmsg", "send_proto", "recv_proto_with_fds", "send_proto_nowait", "tell"}
_SENDS |= {"hear", "eventfd_write", "pack_into", "poll", "unpack_from", "_tell", "_hear", "receive_packet"}


def files_of(*patterns: str) -> frozenset[str]:
    """The files of the package that match; each of ``patterns`` is relative to it."""
    return frozenset(str(path) for pattern in patterns for path in ROOM.glob(pattern))


WORKER_FILES = files_of("worker/*.py", "tube/*.py")
ZYGOTE_FILES = files_of("launch/zygote.py", "tube/*.py")
_NAMES = ("ledger", "remote", "workers", "conversation", "processes", "handle", "seat", "reactor")
SUPERVISOR_FILES = files_of(
    *(f"{name}.py" for name in _NAMES), "launch/launcher.py", "worker/journal.py", "tube/*.py"
)


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """Before the ``time``-th run of a line (or of one bytecode instruction), or ``after`` its statement."""

    file: int
    line: int
    instruction: int = 0  # 0: the line; else the offset of the instruction, and 1
    time: int = 1
    after: bool = False
    span: int = 0  # lines that the statement takes beyond its first

    def __str__(self) -> str:
        name = Path(FILES[self.file]).relative_to(ROOM)
        where = f"{'after' if self.after else 'before'} {name}:{self.line}"
        return f"{where}, time {self.time}" + (
            f", instruction {self.instruction - 1}" * bool(self.instruction)
        )

    def pack(self) -> int:
        """The place as a number; without the time."""
        number = self.file << 44 | self.line << 24 | self.instruction << 8
        return number | self.span << 1 | int(self.after)

    @classmethod
    def unpack(cls, packed: int, time: int) -> Point:
        """The reverse."""
        span, after = packed >> 1 & 0x7F, bool(packed & 1)
        return cls(packed >> 44, packed >> 24 & 0xFFFFF, packed >> 8 & 0xFFFF, time, after, span)


(SERIAL, ROLE, PLACE, TIME, SIGNAL, FIRED, RECORDING, RECORDED, FOUND) = range(9)
RECORDS_AT = 16
WORKER, ZYGOTE, SUPERVISOR = 1, 2, 3


class Control:
    """What a test and the processes that it strikes share: 64-bit words in a file."""

    WORDS = 1 << 16

    def __init__(self, path: str) -> None:
        with open(path, "a+b") as file:
            file.truncate(8 * self.WORDS)
            self._map = mmap.mmap(file.fileno(), 8 * self.WORDS)
        self.words = memoryview(self._map).cast("Q")

    def arm(self, point: Point, role: int, number: int) -> None:
        """From now on the process of that role gets signal ``number`` at ``point``, once."""
        words = self.words
        words[ROLE], words[PLACE], words[TIME], words[SIGNAL] = role, point.pack(), point.time, number
        words[FIRED] = words[RECORDING] = 0
        words[SERIAL] += 1

    def record(self, role: int) -> None:
        """From now on the process of that role notes where it comes along."""
        words = self.words
        words[ROLE], words[RECORDED], words[RECORDING], words[FIRED] = role, 0, 1, 0
        words[SERIAL] += 1

    def recorded(self) -> list[Point]:
        """Where it has come along, as points to strike at."""
        words = self.words
        words[RECORDING] = words[ROLE] = 0
        assert RECORDS_AT + words[RECORDED] < self.WORDS
        times: Counter[int] = Counter()
        points = []
        for packed in words[RECORDS_AT : RECORDS_AT + words[RECORDED]]:
            times[packed] += 1
            points.append(Point.unpack(packed, times[packed]))
        return [point for point in points if point.time <= TIMES and point.line]

    def disarm(self) -> None:
        """Nobody is struck any more."""
        self.words[ROLE] = 0

    @property
    def fired(self) -> bool:
        """True once the signal has been sent."""
        return bool(self.words[FIRED])

    def close(self) -> None:
        """Unmaps."""
        self.words.release()
        self._map.close()


class StepTracer:
    """Counts the lines that this process runs; at the point that is armed it calls ``strike``.

    ``strike`` returns false where there was nobody to strike: the next time counts.
    """

    def __init__(
        self,
        words: Any,
        files: frozenset[str],
        strike: Callable[[int], bool],
        *,
        role: int,
        fine: bool = False,
    ) -> None:
        self._words = words
        self._files = {name: _INDEX[name] for name in files}
        self._strike = strike
        self._role = role
        self._fine = fine
        self._serial = 0
        self._times: Counter[int] = Counter()
        self._pending: tuple[FrameType, int, int] | None = None
        self._forbidden = False

    def call(self, frame: FrameType, event: str, arg: object) -> Any:
        """The trace function for new frames."""
        name = frame.f_code.co_filename
        if name not in self._files:
            return None
        if self._fine and name in _INSTRUCTION_FILES:
            frame.f_trace_opcodes = True
        return self.local

    def local(self, frame: FrameType, event: str, arg: object) -> Any:
        """The trace function inside a frame."""
        words = self._words
        if words[ROLE] == self._role and event in ("line", "opcode", "return"):
            index = self._files[frame.f_code.co_filename]
            fine = frame.f_lasti + 1 if event == "opcode" else 0
            self._step(frame, index << 44 | frame.f_lineno << 24 | fine << 8, event)
        return self.local

    def _step(self, frame: FrameType, packed: int, event: str) -> None:
        words = self._words
        if words[SERIAL] != self._serial:
            self._serial = words[SERIAL]
            self._times.clear()
            self._pending = None
        if words[RECORDING]:
            if event != "return":
                self._note(packed)
            return
        if words[FIRED]:
            return
        if self._pending is not None:
            whose, first, last = self._pending
            if whose is frame and (event == "return" or not first <= frame.f_lineno <= last):
                self._fire()
            return
        place = words[PLACE]
        if event == "return" or packed != place & ~0xFF:
            return
        self._times[packed] += 1
        if self._times[packed] < words[TIME]:
            return
        if place & 1:
            self._pending = frame, frame.f_lineno, frame.f_lineno + (place >> 1 & 0x7F)
        else:
            self._fire()

    def _note(self, packed: int) -> None:
        words = self._words
        self._times[packed] += 1
        if self._times[packed] <= TIMES and RECORDS_AT + words[RECORDED] < len(words) - 1:
            words[RECORDS_AT + words[RECORDED]] = packed
            words[RECORDED] += 1

    def _fire(self) -> None:
        self._words[FIRED] = 1
        if not self._strike(self._words[SIGNAL]):
            self._words[FIRED] = 0


@contextmanager
def trace_here(tracer: StepTracer) -> Iterator[None]:
    """Traces this process for a while."""
    before = sys.gettrace()
    sys.settrace(tracer.call)
    try:
        yield
    finally:
        sys.settrace(before)


def strike_myself(number: int) -> bool:
    """The process that comes to the point ends, or stands still, there."""
    os.kill(os.getpid(), number)
    return True


def stores_and_sends(points: Sequence[Point]) -> list[Point]:
    """Of ``points`` those at a statement that stores into memory, sends or receives; before it and after."""
    chosen = []
    for point in points:
        span = _statements(FILES[point.file]).get(point.line)
        if span is not None and not point.instruction:
            chosen += [point, replace(point, after=True, span=min(span, 0x7F))]
    return chosen


def _statements(name: str) -> dict[int, int]:
    """Lines where a statement that stores, sends or receives begins, and how many more lines it takes."""
    found = _parsed.get(name)
    if found is None:
        found = _parsed[name] = {}
        for node in ast.walk(ast.parse(Path(name).read_text())):
            if isinstance(node, _SIMPLE) and _tells(node):
                found[node.lineno] = (node.end_lineno or node.lineno) - node.lineno
    return found


_SIMPLE = ast.Assign | ast.AugAssign | ast.Expr | ast.AnnAssign | ast.Return
_parsed: dict[str, dict[int, int]] = {}


def _tells(statement: ast.stmt) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if any(isinstance(target, ast.Subscript) for target in targets):
        return True
    calls = (node.func for node in ast.walk(statement) if isinstance(node, ast.Call))
    return any(isinstance(func, ast.Attribute) and func.attr in _SENDS for func in calls) or any(
        isinstance(func, ast.Name) and func.id in _SENDS for func in calls
    )


def choose(points: Sequence[Point], most: int, chooser: random.Random) -> list[Point]:
    """At most about ``most`` of ``points``, evenly, from a random offset on; all of them if exhaustive."""
    stride = 1 if EXHAUSTIVE else max(1, -(-len(points) // most))
    return list(points[chooser.randrange(stride) :: stride])


def install() -> None:
    """Traces this process and those that it forks, if a test wants it: the zygote, and so its workers."""
    path = os.environ.get(CONTROL)
    if path is None or not Path(path).exists():
        return
    control, home = Control(path), os.getpid()
    tracers = [
        StepTracer(control.words, ZYGOTE_FILES, strike_myself, role=ZYGOTE),
        StepTracer(control.words, WORKER_FILES, strike_myself, role=WORKER, fine=EXHAUSTIVE),
    ]

    def call(frame: FrameType, event: str, arg: object) -> Any:
        return tracers[os.getpid() != home].call(frame, event, arg)

    sys.settrace(call)


SIGNALS = {"killed": int(signal.SIGKILL), "stopped": int(signal.SIGSTOP)}
