"""What each request looks like: its payload, its descriptors, its answer. The protocol's one table. Pure.

Whoever receives asks in this order: ``check_header`` as soon as twelve bytes are there (does the request
exist, may it have that size; nothing is allocated before), then ``decode`` when the message is whole (is the
payload what it says, are there as many descriptors as there must be: CVE-2019-14818 were extra ones that
nobody closed). A reply is checked against the request that it answers.

Answers: some requests always have one; the others only where the sender set need_reply: a 64-bit 0 for yes.
That flag alone decides: User-Mode Linux sets it on the very message that negotiates REPLY_ACK, and QEMU sets
it after a reconnect without any negotiation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from supervisor.vhost_user.areas import HostNotifier, Inflight, Log, MemoryTable, SingleRegion
from supervisor.vhost_user.errors import BackEndRefused, IncorrectFds, InvalidMessage, OversizedMessage
from supervisor.vhost_user.messages import (
    U64,
    Config,
    Empty,
    Header,
    Opaque,
    Payload,
    VringAddr,
    VringFd,
    VringState,
)
from supervisor.vhost_user.requests import MAX_PAYLOAD_BYTES, MAX_RING_SIZE, BackEndRequest, FrontEndRequest

__all__ = [
    "BACK_END_RULES",
    "FRONT_END_RULES",
    "Answer",
    "Rule",
    "Rules",
    "check_header",
    "check_reply_header",
    "decode",
    "decode_reply",
    "request_name",
]


class Answer(Enum):
    """Whether a request is answered."""

    ALWAYS = "always"
    IF_ASKED = "if need_reply is set"
    IF_SHARED = "if it came with a descriptor, or need_reply is set"  # SET_LOG_BASE with LOG_SHMFD


FdCount = Callable[[Any], tuple[int, ...]]
Check = Callable[[Any], None]


def _fds(*counts: int) -> FdCount:
    return lambda _payload: counts


_NO_FDS = _fds(0)


def _fd_a_region(table: MemoryTable) -> tuple[int, ...]:
    return (len(table.regions),)


def _fd_unless_none(ring: VringFd) -> tuple[int, ...]:
    return (1,) if ring.has_fd else (0,)


def _fd_if_mapped(log: Inflight) -> tuple[int, ...]:
    return (1,) if log.mmap_size else (0,)


def _accept(_payload: object) -> None:
    pass


def _is_size(ring: VringState) -> None:
    if not 0 < ring.num <= MAX_RING_SIZE:
        raise InvalidMessage(f"a ring of {ring.num} entries")


def _is_flag(ring: VringState) -> None:
    if ring.num > 1:
        raise InvalidMessage(f"{ring.num} where there must be 0 or 1")


def _is_log_wanted(log: Inflight) -> None:
    if not log.queue_count or not log.queue_size:
        raise InvalidMessage(f"a log of {log.queue_count} rings of {log.queue_size} entries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One request. ``fds`` and ``reply_fds`` give the counts that are right for a payload."""

    payload: type[Payload] = Empty
    check: Check = _accept
    fds: FdCount = _NO_FDS
    may_have_fds: bool = False
    answer: Answer = Answer.IF_ASKED
    reply: type[Payload] = U64
    reply_fds: FdCount = _NO_FDS

    def is_answered(self, header: Header, fd_count: int) -> bool:
        """Tell whether the sender of this message waits for a reply."""
        if self.answer is Answer.ALWAYS or header.need_reply:
            return True
        return self.answer is Answer.IF_SHARED and fd_count > 0


Rules = Mapping[int, Rule]

_SIMPLE = Rule()
_SET_U64 = Rule(payload=U64)
_GET_U64 = Rule(answer=Answer.ALWAYS)
_SET_RING = Rule(payload=VringState)
_FLAG_RING = Rule(payload=VringState, check=_is_flag)
_RING_FD = Rule(payload=VringFd, fds=_fd_unless_none, may_have_fds=True)
_ONE_FD = Rule(fds=_fds(1), may_have_fds=True)

