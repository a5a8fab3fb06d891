"""Real guests: QEMU and User-Mode Linux boot a Linux whose disk is a worker that is killed all the time.

The guests come from ``make guests``, QEMU from Debian's qemu-system-x86: without them the tests are skipped.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.chaos import ChaosRule, Monkey
from supervisor.config import parse_config
from supervisor.events import DeviceDied, DeviceFailed, GaveUp
from supervisor.host import Supervisor
from tests.chaos import census

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(280)]

GUESTS = Path(__file__).parents[2] / ".cache" / "guests"
QEMU = shutil.which("qemu-system-x86_64")
MIB = 16
ROUNDS = 5
MEMORY = "256M"
DEADLINE_S = 240.0


def _skip_without(*needed: Path) -> None:
    missing = [path.name for path in needed if not path.exists()]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: run make guests")


class Guest:
    """A VMM in a process of its own, what it has printed, and how it ends."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.output = folder / "guest.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self) -> None:
        """Ends it, and whatever it has started."""
        try:
            os.killpg(self.process.pid, 9)
        except ProcessLookupError:
            pass
        self.process.wait()


def _qemu(socket: Path, append: str) -> list[str]:
    if QEMU is None:
        pytest.skip("no qemu-system-x86_64: install qemu-system-x86")
    _skip_without(GUESTS / "vmlinuz", GUESTS / "initramfs-qemu.gz")
    return [
        QEMU,
        *("-accel", "tcg", "-m", MEMORY, "-nographic", "-no-reboot"),
        *("-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on"),
        *("-machine", "pc,memory-backend=mem"),
        *("-kernel", str(GUESTS / "vmlinuz"), "-initrd", str(GUESTS / "initramfs-qemu.gz")),
        *("-append", f"console=ttyS0 quiet panic=-1 {append}"),
        *("-chardev", f"socket,id=disk0,path={socket}", "-device", "vhost-user-blk-pci,chardev=disk0"),
    ]


def _uml(socket: Path, append: str) -> list[str]:
    kernel = GUESTS / "linux.uml"
    _skip_without(kernel, GUESTS / "initramfs-uml.gz")
    return [
        str(kernel),
        *("mem=128M", f"initrd={GUESTS / 'initramfs-uml.gz'}", "con=null", "con0=null,fd:2", "quiet"),
        *append.split(),
        f"virtio_uml.device={socket}:2",
    ]


VMMS = {"qemu": _qemu, "uml": _uml}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    image = tmp_path / "disk.img"
    image.write_bytes(b"")
    os.truncate(image, MIB << 20)
    return image


@pytest.fixture
def board(disk: Path) -> Iterator[Supervisor]:
    text = f"""
supervisor: {{intensity: 0, period: 60s}}
devices:
  - name: disk0
    device: virtio.blk
    options: {{image: "{disk}"}}
    vhost_user: {{socket: "{disk.parent / "disk0.sock"}"}}
    backoff: {{max: 0s}}
"""
    with census(), Supervisor(parse_config(text)) as sup:
        yield sup


def _run(sup: Supervisor, guest: Guest) -> str:
    """Serves until the guest has ended; returns what it has printed."""
    deadline = time.monotonic() + DEADLINE_S
    try:
        while guest.process.poll() is None:
            sup.dispatch(0.1)
            assert time.monotonic() < deadline, guest.text[-2000:]
        return guest.text
    finally:
        guest.end()


@pytest.mark.parametrize("vmm", VMMS)
def test_given_disk_killed_every_50_ms_the_guest_notices_nothing(
    vmm: str, board: Supervisor, disk: Path, tmp_path: Path
) -> None:
    """No I/O error, nothing differs when it is read back, and the image is what the guest believes it to be.

    The budget allows no restart at all: a death that was charged, or a worker that ended by itself, would end
    the board.
    """
    command = VMMS[vmm](tmp_path / "disk0.sock", f"tv.rounds={ROUNDS} tv.mib={MIB}")
    monkey = Monkey(board, [ChaosRule(kill="disk0", every_ns=50_000_000, jitter=0.5)])
    print(f"seeds={monkey.seeds}")
    monkey.start()
    text = _run(board, Guest(command, tmp_path))
    monkey.stop()
    told = re.search(r"guest: io_errors=(\d+) failed=(\d+) disk=([0-9a-f]{64})", text)
    assert told is not None, text[-3000:]
    kills = monkey.kills["disk0"]
    verdict = "ok" if told[3] == hashlib.sha256(disk.read_bytes()).hexdigest() else "WRONG"
    print(f"kills={kills} io_errors={told[1]} hash={verdict}")
    assert (told[1], told[2], verdict) == ("0", "0", "ok")
    assert kills > 50
    events = list(board.events())
    assert not [one for one in events if isinstance(one, GaveUp | DeviceFailed)]
    assert not [one for one in events if isinstance(one, DeviceDied) and one.charged]


@pytest.mark.parametrize("vmm", VMMS)
def test_given_nobody_dies_the_guest_is_served(
    vmm: str, board: Supervisor, disk: Path, tmp_path: Path
) -> None:
    """The same, undisturbed; another guest on the same socket afterwards is served as well."""
    for _ in range(2):
        command = VMMS[vmm](tmp_path / "disk0.sock", f"tv.rounds=1 tv.mib={MIB}")
        text = _run(board, Guest(command, tmp_path))
        assert "io_errors=0 failed=0" in text, text[-3000:]
        assert hashlib.sha256(disk.read_bytes()).hexdigest() in text
