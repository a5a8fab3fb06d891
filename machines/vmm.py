"""A virtual machine monitor in a process of its own, whose virtio devices are the supervisor's.

What all VMMs have in common, which is what a machine owes its board:

1. the VMM is started with a socket for each device that has ``vhost_user``, and the guest's serial port on
   pipes of ours, which are the board's console (:mod:`machines.console`);
2. the supervisor's reactor runs under asyncio, beside the VMM, until the VMM's process ends;
3. the verdict: a guest that was given a workload says what it has seen, and the disk's image must be what
   the guest believes it to be. The last line is ``kills=N io_errors=0 hash=ok``.

The VMM dies with us, even if we are killed, and so does whatever it has started: it has a process group of
its own, and a guardian, which waits for our end of a pipe to close, kills that group.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TextIO, TypeVar

import msgspec

from machines.console import QUIET_NS, Console
from supervisor import Supervisor
from supervisor.errors import LocalError
from supervisor.events import DeviceDied, ExitKind, Record

__all__ = ["SerialPipes", "Verdict", "Vmm", "VmmOptions", "read_options"]

EXIT_FAILED: Final = 1
SHELL_PROMPT = re.compile(rb"[#$] (?:\x1b\[6n)?$")  # busybox then asks the terminal where the cursor is
READ_BYTES = 65536
SAID_BYTES = 4096  # of the guest's words, kept to find its verdict in: it is among the last of them
END_S = 2.0  # for a VMM that is asked to end
_SAID = re.compile(r"guest: io_errors=(\d+) failed=(\d+) disk=([0-9a-f]{64})")
GUARDIAN: Final = ("/bin/sh", "-c", 'read -r group; read -r _; kill -s KILL -- "-$group"')


class VmmOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each VMM can be told in ``machine.options``.

    ``append`` goes to the kernel's command line, ``args`` to the VMM's; ``verdict`` names the disk whose
    image has to be what the guest says of it in the end.
    """

    kernel: str = ""
    initrd: str = ""
    append: str = ""
    memory: str = "256M"
    args: list[str] = []
    verdict: str | None = None


_Options = TypeVar("_Options", bound=VmmOptions)


