"""The disk, driven through a real ring in this process: every request, every layout, every refusal."""

from __future__ import annotations

import itertools
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.virtio.blk import (
    DISCARD,
    F_FLUSH,
    F_MQ,
    F_RO,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    UNSUPP,
    WRITE_ZEROES,
    Blk,
)
from supervisor.errors import LocalError
from supervisor.handle import LocalHandle
from supervisor.vhost_user.virtqueue import SplitQueue
from supervisor.worker.session import Launch
from tests.vhost_user.driver import Driver, Guest

SECTORS = 256


class Disk:
    """A disk of 256 sectors with a recognizable content, and a guest that uses it."""

    def __init__(self, path: Path, *, features: int = F_FLUSH, size: int = 64, **options: Any) -> None:
        self.path = path
        self.content = bytearray(random.Random(1).randbytes(SECTORS * SECTOR))
        path.write_bytes(self.content)
        handle = LocalHandle(Blk, Launch(name="disk", options={"image": str(path), **options}), lambda: 0)
        device = handle._session.device
        assert isinstance(device, Blk)
        self.device = device
        self.guest = Guest(4 << 20)
        self.driver = Driver(self.guest, size)
        self.queue: SplitQueue = self.driver.device()
        self.queue.recover()
        device.attached(features, {0: self.queue})

    def submit(self, kind: int, sector: int, *data: int | bytes, cut: int = 16) -> tuple[int, int, list[int]]:
        """A request with buffers to fill (ints: bytes) or to read: its head, its status and its buffers."""
        header = struct.pack("<IIQ", kind, 0, sector)
        at = self.guest.allocate(16)
        self.guest.view(at, 16)[:] = header
        chain = [(at, cut, False)] + ([(at + cut, 16 - cut, False)] if cut < 16 else [])
        addresses = []
        for one in data:
            length = one if isinstance(one, int) else len(one)
            address = self.guest.allocate(length)
            if isinstance(one, bytes):
                self.guest.view(address, length)[:] = one
            addresses.append(address)
            chain.append((address, length, isinstance(one, int)))
        status = self.guest.allocate(1)
        self.guest.view(status, 1)[0] = 0xEE
        chain.append((status, 1, True))
        return self.driver.offer(*chain), status, addresses

    def run(self) -> None:
        self.device.process(self.queue, 0)

    def request(self, kind: int, sector: int, *data: int | bytes, cut: int = 16) -> tuple[int, bytes, int]:
        """One request from start to end: (status, what was read, used length)."""
        head, status, addresses = self.submit(kind, sector, *data, cut=cut)
        self.run()
        ((used, written),) = self.driver.take()
        assert used == head
        lengths = [one if isinstance(one, int) else 0 for one in data]
        read = b"".join(bytes(self.guest.view(at, n)) for at, n in zip(addresses, lengths, strict=True) if n)
        return self.guest.view(status, 1)[0], read, written


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk.img")
    yield made
    made.device.stop()


