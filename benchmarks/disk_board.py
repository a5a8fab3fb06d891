"""A board of so many disks, and ``qemu-storage-daemon`` with as many: who serves images over vhost-user.

As a program, ``python -m benchmarks.disk_board FOLDER IMAGE ...`` runs a board with a disk for each image,
says in one line of JSON who its processes are, and dispatches until it is killed. The sockets are
``FOLDER/disk0`` and so on. Every process here ends with the one that has started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers import die_with_parent, wait_readable
from supervisor import Supervisor
from supervisor.config import parse_config

__all__ = ["DAEMON", "Served", "board", "daemon", "start_daemon", "supervised"]

ROOT = Path(__file__).parent.parent
DAEMON = "qemu-storage-daemon"
START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """Whose disks are served: processes by role, and the sockets."""

    pids: dict[str, list[int]]
    sockets: list[str]

    def everybody(self) -> list[int]:
        """With what they have started since."""
        found = {pid for pids in self.pids.values() for pid in pids}
        for pid in tuple(found):
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        return sorted(found)


def sockets(folder: str, count: int) -> list[str]:
    """Where the disks' sockets are."""
    return [f"{folder}/disk{number}" for number in range(count)]


def board(folder: str, images: Sequence[str], *, spares: int = 2, standby: bool = False) -> Supervisor:
    """``disk0`` and so on, not started yet. ``spares`` is what config/qemu-linux.yaml has.

    Boards are measured in turns with the same image, and nobody writes to it, so they do not lock it.
    """
    lines = [
        "name: benchmark",
        f"supervisor: {{intensity: 1000000, spares: {spares}}}",
        "devices:",
        *(
            f"  - {{name: disk{number}, device: virtio.blk, options: {{image: '{image}', locks: false}}, "
            f"vhost_user: {{socket: '{folder}/disk{number}'}}, standby: {str(standby).lower()}, "
            "backoff: {max: 0s}}"
            for number, image in enumerate(images)
        ),
    ]
    return Supervisor(parse_config("\n".join(lines) + "\n"))


@contextlib.contextmanager
def supervised(folder: Path, images: Sequence[str]) -> Iterator[Served]:
    """The board, in a process of its own."""
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.disk_board", str(folder), *images]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=die_with_parent)
    try:
        assert process.stdout is not None
        if not wait_readable(process.stdout.fileno(), START_TIMEOUT_S):
            raise TimeoutError(f"{len(images)} disks have not started in {START_TIMEOUT_S:g} s")
        who = json.loads(process.stdout.readline())
        yield Served({"supervisor": [process.pid], **who}, sockets(str(folder), len(images)))
    finally:
        process.kill()
        process.communicate()


def start_daemon(folder: Path, images: Sequence[str]) -> subprocess.Popen[bytes]:
    """qemu-storage-daemon with an export for each image; its sockets appear a little later."""
    found = shutil.which(DAEMON)
    assert found is not None
    command = [found]
    for number, (image, socket) in enumerate(zip(images, sockets(str(folder), len(images)), strict=True)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket)
        command += [
            "--blockdev",
            f"driver=file,node-name=n{number},filename={image},cache.direct=off,aio=threads,locking=off",
            "--export",
            f"type=vhost-user-blk,id=e{number},node-name=n{number},writable=on,num-queues=1,"
            f"addr.type=unix,addr.path={socket}",
        ]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)


@contextlib.contextmanager
def daemon(folder: Path, images: Sequence[str]) -> Iterator[Served]:
    """qemu-storage-daemon, for as long as this lasts."""
    folder.mkdir()
    process = start_daemon(folder, images)
    try:
        yield Served({"daemon": [process.pid]}, sockets(str(folder), len(images)))
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Runs until it is killed."""
    folder, *images = sys.argv[1:]
    with board(folder, images) as sup:
        workers = [device.pid for device in sup.devices.values()]
        print(json.dumps({"zygote": [sup.zygote_pid], "workers": workers}), flush=True)
        sup.run()


if __name__ == "__main__":
    main()
