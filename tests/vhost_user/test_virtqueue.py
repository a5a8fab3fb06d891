"""Split queues: chains, batches, notifications, and everything that a driver may get wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from supervisor.vhost_user.virtqueue import BrokenChain, BrokenRing, RingAreas, SplitQueue
from tests.vhost_user.driver import GUEST_BASE, Driver, Guest, MemoryFault

NEXT, WRITE, INDIRECT = 1, 2, 4


def _queue(size: int = 8, **options: bool) -> tuple[Guest, Driver, SplitQueue]:
    guest = Guest()
    driver = Driver(guest, size, **options)
    device = driver.device()
    device.recover()
    return guest, driver, device


def test_given_chain_its_buffers_come_in_order_readable_before_writable() -> None:
    """Both kinds of buffers are the guest's own memory, not a copy of it."""
    guest, driver, device = _queue()
    out, into = guest.allocate(32), guest.allocate(64)
    guest.view(out, 5)[:] = b"hello"
    head = driver.offer((out, 5, False), (into, 64, True))
    assert device.fetch() == [head]
    chain = device.chain(head)
    assert [bytes(one) for one in chain.readable] == [b"hello"]
    chain.writable[0][:3] = b"you"
    device.complete(head, 3)
    device.flush()
    assert driver.take() == [(head, 3)]
    assert bytes(guest.view(into, 3)) == b"you"


def test_given_indirect_chain_it_is_as_if_it_were_direct() -> None:
    """A table of its own in the guest's memory, and one descriptor in the ring."""
    guest, driver, device = _queue(2)
    buffers = [(guest.allocate(16), 16, index >= 3) for index in range(6)]
    head = driver.offer(*buffers, indirect=True)
    device.fetch()
    chain = device.chain(head)
    assert (len(chain.readable), len(chain.writable)) == (3, 3)


def test_given_many_rounds_positions_wrap() -> None:
    """Past 65,536 requests everything goes on, in a ring and an index that have both wrapped."""
    guest = Guest()
    driver = Driver(guest, 4, first=0xFFFC)
    device = driver.device(position=0xFFFC)
    device.recover()
    device.position = 0xFFFC
    buffer = guest.allocate(16)
    for _ in range(20):
        heads = [driver.offer((buffer, 16, True)) for _ in range(3)]
        assert device.fetch() == heads
        for head in heads:
            device.complete(head, 1)
        device.flush()
        assert [head for head, _written in driver.take()] == heads
    assert device.used_idx == (0xFFFC + 60) & 0xFFFF


def test_given_limit_the_rest_is_for_the_next_fetch() -> None:
    """Requests are not taken before somebody can work on them."""
    guest, driver, device = _queue()
    heads = [driver.offer((guest.allocate(16), 16, True)) for _ in range(5)]
    assert device.fetch(2) == heads[:2]
    assert device.has_more
    assert device.fetch() == heads[2:]
    assert not device.has_more


CHAINS = [
    ([(0, GUEST_BASE, 16, NEXT, 8)], "descriptor 8 of 8"),
    ([(0, GUEST_BASE, 16, NEXT, 1), (1, GUEST_BASE, 16, NEXT, 0)], "a loop"),
    ([(0, GUEST_BASE, 16, NEXT, 0)], "a loop"),
    ([(0, GUEST_BASE, 16, NEXT | WRITE, 1), (1, GUEST_BASE, 16, 0, 0)], "to read behind one to write"),
    ([(0, GUEST_BASE, 0, 0, 0)], "a buffer of 0 bytes"),
    ([(0, GUEST_BASE, 24, INDIRECT, 0)], "an indirect table of 24 bytes"),
    ([(0, GUEST_BASE, 0, INDIRECT, 0)], "an indirect table of 0 bytes"),
    ([(0, GUEST_BASE, 16, INDIRECT | NEXT, 1)], "within a chain or a table"),
    ([(0, GUEST_BASE + 16 * 9, 16, INDIRECT, 0)], "loop|descriptor|bytes"),
]