_F = FrontEndRequest
FRONT_END_RULES: Rules = {
    _F.GET_FEATURES: _GET_U64,
    _F.SET_FEATURES: _SET_U64,
    _F.SET_OWNER: _SIMPLE,
    _F.RESET_OWNER: _SIMPLE,
    _F.SET_MEM_TABLE: Rule(payload=MemoryTable, fds=_fd_a_region, may_have_fds=True),
    _F.SET_LOG_BASE: Rule(
        payload=Log, fds=_fds(0, 1), may_have_fds=True, answer=Answer.IF_SHARED, reply=Opaque
    ),
    _F.SET_LOG_FD: _ONE_FD,
    _F.SET_VRING_NUM: Rule(payload=VringState, check=_is_size),
    _F.SET_VRING_ADDR: Rule(payload=VringAddr),
    _F.SET_VRING_BASE: _SET_RING,
    _F.GET_VRING_BASE: Rule(payload=VringState, answer=Answer.ALWAYS, reply=VringState),
    _F.SET_VRING_KICK: _RING_FD,
    _F.SET_VRING_CALL: _RING_FD,
    _F.SET_VRING_ERR: _RING_FD,
    _F.GET_PROTOCOL_FEATURES: _GET_U64,
    _F.SET_PROTOCOL_FEATURES: _SET_U64,
    _F.GET_QUEUE_NUM: _GET_U64,
    _F.SET_VRING_ENABLE: _FLAG_RING,
    _F.SEND_RARP: _SET_U64,
    _F.NET_SET_MTU: _SET_U64,
    _F.SET_BACKEND_REQ_FD: _ONE_FD,
    _F.IOTLB_MSG: Rule(payload=Opaque, answer=Answer.ALWAYS),
    _F.SET_VRING_ENDIAN: _FLAG_RING,
    _F.GET_CONFIG: Rule(payload=Config, answer=Answer.ALWAYS, reply=Config),
    _F.SET_CONFIG: Rule(payload=Config),
    _F.CREATE_CRYPTO_SESSION: Rule(payload=Opaque, answer=Answer.ALWAYS, reply=Opaque),
    _F.CLOSE_CRYPTO_SESSION: _SET_U64,
    _F.POSTCOPY_ADVISE: Rule(answer=Answer.ALWAYS, reply=Opaque, reply_fds=_fds(0, 1)),
    _F.POSTCOPY_LISTEN: _SIMPLE,
    _F.POSTCOPY_END: _GET_U64,
    _F.GET_INFLIGHT_FD: Rule(
        payload=Inflight, check=_is_log_wanted, answer=Answer.ALWAYS, reply=Inflight, reply_fds=_fd_if_mapped
    ),
    _F.SET_INFLIGHT_FD: Rule(payload=Inflight, check=Inflight.check_room, fds=_fds(1), may_have_fds=True),
    _F.GPU_SET_SOCKET: _ONE_FD,
    _F.RESET_DEVICE: _SIMPLE,
    _F.VRING_KICK: _SET_RING,
    _F.GET_MAX_MEM_SLOTS: _GET_U64,
    _F.ADD_MEM_REG: Rule(payload=SingleRegion, fds=_fds(1), may_have_fds=True),
    # Some front-ends send the descriptor along once more; it is of no use and gets closed.
    _F.REM_MEM_REG: Rule(payload=SingleRegion, fds=_fds(0, 1), may_have_fds=True),
    _F.SET_STATUS: _SET_U64,
    _F.GET_STATUS: _GET_U64,
    _F.GET_SHARED_OBJECT: Rule(payload=Opaque, answer=Answer.ALWAYS, reply=Opaque, reply_fds=_fds(0, 1)),
    _F.SET_DEVICE_STATE_FD: Rule(
        payload=U64, fds=_fds(1), may_have_fds=True, answer=Answer.ALWAYS, reply_fds=_fds(0, 1)
    ),
    _F.CHECK_DEVICE_STATE: _GET_U64,
    _F.GET_SHMEM_CONFIG: Rule(answer=Answer.ALWAYS, reply=Opaque),
}
"""What a back-end is asked."""

_B = BackEndRequest
BACK_END_RULES: Rules = {
    _B.IOTLB_MSG: Rule(payload=Opaque),
    _B.CONFIG_CHANGE_MSG: _SIMPLE,
    _B.VRING_HOST_NOTIFIER_MSG: Rule(payload=HostNotifier, fds=_fds(0, 1), may_have_fds=True),
    _B.VRING_CALL: _SET_RING,
    _B.VRING_ERR: _SET_RING,
    _B.SHARED_OBJECT_ADD: Rule(payload=Opaque),
    _B.SHARED_OBJECT_REMOVE: Rule(payload=Opaque),
    _B.SHARED_OBJECT_LOOKUP: Rule(payload=Opaque, answer=Answer.ALWAYS, reply_fds=_fds(0, 1)),
    _B.SHMEM_MAP: Rule(payload=Opaque, fds=_fds(1), may_have_fds=True),
    _B.SHMEM_UNMAP: Rule(payload=Opaque),
}
"""What a front-end is asked, over the channel of SET_BACKEND_REQ_FD."""