def test_given_reads_and_writes_of_any_cut_the_image_is_what_a_plain_file_would_be(disk: Disk) -> None:
    """Random sizes, places and cuts of the buffers and the header, beside a byte array."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    for _ in range(300):
        sectors = chooser.randint(1, 8)
        sector = chooser.randrange(SECTORS - sectors)
        length, at = sectors * SECTOR, sector * SECTOR
        cuts = sorted({0, length, *(chooser.randrange(1, length) for _ in range(chooser.randrange(4)))})
        pieces = [end - start for start, end in itertools.pairwise(cuts)]
        cut = chooser.choice([16, 16, 1, 8])
        if chooser.random() < 0.5:
            data = chooser.randbytes(length)
            parts = [data[start:end] for start, end in itertools.pairwise(cuts)]
            assert disk.request(OUT, sector, *parts, cut=cut) == (OK, b"", 1)
            disk.content[at : at + length] = data
        else:
            assert disk.request(IN, sector, *pieces, cut=cut) == (
                OK,
                bytes(disk.content[at : at + length]),
                length + 1,
            )
        disk.guest._free = max(disk.driver.places) + 4096
    assert disk.path.read_bytes() == bytes(disk.content)


def test_given_many_at_once_they_are_used_in_order(disk: Disk) -> None:
    """A batch is published together; the order of the ring is kept."""
    heads = [disk.submit(IN, sector, SECTOR)[0] for sector in range(16)]
    disk.run()
    assert [head for head, _written in disk.driver.take()] == heads


REFUSED = [
    (IN, SECTORS, (SECTOR,), IOERR),
    (IN, SECTORS - 1, (2 * SECTOR,), IOERR),
    (IN, 2**64 - 1, (SECTOR,), IOERR),
    (IN, 0, (100,), IOERR),
    (OUT, SECTORS, (bytes(SECTOR),), IOERR),
    (OUT, 0, (bytes(10),), IOERR),
    (99, 0, (), UNSUPP),
    (DISCARD, 0, (b"",), IOERR),
    (DISCARD, 0, (struct.pack("<QII", 0, 1, 1),), UNSUPP),
    (DISCARD, 0, (struct.pack("<QII", 0, 1, 0) * 2,), UNSUPP),
    (DISCARD, 0, (struct.pack("<QII", SECTORS, 1, 0),), IOERR),
    (WRITE_ZEROES, 0, (struct.pack("<QII", 0, 1, 2),), UNSUPP),
    (WRITE_ZEROES, 0, (struct.pack("<QII", 0, SECTORS + 1, 0),), IOERR),
    (WRITE_ZEROES, 0, (struct.pack("<QII", 0, 2**32 - 1, 0),), IOERR),
]


@pytest.mark.parametrize(("kind", "sector", "data", "status"), REFUSED)
def test_given_request_that_cannot_be_its_status_says_so_and_nothing_changes(
    disk: Disk, kind: int, sector: int, data: tuple[int | bytes, ...], status: int
) -> None:
    """Ranges, lengths, flags and types that the specification refuses."""
    data = tuple(one for one in data if one != b"")
    assert disk.request(kind, sector, *data) == (status, bytes(sum(n for n in data if isinstance(n, int))), 1)
    assert disk.path.read_bytes() == bytes(disk.content)


def test_given_short_header_or_no_status_the_request_ends(disk: Disk) -> None:
    """A header of 8 bytes is an error; a chain without a byte to write cannot even say that."""
    at = disk.guest.allocate(16)
    status = disk.guest.allocate(1)
    disk.driver.offer((at, 8, False), (status, 1, True))
    disk.driver.offer((at, 16, False))
    disk.run()
    assert [written for _head, written in disk.driver.take()] == [1, 0]
    assert disk.guest.view(status, 1)[0] == IOERR


def test_given_status_behind_data_in_one_buffer_it_is_the_last_byte(disk: Disk) -> None:
    """VERSION_1 leaves the layout to the driver."""
    at, into = disk.guest.allocate(16), disk.guest.allocate(SECTOR + 1)
    disk.guest.view(at, 16)[:] = struct.pack("<IIQ", IN, 0, 3)
    head = disk.driver.offer((at, 16, False), (into, SECTOR + 1, True))
    disk.run()
    assert disk.driver.take() == [(head, SECTOR + 1)]
    expected = bytes(disk.content[3 * SECTOR : 4 * SECTOR]) + bytes([OK])
    assert bytes(disk.guest.view(into, SECTOR + 1)) == expected


def test_given_write_zeroes_and_discard_the_range_reads_zero(disk: Disk) -> None:
    """With and without leave to unmap; the file keeps its length."""
    for kind, sector, flags in ((WRITE_ZEROES, 10, 0), (WRITE_ZEROES, 20, 1), (DISCARD, 30, 0)):
        assert disk.request(kind, 0, struct.pack("<QII", sector, 4, flags))[0] == OK
        assert disk.request(IN, sector, 4 * SECTOR)[1] == bytes(4 * SECTOR)
        disk.content[sector * SECTOR : (sector + 4) * SECTOR] = bytes(4 * SECTOR)
    assert disk.path.read_bytes() == bytes(disk.content)


def test_given_get_id_and_flush_they_answer(tmp_path: Path) -> None:
    """The serial, padded to 20 bytes; a flush has no data."""
    disk = Disk(tmp_path / "disk.img", serial="tubevisor-1")
    assert disk.request(GET_ID, 0, 20) == (OK, b"tubevisor-1".ljust(20, b"\0"), 21)
    assert disk.request(FLUSH, 0) == (OK, b"", 1)


def test_given_read_only_nothing_is_written(tmp_path: Path) -> None:
    """The feature says so, and writes are refused whatever the guest thinks."""
    disk = Disk(tmp_path / "disk.img", read_only=True)
    assert disk.device.features() & F_RO
    assert disk.request(OUT, 0, bytes(SECTOR))[0] == IOERR
    assert disk.request(WRITE_ZEROES, 0, struct.pack("<QII", 0, 1, 0))[0] == UNSUPP
    assert disk.request(IN, 0, SECTOR)[0] == OK


def test_given_file_cut_short_the_rest_reads_zero(disk: Disk) -> None:
    """The disk is as long as it was when the guest was told; what is not there is zero."""
    os.truncate(disk.path, SECTOR // 2)
    expected = bytes(disk.content[: SECTOR // 2]) + bytes(SECTOR + SECTOR // 2)
    assert disk.request(IN, 0, 2 * SECTOR) == (OK, expected, 2 * SECTOR + 1)


@pytest.mark.parametrize(
    ("features", "wce", "durable"), [(0, None, True), (F_FLUSH, 1, False), (F_FLUSH, 0, True)]
)
def test_given_no_flush_or_write_through_each_write_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: int, wce: int | None, durable: bool
) -> None:
    """A guest that cannot flush, or asked for write-through, has its data on the disk when it is told so."""
    disk = Disk(tmp_path / "disk.img", features=features)
    if wce is not None:
        assert disk.device.write_config(32, bytes([wce]))
    asked: list[int] = []
    real = os.pwritev

    def note(fd: int, data: list[memoryview], at: int, flags: int) -> int:
        asked.append(flags)
        return real(fd, data, at, flags)

    monkeypatch.setattr(os, "pwritev", note)
    disk.request(OUT, 0, bytes(SECTOR))
    assert asked == [os.RWF_DSYNC if durable else 0]
    assert disk.device.config_space()[32] == (0 if durable else 1)


def test_given_config_space_it_is_laid_out_as_specified(tmp_path: Path) -> None:
    """Capacity in sectors, the cache's mode at 32, the number of queues at 34; only the mode is writable."""
    disk = Disk(tmp_path / "disk.img", queues=3, block_size=4096)
    config = disk.device.config_space()
    assert len(config) == 60
    assert struct.unpack_from("<Q", config) == (SECTORS,)
    assert struct.unpack_from("<I", config, 20) == (4096,)
    assert struct.unpack_from("<H", config, 34) == (3,)
    assert disk.device.features() & F_MQ
    for offset, data in ((0, b"\0"), (32, b"\2"), (32, b"\0\0"), (33, b"\0")):
        assert not disk.device.write_config(offset, data)
    assert disk.request(IN, 1, SECTOR)[0] == IOERR  # not a whole block
    assert disk.request(IN, 8, 4096)[0] == OK


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image": "/nowhere/disk.img"}, "No such file"),
        ({"block_size": 1000}, "block_size is 1000"),
        ({"queues": 0}, "queues is 0"),
    ],
)
def test_given_options_that_cannot_be_the_start_says_why(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    """An image that is not there, sizes that are none."""
    with pytest.raises(LocalError, match=told):
        Disk(tmp_path / "disk.img", **options)


def test_given_requests_left_by_a_dead_process_they_are_executed_first(disk: Disk) -> None:
    """What was fetched and not completed is done again, in its order, before anything new."""
    first = [disk.submit(OUT, sector, bytes([sector]) * SECTOR)[0] for sector in (1, 2)]
    disk.queue.fetch()  # and dies
    later, _status, _data = disk.submit(IN, 2, SECTOR)
    queue = disk.driver.device()
    left = queue.recover()
    assert left == first
    disk.device.resume(queue, 0, left)
    disk.device.process(queue, 0)
    assert [head for head, _written in disk.driver.take()] == [*first, later]
    assert disk.path.read_bytes()[SECTOR : 3 * SECTOR] == b"\1" * SECTOR + b"\2" * SECTOR
