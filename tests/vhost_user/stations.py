"""Guests with one network card each, whose VMM is our front-end: real sockets, real workers, real kills."""

from __future__ import annotations

import mmap
import os
import random
import select
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from devices.virtio.net import RX, TX
from supervisor.host import Supervisor
from supervisor.vhost_user import F_EVENT_IDX, F_PROTOCOL_FEATURES, F_VERSION_1
from supervisor.vhost_user.areas import Region
from supervisor.vhost_user.frontend import FrontEnd
from supervisor.vhost_user.messages import VringAddr
from tests.vhost_user.driver import GUEST_BASE, Driver, Guest

MEMORY_BYTES = 4 << 20
USER_BASE = 0x7F00_0000_0000
QUEUE = 64
SLOT_BYTES = 2048  # for one frame and its header
HEADER = 12
FEATURES = F_VERSION_1 | F_EVENT_IDX | F_PROTOCOL_FEATURES
Result = TypeVar("Result")


class Station:
    """One guest: a buffer for each entry of both rings; frames in, frames out."""

    def __init__(self, sup: Supervisor, path: Path) -> None:
        self.sup = sup
        self.path = path
        self.memory_fd = os.memfd_create("test memory")
        os.ftruncate(self.memory_fd, MEMORY_BYTES)
        self._mapping = mmap.mmap(self.memory_fd, MEMORY_BYTES)
        self.guest = Guest(memory=memoryview(self._mapping))
        self.drivers = [Driver(self.guest, QUEUE, event_idx=True) for _ in (RX, TX)]
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in (RX, TX)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in (RX, TX)]
        self.slots: list[dict[int, int]] = [{}, {}]  # of each ring: head -> where its buffer is
        self.free = [[self.guest.allocate(SLOT_BYTES) for _ in range(QUEUE)] for _ in (RX, TX)]
        self.sent = 0
        self.received: list[bytes] = []
        self._thread = ThreadPoolExecutor(1)
        self.front = self.ask(lambda: FrontEnd(path, need_reply=True))

    def ask(self, what: Callable[[], Result]) -> Result:
        """Does ``what``, which waits for the supervisor, while that goes on."""
        future = self._thread.submit(what)
        while not future.done():
            self.sup.dispatch(0.01)
        return future.result()

    def bring_up(self, features: int = FEATURES, rings: tuple[int, ...] = (RX, TX)) -> None:
        """As QEMU does it for a card: rings are enabled before they are there, and started one by one."""
        front = self.front
        self.ask(front.get_features)
        for index in (RX, TX):
            self.ask(lambda index=index: front.set_vring_enable(index, True))  # type: ignore[misc]
        self.ask(lambda: front.set_features(features))
        region = Region(GUEST_BASE, MEMORY_BYTES, USER_BASE)
        self.ask(lambda: front.set_mem_table([region], [self.memory_fd]))
        for index in rings:
            self.start_ring(index)

    def start_ring(self, index: int, base: int | None = None) -> None:
        front, driver = self.front, self.drivers[index]
        desc, avail, used = (place - GUEST_BASE + USER_BASE for place in driver.places)
        at = driver.used_words[1] if base is None else base
        self.ask(lambda: front.set_vring_num(index, QUEUE))
        self.ask(lambda: front.set_vring_base(index, at))
        self.ask(lambda: front.set_vring_addr(VringAddr(index, 0, desc, used, avail)))
        self.ask(lambda: front.set_vring_kick(index, self.kicks[index]))
        self.ask(lambda: front.set_vring_call(index, self.calls[index]))

    def post(self) -> None:
        """Gives every free buffer to receive into."""
        driver, free, slots = self.drivers[RX], self.free[RX], self.slots[RX]
        if not free:
            return
        while free:
            at = free.pop()
            slots[driver.offer((at, SLOT_BYTES, True))] = at
        driver.want_interrupt_after(driver.used_words[1])
        os.eventfd_write(self.kicks[RX], 1)

    def send(self, frame: bytes) -> bool:
        """Sends a frame; false if no buffer is free."""
        free = self.free[TX]
        if not free:
            return False
        at = free.pop()
        self.guest.view(at, HEADER + len(frame))[:] = bytes(HEADER) + frame
        driver = self.drivers[TX]
        self.slots[TX][driver.offer((at, HEADER + len(frame), False))] = at
        self.sent += 1
        driver.want_interrupt_after(driver.used_words[1])
        os.eventfd_write(self.kicks[TX], 1)
        return True

    def collect(self) -> None:
        """Takes what the device has used: a KeyError is a buffer that was used twice."""
        for head, _written in self.drivers[TX].take():
            self.free[TX].append(self.slots[TX].pop(head))
        for head, written in self.drivers[RX].take():
            at = self.slots[RX].pop(head)
            if written:
                whole = bytes(self.guest.view(at, written))
                assert whole[:HEADER] == bytes(10) + b"\1\0"
                self.received.append(whole[HEADER:])
            self.free[RX].append(at)
        self.drivers[RX].want_interrupt_after(self.drivers[RX].used_words[1])
        self.post()

    def close(self) -> None:
        self.ask(self.front.close)
        self._thread.shutdown()
        for driver in self.drivers:
            driver.release()
        self.guest.bytes.release()
        self._mapping.close()
        for fd in (self.memory_fd, *self.kicks, *self.calls):
            os.close(fd)


def wait(sup: Supervisor, *stations: Station, timeout: float = 0.05) -> None:
    """Waits for an interrupt or something in the supervisor, and takes both in."""
    calls = [fd for station in stations for fd in station.calls]
    due = sup.next_timeout()
    ready = select.select([*calls, sup.fileno()], [], [], timeout if due is None else min(due, timeout))[0]
    for fd in ready:
        if fd in calls:
            os.eventfd_read(fd)
    sup.dispatch()
    for station in stations:
        station.collect()


def until(what: Callable[[], bool], sup: Supervisor, *stations: Station, seconds: float = 60.0) -> None:
    """Goes on until ``what`` is so; it has to be within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not what():
        wait(sup, *stations)
        state = [(len(one.received), one.sent, len(one.slots[TX])) for one in stations]
        assert time.monotonic() < deadline, state


def numbered(chooser: random.Random, number: int) -> bytes:
    """A frame that says which it is and cannot be another one's."""
    return number.to_bytes(8, "big") + random.Random(number).randbytes(chooser.randint(6, 1506))


def is_whole(frame: bytes) -> bool:
    """True if a frame is one of ``numbered``'s, unchanged."""
    number = int.from_bytes(frame[:8], "big")
    return frame[8:] == random.Random(number).randbytes(len(frame) - 8)


@contextmanager
def stations(sup: Supervisor, *paths: Path, kind: type[Any] = Station) -> Iterator[list[Any]]:
    """Guests of a ``kind`` at the sockets of ``sup``."""
    made: list[Station] = []
    try:
        for path in paths:
            made.append(kind(sup, path))
        yield made
    finally:
        for one in made:
            one.close()
