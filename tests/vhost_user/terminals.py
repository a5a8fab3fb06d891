"""A guest at a console: in this process with a device that can be replaced, and behind our front-end."""

from __future__ import annotations

import os
from typing import Any

from devices.virtio.console import RX, TX, Console
from supervisor.vhost_user import F_EVENT_IDX, F_VERSION_1, SplitQueue
from supervisor.worker.records import OutputKind
from supervisor.worker.session import Launch, Session
from tests.vhost_user.cards import Loop
from tests.vhost_user.driver import Driver, Guest
from tests.vhost_user.stations import SLOT_BYTES, Station

__all__ = ["Desk", "Terminal"]


class Desk:
    """A guest in this process, and what a journal keeps for its console: state, outputs, inputs applied.

    ``boot`` is a new process of the device; ``said`` is what it has said, and ``heard`` what the guest has
    read.
    """

    def __init__(self, *, size: int = 8, event_idx: bool = False, log: bool = True, **options: Any) -> None:
        self.size = size
        self.log = log
        self.options = options
        self.features = F_VERSION_1 | (F_EVENT_IDX if event_idx else 0)
        self.said = b""
        self.heard = b""
        self.inputs: list[bytes] = []
        self.applied = 0
        self._committed: bytes | None = None
        self._now = 0
        self.plug_in()

    def plug_in(self, first: int = 0) -> None:
        """A guest that knows nothing of one before: other rings, another log."""
        self.guest = Guest(4 << 20)
        event_idx = bool(self.features & F_EVENT_IDX)
        self.first = first
        self.drivers = [Driver(self.guest, self.size, event_idx=event_idx, first=first) for _ in (RX, TX)]
        self.buffers: dict[int, list[tuple[int, int]]] = {}

    # -- the guest ---------------------------------------------------------------------------------

    def post(self, *lengths: int) -> int:
        """Gives a chain of empty buffers to read into."""
        chain = [(self.guest.allocate(length), length) for length in lengths]
        head = self.drivers[RX].offer(*((at, length, True) for at, length in chain))
        self.buffers[head] = chain
        return head

    def say(self, *parts: bytes) -> int:
        """Writes, without a kick."""
        chain = []
        for part in parts:
            at = self.guest.allocate(len(part))
            self.guest.view(at, len(part))[:] = part
            chain.append((at, len(part), False))
        return self.drivers[TX].offer(*chain)

    def read(self) -> list[int]:
        """Takes what has come; returns how much was in each buffer."""
        lengths = []
        for head, written in self.drivers[RX].take():
            chain = self.buffers.pop(head)
            whole = b"".join(bytes(self.guest.view(at, length)) for at, length in chain)
            self.heard += whole[:written]
            lengths.append(written)
        return lengths

    # -- the worker --------------------------------------------------------------------------------

    def boot(self) -> None:
        """A process: starts, takes up what is committed, attaches and looks at each ring, as a worker."""
        self.loop = Loop("console0", {})
        self.session = Session(Console, Launch(name="console0", options=self.options), self.loop)
        self.session.start(0)
        device = self.session.device
        assert isinstance(device, Console)
        self.device = device
        if self._committed is not None:
            device.restore(self._committed, device.state_version)
            self.applied = self._now
        device.commit = self.commit
        self.queues: list[SplitQueue] = [
            driver.device(position=self.first, log=self.log) for driver in self.drivers
        ]
        device.attached(self.features, dict(enumerate(self.queues)))
        for index, queue in enumerate(self.queues):
            device.resume(queue, index, queue.recover())
        self.work()

    def work(self) -> None:
        """Applies inputs one by one, looks at the rings, and commits, until there is nothing to do."""
        while self.applied < len(self.inputs):
            self.device.receive(self.inputs[self.applied])
            self.applied += 1
            self.commit()
            self.device.process(self.queues[RX], RX)
        for index in (TX, RX):
            while self.device.process(self.queues[index], index):
                pass
        self.commit()

    def commit(self) -> None:
        """What the runtime's committer does, in one step."""
        state = self.device.snapshot()
        outputs = [one.payload for one in self.session.outputs if one.kind == OutputKind.BYTES]
        self._committed, self._now, self.said = state, self.applied, self.said + b"".join(outputs)
        self.session.outputs.clear()

    def close(self) -> None:
        self.device.stop()


class Terminal(Station):
    """A guest whose VMM is our front-end: ``typed`` is what it has read; it writes with ``send``."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.typed = bytearray()

    def forget(self) -> None:
        """The guest reboots: fresh rings in the same memory, and every buffer is free."""
        for index, driver in enumerate(self.drivers):
            for word in range(2):
                driver.avail[word] = driver.used_words[word] = 0
            driver.position = driver._seen = 0
            driver.free, driver.chains = list(range(driver.size)), {}
            self.free[index] += self.slots[index].values()
            self.slots[index].clear()

    def send(self, frame: bytes) -> bool:
        """Writes up to a slot's bytes; false if no buffer is free."""
        free, driver = self.free[TX], self.drivers[TX]
        if not free:
            return False
        at = free.pop()
        self.guest.view(at, len(frame))[:] = frame
        self.slots[TX][driver.offer((at, len(frame), False))] = at
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
            assert written <= SLOT_BYTES
            self.typed += self.guest.view(at, written)
            self.free[RX].append(at)
        self.drivers[RX].want_interrupt_after(self.drivers[RX].used_words[1])
        self.post()
