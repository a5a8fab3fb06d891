"""QEMU's own front-ends, driven without a guest, over devices whose workers are killed.

What is tested here is what only the real thing shows: the order in which QEMU sets a back-end up, resets it,
stops it and changes its memory, and that none of it notices that somebody dies behind the keeper.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices.virtio.blk import (
    DISCARD,
    F_CONFIG_WCE,
    F_MQ,
    FLUSH,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    UNSUPP,
    WCE_OFFSET,
    WRITE_ZEROES,
)
from supervisor.host import Supervisor
from supervisor.vhost_user import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1
from tests.chaos import board, census
from tests.devices.cache_mode import BACK, THROUGH
from tests.vhost_user.qtest import Qemu
from tests.vhost_user.qtest_rig import BLK, FAST, PLAIN, Rig
from tests.vhost_user.test_worker_rings import SECTORS, Work

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60)]

NO_BUDGET = "intensity: 0, period: 60s"  # a death that was charged would end the board
Start = Callable[..., Rig]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a board of one device, and QEMU with its front-end; ends both."""
    with contextlib.ExitStack() as stack:

        def begin(front_end: str = BLK, *extra: str, device: str = "", memory: str = "") -> Rig:
            image = tmp_path / "disk.img"
            image.write_bytes(bytes(SECTORS * SECTOR))
            kind = device or f'device: virtio.blk, options: {{image: "{image}"}}'
            path = tmp_path / "device.sock"
            line = f'name: device, {kind}, vhost_user: {{socket: "{path}"}}, backoff: {{max: 0s}}'
            stack.enter_context(census())
            sup = stack.enter_context(Supervisor(board(line, supervisor=NO_BUDGET)))
            qemu = Qemu(sup, tmp_path, [(front_end, path)], *extra, memory=memory)
            stack.callback(qemu.close)
            rig = Rig(sup, qemu, "device")
            stack.callback(rig.pci.drop)
            return rig

        yield begin


def test_given_disk_reads_writes_and_flushes_do_what_they_say(start: Start, tmp_path: Path) -> None:
    """Data arrives in the image and comes back; the configuration space is the device's."""
    rig = start()
    assert rig.pci.device_id == 2
    assert rig.pci.config_space(0, 8) == SECTORS
    rig.bring_up()
    data = os.urandom(4096)
    assert rig.request(OUT, 8, data) == OK
    assert rig.request(FLUSH, 0) == OK
    assert rig.read(8, 4096) == data
    rig.work(Work(rig, 1), 100)


def test_given_worker_killed_again_and_again_qemu_sees_nothing(start: Start) -> None:
    """Before, between and behind requests; QMP answers all the while, and no socket was lost."""
    rig = start()
    rig.bring_up()
    work = Work(rig, 2)
    for _ in range(12):
        work.submit()
        rig.kill()
        assert rig.qemu.qmp("query-status")["running"]
        assert rig.qemu.is_connected()
        rig.work(work, 20)
    rig.kill()  # and with nothing under way
    rig.work(work, 20)
    assert rig.sup["device"].generation == 14


def test_given_worker_that_hangs_with_requests_qemu_does_not_hang_with_it(start: Start) -> None:
    """A stopped process answers nobody; qtest and QMP do, and once it is killed all is done, once."""
    rig = start()
    rig.bring_up()
    assert rig.sup.kill("device", send_signal=signal.SIGSTOP, charged=False) is not None
    heads = [rig.submit(OUT, 8 * index, bytes([index]) * SECTOR)[0] for index in range(16)]
    rig.kick()
    assert rig.qemu.qmp("query-status")["running"]
    assert rig.pci.config_space(0, 8) == SECTORS
    assert rig.driver.take() == []
    rig.kill()
    assert rig.finish(16) == heads
    assert [rig.read(8 * index)[0] for index in range(16)] == list(range(16))


def test_given_reset_it_is_set_up_again_with_a_fresh_log(start: Start) -> None:
    """QEMU forgets its in-flight log with a reset, and asks for another one; deaths come in between."""
    rig = start()
    logs: set[int] = set()
    for features in (FAST, PLAIN, FAST):
        rig.bring_up(features)
        assert rig.request(OUT, 1, bytes([len(logs)]) * SECTOR) == OK
        rig.kill()
        assert rig.read(1) == bytes([len(logs)]) * SECTOR
        logs.add(rig.log_inode())
        rig.pci.reset()
        rig.kill()
    assert len(logs) == 3


def test_given_requests_under_way_a_reset_drops_them_and_the_next_driver_starts_afresh(start: Start) -> None:
    """What the driver before had under way is nothing to the one that comes after."""
    rig = start()
    for _ in range(3):
        rig.bring_up()
        for sector in range(8):
            rig.submit(IN, sector, SECTOR)
        rig.kick()
        rig.pci.reset()
    rig.bring_up()
    rig.work(Work(rig, 3), 30)


