"""What a VMM has set up on one connection, and what each of its requests changes. Pure.

The keeper holds one ``Setup`` for the life of a connection, whatever becomes of the workers. Two questions
are asked of every request, in this order:

* ``pauses``: does it change what a worker is using just now? Then the worker is drained and ends first. That
  is the one rule for a changed memory table, ring, doorbell: no worker ever sees anything change.
* ``apply``: what does it change, and what is answered?

``running`` then says what there is to serve, and ``attach`` what a worker has to know.

A VMM may leave any of it out, and one that enables rings before it sets them up (QEMU's net) means that too:
nothing depends on an order but what cannot be otherwise. Descriptors are opaque here; those that are not
needed any more are ``discarded``, for the keeper to close.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from supervisor.messages_pb2 import Attach, VirtioOffer
from supervisor.vhost_user.areas import Inflight, MemoryTable, Region, SingleRegion
from supervisor.vhost_user.device import F_PROTOCOL_FEATURES
from supervisor.vhost_user.errors import InvalidMessage
from supervisor.vhost_user.inflight import heads_in_flight, region_bytes
from supervisor.vhost_user.messages import U64, Config, Payload, VringAddr, VringFd, VringState
from supervisor.vhost_user.requests import MAX_REGIONS, FrontEndRequest, ProtocolFeature

__all__ = ["PROTOCOL_FEATURES", "Answer", "Refused", "Setup"]

PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
)
"""Not offered: in-band notifications (QEMU 7.2 accepts them without knowing them), a log of dirty pages."""

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


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back; descriptors with it stay the setup's."""

    payload: Payload
    descriptors: tuple[Any, ...] = ()


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
            return bool(payload.num) is not self._ring(payload.index).enabled
        if request in _OF_A_RING:
            ring = self.rings.get(payload.index)
            starts = request == _R.SET_VRING_KICK  # a ring more: a worker serves one set-up in its life
            return starts or (ring is not None and self._runs(ring))
        return request in _OF_ALL_RINGS

    def stops(self, request: int, payload: Any) -> bool:
        """True if a ring is to stop, so that the VMM will ask where it stands: a later worker cannot say."""
        return request == _R.GET_VRING_BASE or (request == _R.SET_VRING_ENABLE and not payload.num)

    # -- changes -----------------------------------------------------------------------------------

    def apply(self, request: int, payload: Any, descriptors: list[Any]) -> Answer | None:
        """Takes ``request`` in. Takes over what it needs of ``descriptors``; the rest is discarded.

        Returns the answer of requests that have one of their own. Raises :class:`Refused`.
        """
        handler = _HANDLERS.get(request)
        try:
            if handler is None:
                raise Refused(f"request {request} is not served")
            return handler(self, payload, descriptors)
        finally:
            self.discarded += descriptors
            descriptors.clear()

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

    def _ring(self, index: int) -> _Ring:
        if index >= self.queues:
            raise Refused(f"ring {index} of a device with {self.queues}")
        return self.rings.setdefault(index, _Ring())

    def _get_features(self, _payload: Any, _descriptors: list[Any]) -> Answer:
        return Answer(U64(self.offer.features))

    def _set_features(self, payload: U64, _descriptors: list[Any]) -> None:
        if payload.value & ~self.offer.features:
            raise Refused(f"features {payload.value & ~self.offer.features:#x} were not offered")
        self.features = payload.value

    def _get_protocol_features(self, _payload: Any, _descriptors: list[Any]) -> Answer:
        offered = PROTOCOL_FEATURES
        if not self.offer.config:
            offered &= ~ProtocolFeature.CONFIG
        return Answer(U64(int(offered)))

    def _set_protocol_features(self, payload: U64, _descriptors: list[Any]) -> None:
        if payload.value & ~int(PROTOCOL_FEATURES):
            raise Refused(f"protocol features {payload.value & ~int(PROTOCOL_FEATURES):#x} were not offered")
        self.protocol_features = payload.value

    def _get_queue_num(self, _payload: Any, _descriptors: list[Any]) -> Answer:
        return Answer(U64(self.queues))

    def _nothing(self, _payload: Any, _descriptors: list[Any]) -> None:
        """Said for the sake of saying it."""

    def _reset(self, _payload: Any, _descriptors: list[Any]) -> None:
        for ring in self.rings.values():
            ring.enabled = ring.started = False

    def _set_mem_table(self, payload: MemoryTable, descriptors: list[Any]) -> None:
        _check_apart([*payload.regions])
        self.discarded += [descriptor for _region, descriptor in self.regions]
        self.regions = list(zip(payload.regions, descriptors, strict=True))
        descriptors.clear()

    def _add_mem_reg(self, payload: SingleRegion, descriptors: list[Any]) -> None:
        if len(self.regions) >= MAX_REGIONS:  # a worker maps no more, and they go to it in one packet
            raise Refused(f"more than {MAX_REGIONS} memory regions")
        _check_apart([payload.region, *(region for region, _descriptor in self.regions)])
        self.regions.append((payload.region, descriptors.pop()))

    def _rem_mem_reg(self, payload: SingleRegion, _descriptors: list[Any]) -> None:
        for index, (region, descriptor) in enumerate(self.regions):
            same = (region.guest_address, region.size, region.user_address)
            if same == (payload.region.guest_address, payload.region.size, payload.region.user_address):
                del self.regions[index]
                self.discarded.append(descriptor)
                return
        raise Refused(f"there is no memory region at {payload.region.guest_address:#x}")

    def _set_vring_num(self, payload: VringState, _descriptors: list[Any]) -> None:
        if not payload.num or payload.num & (payload.num - 1):
            raise Refused(f"ring {payload.index} of {payload.num} entries, which is no power of two")
        self._ring(payload.index).size = payload.num

    def _set_vring_addr(self, payload: VringAddr, _descriptors: list[Any]) -> None:
        self._ring(payload.index).addresses = payload

    def _set_vring_base(self, payload: VringState, _descriptors: list[Any]) -> None:
        if payload.num > 0xFFFF:
            raise Refused(f"ring {payload.index} at {payload.num}, beyond 16 bits")
        self._ring(payload.index).base = payload.num

    def _get_vring_base(self, payload: VringState, _descriptors: list[Any]) -> Answer:
        ring = self._ring(payload.index)
        ring.started = False
        self.discarded += [ring.kick, ring.call]
        ring.kick = ring.call = None
        if self.own_log and not self.running():
            self._drop_log()  # nothing is under way, and what comes next may be another driver's
        return Answer(VringState(payload.index, ring.base))

    def _set_vring_kick(self, payload: VringFd, descriptors: list[Any]) -> None:
        ring = self._ring(payload.index)
        self.discarded.append(ring.kick)
        ring.kick = descriptors.pop() if descriptors else None
        ring.started = True

    def _set_vring_call(self, payload: VringFd, descriptors: list[Any]) -> None:
        ring = self._ring(payload.index)
        self.discarded.append(ring.call)
        ring.call = descriptors.pop() if descriptors else None

    def _set_vring_err(self, payload: VringFd, descriptors: list[Any]) -> None:
        ring = self._ring(payload.index)
        self.discarded.append(ring.err)
        ring.err = descriptors.pop() if descriptors else None

    def _set_vring_enable(self, payload: VringState, _descriptors: list[Any]) -> None:
        self._ring(payload.index).enabled = bool(payload.num)

    def _get_config(self, payload: Config, _descriptors: list[Any]) -> Answer:
        space = bytearray(self.offer.config)
        for offset, data in self.config_writes:
            space[offset : offset + len(data)] = data
        end = payload.offset + len(payload.data)
        if payload.offset >= len(space):
            raise Refused(f"configuration from {payload.offset} on; there are {len(space)} bytes")
        asked = bytes(space[payload.offset : end])
        # What the device does not have yet reads zero: a VMM asks for the space as it knows it.
        return Answer(Config(payload.offset, asked.ljust(len(payload.data), b"\0"), payload.flags))

    def _set_config(self, payload: Config, _descriptors: list[Any]) -> None:
        end = payload.offset + len(payload.data)
        writable = self.offer.config_writable[payload.offset : end]
        if len(writable) < len(payload.data) or not all(writable):
            raise Refused(f"configuration from {payload.offset} to {end} cannot be written")
        self.config_writes = [one for one in self.config_writes if one[0] != payload.offset]
        self.config_writes.append((payload.offset, payload.data))

    def _get_inflight(self, payload: Inflight, _descriptors: list[Any]) -> Answer:
        queues = payload.queue_count or self.queues
        size = payload.queue_size or OWN_LOG_ENTRIES
        if queues > self.queues:
            return Answer(Inflight(0, 0, queues, size))  # none: the rings that there are get one of our own
        self._make_log(queues, size)
        assert self.inflight is not None  # noqa: S101 - made in the line above
        return Answer(self.inflight[0], (self.inflight[1],))

    def _set_inflight(self, payload: Inflight, descriptors: list[Any]) -> None:
        if payload.queue_count > self.queues:
            raise Refused(f"a log for {payload.queue_count} rings of a device with {self.queues}")
        self._drop_log()
        self.inflight = (payload, descriptors.pop())
        self.own_log = False

    def _make_log(self, queues: int, size: int) -> None:
        total = queues * region_bytes(size)
        self._drop_log()
        self.inflight = (Inflight(total, 0, queues, size), self.make_log(total))
        self.own_log = True

    def _drop_log(self) -> None:
        if self.inflight is not None:
            self.discarded.append(self.inflight[1])
            self.inflight = None

    def _set_backend_channel(self, _payload: Any, descriptors: list[Any]) -> None:
        self.discarded.append(self.backend_channel)
        self.backend_channel = descriptors.pop()

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
        self._make_log(self.queues, max(size, OWN_LOG_ENTRIES))


