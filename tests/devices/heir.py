"""Devices that tell which process has run their code. For workers to import."""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar

from supervisor.device import Context, Device
from supervisor.registers import POSTED, Register, Task
from supervisor.worker import assignment, committer, journal, runtime, session, succession
from tests.devices.counting import Counting

WATCHED = {module.__file__ for module in (assignment, committer, journal, runtime, session, succession)}


class Diary(Device):
    """Each process that starts it is in ``processes``; ``call`` returns them, with how the last one ended."""

    state: ClassVar[tuple[str, ...]] = ("processes", "count")

    COUNT = Register(0x00)
    ADD = Task(0x04, write=POSTED)
    KILL = Task(0x08)
    GROW = Task(0x0C)
    KEEP = Task(0x10)

    def __init__(self) -> None:
        self.processes: list[int] = []
        self.count = 0
        self.made_by = os.getpid()

    def start(self, ctx: Context) -> None:
        self.started_by = os.getpid()
        self.started_ns = ctx.now_ns

    def restore(self, data: bytes, version: int) -> None:
        super().restore(data, version)
        self.processes = [*self.processes, os.getpid()][-8:]

    @ADD.on_write
    def _add(self, value: int) -> None:
        self.count += value
        self.COUNT = self.count

    @KILL.on_write
    def _kill(self, value: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @GROW.on_write
    def _grow(self, value: int) -> None:
        self.processes += [0] * value

    @KEEP.on_write
    def _keep(self, value: int) -> None:
        self.ctx.keep(f"thing{value}", os.memfd_create("test thing"))

    def call(self, request: bytes) -> bytes:
        if request == b"kept":
            return " ".join(sorted(self.ctx.passed)).encode()
        if request == b"born":
            return str(self.started_ns).encode()
        known = (self.made_by, self.started_by, self.ctx.restarts, self.ctx.last_exit, self.processes)
        return repr(known).encode()


class Fragile(Diary):
    """Does not survive the restoration in its second and third process."""

    def restore(self, data: bytes, version: int) -> None:
        super().restore(data, version)
        if self.ctx.restarts in (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal(Counting):
    """Every other process dies before one of its first lines from ``start`` on, drawn at random."""

    @dataclass
    class Options:
        lines: int = 150

    def start(self, ctx: Context) -> None:
        self._left = ctx.options.lines
        self._last = random.randint(-self._left, self._left)
        if ctx.restarts:
            sys.settrace(self._on_call)
            frame: FrameType | None = sys._getframe()
            while frame is not None:
                frame.f_trace = self._on_line if frame.f_code.co_filename in WATCHED else None
                frame = frame.f_back

    def _on_call(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._on_line if frame.f_code.co_filename in WATCHED else None

    def _on_line(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self._left -= 1
            if self._left == max(self._last, 0):
                sys.settrace(None)
                if self._left:
                    os.kill(os.getpid(), signal.SIGKILL)
        return self._on_line
