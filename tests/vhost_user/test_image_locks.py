"""Who else has a disk's image: our own locks, and those of QEMU's tools."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from devices.virtio import _image
from devices.virtio._image import open_image
from supervisor.errors import LocalError, StartFailed
from supervisor.host import Supervisor
from tests.chaos import board, census

ROOT = Path(__file__).parent.parent.parent
DAEMON = "qemu-storage-daemon"
DEADLINE_S = 30.0
HOLDER = """
import logging, sys, time
from devices.virtio._image import open_image
open_image(sys.argv[1], read_only=sys.argv[2] == "ro", locks=True, logger=logging.getLogger())
print("held", flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.chaos


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(bytes(1 << 20))
    return made


@contextmanager
def _disk(image: Path, options: str = "", backoff: str = "0s") -> Iterator[Supervisor]:
    device = (
        f'name: disk, device: virtio.blk, options: {{image: "{image}"{options}}}, vhost_user: {{}}, '
        f"backoff: {{first: {backoff}, max: {backoff}}}"
    )
    with census(), Supervisor(board(device)) as sup:
        yield sup


@contextmanager
def _holder(image: Path, how: str = "rw") -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(image), how], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def _is_free(image: Path, *, read_only: bool = False) -> bool:
    """Looks once, without patience."""
    try:
        fd = open_image(str(image), read_only=read_only, locks=True, logger=logging.getLogger())
    except LocalError as error:
        if "is in use by another process" not in str(error):
            raise
        return False
    os.close(fd)
    return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_image, "PATIENCE_S", 0.0)


@pytest.mark.parametrize(("first", "second", "together"), [("rw", "rw", False), ("rw", "ro", False),
                         ("ro", "rw", False), ("ro", "ro", True)])  # fmt: skip
@pytest.mark.usefixtures("impatient")
def test_given_another_process_only_readers_are_together(
    image: Path, first: str, second: str, together: bool
) -> None:
    """One that writes wants it for itself; those that read do not mind each other."""
    with _holder(image, first):
        assert _is_free(image, read_only=second == "ro") == together
    assert _is_free(image, read_only=second == "ro")


def test_given_process_on_its_way_out_its_image_is_waited_for(image: Path) -> None:
    """As after a supervisor that was killed, whose workers die with it, but not at once."""
    with _holder(image) as before, ExitStack() as stack:
        deaths = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {before.pid}"])
        stack.callback(deaths.wait)
        began = time.monotonic()
        os.close(open_image(str(image), read_only=False, locks=True, logger=logging.getLogger()))
        assert time.monotonic() - began > 0.2, "it did not wait"


def test_given_image_that_another_board_serves_the_second_fails_and_says_why(image: Path) -> None:
    """The first goes on; with `locks: false` both may have it."""
    with _disk(image) as first:
        with pytest.raises(StartFailed, match="is in use by another process"), _disk(image):
            pass
        with _disk(image, ", locks: false") as second:
            assert second["disk"].state == "ready"
        assert first["disk"].state == "ready"
        assert first["disk"].generation == 1
    with _disk(image) as third:
        assert third["disk"].state == "ready"


@pytest.mark.usefixtures("impatient")
def test_given_disk_that_is_dead_nobody_else_gets_its_image_until_it_is_stopped(image: Path) -> None:
    """The supervisor has what its processes have opened; each of them uses the same open file."""
    with _disk(image, backoff="300ms") as sup:
        for _ in range(3):
            assert sup.kill("disk", charged=False) is not None
            while sup["disk"].state == "ready":
                sup.dispatch(1)
            assert not _is_free(image)
            while sup["disk"].state != "ready":
                sup.dispatch(1)
                assert not _is_free(image)
        sup.stop_device("disk")
        while sup["disk"].state != "down":
            sup.dispatch(1)
        assert _is_free(image)


@pytest.mark.usefixtures("impatient")
def test_given_another_file_in_its_place_the_next_process_opens_that(image: Path) -> None:
    """An operator's `mv`, then a restart; an image that is gone is served on, from the file that it was."""
    other = image.with_name("other.img")
    other.write_bytes(bytes(1 << 21))
    with _disk(image) as sup:
        other.rename(image)
        assert _is_free(image)
        sup.restart_device("disk")
        while sup["disk"].generation < 2 or sup["disk"].state != "ready":
            sup.dispatch(1)
        assert not _is_free(image)
        image.unlink()
        sup.restart_device("disk")
        while sup["disk"].generation < 3 or sup["disk"].state != "ready":
            sup.dispatch(1)


@pytest.mark.skipif(shutil.which(DAEMON) is None, reason=f"{DAEMON} is not installed")
@pytest.mark.usefixtures("impatient")
def test_given_qemu_each_notices_the_others_lock(image: Path, tmp_path: Path) -> None:
    """QEMU's storage daemon does not open an image that is ours, nor we one of its."""
    socket, pid_file = tmp_path / "qsd.sock", tmp_path / "qsd.pid"
    found = shutil.which(DAEMON)
    assert found is not None
    command = [
        found,
        *("--blockdev", f"driver=file,node-name=image,filename={image},locking=on"),
        *("--export", "type=vhost-user-blk,id=out,node-name=image,writable=on,"
          f"addr.type=unix,addr.path={socket}"),
        *("--pidfile", str(pid_file)),
    ]  # fmt: skip
    with _disk(image):
        refused = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
        assert refused.returncode != 0
        assert "lock" in refused.stderr
    with subprocess.Popen(command) as daemon:
        try:
            until = time.monotonic() + DEADLINE_S
            while not socket.exists():
                assert daemon.poll() is None
                assert time.monotonic() < until
            assert not _is_free(image)
        finally:
            daemon.send_signal(signal.SIGTERM)
    assert _is_free(image)
