"""Network cards in this process: a guest with two rings, a card, and a loop that is turned by hand."""

from __future__ import annotations

import itertools
import select
from collections.abc import Callable
from typing import Any

from devices.virtio.net import RX, TX, Net
from supervisor.errors import LocalError
from supervisor.tube import Tube
from supervisor.vhost_user import F_VERSION_1
from supervisor.worker.session import Launch, Session
from tests.vhost_user.driver import Buffer, Driver, Guest

HEADER = 12


class Loop:
    """A worker's loop without a worker. ``others`` are those who can be reached by name."""

    def __init__(self, name: str, others: dict[str, Loop]) -> None:
        self.name = name
        self.watched: dict[int, Callable[[], None]] = {}
        self.waiting: dict[str, Any] = {}  # ends that somebody else's ``connect`` has brought
        self.others = others
        others[name] = self

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        self.watched[fd] = handler

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def connect(self, name: str) -> Any:
        if name in self.waiting:
            return self.waiting.pop(name)
        if name not in self.others:
            raise LocalError(f"no device {name!r} is ready")
        ours, theirs = Tube.pair()
        waiting = self.others[name].waiting
        if self.name in waiting:
            waiting[self.name].close()
        waiting[self.name] = theirs
        return ours

    def hand_over(self, target_pid: int, fd: int) -> None:
        raise AssertionError

    def keep(self, name: str, fd: int | None) -> None:
        """There is no supervisor."""

    def close(self) -> None:
        for end in self.waiting.values():
            end.close()
        self.waiting.clear()

    def turn(self, timeout: float = 0.0) -> bool:
        """Handles what is readable; false if nothing was."""
        ready, _none, _of_it = select.select(list(self.watched), [], [], timeout)
        for fd in ready:
            if fd in self.watched:
                self.watched[fd]()
        return bool(ready)


class Card:
    """A card that its driver has set up, and its guest."""

    def __init__(
        self,
        options: dict[str, str],
        loop: Loop,
        *,
        features: int = F_VERSION_1,
        size: int = 64,
        guest: Guest | None = None,
    ) -> None:
        self.loop = loop
        session = Session(Net, Launch(name=loop.name, options=options), loop)
        session.start(0)
        assert isinstance(session.device, Net)
        self.device = session.device
        self.guest = Guest(8 << 20) if guest is None else guest
        self.drivers = [Driver(self.guest, size) for _ in (RX, TX)]
        self.queues = [driver.device() for driver in self.drivers]
        for queue in self.queues:
            queue.recover()
        self.device.attached(features, dict(enumerate(self.queues)))
        self.posted: dict[int, tuple[Buffer, ...]] = {}
        self.kick(RX)
        self.kick(TX)

    def kick(self, index: int) -> bool:
        """True if there is more to do."""
        return self.device.process(self.queues[index], index)

    def post(self, *lengths: int) -> int:
        """Gives a chain of empty buffers to receive into."""
        chain = tuple((self.guest.allocate(length), length, True) for length in lengths)
        head = self.drivers[RX].offer(*chain)
        self.posted[head] = chain
        return head

    def send(self, data: bytes, *cuts: int, kick: bool = True) -> int:
        """Sends ``data``, header included, in buffers that are cut at ``cuts``."""
        at = self.guest.allocate(len(data))
        self.guest.view(at, len(data))[:] = data
        places = [0, *cuts, len(data)]
        head = self.drivers[TX].offer(
            *((at + start, end - start, False) for start, end in itertools.pairwise(places))
        )
        if kick:
            self.kick(TX)
        return head

    def received(self) -> list[tuple[int, bytes]]:
        """What has come: (head, the bytes that were written)."""
        return [(head, self.content(head, written)) for head, written in self.drivers[RX].take()]

    def content(self, head: int, written: int) -> bytes:
        whole = b"".join(bytes(self.guest.view(at, length)) for at, length, _ in self.posted.pop(head))
        return whole[:written]

    def frames(self) -> list[bytes]:
        """Whole frames, as a driver puts them together by num_buffers."""
        used = self.received()
        frames = []
        while used:
            data = used.pop(0)[1]
            header, frame = data[:HEADER], data[HEADER:]
            assert header[:10] == bytes(10)
            for _ in range(int.from_bytes(header[10:], "little") - 1):
                frame += used.pop(0)[1]
            frames.append(frame)
        return frames

    def reuse_memory(self) -> None:
        """What follows may overwrite all buffers so far."""
        self.guest._free = max(place for driver in self.drivers for place in driver.places) + 4096

    def close(self) -> None:
        self.device.stop()
        self.loop.close()


def pair_of_cards(**options: Any) -> tuple[Card, Card]:
    """Two cards with a link between them."""
    others: dict[str, Loop] = {}
    loops = [Loop(name, others) for name in ("a", "b")]
    a = Card({"peer": "b"}, loops[0], **options)
    b = Card({"peer": "a"}, loops[1], **options)
    while b.device.port.fd < 0 or a.device.port.fd < 0:
        for loop in loops:
            loop.turn(0.01)
    return a, b
