"""What a VMM has set up on one connection, and what of it there is to serve. Pure.

The keeper holds one ``Setup`` for the life of a connection, whatever becomes of the workers. Two questions
are asked of every request, in this order:

* ``pauses``: does it change what a worker is using just now? Then the worker is drained and ends first. That
  is the one rule for a changed memory table, ring, doorbell: no worker ever sees anything change.
* ``grant`` (:mod:`supervisor.vhost_user.granting`): what does it change, and what is answered?

``running`` then says what there is to serve, and ``attach`` what a worker has to know.

Descriptors are opaque here; those that are not needed any more are ``discarded``, for the keeper to close.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from supervisor.messages_pb2 import Attach, VirtioOffer
from supervisor.vhost_user.areas import Inflight, Region
from supervisor.vhost_user.device import F_PROTOCOL_FEATURES
from supervisor.vhost_user.errors import InvalidMessage
from supervisor.vhost_user.inflight import heads_in_flight, region_bytes
from supervisor.vhost_user.messages import VringAddr
from supervisor.vhost_user.requests import FrontEndRequest

__all__ = ["OWN_LOG_ENTRIES", "Refused", "Setup"]

OWN_LOG_ENTRIES = 1024
"""Of a log that the keeper makes before it knows the rings: User-Mode Linux's are longer than 128."""

MAX_RINGS = 73
"""That are offered, whatever the device has: with a kick, a call and an error descriptor of each, a log and
the memory, they go to a worker in one packet, which carries 253."""

_R = FrontEndRequest
_OF_A_RING = frozenset(
    {
        _R.SET_VRING_NUM,
        _R.SET_VRING_ADDR,
        _R.SET_VRING_BASE,
        _R.GET_VRING_BASE,
        _R.SET_VRING_KICK,
        _R.SET_VRING_CALL,
        _R.SET_VRING_ERR,
        _R.SET_VRING_ENABLE,
    }
)
_OF_ALL_RINGS = frozenset(
    {
        _R.SET_FEATURES,
        _R.RESET_OWNER,
        _R.RESET_DEVICE,
        _R.SET_MEM_TABLE,
        _R.ADD_MEM_REG,
        _R.REM_MEM_REG,
        _R.SET_INFLIGHT_FD,
        _R.SET_CONFIG,  # of the device, and so of everything that it serves
    }
)


class Refused(InvalidMessage):
    """A request that is well formed and cannot be granted: answered with "no" where an answer is wanted."""


@dataclass(slots=True)
class _Ring:
    size: int = 0
    addresses: VringAddr | None = None
    base: int = 0
    kick: Any = None
    call: Any = None
    err: Any = None
    enabled: bool = False
    started: bool = False