def read_options(kind: type[_Options], machine: str, options: Mapping[str, Any]) -> _Options:
    """``options`` as ``kind``. Raises :class:`LocalError` that says which cannot be."""
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        there_are = ", ".join(field.name for field in msgspec.structs.fields(kind))
        raise LocalError(f"machine {machine}: options: {error}; there are {there_are}") from error


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a workload has come to. ``same`` says that the image is what the guest believes it to be."""

    kills: int
    io_errors: int
    failed: int
    same: bool

    @property
    def good(self) -> bool:
        """Nothing was lost, doubled or refused."""
        return self.same and not self.io_errors and not self.failed

    def __str__(self) -> str:
        differs = f" blocks_differ={self.failed}" if self.failed else ""
        return f"kills={self.kills} io_errors={self.io_errors} hash={'ok' if self.same else 'WRONG'}{differs}"


class SerialPipes:
    """The guest's serial port: two pipes whose other ends are the VMM's standard input and output."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._sup = supervisor
        self._sink: Callable[[bytes], None] | None = None
        self._typed: deque[bytes] = deque()
        self.stdin, self._to_guest = os.pipe2(os.O_CLOEXEC)
        self._from_guest, self.stdout = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._to_guest, False)
        os.set_blocking(self._from_guest, False)
        self.said = b""
        supervisor.watch(self._from_guest, lambda _mask: self.hear())

    def started(self) -> None:
        """The VMM has its ends now: ours of them are closed."""
        os.close(self.stdin)
        os.close(self.stdout)
        self.stdin = self.stdout = -1

    def on_output(self, sink: Callable[[bytes], None] | None) -> None:
        """Registers who takes what the guest prints."""
        self._sink = sink

    def send(self, data: bytes) -> None:
        """Types for the guest. What it does not take now it gets when it has said something."""
        self._typed.append(data)
        self._type()

    def hear(self) -> None:
        """Takes what the guest has printed."""
        while True:
            try:
                data = os.read(self._from_guest, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                self._sup.unwatch(self._from_guest)
                break
            self.said = (self.said + data)[-SAID_BYTES:]
            if self._sink is not None:
                self._sink(data)
        self._type()

    def _type(self) -> None:
        while self._typed:
            try:
                sent = os.write(self._to_guest, self._typed[0])
            except (BlockingIOError, BrokenPipeError):
                return
            rest = self._typed.popleft()[sent:]
            if rest:
                self._typed.appendleft(rest)

    def close(self) -> None:
        """Gives the pipes back."""
        self._sup.unwatch(self._from_guest)
        for fd in (self.stdin, self.stdout, self._to_guest, self._from_guest):
            if fd >= 0:
                os.close(fd)


class Vmm(ABC):
    """One run of a VMM. ``run`` returns the exit code; ``serve`` is the same inside somebody's event loop."""

    def __init__(
        self,
        supervisor: Supervisor,
        options: VmmOptions,
        *,
        stdin: Any = None,
        stdout: TextIO | None = None,
    ) -> None:
        self.sup = supervisor
        self._image = _image_of(supervisor, options.verdict) if options.verdict else None
        self._stdin = stdin
        self._stdout = stdout
        self._deaths = 0
        self.verdict: Verdict | None = None
        self.pid: int | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """The VMM's command line. Raises :class:`LocalError` where something is missing."""

    def handed_down(self) -> tuple[int, ...]:
        """Descriptors that the VMM inherits."""
        return ()

    async def attend(self) -> None:
        """Runs beside the VMM, from its start on, and is cancelled when that has ended; must not raise."""
        return

    async def ask_to_end(self) -> None:
        """Asks the VMM to end, where it can be asked; it is killed otherwise."""
        return

    def run(self) -> int:
        """Boots the guest; returns once the VMM has ended. Raises what a signal makes ``dispatch`` raise."""
        return asyncio.run(self.serve())

    async def serve(self) -> int:
        """See :meth:`run`."""
        command = self.command()
        self.sup.on_event(self._count)
        line = SerialPipes(self.sup)
        try:
            with _Process.start(command, line, self.handed_down()) as process:
                self.pid = process.pid
                console = Console(self.sup, line, stdin=self._stdin, stdout=self._stdout, prompt=SHELL_PROMPT)
                with console:
                    code = await self._accompany(process, console)
                    line.hear()
            return self._judge(code, line.said)
        finally:
            line.close()

    async def _accompany(self, process: _Process, console: Console) -> int:
        """Until the VMM has ended; its exit code."""
        devices: asyncio.Future[Any] = asyncio.ensure_future(self.sup.run())
        ended = asyncio.ensure_future(process.gone())
        left = asyncio.ensure_future(_type_ahead(console))
        attending = asyncio.ensure_future(self.attend())
        try:
            await asyncio.wait((devices, ended, left), return_when=asyncio.FIRST_COMPLETED)
            if not devices.done():
                if ended.done():
                    return process.end()
                async with asyncio.timeout(END_S):
                    await self.ask_to_end()
                await asyncio.wait({ended, devices}, timeout=END_S)
                process.end()
                return 0  # the user has left
            devices.result()  # what a signal has made it raise
            return EXIT_FAILED  # the devices have ended under the guest
        finally:
            tasks = (devices, ended, left, attending)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _count(self, record: Record) -> None:
        if isinstance(record, DeviceDied) and record.exit.kind is ExitKind.SIGNALED:
            self._deaths += 1

    def _judge(self, code: int, said: bytes) -> int:
        if self._image is None:
            return code
        found = _SAID.search(said.decode(errors="replace"))
        if found is None:
            print(f"the guest has ended without a verdict, the VMM with code {code}", file=sys.stderr)
            return EXIT_FAILED
        with self._image.open("rb") as image:
            same = hashlib.file_digest(image, "sha256").hexdigest() == found[3]
        self.verdict = Verdict(self._deaths, int(found[1]), int(found[2]), same)
        print(self.verdict, file=sys.stderr)
        return code or (0 if self.verdict.good else EXIT_FAILED)


class _Process:
    """The VMM's process and whatever it has started."""

    def __init__(self, process: subprocess.Popen[bytes], guardian: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._guardian = guardian
        self._pidfd = os.pidfd_open(process.pid)

    @classmethod
    def start(cls, command: list[str], line: SerialPipes, inherited: tuple[int, ...]) -> Self:
        guardian = subprocess.Popen(GUARDIAN, stdin=subprocess.PIPE, start_new_session=True)
        assert guardian.stdin is not None  # noqa: S101 - it is a pipe
        try:
            process = subprocess.Popen(
                command, stdin=line.stdin, stdout=line.stdout, pass_fds=inherited, start_new_session=True
            )
        except OSError as error:
            guardian.kill()
            guardian.communicate()
            raise LocalError(f"{command[0]} cannot be started: {error.strerror}") from error
        guardian.stdin.write(b"%d\n" % process.pid)
        guardian.stdin.flush()
        line.started()
        return cls(process, guardian)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def gone(self) -> None:
        """Returns when it has ended."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.add_reader(self._pidfd, ended.cancel)
        try:
            await asyncio.wait({ended})
        finally:
            loop.remove_reader(self._pidfd)

    def end(self) -> int:
        """Ends it, if it has not ended, and what it has started; its exit code, as a shell tells it."""
        if self._process.returncode is None:  # its number is its own until it is waited for
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._guardian.kill()
        self._guardian.communicate()
        self.end()
        os.close(self._pidfd)


async def _type_ahead(console: Console) -> None:
    """Types what there is to type, whenever the guest waits for it; returns when the user has left."""
    while not console.ended:
        await asyncio.sleep(QUIET_NS / 1e9)
        console.type_ahead(time.monotonic_ns(), idle=False)


def _image_of(supervisor: Supervisor, disk: str) -> Path:
    for device in supervisor.config.devices:
        if device.name == disk and "image" in device.options:
            return Path(device.options["image"])
    raise LocalError(f"machine: options: verdict: there is no disk {disk!r} with an image")
