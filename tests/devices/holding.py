"""Devices that hold descriptors, in ways that do and do not stand in their successor's."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import ClassVar

from supervisor.device import Context, Device
from supervisor.registers import Register


class Holding(Device):
    """``how``: a port that only one can have, a file that is kept, or nothing."""

    PID = Register(0)

    @dataclass
    class Options:
        how: str
        port: int = 0

    def start(self, ctx: Context) -> None:
        match ctx.options.how:
            case "port":
                self._socket = socket.create_server(("127.0.0.1", ctx.options.port))
            case "kept" if "file" not in ctx.passed:
                ctx.keep("file", os.memfd_create("kept"))

    @PID.on_read
    def _pid(self) -> int:
        return os.getpid()


class Exclusive(Holding):
    """Says that it is, and holds nothing that could be seen."""

    exclusive: ClassVar[bool | None] = True


class Large(Holding):
    """Has much memory, all of it in use."""

    BYTES: ClassVar[int] = 512 << 20

    def start(self, ctx: Context) -> None:
        self._memory = bytearray(self.BYTES)
        self._memory[::4096] = b"x" * (self.BYTES // 4096)


class Growing(Holding):
    """Has a state that outgrows its journal, which is replaced, and with it the mutex in it."""

    state = ("_said",)

    def start(self, ctx: Context) -> None:
        self._said = b""

    def call(self, request: bytes) -> bytes:
        self._said += request
        return len(self._said).to_bytes(4, "little")
