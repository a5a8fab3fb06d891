"""Devices that obey a stop at once, late, or not at all, and tell the order in which things happen."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from supervisor.device import Context, Device
from supervisor.registers import Register, Task


class Stopping(Device):
    """Appends ``name+`` to the diary at its start and ``name-`` at its stop."""

    @dataclass
    class Options:
        diary: str
        linger_ms: int = 0
        fail_starts_after: int = -1

    PID = Register(0)
    EXIT = Task(4)

    def start(self, ctx: Context) -> None:
        self._note("+")
        limit = ctx.options.fail_starts_after
        if 0 <= limit <= ctx.restarts:
            raise RuntimeError("not this time")
        self.PID = os.getpid()

    def stop(self) -> None:
        deadline = time.monotonic() + self.ctx.options.linger_ms / 1000
        while time.monotonic() < deadline:
            signal.sigtimedwait([], 0.01)
        self._note("-")

    @EXIT.on_write
    def _exit(self, value: int) -> None:
        os._exit(value)

    def _note(self, sign: str) -> None:
        with open(self.ctx.options.diary, "a") as diary:
            diary.write(f"{self.ctx.name}{sign}\n")

    def restore(self, data: bytes, version: int) -> None:
        """PID is this process's own; the runtime has put the old one back."""
        self.PID = os.getpid()
