"""QEMU without a guest: its real front-ends, and a test in the place of the processor.

The machine runs two instructions of firmware, cli and hlt, under TCG; everything else is done through
``-qtest``, which reads and writes ports and registers, and through the guest's memory, which is shared with
the test. So the devices that a test sees are QEMU's own ``vhost-user-*-pci``, and no guest has to boot.

One thread: whoever waits for QEMU lets the supervisor go on meanwhile.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from supervisor.host import Supervisor
from tests.vhost_user.driver import GUEST_BASE, Guest

QEMU = shutil.which("qemu-system-x86_64")
RAM_BYTES = 64 << 20
FIRST_FREE = 1 << 20  # below is what a PC has holes and windows in
DEADLINE_S = 30.0
LOOK_S = 0.002  # between two looks at memory that QEMU or a worker writes without telling anybody
HLT = b"\xf4" * 0xFFF0 + b"\xfa\xf4\xeb\xfd" + b"\xf4" * 12  # cli; hlt; and again, at the reset vector


class Line:
    """A socket on which each request is a line and so is each answer."""

    def __init__(self, sock: socket.socket, pump: Callable[[float, Sequence[int]], None]) -> None:
        self._sock = sock
        self._pump = pump
        self._bytes = bytearray()
        sock.setblocking(False)

    def send(self, line: str) -> None:
        left = memoryview(line.encode() + b"\n")
        deadline = time.monotonic() + DEADLINE_S
        while left:
            try:
                left = left[self._sock.send(left) :]
            except BlockingIOError:
                self._pump(LOOK_S, [])
                assert time.monotonic() < deadline, f"QEMU does not read: {line[:80]}"

    def receive(self) -> str:
        """The next line; the supervisor goes on until it is there."""
        deadline = time.monotonic() + DEADLINE_S
        while b"\n" not in self._bytes:
            try:
                came = self._sock.recv(65536)
            except BlockingIOError:
                assert time.monotonic() < deadline, "QEMU does not answer"
                self._pump(0.1, [self._sock.fileno()])
                continue
            except ConnectionResetError:
                came = b""
            assert came, "QEMU is gone"
            self._bytes += came
        line, _, rest = self._bytes.partition(b"\n")
        self._bytes = rest
        return line.decode()


class Qemu:
    """A PC with ``devices``: pairs of QEMU's name of a front-end and the path of its socket."""

    def __init__(
        self,
        sup: Supervisor,
        folder: Path,
        devices: Sequence[tuple[str, Path]],
        *extra: str,
        memory: str = "",
    ) -> None:
        if QEMU is None:
            pytest.skip("no qemu-system-x86_64: install qemu-system-x86")
        self.sup = sup
        self.events: list[str] = []
        ends = [socket.socketpair(), socket.socketpair()]
        test, control = (theirs.fileno() for _ours, theirs in ends)
        (folder / "hlt.bin").write_bytes(HLT)
        with (folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(QEMU, "-nodefaults", "-no-user-config", "-display", "none"),
                    *("-bios", str(folder / "hlt.bin"), "-qtest", "chardev:qtest", "-qtest-log", "none"),
                    *("-machine", "pc,accel=tcg,memory-backend=ram", "-m", memory or f"{RAM_BYTES >> 20}M"),
                    *("-object", f"memory-backend-memfd,id=ram,size={RAM_BYTES},share=on"),
                    *("-chardev", f"socket,id=qtest,fd={test}"),
                    *("-chardev", f"socket,id=qmp,fd={control}", "-mon", "chardev=qmp,mode=control"),
                    *_front_ends(devices),
                    *extra,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(test, control),
            )  # fmt: skip
        for _ours, theirs in ends:
            theirs.close()
        self._sockets = [ours for ours, _theirs in ends]
        self._test, self._control = (Line(ours, self.pump) for ours in self._sockets)
        self._maps: list[mmap.mmap] = []
        self._greet(folder / "qemu.log")
        self.guest = Guest(memory=self.map_memory(RAM_BYTES)[GUEST_BASE:])
        self.guest.allocate(FIRST_FREE - GUEST_BASE)

    def _greet(self, log: Path) -> None:
        try:
            assert "QMP" in self._control.receive()
            self.qmp("qmp_capabilities")
        except AssertionError as error:
            self.close()
            raise AssertionError(log.read_text(errors="replace")) from error

    # -- waiting -----------------------------------------------------------------------------------

    def pump(self, seconds: float = LOOK_S, fds: Sequence[int] = ()) -> None:
        """Lets the supervisor go on, for so long or until something has happened there or at ``fds``."""
        own = self.sup.next_timeout()
        wait = seconds if own is None else min(own, seconds)
        select.select([self.sup.fileno(), *fds], [], [], wait)
        self.sup.dispatch(0)

    def until(self, what: Callable[[], Any], deadline_s: float = DEADLINE_S) -> None:
        """Lets the supervisor go on until ``what`` is true."""
        deadline = time.monotonic() + deadline_s
        while not what():
            assert time.monotonic() < deadline, "it does not come about"
            self.pump()

    # -- what a processor would do -----------------------------------------------------------------

    def ask(self, *words: object) -> str:
        """One command of qtest; returns what stands behind OK."""
        self._test.send(" ".join(hex(word) if isinstance(word, int) else str(word) for word in words))
        while (answer := self._test.receive()).startswith("IRQ"):
            pass
        assert answer.startswith("OK"), f"{words}: {answer}"
        return answer[3:]

    def read(self, address: int, size: int) -> int:
        """A register, by one access of ``size`` bytes."""
        return int(self.ask(f"read{'_bw_l___q'[size]}", address), 16)

    def write(self, address: int, size: int, value: int) -> None:
        self.ask(f"write{'_bw_l___q'[size]}", address, value)

    def config(self, slot: int, offset: int, value: int | None = None) -> int:
        """Reads, or writes, four bytes of the PCI configuration of the device in ``slot``."""
        self.ask("outl", 0xCF8, 1 << 31 | slot << 11 | offset)
        if value is None:
            return int(self.ask("inl", 0xCFC), 16)
        self.ask("outl", 0xCFC, value)
        return value

    # -- what an operator would do -----------------------------------------------------------------

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One command; returns its result. Events on the way are kept in ``events``, by name."""
        names = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._control.send(json.dumps({"execute": command, "arguments": names}))
        while True:
            answer = json.loads(self._control.receive())
            if "event" in answer:
                self.events.append(answer["event"])
                continue
            assert "return" in answer, f"{command}: {answer}"
            return answer["return"]

    def is_connected(self) -> bool:
        """True if QEMU has no socket that it takes for disconnected, and still answers."""
        lines = self.qmp("query-chardev")
        return not any(one["filename"].startswith("disconnected") for one in lines)

    # -- memory ------------------------------------------------------------------------------------

    def map_memory(self, size: int) -> memoryview:
        """The memory of QEMU's backend of ``size`` bytes: its memfd, mapped here as well."""
        folder = Path(f"/proc/{self._process.pid}/fd")
        for path in folder.iterdir():
            if "memory-backend-memfd" in os.readlink(path) and path.stat().st_size == size:
                with path.open("r+b") as file:
                    mapping = mmap.mmap(file.fileno(), size)
                self._maps.append(mapping)
                return memoryview(mapping)
        raise AssertionError(f"QEMU has no memory of {size} bytes")

    def close(self) -> None:
        """Ends QEMU. Views of its memory must have been dropped."""
        self._process.kill()
        self._process.wait()
        for sock in self._sockets:
            sock.close()


def _front_ends(devices: Sequence[tuple[str, Path]]) -> list[str]:
    words = []
    for index, (name, path) in enumerate(devices):
        words += ["-chardev", f"socket,id=c{index},path={path}"]
        words += ["-device", f"{name},chardev=c{index},addr={index + 4:#x}"]
    return words