@pytest.mark.parametrize(("descriptors", "told"), CHAINS)
def test_given_broken_chain_it_is_named_and_can_be_completed(
    descriptors: list[tuple[int, int, int, int, int]], told: str
) -> None:
    """The request ends, with what is wrong; the ring goes on."""
    guest, driver, device = _queue()
    for index, *fields in descriptors:
        driver.write_descriptor(index, *fields)
    driver.chains[0] = []
    driver.make_available(0)
    assert device.fetch() == [0]
    with pytest.raises(BrokenChain, match=told) as broken:
        device.chain(0)
    device.complete(broken.value.head, 0)
    device.flush()
    assert driver.take() == [(0, 0)]
    driver.free.remove(0)
    assert device.fetch() == []
    assert guest.bytes


def test_given_indirect_table_in_a_table_it_is_refused() -> None:
    """Tables do not nest."""
    guest, driver, device = _queue()
    table = guest.allocate(32)
    guest.view(table, 16)[:] = (GUEST_BASE).to_bytes(8, "little") + bytes([16, 0, 0, 0, INDIRECT, 0, 0, 0])
    driver.write_descriptor(0, table, 16, INDIRECT, 0)
    driver.make_available(0)
    device.fetch()
    with pytest.raises(BrokenChain, match="within a chain or a table"):
        device.chain(0)


@pytest.mark.parametrize("address", [0, GUEST_BASE - 8, GUEST_BASE + (1 << 20) - 8, 2**64 - 8])
def test_given_address_outside_of_the_guest_memory_faults(address: int) -> None:
    """Also where only a part of the buffer is outside, and at the end of the address space."""
    _guest, driver, device = _queue()
    driver.write_descriptor(0, address, 16, 0, 0)
    driver.make_available(0)
    device.fetch()
    with pytest.raises(MemoryFault):
        device.chain(0)


def test_given_broken_rings_nothing_more_is_taken() -> None:
    """A jump of avail.idx, a head out of range, a head that is under way."""
    _guest, driver, device = _queue()
    driver.avail[1] = 9
    with pytest.raises(BrokenRing, match="9 requests available"):
        device.fetch()
    _guest, driver, device = _queue()
    driver.make_available(8)
    with pytest.raises(BrokenRing, match="request 8 of a queue of 8"):
        device.fetch()
    guest, driver, device = _queue()
    head = driver.offer((guest.allocate(16), 16, True))
    device.fetch()
    driver.make_available(head)
    with pytest.raises(BrokenRing, match="while it is under way"):
        device.fetch()


def test_given_more_under_way_than_the_ring_holds_it_is_broken() -> None:
    """A driver that offers again what it has not got back."""
    guest, driver, device = _queue(4)
    for _ in range(4):
        driver.offer((guest.allocate(16), 16, True))
    device.fetch()
    driver.make_available(0)
    with pytest.raises(BrokenRing, match="1 requests available and 4 under way, of 4"):
        device.fetch()


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_given_size_that_cannot_be_the_areas_are_refused(size: int) -> None:
    """Powers of two up to 32,768."""
    with pytest.raises(BrokenRing, match="power of two"):
        RingAreas(memoryview(b""), memoryview(b""), memoryview(b""), size)


def test_given_areas_of_a_wrong_length_they_are_refused() -> None:
    """A view that is too short would be read beyond its end otherwise."""
    with pytest.raises(BrokenRing, match="available area of 8 bytes for 4 entries"):
        RingAreas(memoryview(bytes(64)), memoryview(bytes(8)), memoryview(bytes(38)), 4)


# Notifications.


def _calls(fd: int) -> int:
    try:
        return int.from_bytes(os.read(fd, 8), "little")
    except BlockingIOError:
        return 0


@pytest.fixture
def call_fd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _round(driver: Driver, device: SplitQueue, requests: int) -> None:
    buffer = driver.guest.allocate(16)
    for _ in range(requests):
        driver.offer((buffer, 16, True))
    for head in device.fetch():
        device.complete(head, 1)
    device.flush()
    driver.take()


