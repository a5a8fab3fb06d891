"""What the tests of the command share: a board of somebody else's package, the command run on it, a census.

The board lies in a directory of its own, as a user's would: a YAML file and beside it the package ``mine``
with devices and machines. The processes that belong to a command are found by a mark in their environment, so
none can hide, whatever session or parent it has.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).parent / "tubevisor"
DEADLINE_S = 30.0
LOOK_EVERY_S = 0.005
MARK = "TUBEVISOR_TEST_MARK"

PACKAGE = '''
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from supervisor import Device
from supervisor.registers import Register, Task


def say(what):
    with open(os.environ["TMPDIR"] + "/../said", "a") as said:
        said.write(what + "\\n")


class Lamp(Device):
    """LIT is plain; HANG never returns; CRASH raises."""

    LIT = Register(0x0)
    HANG = Task(0x4)
    CRASH = Task(0x8)

    def start(self, ctx):
        say(f"{ctx.name} started")

    @HANG.on_write
    def _hang(self, value):
        say("hangs")
        while True:
            signal.pause()

    @CRASH.on_write
    def _crash(self, value):
        raise RuntimeError(f"a fuse of {value} A has blown")

    def stop(self):
        say(f"{self.ctx.name} stopped")


class Raises(Device):
    def __init__(self):
        raise ValueError("no such lamp")


class HangsInStart(Device):
    def start(self, ctx):
        say("hangs in start")
        while True:
            signal.pause()


class HangsInStop(Device):
    def stop(self):
        say("hangs in stop")
        while True:
            signal.pause()


class Machine:
    """Does what its option ``do`` says."""

    def __init__(self, supervisor, *, do="leave", code=0, **options):
        self.sup, self.do, self.code, self.options = supervisor, do, code, options
        if do == "raise in constructor":
            raise ValueError("no such machine")

    def run(self):
        getattr(self, self.do.replace(" ", "_"))()
        return self.code

    def leave(self):
        self.sup["lamp"].write(0, 4, 1)
        print("lamp:", self.sup["lamp"].read(0, 4), flush=True)

    def dispatch(self):
        say("dispatches")
        while True:
            self.sup.dispatch(1)

    def sleep(self):
        say("sleeps")
        time.sleep(1000)

    def hang(self):
        self.sup["lamp"].write(4, 4, 1)

    def crash(self):
        self.sup["lamp"].write(8, 4, 13)

    def crash_and_wait(self):
        try:
            self.sup["lamp"].write(8, 4, 13)
        except Exception as error:
            say(f"{type(error).__name__}")
        self.dispatch()

    def fail(self):
        raise KeyError("what the machine looked for")

    def chatter(self):
        while True:
            print("chatter", flush=True)
            self.sup.dispatch(0)
'''

LAMP = 'name: lamp, device: "mine.parts:Lamp", backoff: {max: 0s}'


class Board:
    """A user's directory with a YAML file and a package, and what the command says and leaves there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.temporary = directory / "tmp"
        self.said = directory / "said"
        self.mark = uuid.uuid4().hex
        self.config = directory / "board.yaml"
        self._shared_memory = set(os.listdir("/dev/shm"))
        self.temporary.mkdir()
        package = directory / "mine"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "parts.py").write_text(PACKAGE)

    def write(self, *devices: str, machine: str = "", supervisor: str = "", extra: str = "") -> Path:
        """Writes the YAML: each of ``devices`` and ``machine`` is the inside of a flow mapping."""
        lines = ["name: board"]
        if supervisor:
            lines.append(f"supervisor: {{{supervisor}}}")
        if devices:
            lines += ["devices:", *(f"  - {{{device}}}" for device in devices)]
        if machine:
            lines.append(f'machine: {{class: "mine.parts:Machine", options: {{{machine}}}}}')
        self.config.write_text("\n".join([*lines, extra, ""]))
        return self.config

    def run(self, *arguments: object, stdin: str | None = None, cwd: Path | None = None) -> Ended:
        """Runs the command to its end."""
        with self.start(*arguments, stdin=stdin, cwd=cwd) as command:
            command.wait()
        return Ended(command)

    def start(
        self, *arguments: object, stdin: str | None = None, cwd: Path | None = None, **options: Any
    ) -> Command:
        """Starts the command as a shell would: in a process group of its own."""
        return Command(self, [str(argument) for argument in arguments], stdin, cwd, options)

    def processes(self) -> set[int]:
        """Pids of all live processes that bear the mark."""
        found = set()
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if f"{MARK}={self.mark}".encode() in Path(f"/proc/{name}/environ").read_bytes():
                        found.add(int(name))
        return found

    def has_said(self, what: str) -> bool:
        """True once a device or the machine has written ``what``."""
        return self.said.exists() and what in self.said.read_text().splitlines()

    def check_nothing_is_left(self) -> None:
        """No process, no file in the folder for temporary ones, no shared memory."""
        wait_until(lambda: not self.processes(), "processes are left", within_s=2)
        left = sorted(path.name for path in self.temporary.iterdir())
        assert left == []
        new = {name for name in set(os.listdir("/dev/shm")) - self._shared_memory if "tubevisor" in name}
        assert new == set()


