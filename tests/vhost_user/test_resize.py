"""A disk that grows while it is used: its guest is told through the back-end's channel, and sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices.virtio.blk import IN, IOERR, OK, OUT, SECTOR
from machines.vmm import Vmm
from supervisor.host import Supervisor
from supervisor.vhost_user.messages import Header
from supervisor.vhost_user.requests import BackEndRequest
from tests.chaos import board, census
from tests.vhost_user.guests import VMMS, boot, transcript
from tests.vhost_user.qtest import Qemu
from tests.vhost_user.qtest_rig import BLK, PLAIN
from tests.vhost_user.qtest_rig import Rig as QemuRig
from tests.vhost_user.test_keeper import Vmm as OurVmm
from tests.vhost_user.test_worker_rings import SECTORS, Work

pytestmark = pytest.mark.chaos

CONFIG_CHANGE = Header(BackEndRequest.CONFIG_CHANGE_MSG).pack()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The disk's, as it is at first."""
    made = tmp_path / "disk.img"
    made.write_bytes(bytes(SECTORS * SECTOR))
    return made


@pytest.fixture
def vmm(tmp_path: Path, image: Path) -> Iterator[OurVmm]:
    path = tmp_path / "disk.sock"
    device = (
        f'name: disk, device: virtio.blk, options: {{image: "{image}"}}, backoff: {{max: 0s}}, '
        f'vhost_user: {{socket: "{path}"}}'
    )
    with census(), Supervisor(board(device)) as sup:
        made = OurVmm(sup, path)
        try:
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def _channel(kind: str) -> Iterator[tuple[int, int]]:
    """Our end, and the one that the back-end gets: QEMU's is a socket, User-Mode Linux's a pipe."""
    if kind == "pipe":
        ours, theirs = os.pipe()
    else:
        ours, theirs = (end.detach() for end in socket.socketpair())
    os.set_blocking(ours, False)
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def _replaced(vmm: OurVmm, kill: bool = False) -> None:
    """Another process serves the disk."""
    before = vmm.sup["disk"].generation
    if kill:
        vmm.sup.kill("disk", charged=False)
    else:
        vmm.sup.restart_device("disk")
    deadline = time.monotonic() + 30
    while vmm.sup["disk"].generation == before or vmm.sup["disk"].state != "ready":
        vmm.sup.dispatch(0.01)
        assert time.monotonic() < deadline


def _capacity(vmm: OurVmm) -> int:
    return int.from_bytes(vmm.ask(lambda: vmm.front.get_config(0, 8)), "little")


