"""What each request of a VMM changes in its set-up, and what is answered. Pure.

A VMM may leave any request out, and one that enables rings before it sets them up (QEMU's net) means that
too: nothing depends on an order but what cannot be otherwise. A request that cannot be granted changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from supervisor.vhost_user.areas import Inflight, MemoryTable, Region, SingleRegion
from supervisor.vhost_user.messages import U64, Config, Payload, VringAddr, VringFd, VringState
from supervisor.vhost_user.requests import MAX_REGIONS, FrontEndRequest, ProtocolFeature
from supervisor.vhost_user.setup import OWN_LOG_ENTRIES, Refused, Setup

__all__ = ["PROTOCOL_FEATURES", "Answer", "grant"]

PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
)
"""Not offered: in-band notifications (QEMU 7.2 accepts them without knowing them), a log of dirty pages."""

_R = FrontEndRequest


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back; descriptors with it stay the setup's."""

    payload: Payload
    descriptors: tuple[Any, ...] = ()


def grant(setup: Setup, request: int, payload: Any, descriptors: list[Any]) -> Answer | None:
    """Takes ``request`` into ``setup``, and of ``descriptors`` what it needs; the rest is discarded.

    Returns the answer of requests that have one of their own. Raises :class:`Refused`.
    """
    handler = _HANDLERS.get(request)
    try:
        if handler is None:
            raise Refused(f"request {request} is not served")
        return handler(setup, payload, descriptors)
    finally:
        setup.discarded += descriptors
        descriptors.clear()


def _get_features(setup: Setup, _payload: Any, _descriptors: list[Any]) -> Answer:
    return Answer(U64(setup.offer.features))


def _set_features(setup: Setup, payload: U64, _descriptors: list[Any]) -> None:
    if payload.value & ~setup.offer.features:
        raise Refused(f"features {payload.value & ~setup.offer.features:#x} were not offered")
    setup.features = payload.value


def _get_protocol_features(setup: Setup, _payload: Any, _descriptors: list[Any]) -> Answer:
    offered = PROTOCOL_FEATURES
    if not setup.offer.config:
        offered &= ~ProtocolFeature.CONFIG
    return Answer(U64(int(offered)))


def _set_protocol_features(setup: Setup, payload: U64, _descriptors: list[Any]) -> None:
    if payload.value & ~int(PROTOCOL_FEATURES):
        raise Refused(f"protocol features {payload.value & ~int(PROTOCOL_FEATURES):#x} were not offered")
    setup.protocol_features = payload.value


def _get_queue_num(setup: Setup, _payload: Any, _descriptors: list[Any]) -> Answer:
    return Answer(U64(setup.queues))


def _nothing(setup: Setup, _payload: Any, _descriptors: list[Any]) -> None:
    """Said for the sake of saying it."""


def _reset(setup: Setup, _payload: Any, _descriptors: list[Any]) -> None:
    for ring in setup.rings.values():
        ring.enabled = ring.started = False
    if setup.own_log:
        setup.drop_log()  # what comes next is another driver's


def _set_mem_table(setup: Setup, payload: MemoryTable, descriptors: list[Any]) -> None:
    _check_apart([*payload.regions])
    setup.discarded += [descriptor for _region, descriptor in setup.regions]
    setup.regions = list(zip(payload.regions, descriptors, strict=True))
    descriptors.clear()


def _add_mem_reg(setup: Setup, payload: SingleRegion, descriptors: list[Any]) -> None:
    if len(setup.regions) >= MAX_REGIONS:  # a worker maps no more, and they go to it in one packet
        raise Refused(f"more than {MAX_REGIONS} memory regions")
    _check_apart([payload.region, *(region for region, _descriptor in setup.regions)])
    setup.regions.append((payload.region, descriptors.pop()))


def _rem_mem_reg(setup: Setup, payload: SingleRegion, _descriptors: list[Any]) -> None:
    for index, (region, descriptor) in enumerate(setup.regions):
        same = (region.guest_address, region.size, region.user_address)
        if same == (payload.region.guest_address, payload.region.size, payload.region.user_address):
            del setup.regions[index]
            setup.discarded.append(descriptor)
            return
    raise Refused(f"there is no memory region at {payload.region.guest_address:#x}")


def _set_vring_num(setup: Setup, payload: VringState, _descriptors: list[Any]) -> None:
    if not payload.num or payload.num & (payload.num - 1):
        raise Refused(f"ring {payload.index} of {payload.num} entries, which is no power of two")
    setup.ring(payload.index).size = payload.num


def _set_vring_addr(setup: Setup, payload: VringAddr, _descriptors: list[Any]) -> None:
    setup.ring(payload.index).addresses = payload


def _set_vring_base(setup: Setup, payload: VringState, _descriptors: list[Any]) -> None:
    if payload.num > 0xFFFF:
        raise Refused(f"ring {payload.index} at {payload.num}, beyond 16 bits")
    setup.ring(payload.index).base = payload.num