def test_given_death_before_driver_ok_the_driver_comes_up_all_the_same(start: Start) -> None:
    """QEMU 7.2 would lose a back-end for ever that reconnects while the driver is not started."""
    rig = start()
    rig.kill()  # nobody has looked at the device yet
    rig.pci.negotiate(FAST)
    rig.kill()
    rig.pci.reset()
    rig.kill()
    rig.bring_up()
    data = os.urandom(SECTOR)
    assert rig.request(OUT, 5, data) == OK
    rig.kill()  # a second death is noticed as well
    assert rig.read(5) == data
    assert rig.qemu.is_connected()


def test_given_four_queues_each_is_served_through_deaths(start: Start, tmp_path: Path) -> None:
    """Each has its own kick, its own interrupt and its own part of the log."""
    device = f'device: virtio.blk, options: {{image: "{tmp_path / "disk.img"}", queues: 4}}'
    rig = start(f"{BLK},num-queues=4", device=device)
    assert rig.pci.get("num_queues") == 4
    assert rig.bring_up(FAST | F_MQ, queues=4) & F_MQ
    for round_number in range(3):
        heads = []
        for queue in range(4):
            data = bytes([round_number, queue]) * (SECTOR // 2)
            heads.append([rig.submit(OUT, queue * 8 + n, data, queue=queue)[0] for n in range(8)])
            rig.pci.kick(queue)
        rig.kill()
        assert [rig.finish(8, queue) for queue in range(4)] == heads
        for queue in range(4):
            assert rig.read(queue * 8 + 7, queue=queue) == bytes([round_number, queue]) * (SECTOR // 2)
            rig.qemu.until(lambda queue=queue: rig.pci.take_interrupt(queue))  # type: ignore[misc]


def test_given_as_many_queues_as_a_disk_has_all_are_served(start: Start, tmp_path: Path) -> None:
    """Some 200 descriptors go to a worker at once."""
    device = f'device: virtio.blk, options: {{image: "{tmp_path / "disk.img"}", queues: 64}}'
    rig = start(f"{BLK},num-queues=64,vectors=65", device=device)
    rig.bring_up(PLAIN | F_MQ, queues=64)
    for queue in (0, 31, 63):
        assert rig.request(OUT, queue, bytes([queue]) * SECTOR, queue=queue) == OK
        rig.kill()
        assert rig.read(queue, queue=queue) == bytes([queue]) * SECTOR


def test_given_stop_and_cont_nothing_is_lost_and_nothing_is_done_twice(start: Start) -> None:
    """GET_VRING_BASE with requests under way, to a worker that lives and to one that is dead."""
    rig = start()
    rig.bring_up()
    work = Work(rig, 4)
    for round_number in range(8):
        work.submit()
        if round_number % 2:
            rig.kill()
        rig.qemu.qmp("stop")
        if round_number % 4 > 1:
            rig.kill()
        rig.qemu.qmp("cont")
        rig.work(work, 16)
    assert rig.qemu.events.count("STOP") == 8
    assert rig.qemu.is_connected()


def test_given_memory_plugged_in_while_rings_run_buffers_may_be_there(start: Start) -> None:
    """SET_MEM_TABLE under way: the worker is replaced, and its successor has all of the memory."""
    rig = start(memory="64M,slots=2,maxmem=1G")
    rig.bring_up()
    work = Work(rig, 5)
    for name, size in (("one", 32 << 20), ("two", 16 << 20)):
        work.submit()
        rig.qemu.qmp("object-add", qom_type="memory-backend-memfd", id=name, size=size, share=True)
        rig.qemu.qmp("device_add", driver="pc-dimm", id=f"dimm-{name}", memdev=name)
        rig.work(work, 40)
        (dimm,) = [
            one["data"] for one in rig.qemu.qmp("query-memory-devices") if one["data"]["id"] == f"dimm-{name}"
        ]
        plugged, far = rig.qemu.map_memory(size), dimm["addr"] + size - SECTOR
        plugged[-SECTOR:] = data = os.urandom(SECTOR)
        header, status = rig.guest.allocate(16), rig.guest.allocate(1)
        rig.guest.view(header, 16)[:] = struct.pack("<IIQ", OUT, 0, SECTORS - 1)
        rig.driver.offer((header, 16, False), (far, SECTOR, False), (status, 1, True))
        rig.kick()
        rig.finish()
        assert rig.guest.view(status, 1)[0] == OK
        work.content[-SECTOR:] = data
        rig.kill()
        assert rig.read(SECTORS - 1) == data
        plugged.release()


def test_given_event_index_there_is_no_interrupt_before_it_and_one_for_two_requests(start: Start) -> None:
    """QEMU's own test of it: suppressed until used_event has been passed, then one for all."""
    rig = start()
    rig.bring_up(PLAIN | F_EVENT_IDX)

    def has_interrupted() -> bool:
        for _ in range(2):  # one round of QEMU's loop may take the question before the interrupt
            rig.qemu.qmp("query-status")
        return rig.pci.take_interrupt()

    rig.driver.want_interrupt_after(0)
    assert rig.request(FLUSH, 0) == OK
    rig.qemu.until(has_interrupted)
    rig.driver.want_interrupt_after(4)
    # That a request is used says that the wish has been looked at for the one before.
    assert [rig.request(FLUSH, 0) for _ in range(2)] == [OK, OK]
    has_interrupted()  # the first of a life is always said; it may come together with the second
    assert rig.request(FLUSH, 0) == OK
    assert not has_interrupted()
    for _ in range(2):
        rig.submit(FLUSH, 0)
    rig.kick()
    rig.finish(2)
    rig.qemu.until(has_interrupted)
    assert [rig.request(FLUSH, 0) for _ in range(2)] == [OK, OK]
    assert not has_interrupted()


def test_given_indirect_tables_and_none_both_are_served(start: Start) -> None:
    """One ring, both kinds of requests, and a death between."""
    rig = start()
    assert rig.bring_up() & F_INDIRECT_DESC
    data = os.urandom(2 * SECTOR)
    assert rig.request(OUT, 3, data[:100], data[100:], indirect=True) == OK
    rig.kill()
    assert rig.read(3, 2 * SECTOR) == data == rig.read(3, 2 * SECTOR, indirect=True)


def test_given_kick_of_a_queue_that_is_not_there_nothing_happens(start: Start) -> None:
    """QEMU's nxvirtq."""
    rig = start()
    rig.bring_up()
    rig.pci.kick(1)
    assert rig.request(FLUSH, 0) == OK


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_given_invalid_discard_or_write_zeroes_it_is_refused(start: Start, kind: int, tmp_path: Path) -> None:
    """QEMU's four: two ranges, too many sectors, a sector behind the end, unknown flags."""
    rig = start()
    rig.bring_up()
    assert rig.request(OUT, 0, b"\1" * SECTOR) == OK
    for ranges, status in (
        ([(0, 1, 0), (1, 1, 0)], UNSUPP),
        ([(0, 2**32 - 1, 0)], IOERR),
        ([(SECTORS + 1, 1, 0)], IOERR),
        ([(0, 1, 0xFFFFFFFE)], UNSUPP),
    ):
        data = b"".join(struct.pack("<QII", *one) for one in ranges)
        assert rig.request(kind, 0, data) == status, ranges
    assert rig.read(0) == b"\1" * SECTOR
    assert rig.request(kind, 0, struct.pack("<QII", 0, 1, 0)) == OK
    assert rig.read(0) == bytes(SECTOR)


def test_given_entropy_source_that_qemu_cannot_reconnect_it_survives(start: Start) -> None:
    """For rng, QEMU has no way back after a disconnect; there is none."""
    rig = start("vhost-user-rng-pci", device="device: virtio.rng")
    assert rig.pci.device_id == 4
    rig.bring_up(F_VERSION_1)
    seen = set()
    for _ in range(5):
        at = rig.guest.allocate(64)
        rig.driver.offer((at, 64, True))
        rig.kill()
        rig.kick()
        rig.finish()
        seen.add(bytes(rig.guest.view(at, 64)))
    assert [written for _head, written in rig.driver.used] == [64] * 5
    assert len(seen) == 5
    assert bytes(64) not in seen


# QEMU's front-end, and the queue that it hands to its back-end.
WITHOUT_WAY_BACK = {
    "vhost-user-fs-pci,tag=test": 1,
    "vhost-user-scsi-pci,disable-legacy=on": 2,
    "vhost-user-vsock-pci,disable-legacy=on": 1,
    "vhost-user-i2c-pci": 0,
}


@pytest.mark.parametrize("front_end", WITHOUT_WAY_BACK)
def test_given_front_end_without_a_way_back_its_device_survives(
    start: Start, tmp_path: Path, front_end: str
) -> None:
    """What kind of device it is makes no difference here: the test talks to a disk through it."""
    queue = WITHOUT_WAY_BACK[front_end]
    device = f'device: virtio.blk, options: {{image: "{tmp_path / "disk.img"}", queues: 4}}'
    rig = start(front_end, device=device)
    rig.bring_up(F_VERSION_1, queues=rig.pci.get("num_queues"))
    for round_number in range(3):
        data = os.urandom(SECTOR)
        assert rig.request(OUT, round_number, data, queue=queue) == OK
        rig.kill()
        assert rig.read(round_number, queue=queue) == data


def test_given_cache_mode_written_while_rings_run_it_counts_at_once(start: Start, tmp_path: Path) -> None:
    """From the next request on, not from the next death on; and through all that follow."""
    options = f'options: {{image: "{tmp_path / "disk.img"}"}}'
    rig = start(device=f'device: "tests.devices.cache_mode:CacheMode", {options}')
    rig.bring_up(FAST | F_CONFIG_WCE)
    for wce, mode in ((1, BACK), (0, THROUGH), (1, BACK)):
        rig.pci.set_config_space(WCE_OFFSET, 1, wce)
        assert rig.serial() == mode
        rig.kill()
        assert rig.serial() == mode
        assert rig.pci.config_space(WCE_OFFSET, 1) == wce
