"""What others had to fix where guest memory is read: the rest of the table in ``test_cve``."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from devices.virtio.blk import DISCARD, IOERR, UNSUPP, WRITE_ZEROES
from supervisor.memory import GuestMemory
from supervisor.memory import Region as Mapped
from supervisor.vhost_user import virtqueue
from tests.vhost_user.driver import Driver, Guest
from tests.vhost_user.test_blk import Disk


def test_cve_2018_1059_given_buffers_and_tables_across_regions_they_are_followed_or_refused() -> None:
    """CVE-2018-1059: guest memory that is contiguous for the guest need not be for us, and may have holes."""
    page = 4096
    fd = os.memfd_create("test")
    os.truncate(fd, 4 * page)
    guest = GuestMemory()
    # Two regions that meet at 2 * page, in the wrong order in their file, and one behind a hole.
    for at, offset in ((page, page), (2 * page, 0), (4 * page, 2 * page)):
        guest.map(Mapped(guest_addr=at, size_bytes=page, offset_bytes=offset), fd)
    os.close(fd)
    driver = Driver(Guest(), 8)
    queue = virtqueue.SplitQueue(driver.areas(), guest, position=0)
    table = 2 * page - 16  # one descriptor in each region
    entry = struct.pack("<QIHH", 2 * page - 4, 8, 0, 0)
    for index, packed in enumerate((struct.pack("<QIHH", page, 4, 1, 1), entry)):
        guest.writable_view(table + 16 * index, 16)[:] = packed
    driver.write_descriptor(0, table, 32, virtqueue.DESC_INDIRECT, 0)
    assert [len(one) for one in queue.chain(0).readable] == [4, 4, 4]
    for address, length, flags in (
        (3 * page - 4, 8, 0),
        (3 * page - 16, 32, virtqueue.DESC_INDIRECT),
        (page - 1, 2, 0),
        (page, 4 * page, virtqueue.DESC_WRITE),
    ):
        driver.write_descriptor(0, address, length, flags, 0)
        with pytest.raises((virtqueue.BrokenChain, OSError)):
            queue.chain(0)
    queue.close()
    guest.close()


class Restless:
    """Descriptors as they are read; behind the reader's back, the guest then makes something else of them."""

    def __init__(self, driver: Driver, tables: list[int]) -> None:
        self._driver = driver
        self._tables = tables

    def unpack_from(self, table: memoryview, offset: int) -> tuple[Any, ...]:
        read = struct.unpack_from("<QIHH", table, offset)
        for index in range(self._driver.size):
            self._driver.write_descriptor(index, 2**63, 2**31, 7, 0xFFFF)
        for at in self._tables:
            self._driver.guest.view(at, 16)[:] = b"\xff" * 16
        return read


def test_cve_2020_14374_given_guest_that_changes_what_was_read_what_was_read_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CVE-2020-14374 to -14378, CVE-2024-11614: each descriptor is read once, and checked as it was read."""
    guest = Guest()
    driver = Driver(guest, 4)
    device = driver.device()
    device.recover()
    table, buffer = guest.allocate(32), guest.allocate(64)
    packed = struct.pack("<QIHHQIHH", buffer, 16, 1, 1, buffer + 16, 32, 2, 0)
    guest.view(table, 32)[:] = packed
    driver.write_descriptor(0, table, 32, virtqueue.DESC_INDIRECT, 0)
    driver.make_available(0)
    monkeypatch.setattr(virtqueue, "_DESCRIPTOR", Restless(driver, []))
    assert device.fetch() == [0]
    chain = device.chain(0)
    assert ([len(one) for one in chain.readable], [len(one) for one in chain.writable]) == ([16], [32])
    driver.write_descriptor(0, table, 32, virtqueue.DESC_INDIRECT, 0)
    guest.view(table, 32)[:] = packed
    unpack = Restless(driver, [table + 16]).unpack_from
    monkeypatch.setattr(virtqueue, "_DESCRIPTOR", type("Late", (), {"unpack_from": staticmethod(unpack)}))
    with pytest.raises((virtqueue.BrokenChain, OSError)):
        device.chain(0)  # the table was not copied yet when the guest changed it: then that is what was read


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_cve_2021_3544_given_request_of_much_memory_it_takes_none_of_ours(tmp_path: Path, kind: int) -> None:
    """CVE-2021-3544 and its kin: a chain names one memory again and again; it is judged by its length."""
    disk = Disk(tmp_path / "disk.img", size=64)
    header, status = disk.guest.allocate(16), disk.guest.allocate(1)
    large = disk.guest.allocate(2 << 20)
    disk.guest.view(header, 16)[:] = struct.pack("<IIQ", kind, 0, 0)
    disk.driver.offer((header, 16, False), *[(large, 2 << 20, False)] * 60, (status, 1, True))
    tracemalloc.start()
    try:
        disk.run()
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert disk.guest.view(status, 1)[0] in (IOERR, UNSUPP)
    assert peak < 1 << 20
    disk.device.stop()
