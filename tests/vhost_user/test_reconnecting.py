"""The specification's own way: a VMM that reconnects, as client or as server, whoever of the two was away.

The supervisor is a command of its own here and is killed, with all its workers; QEMU boots a real guest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from supervisor.vhost_user.frontend import FrontEnd
from tests.command.board import Board, Ended, wait_until
from tests.command.conftest import board as _board
from tests.vhost_user.guests import DEADLINE_S, GUESTS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(280)]
board = _board

MIB = 16
SAID = re.compile(r"guest: io_errors=(\d+) failed=(\d+) disk=([0-9a-f]{64})")


def _write(board: Board, *, connect: bool) -> Path:
    """A board with a disk; returns its image."""
    image = board.directory / "disk.img"
    image.touch()
    os.truncate(image, MIB << 20)
    board.config.write_text(
        f'devices: [{{name: disk0, device: virtio.blk, options: {{image: "{image}"}}, '
        f"vhost_user: {{socket: disk0.sock, connect: {str(connect).lower()}}}}}]\n"
    )
    return image


class Guest:
    """QEMU, started by hand as an operator would."""

    def __init__(self, board: Board, chardev: str) -> None:
        if shutil.which("qemu-system-x86_64") is None or not (GUESTS / "vmlinuz").exists():
            pytest.skip("no QEMU or no guest: install qemu-system-x86, run make guests")
        self.output = board.directory / "guest.log"
        words = [
            *("qemu-system-x86_64", "-accel", "tcg", "-m", "256M", "-nodefaults", "-display", "none"),
            *("-serial", "stdio", "-no-reboot", "-machine", "pc,memory-backend=mem"),
            *("-object", "memory-backend-memfd,id=mem,size=256M,share=on"),
            *("-kernel", str(GUESTS / "vmlinuz"), "-initrd", str(GUESTS / "initramfs-qemu.gz")),
            *("-append", f"console=ttyS0 quiet panic=-1 tv.rounds=3 tv.mib={MIB}"),
            *("-chardev", f"socket,id=disk0,path={board.directory}/disk0.sock,{chardev}"),
            *("-device", "vhost-user-blk-pci,chardev=disk0"),
        ]
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _until(guest: Guest, condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: {guest.text[-2000:]}"
        assert guest.process.poll() is None or condition(), guest.text[-2000:]
        try:
            guest.process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue


def _has_said(guest: Guest, what: str) -> bool:
    return what in guest.text


@pytest.mark.parametrize("role", ["server", "client"])
def test_given_supervisor_killed_and_started_again_the_guest_notices_nothing(board: Board, role: str) -> None:
    """Twice in the middle of its work; the in-flight log is QEMU's, and the next one goes on by it."""
    image = _write(board, connect=role == "server")
    chardev = "server=on,wait=on" if role == "server" else "reconnect=1"
    command = board.start("run", board.config)
    guest = None
    try:
        if role == "client":
            wait_until((board.directory / "disk0.sock").exists, "nobody listens")
        guest = Guest(board, chardev)
        _until(guest, lambda: "guest: ready" in guest.text, "the guest is not up")
        for number in range(2):
            done = f"round {number + 1} of"
            _until(guest, partial(_has_said, guest, done), done)
            command.process.send_signal(signal.SIGKILL)
            command.wait()
            wait_until(lambda: not board.processes(), "workers are left", within_s=2)
            command = board.start("run", board.config)
        _until(guest, lambda: SAID.search(guest.text), "no verdict")
        told = SAID.search(guest.text)
        assert told is not None
        assert told.groups() == ("0", "0", hashlib.sha256(image.read_bytes()).hexdigest()), guest.text[-2000:]
    finally:
        if guest is not None:
            guest.end()
        command.process.terminate()
        command.wait()
    assert Ended(command).code == 128 + signal.SIGTERM


def test_given_vmm_that_listens_it_is_dialled_again_whenever_it_comes_back(board: Board) -> None:
    """It is not there yet when the board starts; it goes, closes its socket, and comes again."""
    _write(board, connect=True)
    path = board.directory / "disk0.sock"
    with board.start("run", board.config) as command:
        for _ in range(3):
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as server:
                server.settimeout(20)
                server.bind(str(path))
                server.listen()
                for _ in range(2):
                    with FrontEnd(server.accept()[0]) as front:
                        assert front.get_queue_num() == 1
        command.process.terminate()
        command.wait()


def test_given_connect_without_a_socket_the_configuration_says_so(board: Board) -> None:
    """A private socket is known to nobody who could listen there."""
    board.config.write_text("devices: [{name: d, device: virtio.rng, vhost_user: {connect: true}}]\n")
    ended = board.run("check", board.config)
    assert ended.code == 3
    assert "devices.d.vhost_user.connect: there is no socket to connect to" in ended.stderr + ended.stdout
