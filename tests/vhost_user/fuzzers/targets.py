"""What is fed with any bytes at all: each target returns, or raises because a promise is broken.

The same functions serve Hypothesis (``test_fuzz_vhost_user``) and atheris (``fuzzers.run``).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from devices.virtio.blk import F_FLUSH, SECTOR, Blk
from supervisor.handle import LocalHandle
from supervisor.memory import BadRegion, GuestMemory, MappingFailed, MemoryFault
from supervisor.memory import Region as Mapped
from supervisor.messages_pb2 import VirtioOffer
from supervisor.vhost_user.areas import Inflight, MemoryTable, Region
from supervisor.vhost_user.assembler import Assembler, Message
from supervisor.vhost_user.errors import InvalidMessage, PartialMessage
from supervisor.vhost_user.granting import grant
from supervisor.vhost_user.inflight import CorruptLog, InflightLog, region_bytes
from supervisor.vhost_user.messages import U64, Config, Header, VringAddr, VringFd, VringState
from supervisor.vhost_user.requests import FrontEndRequest as F
from supervisor.vhost_user.setup import Refused, Setup
from supervisor.vhost_user.virtqueue import BrokenRing, SplitQueue
from supervisor.worker.session import Launch
from tests.vhost_user.driver import GUEST_BASE, Driver, Guest

__all__ = ["SEEDS", "TARGETS"]

Target = Callable[[bytes], None]
QUEUE = 8
CANARY = b"\xc5" * 4096
PAGE = 4096


@dataclass
class Fake:
    """A descriptor that is none: what counts is that it is closed, and once."""

    closed: int = 0

    def close(self) -> None:
        self.closed += 1

    def fileno(self) -> int:
        return -1


@dataclass
class Keeping:
    """A connection's set-up, as the keeper uses it, and every descriptor that it was given."""

    given: list[Fake] = field(default_factory=list)
    setup: Setup = field(init=False)

    def __post_init__(self) -> None:
        offer = VirtioOffer(
            features=(1 << 34) - 1, queues=3, config=bytes(60), config_writable=bytes([1] * 60)
        )
        self.setup = Setup(offer, lambda _size: self.give(), lambda _fd, _at, size: bytes(size))

    def give(self) -> Fake:
        self.given.append(Fake())
        return self.given[-1]

    def take(self, message: Message) -> None:
        setup, payload = self.setup, message.decode()
        descriptors: list[Any] = list(message.take())
        setup.pauses(message.header.request, payload)
        with contextlib.suppress(Refused):
            grant(setup, message.header.request, payload, descriptors)
        assert not descriptors
        if setup.running():
            attach, handed = setup.attach({})
            assert len(handed) <= 252
            assert not any(one.closed for one in handed)
            assert len(attach.rings) <= 3
        setup.oldest_in_flight()
        self.discard()

    def discard(self) -> None:
        for one in self.setup.discarded:
            if one is not None:
                one.close()
        self.setup.discarded.clear()


def messages(data: bytes) -> None:
    """Any stream, cut anywhere: values or the connection's own errors, and each descriptor closed once."""
    keeping, assembler = Keeping(), Assembler(unknown_pass=True)
    at = 0
    try:
        while at < len(data):
            step, fds = 1 + data[at] % 64, data[at] >> 6
            descriptors: list[Any] = [keeping.give() for _ in range(fds if not assembler.is_inside else 0)]
            piece = data[at + 1 : at + 1 + min(step, assembler.wanted_bytes)] or b"\0"
            at += 1 + len(piece)
            message = assembler.feed(piece, descriptors)
            if message is not None:
                with message:
                    keeping.take(message)
    except (InvalidMessage, PartialMessage):
        pass
    finally:
        assembler.close()
        keeping.setup.release()
        keeping.discard()
    assert all(one.closed == 1 for one in keeping.given), [one.closed for one in keeping.given]


