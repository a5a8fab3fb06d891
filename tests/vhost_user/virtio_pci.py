"""A driver of virtio over PCI (virtio 1.2, section 4.1), for the devices of a QEMU without a guest."""

from __future__ import annotations

from tests.vhost_user.driver import Driver
from tests.vhost_user.qtest import Qemu

BAR_BASE, BAR_STEP = 0xE000_0000, 0x10_0000  # in the PCI hole; nobody else places anything
VIRTIO_VENDOR, MODERN = 0x1AF4, 0x1040
COMMON, NOTIFY, ISR, DEVICE = 1, 2, 3, 4  # the capabilities of virtio over PCI
MSIX = 0x11
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
# Fields of the common configuration, and their bytes.
FIELDS = {
    "device_feature_select": (0, 4), "device_feature": (4, 4), "driver_feature_select": (8, 4),
    "driver_feature": (12, 4), "msix_config": (16, 2), "num_queues": (18, 2), "status": (20, 1),
    "config_generation": (21, 1),
    "queue_select": (22, 2), "queue_size": (24, 2), "queue_msix_vector": (26, 2), "queue_enable": (28, 2),
    "queue_notify_off": (30, 2), "queue_desc": (32, 8), "queue_driver": (40, 8), "queue_device": (48, 8),
}  # fmt: skip


class VirtioPci:
    """The device in PCI slot ``slot``, as its driver sees it."""

    def __init__(self, qemu: Qemu, slot: int = 4) -> None:
        self.qemu = qemu
        self.slot = slot
        identity = qemu.config(slot, 0)
        assert identity & 0xFFFF == VIRTIO_VENDOR, f"no virtio device in slot {slot}: {identity:#x}"
        self.device_id = (identity >> 16) - MODERN
        self._bars = self._place_bars()
        self._parts: dict[int, int] = {}
        self._notify_step = 0
        self._msix_table = 0
        self._read_capabilities()
        self._interrupts: dict[int, memoryview] = {}
        self.queues: list[Driver] = []

    def _place_bars(self) -> dict[int, int]:
        bars, index = {}, 0
        while index < 6:
            at = 0x10 + 4 * index
            self.qemu.config(self.slot, at, 0xFFFFFFFF)
            kind = self.qemu.config(self.slot, at)
            if kind and not kind & 1:
                bars[index] = BAR_BASE + BAR_STEP * (8 * self.slot + index)
                self.qemu.config(self.slot, at, bars[index])
            if kind & 7 == 4:  # 64 bits: the next one is its upper half
                index += 1
                self.qemu.config(self.slot, at + 4, 0)
            index += 1
        self.qemu.config(self.slot, 4, 0x6)  # memory accesses, and bus mastering
        return bars

    def _read_capabilities(self) -> None:
        config, at = self.qemu.config, self.qemu.config(self.slot, 0x34) & 0xFC
        while at:
            word = config(self.slot, at)
            if word & 0xFF == MSIX:
                where = config(self.slot, at + 4)
                self._msix_table = self._bars[where & 7] + (where & ~7)
                config(self.slot, at, word | 1 << 31)  # on
            elif word & 0xFF == 9 and (word >> 24) in (COMMON, NOTIFY, ISR, DEVICE):
                bar = config(self.slot, at + 4) & 0xFF
                self._parts[word >> 24] = self._bars[bar] + config(self.slot, at + 8)
                if word >> 24 == NOTIFY:
                    self._notify_step = config(self.slot, at + 16)
            at = word >> 8 & 0xFC

    def get(self, field: str) -> int:
        offset, size = FIELDS[field]
        return self.qemu.read(self._parts[COMMON] + offset, size)

    def set(self, field: str, value: int) -> None:
        offset, size = FIELDS[field]
        self.qemu.write(self._parts[COMMON] + offset, size, value)

    def config_space(self, offset: int, size: int) -> int:
        return self.qemu.read(self._parts[DEVICE] + offset, size)

    def set_config_space(self, offset: int, size: int, value: int) -> None:
        self.qemu.write(self._parts[DEVICE] + offset, size, value)

    def generation(self) -> int:
        """Another number whenever the configuration space has changed."""
        return self.get("config_generation")

    def take_config_interrupt(self) -> bool:
        """Whether the device has said that its configuration has changed; reading takes it back."""
        return bool(self.qemu.read(self._parts[ISR], 1) & 2)

    # -- the life of a driver ------------------------------------------------------------------------

    def reset(self) -> None:
        self.set("status", 0)
        self.qemu.until(lambda: self.get("status") == 0)
        self.drop()

    def drop(self) -> None:
        """Lets go of the guest's memory."""
        for queue in self.queues:
            queue.release()
        for view in self._interrupts.values():
            view.release()
        self.queues, self._interrupts = [], {}

    def negotiate(self, wanted: int) -> int:
        """Up to FEATURES_OK, with what the device has of ``wanted``; returns what was accepted."""
        self.reset()
        self.set("status", ACKNOWLEDGE)
        self.set("status", ACKNOWLEDGE | DRIVER)
        accepted = 0
        for half in (0, 1):
            self.set("device_feature_select", half)
            mine = self.get("device_feature") & (wanted >> 32 * half)
            self.set("driver_feature_select", half)
            self.set("driver_feature", mine)
            accepted |= mine << 32 * half
        self.set("status", ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert self.get("status") & FEATURES_OK
        return accepted

    def add_queue(self, most: int, *, event_idx: bool = False) -> Driver:
        """The next queue, of at most so many entries, in fresh memory, with an interrupt of its own."""
        index, guest = len(self.queues), self.qemu.guest
        self.set("queue_select", index)
        size = min(most, self.get("queue_size"))
        driver = Driver(guest, size, event_idx=event_idx)
        at = guest.allocate(4)
        self._interrupts[index] = guest.view(at, 4).cast("I")
        for offset, value in ((0, at), (4, 0), (8, index + 1), (12, 0)):  # address, data, not masked
            self.qemu.write(self._msix_table + 16 * index + offset, 4, value)
        self.set("queue_size", size)
        self.set("queue_msix_vector", index)
        desc, avail, used = driver.places
        self.set("queue_desc", desc)
        self.set("queue_driver", avail)
        self.set("queue_device", used)
        self.set("queue_enable", 1)
        self.queues.append(driver)
        return driver

    def start(self) -> None:
        """DRIVER_OK: only now QEMU sets the back-end up."""
        self.set("status", ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        assert self.get("status") & DRIVER_OK

    def kick(self, index: int = 0) -> None:
        self.qemu.write(self._parts[NOTIFY] + self._notify_step * index, 2, index)

    def take_interrupt(self, index: int = 0) -> bool:
        """Whether the queue has interrupted since this was asked last."""
        view = self._interrupts[index]
        came, view[0] = view[0] != 0, 0
        return came
