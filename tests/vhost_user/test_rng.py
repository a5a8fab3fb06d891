"""The entropy source, driven through a real ring in this process."""

from __future__ import annotations

from devices.virtio.rng import MAX_BYTES, Rng
from supervisor.handle import LocalHandle
from supervisor.worker.session import Launch
from tests.vhost_user.driver import Driver, Guest


def _rng() -> Rng:
    device = LocalHandle(Rng, Launch(name="rng", options={}), lambda: 0)._session.device
    assert isinstance(device, Rng)
    return device


def test_given_buffers_they_are_filled_with_different_bytes() -> None:
    """Each in full, over several pieces; what is only for reading is left alone."""
    guest = Guest()
    driver = Driver(guest, 8)
    queue = driver.device()
    queue.recover()
    first, second, third = guest.allocate(64), guest.allocate(64), guest.allocate(32)
    driver.offer((first, 64, True), (second, 64, True))
    driver.offer((third, 32, False))
    _rng().process(queue, 0)
    assert [written for _head, written in driver.take()] == [128, 0]
    filled = bytes(guest.view(first, 64)) + bytes(guest.view(second, 64))
    assert len(set(filled)) > 40
    assert bytes(guest.view(third, 32)) == bytes(32)


def test_given_greedy_guest_a_request_has_an_end() -> None:
    """More than 64 KiB are not made at once: the guest is told how much there is."""
    guest = Guest()
    driver = Driver(guest, 8)
    queue = driver.device()
    queue.recover()
    head = driver.offer((guest.allocate(2 * MAX_BYTES), 2 * MAX_BYTES, True))
    _rng().process(queue, 0)
    assert driver.take() == [(head, MAX_BYTES)]