def memory_table(data: bytes) -> None:
    """Any table over a small file: refused, or each byte is where the table says, and no other."""
    buffers, table = data[:16], data[16:]
    try:
        regions = MemoryTable.unpack(table[: 8 + (len(table) - 8) // 32 * 32]).regions
    except InvalidMessage:
        return
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, bytes(page for page in range(16) for _ in range(PAGE)))
        with GuestMemory() as memory:
            try:
                memory.map_all(
                    (
                        Mapped(
                            guest_addr=one.guest_address,
                            size_bytes=one.size,
                            offset_bytes=one.mmap_offset,
                            user_addr=one.user_address,
                        ),
                        fd,
                    )
                    for one in regions
                )
            except (BadRegion, MappingFailed):
                assert not memory.regions
                return
            _look_around(memory, regions, buffers)
    finally:
        os.close(fd)


def _look_around(memory: GuestMemory, regions: tuple[Any, ...], buffers: bytes) -> None:
    for index in range(0, len(buffers) - 1, 2):
        region = regions[buffers[index] % len(regions)]
        start = region.guest_address + region.size - 128 + buffers[index]
        length = 1 + buffers[index + 1]
        expected = [_byte_at(regions, start + n) for n in range(length)]
        try:
            found = b"".join(memory.readable_views([(start, length)]))
        except MemoryFault:
            assert None in expected
        else:
            assert list(found) == expected


def _byte_at(regions: tuple[Any, ...], address: int) -> int | None:
    for one in regions:
        if 0 <= address - one.guest_address < one.size:
            return int((one.mmap_offset + address - one.guest_address) // PAGE)
    return None


def _disk() -> Blk:
    """One for all runs: its image is scratch."""
    if not _DISKS:
        fd, path = tempfile.mkstemp()
        os.truncate(fd, 64 * SECTOR)
        os.close(fd)
        device = LocalHandle(Blk, Launch(name="disk", options={"image": path}), lambda: 0)._session.device
        os.unlink(path)
        assert isinstance(device, Blk)
        device.ctx.logger.disabled = True  # it would have much to say
        _DISKS.append(device)
    return _DISKS[0]


_DISKS: list[Blk] = []


def chains(data: bytes) -> None:
    """Any descriptors, tables, rings and requests: the disk ends each, and stays within the guest."""
    around = bytearray(CANARY + bytes(16384) + CANARY)
    guest = Guest(memory=memoryview(around)[len(CANARY) : -len(CANARY)])
    driver = Driver(guest, QUEUE, event_idx=bool(data[:1] > b"\x7f"))
    table = 16 * QUEUE
    available, descriptors, rest = data[1:9], data[9 : 9 + table], data[9 + table :]
    guest.view(driver.places[0], len(descriptors))[:] = descriptors
    at = GUEST_BASE + 1024  # what addresses of few bits lead to: tables and requests
    guest.view(at, min(len(rest), 8192))[:] = rest[:8192]
    for index in range(len(descriptors) // 16):
        _bring_near(driver, index)
    queue = driver.device()
    queue.recover()
    for head in available:
        driver.make_available(head % (QUEUE + 1) if head < 250 else head)
    device = _disk()
    device.attached(F_FLUSH, {0: queue})
    with contextlib.suppress(BrokenRing):
        device.process(queue, 0)
    queue.close()
    assert around[: len(CANARY)] == CANARY == around[-len(CANARY) :]


def _bring_near(driver: Driver, index: int) -> None:
    """An address of 64 random bits leads nowhere: most are brought to where there is something."""
    entry = driver.guest.view(driver.places[0] + 16 * index, 16)
    if entry[7] < 0xF0:
        entry[:8] = (GUEST_BASE + (int.from_bytes(entry[:2], "little") % 17000)).to_bytes(8, "little")
    if entry[11] < 0xF0:
        entry[10:12] = bytes(2)


def inflight(data: bytes) -> None:
    """Any log: refused as it was, or each request once, in order; and a device can go on from there."""
    used_idx = int.from_bytes(data[:2], "little")
    size = region_bytes(QUEUE)
    content = bytearray(data[2 : 2 + size].ljust(size, b"\0"))
    log = InflightLog(memoryview(bytearray(content)), QUEUE)
    before = bytes(log._bytes)
    try:
        left = log.recover(used_idx)
    except CorruptLog:
        assert bytes(log._bytes) == before
    else:
        assert len(set(left)) == len(left)
        assert all(0 <= head < QUEUE for head in left)
        assert [log.counter_of(head) for head in left] == sorted(log.counter_of(head) for head in left)
        assert log.recover(used_idx) == left
    _go_on(content, used_idx)


def _go_on(content: bytearray, used_idx: int) -> None:
    driver = Driver(Guest(16384), QUEUE, first=used_idx)
    queue = SplitQueue(
        driver.areas(), driver.guest, position=used_idx, log=InflightLog(memoryview(content), QUEUE)
    )
    device = _disk()
    device.attached(F_FLUSH, {0: queue})
    with contextlib.suppress(CorruptLog, BrokenRing):
        device.resume(queue, 0, queue.recover())
        device.process(queue, 0)
    queue.close()


def _as_stream(*parts: tuple[int, bytes, int]) -> bytes:
    """Whole messages, (request, payload, descriptors) each, in the pieces that ``messages`` takes them in."""
    stream = b""
    for code, payload, fds in parts:
        head = Header(code, len(payload), need_reply=True).pack()
        stream += bytes([fds << 6 | len(head) - 1]) + head
        for start in range(0, len(payload), 64):
            piece = payload[start : start + 64]
            stream += bytes([len(piece) - 1]) + piece
    return stream


_TABLE = MemoryTable((Region(0, 8 * PAGE, 1 << 32), Region(8 * PAGE, 4 * PAGE, 1 << 33, 9 * PAGE))).pack()
_RING = [
    (F.SET_FEATURES, U64(0).pack(), 0),
    (F.SET_MEM_TABLE, _TABLE, 2),
    (F.SET_VRING_NUM, VringState(0, QUEUE).pack(), 0),
    (F.SET_VRING_ADDR, VringAddr(0, 0, 1 << 32, 1 << 32, 1 << 32).pack(), 0),
    (F.SET_VRING_CALL, VringFd(0).pack(), 1),
    (F.SET_VRING_KICK, VringFd(0).pack(), 1),
]
SEEDS: dict[str, list[bytes]] = {
    "messages": [
        _as_stream(*_RING),
        _as_stream(*_RING, (F.GET_VRING_BASE, VringState(0, 0).pack(), 0)),
        _as_stream((F.SET_INFLIGHT_FD, Inflight(4096, 0, 1, 128).pack(), 1), *_RING),
        _as_stream(
            (F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 128).pack(), 0), (F.SET_CONFIG, Config(0, b"1").pack(), 0)
        ),
    ],
    "memory_table": [bytes(range(16)) + _TABLE],
    "chains": [bytes(9) + bytes(range(128)) + bytes(64)],
    "inflight": [bytes(10) + b"\1\0" + bytes(140)],
}
"""What is worth beginning with."""

TARGETS: dict[str, Target] = {
    "messages": messages,
    "memory_table": memory_table,
    "chains": chains,
    "inflight": inflight,
}
