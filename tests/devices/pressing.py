"""A device that is slow, large, loud or short-lived on request, for tests of what happens under pressure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass

import msgspec

from supervisor.datasheet import RegisterEntry, RegisterMap
from supervisor.device import Context, Device
from supervisor.messages_pb2 import Ready
from supervisor.registers import POSTED, Register, Task
from supervisor.worker import assignment


def _spend(seconds: float) -> None:
    """Uses up time without giving up the processor to a signal's mercy."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        os.sched_yield()


class Pressing(Device):
    """COUNT counts everything that was handled."""

    @dataclass
    class Options:
        restart_takes_ms: int = 0
        map: str = ""

    state = ("count", "ballast")

    COUNT = Register(0x0)
    SLOW = Task(0x4, write=POSTED)  # takes so many ms
    SHOUT = Task(0x8, write=POSTED)  # so many KiB

    def __init__(self) -> None:
        self.count = 0
        self.ballast = b""

    def start(self, ctx: Context) -> None:
        if ctx.restarts:
            _spend(ctx.options.restart_takes_ms / 1000)
        if ctx.options.map:
            lie = RegisterEntry("LIE", 0, 10**10, 4, 4, 0, 1, 0)
            if ctx.options.map == "slot":
                lie = RegisterEntry("LIE", 0, 1, 4, 4, 10**6, 1, 0)
            packed = msgspec.msgpack.encode(RegisterMap((lie,), 3))
            assignment._descriptions[type(self)] = Ready(register_map_msgpack=packed)

    def _counted(self) -> bytes:
        self.count += 1
        self.COUNT = self.count
        return str(self.count).encode()

    @SLOW.on_write
    def _slow(self, value: int) -> None:
        _spend(value / 1000)
        self._counted()

    @SHOUT.on_write
    def _shout(self, value: int) -> None:
        self.ctx.emit(b"!" * 1024 * value)
        self._counted()

    def receive(self, data: bytes) -> None:
        _spend(0.001)
        self._counted()

    def call(self, request: bytes) -> bytes:
        command, _, rest = request.partition(b" ")
        match command:
            case b"die":
                os._exit(7)
            case b"grow":
                self.ballast = b"x" * int(rest)
            case b"take":
                _spend(float(rest))
            case b"family":
                subprocess.Popen(["sleep", "60"])
            case b"mumble":
                sys.stderr.write("last words without an end")
                sys.stderr.flush()
                os._exit(9)
        return self._counted()