def _check_apart(regions: list[Region]) -> None:
    ordered = sorted(regions, key=lambda region: region.guest_address)
    for before, after in pairwise(ordered):
        if before.guest_address + before.size > after.guest_address:
            raise Refused(f"memory regions at {before.guest_address:#x} and {after.guest_address:#x} overlap")


_HANDLERS: dict[int, Callable[[Setup, Any, list[Any]], Answer | None]] = {
    _R.GET_FEATURES: Setup._get_features,
    _R.SET_FEATURES: Setup._set_features,
    _R.SET_OWNER: Setup._nothing,
    _R.RESET_OWNER: Setup._reset,
    _R.RESET_DEVICE: Setup._reset,
    _R.SET_MEM_TABLE: Setup._set_mem_table,
    _R.ADD_MEM_REG: Setup._add_mem_reg,
    _R.REM_MEM_REG: Setup._rem_mem_reg,
    _R.SET_VRING_NUM: Setup._set_vring_num,
    _R.SET_VRING_ADDR: Setup._set_vring_addr,
    _R.SET_VRING_BASE: Setup._set_vring_base,
    _R.GET_VRING_BASE: Setup._get_vring_base,
    _R.SET_VRING_KICK: Setup._set_vring_kick,
    _R.SET_VRING_CALL: Setup._set_vring_call,
    _R.SET_VRING_ERR: Setup._set_vring_err,
    _R.SET_VRING_ENABLE: Setup._set_vring_enable,
    _R.GET_PROTOCOL_FEATURES: Setup._get_protocol_features,
    _R.SET_PROTOCOL_FEATURES: Setup._set_protocol_features,
    _R.GET_QUEUE_NUM: Setup._get_queue_num,
    _R.GET_CONFIG: Setup._get_config,
    _R.SET_CONFIG: Setup._set_config,
    _R.GET_INFLIGHT_FD: Setup._get_inflight,
    _R.SET_INFLIGHT_FD: Setup._set_inflight,
    _R.SET_BACKEND_REQ_FD: Setup._set_backend_channel,
}