class Command:
    """A running command. Its output goes into files, so it never waits for us."""

    def __init__(
        self, board: Board, arguments: list[str], stdin: str | None, cwd: Path | None, options: dict[str, Any]
    ) -> None:
        self.board = board
        self.stdout = board.directory / f"stdout.{uuid.uuid4().hex}"
        self.stderr = self.stdout.with_name(self.stdout.name.replace("stdout", "stderr"))
        environment = {**os.environ, MARK: board.mark, "TMPDIR": str(board.temporary)}
        environment.pop("PYTHONPATH", None)
        typed = board.directory / "stdin"
        typed.write_text(stdin or "")
        with open(typed) as given, open(self.stdout, "w") as out, open(self.stderr, "w") as err:
            how: dict[str, Any] = {"stdin": given, "stdout": out, "stderr": err, "process_group": 0}
            self.process = subprocess.Popen(
                [COMMAND, *arguments],
                cwd=cwd or board.directory,
                env=environment,
                **{**how, **options},
            )
        self._pidfd = os.pidfd_open(self.process.pid)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._pidfd)

    def ended(self, timeout_s: float = 0.0) -> bool:
        """True if the command has ended; waits at most so long for it."""
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])

    def wait(self, within_s: float = DEADLINE_S) -> int:
        """Waits for the end; returns the exit code."""
        assert self.ended(within_s), f"still running:\n{self.stderr.read_text()}"
        return self.process.wait()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for ``condition`` while the command runs."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {DEADLINE_S} s: {what}"
            assert not self.ended(LOOK_EVERY_S), f"ended before {what}:\n{self.stderr.read_text()}"

    def wait_until_said(self, what: str) -> None:
        """Waits until a device or the machine has written ``what``."""
        self.wait_until(lambda: self.board.has_said(what), what)

    def wait_until_in_charge(self) -> None:
        """Waits until the command has its first signal handlers: before, it is Python that starts."""
        self.wait_until(lambda: bool(self._caught() & 1 << (signal.SIGTERM - 1)), "signal handlers")

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Signals the process group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def _caught(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)


class Ended:
    """How a command ended and what it printed."""

    def __init__(self, command: Command) -> None:
        self.code = command.process.returncode
        self.stdout = command.stdout.read_text()
        self.stderr = command.stderr.read_text()


def wait_until(condition: Callable[[], bool], what: str, *, within_s: float = DEADLINE_S) -> None:
    """Waits for ``condition``."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        select.select([], [], [], LOOK_EVERY_S)


def assert_silent_end(ended: Ended, code: int) -> None:
    """The exit code, and not a word of Python's own on stderr."""
    assert ended.code == code, ended.stderr
    for noise in ("Traceback", "Exception ignored", "KeyboardInterrupt", "Aborted"):
        assert noise not in ended.stderr, ended.stderr