def request_name(code: int, rules: Rules = FRONT_END_RULES) -> str:
    """Return the name that the specification gives a request, or its number."""
    kind = BackEndRequest if rules is BACK_END_RULES else FrontEndRequest
    return kind(code).name if code in rules else f"request {code}"


def check_header(
    header: Header, rules: Rules = FRONT_END_RULES, *, unknown_pass: bool = False
) -> Rule | None:
    """Judge a request by its header; return its rule, None for one that is unknown and may pass.

    Raises OversizedMessage, InvalidMessage.
    """
    name = request_name(header.request, rules)
    _check_bound(header, name)
    if header.is_reply:
        raise InvalidMessage("a reply to nothing that was asked", name)
    rule = rules.get(header.request)
    if rule is None:
        if unknown_pass:
            return None
        raise InvalidMessage("nobody knows it", name)
    _check_size(header, rule.payload, name)
    return rule


def check_reply_header(header: Header, request: Header, rules: Rules = FRONT_END_RULES) -> Rule:
    """Judge a reply to ``request`` by its header; return the request's rule.

    Raises OversizedMessage, InvalidMessage.
    """
    name = request_name(request.request, rules)
    _check_bound(header, name)
    if not header.is_reply_for(request):
        what = "reply" if header.is_reply else "request"
        raise InvalidMessage(f"a {what} {header.request} where its reply was awaited", name)
    rule = rules[request.request]
    # "No" to GET_CONFIG is a reply without a payload.
    if not (rule.reply is Config and header.size == 0):
        _check_size(header, rule.reply if rule.answer is not Answer.IF_ASKED else U64, name)
    return rule


def _check_bound(header: Header, name: str) -> None:
    if header.size > MAX_PAYLOAD_BYTES:
        raise OversizedMessage(f"{header.size} bytes announced, the limit is {MAX_PAYLOAD_BYTES}", name)


def _check_size(header: Header, payload: type[Payload], name: str) -> None:
    if header.size not in payload.sizes:
        raise InvalidMessage(f"{header.size} bytes announced", name)


def decode(header: Header, payload: bytes, fd_count: int, rules: Rules = FRONT_END_RULES) -> Any:
    """Return the payload of a whole request as its value. The descriptors are the caller's to close.

    Raises IncorrectFds, InvalidMessage.
    """
    rule = check_header(header, rules)
    name = request_name(header.request, rules)
    if rule is None:  # check_header has raised
        raise InvalidMessage("nobody knows it", name)
    return _decode(rule.payload, payload, fd_count, (rule.check, rule.fds), name)


def decode_reply(
    header: Header, payload: bytes, fd_count: int, request: Header, rules: Rules = FRONT_END_RULES
) -> Any:
    """Return the payload of a whole reply to ``request`` as its value.

    Raises BackEndRefused (GET_CONFIG says no in this way), IncorrectFds, InvalidMessage.
    """
    rule = check_reply_header(header, request, rules)
    name = request_name(request.request, rules)
    if rule.reply is Config and (not payload or (len(payload) == 12 and not any(payload[4:8]))):
        if fd_count:
            raise IncorrectFds(f"{fd_count} descriptors", name)
        raise BackEndRefused(name)
    kind = rule.reply if rule.answer is not Answer.IF_ASKED else U64
    fds = rule.reply_fds if rule.answer is not Answer.IF_ASKED else _NO_FDS
    return _decode(kind, payload, fd_count, (_accept, fds), name)


def _decode(
    kind: type[Payload], payload: bytes, fd_count: int, judges: tuple[Check, FdCount], name: str
) -> Payload:
    check, fds = judges
    try:
        value = kind.unpack(payload)
        check(value)
    except InvalidMessage as error:
        error.request = name
        raise
    counts = fds(value)
    if fd_count not in counts:
        wanted = " or ".join(str(count) for count in counts)
        raise IncorrectFds(f"{fd_count} descriptors where there must be {wanted}", name)
    return value