def _get_vring_base(setup: Setup, payload: VringState, _descriptors: list[Any]) -> Answer:
    ring = setup.ring(payload.index)
    ring.started = False
    setup.discarded += [ring.kick, ring.call]
    ring.kick = ring.call = None
    if setup.own_log and not setup.running():
        setup.drop_log()  # nothing is under way, and what comes next may be another driver's
    return Answer(VringState(payload.index, ring.base))


def _set_vring_kick(setup: Setup, payload: VringFd, descriptors: list[Any]) -> None:
    ring = setup.ring(payload.index)
    setup.discarded.append(ring.kick)
    ring.kick = descriptors.pop() if descriptors else None
    ring.started = True


def _set_vring_call(setup: Setup, payload: VringFd, descriptors: list[Any]) -> None:
    ring = setup.ring(payload.index)
    setup.discarded.append(ring.call)
    ring.call = descriptors.pop() if descriptors else None


def _set_vring_err(setup: Setup, payload: VringFd, descriptors: list[Any]) -> None:
    ring = setup.ring(payload.index)
    setup.discarded.append(ring.err)
    ring.err = descriptors.pop() if descriptors else None


def _set_vring_enable(setup: Setup, payload: VringState, _descriptors: list[Any]) -> None:
    setup.ring(payload.index).enabled = bool(payload.num)


def _get_config(setup: Setup, payload: Config, _descriptors: list[Any]) -> Answer:
    space = bytearray(setup.offer.config)
    for offset, data in setup.config_writes:
        space[offset : offset + len(data)] = data
    end = payload.offset + len(payload.data)
    if payload.offset >= len(space):
        raise Refused(f"configuration from {payload.offset} on; there are {len(space)} bytes")
    asked = bytes(space[payload.offset : end])
    # What the device does not have yet reads zero: a VMM asks for the space as it knows it.
    return Answer(Config(payload.offset, asked.ljust(len(payload.data), b"\0"), payload.flags))


def _set_config(setup: Setup, payload: Config, _descriptors: list[Any]) -> None:
    end = payload.offset + len(payload.data)
    writable = setup.offer.config_writable[payload.offset : end]
    if len(writable) < len(payload.data) or not all(writable):
        raise Refused(f"configuration from {payload.offset} to {end} cannot be written")
    setup.config_writes = [one for one in setup.config_writes if one[0] != payload.offset]
    setup.config_writes.append((payload.offset, payload.data))


def _get_inflight(setup: Setup, payload: Inflight, _descriptors: list[Any]) -> Answer:
    queues = payload.queue_count or setup.queues
    size = payload.queue_size or OWN_LOG_ENTRIES
    if queues > setup.queues:
        return Answer(Inflight(0, 0, queues, size))  # none: the rings that there are get one of our own
    setup.make_own_log(queues, size)
    assert setup.inflight is not None  # noqa: S101 - made in the line above
    return Answer(setup.inflight[0], (setup.inflight[1],))


def _set_inflight(setup: Setup, payload: Inflight, descriptors: list[Any]) -> None:
    if payload.queue_count > setup.queues:
        raise Refused(f"a log for {payload.queue_count} rings of a device with {setup.queues}")
    setup.drop_log()
    setup.inflight = (payload, descriptors.pop())
    setup.own_log = False


def _set_backend_channel(setup: Setup, _payload: Any, descriptors: list[Any]) -> None:
    setup.discarded.append(setup.backend_channel)
    setup.backend_channel = descriptors.pop()


def _check_apart(regions: list[Region]) -> None:
    ordered = sorted(regions, key=lambda region: region.guest_address)
    for before, after in pairwise(ordered):
        if before.guest_address + before.size > after.guest_address:
            raise Refused(f"memory regions at {before.guest_address:#x} and {after.guest_address:#x} overlap")


_HANDLERS: dict[int, Callable[[Setup, Any, list[Any]], Answer | None]] = {
    _R.GET_FEATURES: _get_features,
    _R.SET_FEATURES: _set_features,
    _R.SET_OWNER: _nothing,
    _R.RESET_OWNER: _reset,
    _R.RESET_DEVICE: _reset,
    _R.SET_MEM_TABLE: _set_mem_table,
    _R.ADD_MEM_REG: _add_mem_reg,
    _R.REM_MEM_REG: _rem_mem_reg,
    _R.SET_VRING_NUM: _set_vring_num,
    _R.SET_VRING_ADDR: _set_vring_addr,
    _R.SET_VRING_BASE: _set_vring_base,
    _R.GET_VRING_BASE: _get_vring_base,
    _R.SET_VRING_KICK: _set_vring_kick,
    _R.SET_VRING_CALL: _set_vring_call,
    _R.SET_VRING_ERR: _set_vring_err,
    _R.SET_VRING_ENABLE: _set_vring_enable,
    _R.GET_PROTOCOL_FEATURES: _get_protocol_features,
    _R.SET_PROTOCOL_FEATURES: _set_protocol_features,
    _R.GET_QUEUE_NUM: _get_queue_num,
    _R.GET_CONFIG: _get_config,
    _R.SET_CONFIG: _set_config,
    _R.GET_INFLIGHT_FD: _get_inflight,
    _R.SET_INFLIGHT_FD: _set_inflight,
    _R.SET_BACKEND_REQ_FD: _set_backend_channel,
}
