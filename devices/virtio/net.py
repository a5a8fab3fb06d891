"""A network card: virtio's network device (virtio 1.2, section 5.1), to a tap interface or to another one.

Frames go straight between the guest's buffers and the port (see ``_ports``): one system call a frame, in
batches of the ring, with no object made for a frame but the lists of its buffers. With a tap the kernel reads
and writes virtio_net_hdr, so a guest may leave checksums and segmentation to the host; a peer is another
guest, which could not take such frames, so nothing of that is offered to it.

Sending never waits: what the port does not take is dropped, and the request is done. Receiving holds no
buffers while it waits: those that were fetched for frames that have not come are put back into the ring.
While the ring is empty, nothing is taken from the port, whose queue fills instead.

A process that is killed loses what it had in its hand: at most a frame it has read and not published. Frames
that it was sending are sent again, perhaps twice, which a network may do; buffers are neither lost nor
doubled.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from devices.virtio._ports import NOTHING, Cable, Port, Tap
from supervisor.device import Context
from supervisor.errors import LocalError
from supervisor.vhost_user import F_VERSION_1, BrokenChain, BrokenRing, Chain, SplitQueue, VirtioDevice

RX, TX = 0, 1

F_CSUM = 1 << 0
F_GUEST_CSUM = 1 << 1
F_MAC = 1 << 5
F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN = 1 << 7, 1 << 8, 1 << 9
F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN = 1 << 11, 1 << 12, 1 << 13
F_MRG_RXBUF = 1 << 15
TO_THE_HOST: Final = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN
TO_THE_GUEST: Final = {F_GUEST_CSUM: 1, F_GUEST_TSO4: 2, F_GUEST_TSO6: 4, F_GUEST_ECN: 8}  # as TUN_F_*

HEADER_BYTES, LEGACY_HEADER_BYTES = 12, 10  # the latter has no num_buffers
ETHERNET_BYTES = 14  # the least that a frame has
SCRATCH_BYTES = 1 << 17  # more than any frame: what does not fit into a chain
MOST_BUFFERS = 1000  # of a chain: one call takes 1024
BATCH = 32  # buffers that are fetched and published together, at most
TURN = 256  # frames that are received, after which it is the turn of others, and of the supervisor


class Net(VirtioDevice):
    """One card with two queues. ``tap`` or ``peer`` is where its cable goes; ``mac`` is its address."""

    device_id = 1
    batch = BATCH

    @dataclass
    class Options:
        tap: str = ""
        peer: str = ""
        mac: str = ""

    def start(self, ctx: Context) -> None:
        options = ctx.options
        if bool(options.tap) == bool(options.peer):
            raise LocalError("exactly one of tap and peer has to say where the cable goes")
        if options.peer == ctx.name:
            raise LocalError(f"peer is {options.peer}, which is this device itself")
        self._mac = _mac(options.mac) if options.mac else b""
        self.dropped = 0  # frames that came and could not be had
        self._rx: SplitQueue | None = None
        self._mergeable = False
        self._starved = True
        self._watched = -1
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.port: Port = Tap(options.tap, ctx) if options.tap else Cable(ctx, options.peer, self._watch_port)

    def stop(self) -> None:
        self.port.close()

    def features(self) -> int:
        offered = F_MRG_RXBUF | (F_MAC if self._mac else 0)
        return offered | (TO_THE_HOST | sum(TO_THE_GUEST) if self.ctx.options.tap else 0)

    def queue_count(self) -> int:
        return 2

    def config_space(self) -> bytes:
        return self._mac

    # -- the guest -------------------------------------------------------------------------------

    def attached(self, features: int, queues: dict[int, SplitQueue]) -> None:
        super().attached(features, queues)
        self._mergeable = bool(features & F_MRG_RXBUF)
        modern = features & (F_VERSION_1 | F_MRG_RXBUF)
        self._header_bytes = HEADER_BYTES if modern else LEGACY_HEADER_BYTES
        self._shortest = self._header_bytes + ETHERNET_BYTES
        self._header_of_one = self._header(1)
        self._rx = queues.get(RX)
        offloads = sum(flag for feature, flag in TO_THE_GUEST.items() if features & feature)
        self.port.plug_in(self._header_bytes, offloads)

    def process(self, queue: SplitQueue, index: int) -> bool:
        if index == TX:
            return super().process(queue, index)
        self._receive()
        return False  # what there is to receive from says when there is more

    def resume(self, queue: SplitQueue, index: int, heads: list[int]) -> None:
        """What was to be sent is sent again; buffers that no frame has come into go back into the ring."""
        if index == TX:
            super().resume(queue, index, heads)
        else:
            self._put_back(queue, heads)

    def _put_back(self, queue: SplitQueue, heads: list[int]) -> None:
        if not queue.put_back(heads):  # not the last ones of the ring: used, but empty, is as good
            for head in heads:
                queue.complete(head, 0)
            queue.flush()

    # -- sending ---------------------------------------------------------------------------------

    def execute(self, chain: Chain, index: int) -> int:
        views = chain.readable
        if not views or (len(views[0]) < self._shortest and sum(map(len, views)) < self._shortest):
            self.ctx.logger.warning("request %d is broken: no header and frame fit into it", chain.head)
        else:
            self.port.send(views)
        return 0

    # -- receiving -------------------------------------------------------------------------------

    def _watch_port(self) -> None:
        """Watches what there is to receive from, while there are buffers to receive into."""
        wanted = -1 if self._starved else self.port.fd
        if wanted == self._watched:
            return
        if self._watched >= 0:
            self.ctx.unwatch(self._watched)
        self._watched = wanted
        if wanted >= 0:
            self.ctx.watch(wanted, self._receive_some)

    def _receive_some(self) -> None:
        """Something has come. A broken ring is left alone until its next kick, which says so."""
        try:
            self._receive()
        except BrokenRing as error:
            self.ctx.logger.error("queue %d is broken: %s", RX, error)
            self._starved = True
            self._watch_port()
            if self._rx is not None:
                self._rx.wait_for_kick()

    def _receive(self) -> None:
        queue = self._rx
        if queue is None:
            return
        batch, left = 1, TURN  # most wake-ups are for one frame
        while left > 0:
            heads = queue.fetch(batch)
            if not heads:
                if queue.wait_for_kick():
                    self._starved = True
                    self._watch_port()
                    return
                queue.ignore_kicks()
                continue
            used = self._fill(queue, heads)
            queue.flush()
            if used < len(heads):
                self._put_back(queue, heads[used:])
                break
            left -= used
            batch = min(2 * batch, BATCH)
        if self._starved:
            self._starved = False
            queue.ignore_kicks()
        self._watch_port()

    def _fill(self, queue: SplitQueue, heads: list[int]) -> int:
        """Takes frames from the port into ``heads``; returns how many of them are used up.

        A frame that is longer than its buffers may use more of the ring: ``heads`` grows then.
        """
        port, scratch = self.port, self._scratch
        at = 0
        until = self.dropped + TURN  # who sends what cannot be had does not keep us for ever
        while at < len(heads) and self.dropped < until:
            head = heads[at]
            try:
                views = self._room(queue, head)
                length = port.receive([*views, scratch])
            except (BrokenChain, OSError) as error:
                if isinstance(error, OSError) and error.errno not in (None, errno.EFAULT):
                    raise
                self.ctx.logger.warning("queue %d, request %d is broken: %s", RX, head, error)
                queue.complete(head, 0)
                at += 1
                continue
            if length == NOTHING:
                return at
            if length < self._shortest:
                self.dropped += 1
                continue
            room = len(views[0]) if len(views) == 1 else sum(map(len, views))
            if length <= room:
                self._write_header(views, self._header_of_one)
                queue.complete(head, length)
                at += 1
            else:
                at += self._spread(queue, heads, at, views, room, length)
        return at

    def _room(self, queue: SplitQueue, head: int) -> list[memoryview]:
        """The buffers of a request of the receive queue. Raises :class:`BrokenChain`, ``MemoryFault``."""
        views = queue.chain(head).writable
        if not views or len(views) > MOST_BUFFERS:
            raise BrokenChain(head, f"{len(views)} buffers to receive into")
        if len(views[0]) < self._shortest and sum(map(len, views)) < self._shortest:
            raise BrokenChain(head, "no header and frame fit into it")
        return views

    def _spread(
        self, queue: SplitQueue, heads: list[int], at: int, views: list[memoryview], room: int, length: int
    ) -> int:
        """A frame that is longer than the first chain: what is in ``scratch`` goes into those behind it.

        Returns how many were used; none, and the frame is dropped, where the guest takes no such frames or
        has not given enough.
        """
        parts = [(heads[at], room)]
        rest = self._scratch[: length - room]
        while rest and self._mergeable:
            index = at + len(parts)
            if index == len(heads):
                heads += queue.fetch(BATCH)
            if index == len(heads):
                break
            try:
                more = self._room(queue, heads[index])
            except (BrokenChain, OSError):
                break  # its turn to be refused comes when it is the first
            written = 0
            for view in more:
                size = min(len(view), len(rest))
                view[:size] = rest[:size]
                rest = rest[size:]
                written += size
            parts.append((heads[index], written))
        if rest:
            self.dropped += 1
            return 0
        self._write_header(views, self._header(len(parts)))
        for head, written in parts:
            queue.complete(head, written)
        return len(parts)

    def _header(self, num_buffers: int) -> bytes:
        """What is to be written of virtio_net_hdr_v1: the rest is the port's, or zero."""
        whole = bytes(LEGACY_HEADER_BYTES) + num_buffers.to_bytes(2, "little")
        return whole[self.port.header_from : self._header_bytes]

    def _write_header(self, views: list[memoryview], header: bytes) -> None:
        """Puts ``header`` where it belongs, which may be in more buffers than one."""
        at = self.port.header_from
        first = views[0]
        if len(first) >= self._header_bytes:
            first[at : self._header_bytes] = header
            return
        for view in views:
            size = max(0, min(len(view) - at, len(header)))
            view[at : at + size] = header[:size]
            header = header[size:]
            at = max(0, at - len(view))


def _mac(text: str) -> bytes:
    try:
        address = bytes(int(part, 16) for part in text.split(":") if len(part) == 2)
    except ValueError:
        address = b""
    if len(address) != 6 or text.count(":") != 5 or address[0] & 1 or not any(address):
        raise LocalError(f"mac is {text}, but must be one card's address, such as 52:54:00:12:34:56")
    return address


DEVICE = Net