def _heard(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


def _io(vmm: OurVmm, kind: int, sector: int) -> int:
    """One request of one sector; returns its status."""
    guest, driver = vmm.guest, vmm.driver
    header, data, status = guest.allocate(16), guest.allocate(SECTOR), guest.allocate(1)
    guest.view(header, 16)[:] = struct.pack("<IIQ", kind, 0, sector)
    head = driver.offer((header, 16, False), (data, SECTOR, kind == IN), (status, 1, True))
    driver.want_interrupt_after(driver.position - 1)
    vmm.kick()
    deadline = time.monotonic() + 30
    while not (used := driver.take()):
        vmm.wait()
        assert time.monotonic() < deadline
    assert [one for one, _written in used] == [head]
    return guest.view(status, 1)[0]


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_given_larger_image_the_vmm_is_told_and_the_rest_is_served(
    vmm: OurVmm, image: Path, kind: str, kill: bool
) -> None:
    """Whether it is restarted for that or dies: once for each size, and never if it is the same."""
    with _channel(kind) as (ours, theirs):
        vmm.ask(lambda: vmm.front.set_backend_req_fd(theirs))
        vmm.bring_up()
        assert _io(vmm, OUT, SECTORS) == IOERR
        _replaced(vmm, kill)
        assert (_heard(ours), _capacity(vmm)) == (b"", SECTORS)
        vmm.ask(lambda: vmm.front.set_config(32, b"\0"))  # what the driver has written stays
        for factor in (2, 3):
            os.truncate(image, factor * SECTORS * SECTOR)
            _replaced(vmm, kill)
            assert _heard(ours) == CONFIG_CHANGE
            assert _capacity(vmm) == factor * SECTORS
            assert vmm.ask(lambda: vmm.front.get_config(32, 1)) == b"\0"
            assert _io(vmm, OUT, factor * SECTORS - 1) == OK
            assert _io(vmm, OUT, factor * SECTORS) == IOERR
        assert _heard(ours) == b""


def test_given_smaller_image_the_disk_keeps_its_size_and_says_so(
    vmm: OurVmm, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A guest's file system ends where it ends: what is missing reads as zero, and is written anew."""
    caplog.set_level(logging.ERROR)
    with _channel("socket") as (ours, theirs):
        vmm.ask(lambda: vmm.front.set_backend_req_fd(theirs))
        vmm.bring_up()
        os.truncate(image, SECTOR)
        for _ in range(2):
            _replaced(vmm)
        assert (_heard(ours), _capacity(vmm)) == (b"", SECTORS)
        assert _io(vmm, IN, SECTORS - 1) == OK
        assert _io(vmm, OUT, SECTORS - 1) == OK
    assert image.stat().st_size == SECTORS * SECTOR
    assert "has shrunk to 1 sectors" in caplog.text


def _full_pipe() -> tuple[int, int]:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(theirs, bytes(4096))
    os.set_blocking(theirs, True)
    return ours, theirs


def _deserted_pipe() -> tuple[int, int]:
    ours, theirs = os.pipe()
    os.close(ours)
    return -1, theirs


def _datagrams() -> tuple[int, int]:
    ours, theirs = (end.detach() for end in socket.socketpair(type=socket.SOCK_DGRAM))
    return ours, theirs


@pytest.mark.parametrize("made", [_full_pipe, _deserted_pipe, _datagrams, None])
def test_given_channel_that_takes_nothing_the_disk_is_served_all_the_same(
    vmm: OurVmm, image: Path, made: Callable[[], tuple[int, int]] | None
) -> None:
    """Full, left by its reader, of the wrong kind, or none: nobody waits for it."""
    ours, theirs = made() if made is not None else (-1, -1)
    if theirs >= 0:
        vmm.ask(lambda: vmm.front.set_backend_req_fd(theirs))
    vmm.bring_up()
    os.truncate(image, 2 * SECTORS * SECTOR)
    _replaced(vmm)
    assert _capacity(vmm) == 2 * SECTORS
    assert _io(vmm, OUT, 2 * SECTORS - 1) == OK
    for fd in {ours, theirs} - {-1}:
        os.close(fd)


@pytest.fixture
def start(tmp_path: Path, image: Path) -> Iterator[Callable[[], QemuRig]]:
    """Starts a board of one disk, and QEMU with its front-end; ends both."""
    path = tmp_path / "device.sock"
    line = (
        f'name: device, device: virtio.blk, options: {{image: "{image}"}}, '
        f'vhost_user: {{socket: "{path}"}}, backoff: {{max: 0s}}'
    )
    with contextlib.ExitStack() as stack:

        def begin() -> QemuRig:
            stack.enter_context(census())
            sup = stack.enter_context(Supervisor(board(line, supervisor="intensity: 0, period: 60s")))
            qemu = Qemu(sup, tmp_path, [(BLK, path)])
            stack.callback(qemu.close)
            rig = QemuRig(sup, qemu, "device")
            stack.callback(rig.pci.drop)
            return rig

        yield begin


def test_given_qemu_its_guest_sees_the_new_size_while_it_works(
    start: Callable[[], QemuRig], image: Path
) -> None:
    """The real front-end reads the configuration again, and the driver can use what is new."""
    rig = start()
    rig.bring_up(PLAIN)
    work = Work(rig, 1)
    rig.work(work, 50)
    generation = rig.pci.generation()
    rig.pci.take_config_interrupt()
    for factor in (2, 3):
        work.submit()
        os.truncate(image, factor * SECTORS * SECTOR)
        rig.sup.restart_device("device")
        sectors = factor * SECTORS
        rig.qemu.until(lambda sectors=sectors: rig.pci.config_space(0, 8) == sectors)  # type: ignore[misc]
        rig.work(work, 50)
        assert rig.request(OUT, sectors - 1, os.urandom(SECTOR)) == OK
    assert rig.pci.generation() != generation  # so a driver knows that it is to read again
    assert rig.pci.take_config_interrupt()


@pytest.mark.parametrize("vmm", VMMS)
def test_given_linux_it_uses_what_its_disk_has_grown_by(vmm: str, image: Path) -> None:
    """The guest's own driver hears of it, and writes to the end of the larger image."""
    line = f'name: disk0, device: virtio.blk, options: {{image: "{image}"}}, vhost_user: {{}}'

    async def grow(machine: Vmm) -> None:
        while "guest: ready" not in transcript(machine):
            await asyncio.sleep(0.05)  # it boots
        os.truncate(image, 2 * SECTORS * SECTOR)
        machine.sup.restart_device("disk0")

    with census(), Supervisor(board(line, supervisor="intensity: 0, period: 60s")) as sup:
        text = boot(VMMS[vmm](sup, "tv.what=grow"), grow)
    assert f"guest: grown from {SECTORS} to {2 * SECTORS} sectors" in text, text[-2000:]
    assert any(image.read_bytes()[-8 * SECTOR :])
