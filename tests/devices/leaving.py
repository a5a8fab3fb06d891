"""A device that leaves with any exit status, or finds that there is nothing for it to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from supervisor.device import Context, Device, Ignore
from supervisor.registers import Register, Task


class Leaving(Device):
    """``EXIT`` ends the process with that code; it ignores its start while the file ``unless`` is there."""

    @dataclass
    class Options:
        unless: str = ""
        stop_code: int = 0

    STARTS = Register(0)
    EXIT = Task(4)
    state = ("starts",)

    def __init__(self) -> None:
        self.starts = 0

    def start(self, ctx: Context) -> None:
        if ctx.options.unless and Path(ctx.options.unless).exists():
            raise Ignore(f"{ctx.options.unless} is there")

    def receive(self, data: bytes) -> None:
        os._exit(data[0])

    def stop(self) -> None:
        if self.ctx.options.stop_code:
            os._exit(self.ctx.options.stop_code)

    @EXIT.on_write
    def _exit(self, value: int) -> None:
        os._exit(value)