def test_given_driver_that_wants_none_it_is_not_interrupted(call_fd: int) -> None:
    """The flag, without the event index; the first time is always signalled: nobody knows what was before."""
    guest = Guest()
    driver = Driver(guest, 8)
    device = driver.device(call_fd=call_fd)
    device.recover()
    driver.avail[0] = 1
    _round(driver, device, 1)
    assert _calls(call_fd) == 1
    _round(driver, device, 3)
    assert _calls(call_fd) == 0
    driver.avail[0] = 0
    _round(driver, device, 3)
    assert _calls(call_fd) == 1


def test_given_event_index_the_driver_is_interrupted_when_it_is_passed(call_fd: int) -> None:
    """Not before used_event, once when it is passed, and not again until it is set anew."""
    guest = Guest()
    driver = Driver(guest, 8, event_idx=True)
    device = driver.device(call_fd=call_fd)
    device.recover()
    device.signal()
    assert _calls(call_fd) == 1
    driver.want_interrupt_after(2)
    calls = []
    for _ in range(5):
        _round(driver, device, 1)
        calls.append(_calls(call_fd))
    assert calls == [0, 0, 1, 0, 0]
    driver.want_interrupt_after(6)
    _round(driver, device, 4)
    assert _calls(call_fd) == 1


def test_given_driver_that_polls_for_long_its_wish_is_seen_all_the_same(call_fd: int) -> None:
    """Indices come round: 65,536 requests without an interrupt are not as if there had been none."""
    driver = Driver(Guest(4 << 20), 8, event_idx=True)
    device = driver.device(call_fd=call_fd)
    device.recover()
    driver.want_interrupt_after(0)
    _round(driver, device, 1)
    assert _calls(call_fd) == 1
    for _ in range(65536 // 8 - 1):
        driver.want_interrupt_after(driver.position + 1000)
        _round(driver, device, 8)
    assert _calls(call_fd) == 0
    driver.want_interrupt_after(driver.position)
    _round(driver, device, 8)
    assert _calls(call_fd) == 1


def test_given_wish_that_comes_too_late_it_is_reminded_of_once(call_fd: int) -> None:
    """As under an emulator without fences: what was published is what the driver waits for after all."""
    driver = Driver(Guest(), 8, event_idx=True)
    device = driver.device(call_fd=call_fd)
    device.recover()
    driver.want_interrupt_after(0)
    _round(driver, device, 1)
    assert _calls(call_fd) == 1
    device.remind()
    _round(driver, device, 3)
    device.remind()
    assert _calls(call_fd) == 0, "it waits for nothing"
    driver.want_interrupt_after(2)
    for calls in (1, 0):
        device.remind()
        assert _calls(call_fd) == calls
    driver.want_interrupt_after(4)
    device.remind()
    assert _calls(call_fd) == 0, "that is still to come"


def test_given_pipe_full_of_interrupts_nobody_waits() -> None:
    """User-Mode Linux hands over a pipe: one that is full means that an interrupt is pending."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            os.write(write_end, bytes(4096))
    except BlockingIOError:
        pass
    guest = Guest()
    driver = Driver(guest, 8)
    device = driver.device(call_fd=write_end)
    device.recover()
    _round(driver, device, 1)
    os.close(read_end)
    os.close(write_end)


def test_given_nobody_to_interrupt_the_requests_are_done_all_the_same() -> None:
    """A pipe whose reader is gone, and a descriptor that cannot be written: no interrupt, and no error."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(read_end)
    reading = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    for call_fd in (write_end, reading):
        driver = Driver(Guest(), 8)
        device = driver.device(call_fd=call_fd)
        device.recover()
        _round(driver, device, 2)
        assert len(driver.used) == 2
        os.close(call_fd)


def test_given_wait_for_kick_what_came_meanwhile_is_seen() -> None:
    """Asking for a kick and looking once more leaves no gap; being busy asks for none."""
    guest, driver, device = _queue(event_idx=True)
    assert device.wait_for_kick()
    assert driver.kick_wanted_at == 0
    driver.offer((guest.allocate(16), 16, True))
    assert not device.wait_for_kick()
    guest, driver, device = _queue()
    device.ignore_kicks()
    assert driver.used_words[0] == 1
    assert device.wait_for_kick()
    assert driver.used_words[0] == 0
