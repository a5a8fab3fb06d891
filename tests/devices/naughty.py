"""Devices that misbehave, each in one way."""

from __future__ import annotations

import logging
import os
import random
import signal
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

from supervisor.device import Context, Device
from supervisor.registers import POSTED, Register, Task
from supervisor.worker.mailbox import Mailbox
from tests.devices.counting import Counting


class RaisesInConstructor(Device):
    def __init__(self) -> None:
        raise ValueError("no such crystal")


class RaisesInStart(Device):
    def start(self, ctx: Context) -> None:
        ctx.logger.warning("about to fail")
        raise OSError("the disk is on fire")


class HangsInStart(Device):
    def start(self, ctx: Context) -> None:
        while True:
            signal.pause()


class WantsOptions(Device):
    @dataclass
    class Options:
        size: int
        label: str = "none"

    SIZE = Register(0)

    def start(self, ctx: Context) -> None:
        self.SIZE = ctx.options.size


class RefusesState(Device):
    """Takes back no state at all."""

    VALUE = Register(0)

    def snapshot(self) -> bytes:
        return b"something"

    def restore(self, data: bytes, version: int) -> None:
        raise ValueError("this state is of no use")


class DiesInRestore(Device):
    """Its own state kills it."""

    VALUE = Register(0)

    def snapshot(self) -> bytes:
        return b"something"

    def restore(self, data: bytes, version: int) -> None:
        os._exit(7)


class Faulty(Counting):
    """Counting, with registers that crash, hang, leave or go mute."""

    state = ("total", "history")
    CRASH = Task(0x100)
    CRASH_POSTED = Task(0x104, write=POSTED)
    HANG = Task(0x108)
    LEAVE = Task(0x10C)
    MUTE = Task(0x110)
    PRINT = Task(0x114)
    HANG_POSTED = Task(0x118, write=POSTED)
    SEGV = Task(0x11C)
    FORK_AWAY = Task(0x120)

    @CRASH.on_write
    def _crash(self, value: int) -> None:
        self.ctx.logger.error("value %d was too much", value)
        raise RuntimeError(f"cannot take {value}")

    @CRASH_POSTED.on_write
    def _crash_posted(self, value: int) -> None:
        raise RuntimeError(f"cannot take {value}")

    @HANG.on_write
    def _hang(self, value: int) -> None:
        while True:
            time.monotonic()

    @HANG_POSTED.on_write
    def _hang_posted(self, value: int) -> None:
        while True:
            time.monotonic()

    @LEAVE.on_write
    def _leave(self, value: int) -> None:
        sys.exit(value)

    @MUTE.on_write
    def _mute(self, value: int) -> None:
        os.close(3)
        while True:
            signal.pause()

    @PRINT.on_write
    def _print(self, value: int) -> None:
        print("printed to stdout")
        print("printed to stderr", file=sys.stderr)
        logging.getLogger("elsewhere").warning("logged elsewhere")

    @SEGV.on_write
    def _segv(self, value: int) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    @FORK_AWAY.on_write
    def _fork_away(self, value: int) -> None:
        """A grandchild keeps every descriptor open for as long as ``value`` ms; the worker dies at once."""
        if os.fork() == 0:
            time.sleep(value / 1000)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)


class Large(Device):
    """A state, replies, outputs and payloads of any size."""

    state = ("blob", "seen")
    SIZE = Register(0x0)
    EMIT = Task(0x4, write=POSTED)
    TAKEN = Register(0x8)
    words_of_data = Register(0x1000, count=2000)

    def __init__(self) -> None:
        self.blob = b""
        self.seen = 0

    @SIZE.on_write
    def _size(self, value: int) -> None:
        self.blob = bytes([value & 0xFF]) * value
        self.words[type(self).SIZE.slot] = value

    @EMIT.on_write
    def _emit(self, value: int) -> None:
        self.ctx.emit(struct.pack("<I", value) + b"." * value)

    def call(self, request: bytes) -> bytes:
        self.seen += len(request)
        return request[::-1]

    def receive(self, data: bytes) -> None:
        self.seen += len(data)
        self.TAKEN = self.seen


class Inquisitive(Device):
    """Tells about its own process."""

    def call(self, request: bytes) -> bytes:
        match request:
            case b"fds":
                links = []
                for name in sorted(os.listdir("/proc/self/fd"), key=int):
                    try:
                        links.append(f"{name}={os.readlink(f'/proc/self/fd/{name}')}")
                    except OSError:
                        continue
                return "\n".join(links).encode()
            case b"pid":
                return str(os.getpid()).encode()
            case b"ctx":
                return f"{self.ctx.restarts} {self.ctx.last_exit}".encode()
            case b"env":
                return os.environ.get("TUBEVISOR_TEST", "").encode()
            case b"limit":
                import resource

                return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]).encode()
            case b"main":
                return repr(getattr(sys.modules["__main__"], "__file__", None)).encode()
        return b"?"


class Unspeakable(Counting):
    """Its state cannot be put into bytes once TRACE was written."""

    def snapshot(self) -> bytes:
        if self.history:
            raise TypeError("this state is beyond words")
        return super().snapshot()


class Sabotaged(Counting):
    """Kills itself at the n-th store into its journal's header or rings; the next generation does not."""

    @dataclass
    class Options:
        kill_at: int

    def start(self, ctx: Context) -> None:
        self._armed = ctx.restarts == 0

    def receive(self, data: bytes) -> None:
        """Arms the sabotage: from here on stores are counted."""
        super().receive(data)
        if self._armed:
            runtime: Any = self.ctx._loop  # type: ignore[attr-defined]
            fuse = _Fuse(self.ctx.options.kill_at)
            committer = runtime._committer
            journal = committer.journal
            committer.words = journal.words = _FusedWords(journal.words, fuse)
            journal.registers = _FusedWords(journal.registers, fuse)
            journal.put_output = fuse.before(journal.put_output)
            journal.write_slot = fuse.before(journal.write_slot)
            if not isinstance(journal.mailbox, Mailbox):
                journal.mailbox.fuse = self.ctx.options.kill_at  # it counts its stores itself
            self._armed = False


class Winding(Counting):
    """Each read of WIND sets its alarm to as many µs of guest time as there were reads."""

    WIND = Register(0x30)

    @WIND.on_read
    def _wind(self) -> int:
        count = self._count(1)
        self.ctx.set_alarm(count * 1000)
        return count


class Mortal(Counting):
    """Each of its processes dies at a store of the compiled mailbox, drawn from 1 to ``stores``."""

    @dataclass
    class Options:
        seed: int
        stores: int

    def start(self, ctx: Context) -> None:
        runtime: Any = ctx._loop  # type: ignore[attr-defined]
        chooser = random.Random(self.ctx.options.seed + ctx.restarts)
        first = (
            1 if ctx.restarts else self.ctx.options.stores
        )  # one that never got ready would be a failed start
        runtime._committer.mailbox.fuse = chooser.randint(first, self.ctx.options.stores)


class _Fuse:
    def __init__(self, kill_at: int) -> None:
        self._left = kill_at

    def burn(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Any) -> Any:
        def fused(*args: Any) -> Any:
            self.burn()
            return function(*args)

        return fused


class _FusedWords:
    """A memoryview whose stores burn a fuse: before each of them the process may die."""

    def __init__(self, words: memoryview, fuse: _Fuse) -> None:
        self._words, self._fuse = words, fuse

    def __getitem__(self, index: Any) -> Any:
        return self._words[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._fuse.burn()
        self._words[index] = value

    def __len__(self) -> int:
        return len(self._words)