@dataclass(slots=True)
class Setup:
    """One connection's state. ``make_log(bytes)`` makes a descriptor of zeroed shared memory, and
    ``read_log(descriptor, offset, bytes)`` reads such a descriptor; it may return less."""

    offer: VirtioOffer
    make_log: Callable[[int], Any]
    read_log: Callable[[Any, int, int], bytes]
    features: int = 0
    protocol_features: int = 0
    regions: list[tuple[Region, Any]] = field(default_factory=list)
    rings: dict[int, _Ring] = field(default_factory=dict)
    inflight: tuple[Inflight, Any] | None = None
    own_log: bool = False
    backend_channel: Any = None
    config_writes: list[tuple[int, bytes]] = field(default_factory=list)
    discarded: list[Any] = field(default_factory=list)

    # -- questions ---------------------------------------------------------------------------------

    @property
    def queues(self) -> int:
        """How many rings there may be."""
        return min(self.offer.queues, MAX_RINGS)

    def running(self) -> list[int]:
        """The rings that are to be served, by index."""
        if not self.regions:
            return []
        return [index for index, ring in sorted(self.rings.items()) if self._runs(ring)]

    def _runs(self, ring: _Ring) -> bool:
        # Two independent states: a ring is started by its kick, and enabled by a message of its own, which
        # may come long before. Without the second round of negotiation there is no such message.
        enabled = ring.enabled or not self.features & F_PROTOCOL_FEATURES
        return ring.started and enabled and ring.addresses is not None and ring.size > 0

    def pauses(self, request: int, payload: Any) -> bool:
        """True if ``request`` changes what is running just now."""
        if not self.running():
            return False
        if request == _R.SET_FEATURES:
            return bool(payload.value != self.features)
        if request == _R.SET_VRING_ENABLE:
            return bool(payload.num) is not self.ring(payload.index).enabled
        if request in _OF_A_RING:
            ring = self.rings.get(payload.index)
            starts = request == _R.SET_VRING_KICK  # a ring more: a worker serves one set-up in its life
            return starts or (ring is not None and self._runs(ring))
        return request in _OF_ALL_RINGS

    def stops(self, request: int, payload: Any) -> bool:
        """True if a ring is to stop, so that the VMM will ask where it stands: a later worker cannot say."""
        return request == _R.GET_VRING_BASE or (request == _R.SET_VRING_ENABLE and not payload.num)

    # -- changes -----------------------------------------------------------------------------------

    def reconfigure(self, config: bytes) -> bool:
        """The device's configuration space is ``config`` from now on; true if it was another one.

        The rest of an offer is what the driver has agreed to, and stays as it was.
        """
        if config == self.offer.config:
            return False
        offer = VirtioOffer()
        offer.CopyFrom(self.offer)
        offer.config = config
        self.offer = offer
        return True

    def stopped_at(self, positions: dict[int, int]) -> None:
        """A worker that was drained has left its rings there."""
        for index, position in positions.items():
            if index in self.rings:
                self.rings[index].base = position

    def release(self) -> None:
        """The connection is over: every descriptor is discarded."""
        self.discarded += [descriptor for _region, descriptor in self.regions]
        for ring in self.rings.values():
            self.discarded += [ring.kick, ring.call, ring.err]
        if self.inflight is not None:
            self.discarded.append(self.inflight[1])
        self.discarded.append(self.backend_channel)
        self.regions, self.rings, self.inflight, self.backend_channel = [], {}, None, None

    def ring(self, index: int) -> _Ring:
        if index >= self.queues:
            raise Refused(f"ring {index} of a device with {self.queues}")
        return self.rings.setdefault(index, _Ring())

    def make_own_log(self, queues: int, size: int) -> None:
        total = queues * region_bytes(size)
        self.drop_log()
        self.inflight = (Inflight(total, 0, queues, size), self.make_log(total))
        self.own_log = True

    def drop_log(self) -> None:
        if self.inflight is not None:
            self.discarded.append(self.inflight[1])
            self.inflight = None

    # -- for the worker ------------------------------------------------------------------------------

    def attach(self, poison: dict[int, list[int]]) -> tuple[Attach, tuple[Any, ...]]:
        """What a worker has to know to serve what runs, and its descriptors in that order."""
        running = self.running()
        self._see_to_a_log(running)
        message = Attach(features=self.features)
        descriptors: list[Any] = []
        for region, descriptor in self.regions:
            message.regions.add(
                guest_address=region.guest_address,
                size_bytes=region.size,
                user_address=region.user_address,
                offset_bytes=region.mmap_offset,
            )
            descriptors.append(descriptor)
        if self.inflight is not None:
            area, descriptor = self.inflight
            message.inflight.size_bytes = area.mmap_size
            message.inflight.offset_bytes = area.mmap_offset
            message.inflight.queues = area.queue_count
            message.inflight.queue_size = area.queue_size
            descriptors.append(descriptor)
        for index in running:
            ring = self.rings[index]
            places = ring.addresses
            assert places is not None  # noqa: S101 - it runs
            message.rings.add(
                index=index,
                size=ring.size,
                desc=places.desc,
                avail=places.avail,
                used=places.used,
                base=ring.base,
                has_kick=ring.kick is not None,
                has_call=ring.call is not None,
                has_err=ring.err is not None,
                poison=poison.get(index, ()),
            )
            descriptors += [one for one in (ring.kick, ring.call, ring.err) if one is not None]
        for offset, data in self.config_writes:
            message.config_writes.add(offset=offset, data=data)
        return message, tuple(descriptors)

    def oldest_in_flight(self) -> list[tuple[int, int, int]]:
        """Of each running ring the request that was fetched first: (ring, head, place in the order)."""
        if self.inflight is None:
            return []
        area, descriptor = self.inflight
        stride = region_bytes(area.queue_size)
        found = []
        for index in self.running():
            data = self.read_log(descriptor, area.mmap_offset + stride * index, stride)
            under_way = heads_in_flight(data, area.queue_size)
            if under_way:
                counter, head = min(under_way)
                found.append((index, head, counter))
        return found

    def _see_to_a_log(self, running: list[int]) -> None:
        """A log of our own where the VMM has none, or one that is too small for its rings."""
        size = max(self.rings[index].size for index in running)
        if self.inflight is not None:
            area = self.inflight[0]
            if area.queue_size >= size and area.queue_count > max(running):
                return
        self.make_own_log(self.queues, max(size, OWN_LOG_ENTRIES))
