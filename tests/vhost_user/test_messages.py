"""Messages as values: round trips, any bytes, the table of requests, and what each one must refuse."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.vhost_user.areas import Inflight, Log, MemoryTable, Region, SingleRegion
from supervisor.vhost_user.errors import (
    BackEndRefused,
    IncorrectFds,
    InvalidMessage,
    OversizedMessage,
    Unsendable,
)
from supervisor.vhost_user.messages import U64, Config, Header, Payload, VringAddr, VringFd, VringState
from supervisor.vhost_user.requests import MAX_PAYLOAD_BYTES, MAX_REGIONS, BackEndRequest, FrontEndRequest
from supervisor.vhost_user.rules import (
    BACK_END_RULES,
    FRONT_END_RULES,
    Answer,
    check_header,
    decode,
    decode_reply,
)
from tests.vhost_user.wires import PAYLOADS

F = FrontEndRequest
REGION = Region(0x1000, 0x2000, 0x7F0000000000)
KINDS = sorted(PAYLOADS, key=lambda kind: kind.__name__)


@given(st.sampled_from(KINDS).flatmap(lambda kind: PAYLOADS[kind]))
def test_given_any_value_it_comes_back_from_its_bytes(value: Payload) -> None:
    """Packing and unpacking are each other's inverse, in a size that the table allows."""
    data = value.pack()
    assert len(data) in value.sizes
    assert type(value).unpack(data) == value


@given(st.sampled_from(KINDS), st.binary(max_size=128))
def test_given_any_bytes_a_value_or_an_invalid_message_comes_of_them(
    kind: type[Payload], data: bytes
) -> None:
    """No bytes make anything else than a value or the one error; what is a value packs again."""
    try:
        value = kind.unpack(data)
    except InvalidMessage:
        return
    assert kind.unpack(value.pack()) == value


@given(st.binary(max_size=16), st.integers(0, 40), st.binary(max_size=80))
def test_given_any_header_and_payload_the_table_judges_them(
    head: bytes, fd_count: int, payload: bytes
) -> None:
    """Whatever the numbers are, there is a value or an error of the connection's own tree."""
    try:
        header = Header.unpack(head)
        decode(Header(header.request % 50, len(payload)), payload, fd_count)
    except InvalidMessage:
        return


def test_given_every_request_it_has_a_rule() -> None:
    """The table is total, in both directions, and no payload outgrows what a header may announce."""
    assert FRONT_END_RULES.keys() == set(FrontEndRequest) == set(range(1, 45))
    assert BACK_END_RULES.keys() == set(BackEndRequest)
    for rule in (*FRONT_END_RULES.values(), *BACK_END_RULES.values()):
        assert rule.payload.sizes[-1] <= MAX_PAYLOAD_BYTES
        assert rule.reply.sizes[-1] <= MAX_PAYLOAD_BYTES


def test_given_every_request_those_that_ask_are_always_answered() -> None:
    """Getters and the few that report: always; the others where need_reply is set, negotiated or not."""
    always = {code for code, rule in FRONT_END_RULES.items() if rule.answer is Answer.ALWAYS}
    getters = {code for code in F if code.name.startswith(("GET_", "CHECK_"))}
    others = {F.IOTLB_MSG, F.CREATE_CRYPTO_SESSION, F.POSTCOPY_ADVISE, F.POSTCOPY_END, F.SET_DEVICE_STATE_FD}
    assert always == getters | others
    rule = FRONT_END_RULES[F.SET_PROTOCOL_FEATURES]
    assert rule.is_answered(Header(F.SET_PROTOCOL_FEATURES, 8, need_reply=True), 0)
    assert not rule.is_answered(Header(F.SET_PROTOCOL_FEATURES, 8), 0)
    log = FRONT_END_RULES[F.SET_LOG_BASE]
    assert [log.is_answered(Header(F.SET_LOG_BASE, 16), fds) for fds in (0, 1)] == [False, True]


def test_given_two_slots_with_one_region_the_table_has_one() -> None:
    """User-Mode Linux sends 72 bytes for one region; what is in the second slot is nobody's business."""
    data = MemoryTable((REGION,)).pack() + bytes(range(32))
    assert len(data) == 72
    assert decode(Header(F.SET_MEM_TABLE, 72), data, 1).regions == (REGION,)


def test_given_nine_regions_they_are_refused_unless_more_were_negotiated() -> None:
    """A table has eight regions at first, and never more than descriptors can go along."""
    table = MemoryTable((REGION,) * 9)
    table.check_count(MAX_REGIONS)
    with pytest.raises(InvalidMessage):
        table.check_count()


@pytest.mark.parametrize("size", [8, 16, 20, 24, 57, 60])
def test_given_config_request_of_a_known_front_end_it_is_taken(size: int) -> None:
    """The sizes that QEMU and User-Mode Linux ask for."""
    payload = Config(0, bytes(size)).pack()
    assert len(payload) == 12 + size
    assert decode(Header(F.GET_CONFIG, len(payload)), payload, 0) == Config(0, bytes(size))


def test_given_ring_without_log_as_user_mode_linux_sends_it_it_is_taken() -> None:
    """Its log address is all ones where there is none; without the flag nobody may judge it."""
    addresses = VringAddr(0, 0, 262209536, 262217728, 262213632, 2**64 - 1)
    assert decode(Header(F.SET_VRING_ADDR, 40, need_reply=True), addresses.pack(), 0) == addresses


def test_given_inflight_it_is_24_bytes_on_the_wire() -> None:
    """QEMU refuses a reply without the struct's padding."""
    assert len(Inflight(4096, 0, 1, 128).pack()) == 24
    with pytest.raises(InvalidMessage):
        check_header(Header(F.SET_INFLIGHT_FD, 20))


def _refused(code: int, payload: bytes, fd_count: int = 0) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        decode(Header(code, len(payload)), payload, fd_count)
    assert caught.value.request
    assert F(code).name in str(caught.value)
    return caught.value


TOP = 2**64 - 4096
ONE_REGION = MemoryTable((REGION,)).pack()
HUGE_LOG = Inflight(4096, 0, 0xFFFF, 0x8000)


@pytest.mark.parametrize(
    ("code", "payload", "fd_count"),
    [
        pytest.param(F.SET_LOG_BASE, Log(8192, TOP).pack(), 1, id="CVE-2020-10722 log sum wraps"),
        pytest.param(F.SET_MEM_TABLE, MemoryTable((Region(TOP, 4096, 0),)).pack(), 1, id="guest end wraps"),
        pytest.param(F.SET_MEM_TABLE, MemoryTable((Region(0, 4096, TOP),)).pack(), 1, id="user end wraps"),
        pytest.param(F.SET_MEM_TABLE, MemoryTable((Region(0, 4096, 0, TOP),)).pack(), 1, id="offset wraps"),
        pytest.param(F.SET_MEM_TABLE, MemoryTable((Region(0, 0, 0),)).pack(), 1, id="region of no size"),
        pytest.param(F.ADD_MEM_REG, SingleRegion(Region(0, 0, 0)).pack(), 1, id="added region of no size"),
        pytest.param(F.ADD_MEM_REG, b"\1" + SingleRegion(REGION).pack()[1:], 1, id="padding of a region"),
        pytest.param(F.SET_VRING_NUM, struct.pack("<II", 0x10000, 256), 0, id="CVE-2020-10723 index 65536"),
        pytest.param(F.SET_VRING_BASE, struct.pack("<II", 0xFFFFFFFF, 0), 0, id="index of 32 bits"),
        pytest.param(F.SET_VRING_ENABLE, struct.pack("<II", 0x8000, 1), 0, id="first index beyond"),
        pytest.param(F.SET_VRING_ENABLE, struct.pack("<II", 0, 2), 0, id="enabled twice over"),
        pytest.param(F.SET_VRING_NUM, struct.pack("<II", 0, 0), 0, id="ring of no entries"),
        pytest.param(F.SET_VRING_NUM, struct.pack("<II", 0, 32769), 0, id="ring too large"),
        pytest.param(
            F.SET_VRING_ADDR, VringAddr(0x10000, 0, 0, 0, 0).pack(), 0, id="addresses of ring 65536"
        ),
        pytest.param(F.SET_VRING_KICK, struct.pack("<Q", 0x200), 1, id="bits beyond index and flag"),
        pytest.param(F.SET_INFLIGHT_FD, HUGE_LOG.pack(), 1, id="CVE-2021-3839 more rings than memory"),
        pytest.param(F.SET_INFLIGHT_FD, Inflight(8192, TOP, 1, 128).pack(), 1, id="log's sum wraps"),
        pytest.param(F.SET_INFLIGHT_FD, Inflight(2111, 0, 1, 128).pack(), 1, id="log one byte short"),
        pytest.param(F.SET_INFLIGHT_FD, Inflight(4096, 0, 0, 128).pack(), 1, id="log of no rings"),
        pytest.param(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 0).pack(), 0, id="log of rings without entries"),
        pytest.param(F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 0x8001).pack(), 0, id="log of rings too large"),
    ],
)
def test_given_values_that_cannot_be_they_are_refused(code: int, payload: bytes, fd_count: int) -> None:
    """Every number that later arithmetic relies on is judged where it comes in, under the request's name."""
    assert not isinstance(_refused(code, payload, fd_count), IncorrectFds)


@pytest.mark.parametrize(
    ("code", "payload", "right"),
    [
        (F.SET_OWNER, b"", {0}),
        (F.SET_MEM_TABLE, ONE_REGION, {1}),
        (F.SET_MEM_TABLE, MemoryTable((REGION,) * 3).pack(), {3}),
        (F.SET_LOG_BASE, Log(4096, 0).pack(), {0, 1}),
        (F.SET_LOG_FD, b"", {1}),
        (F.SET_VRING_KICK, VringFd(0).pack(), {1}),
        (F.SET_VRING_CALL, VringFd(3, False).pack(), {0}),
        (F.SET_VRING_ERR, VringFd(255).pack(), {1}),
        (F.SET_BACKEND_REQ_FD, b"", {1}),
        (F.GET_INFLIGHT_FD, Inflight(0, 0, 1, 128).pack(), {0}),
        (F.SET_INFLIGHT_FD, Inflight(2112, 0, 1, 128).pack(), {1}),
        (F.ADD_MEM_REG, SingleRegion(REGION).pack(), {1}),
        (F.REM_MEM_REG, SingleRegion(REGION).pack(), {0, 1}),
        (F.SET_FEATURES, U64(5).pack(), {0}),
    ],
)
def test_given_other_number_of_descriptors_the_request_is_refused(
    code: int, payload: bytes, right: set[int]
) -> None:
    """CVE-2019-14818, CVE-2022-0669: the count is exact for each request, and for what its payload says."""
    for fd_count in range(5):
        if fd_count in right:
            decode(Header(code, len(payload)), payload, fd_count)
        else:
            assert isinstance(_refused(code, payload, fd_count), IncorrectFds)


def test_given_header_alone_bad_ones_are_refused() -> None:
    """Before a byte of payload is asked for: unknown, answering, too large, of the wrong size."""
    for header in (
        Header(0),
        Header(45),
        Header(3, is_reply=True),
        Header(3, 8),
        Header(2, 4),
        Header(5, 41),
    ):
        with pytest.raises(InvalidMessage):
            check_header(header)
    with pytest.raises(OversizedMessage):
        check_header(Header(999, MAX_PAYLOAD_BYTES + 1), unknown_pass=True)
    assert check_header(Header(999, 8), unknown_pass=True) is None


def test_given_replies_to_get_config_no_comes_in_two_forms() -> None:
    """Without payload, as libvhost-user says it, or with a size of 0, as crosvm does."""
    request = Header(F.GET_CONFIG, 16)
    for payload in (b"", struct.pack("<III", 0, 0, 0)):
        with pytest.raises(BackEndRefused):
            decode_reply(request.reply(len(payload)), payload, 0, request)


def test_given_inflight_reply_it_has_a_descriptor_if_there_is_a_log() -> None:
    """A size of 0 says that the back-end keeps no log."""
    request = Header(F.GET_INFLIGHT_FD, 24)
    for log, right in ((Inflight(4096, 0, 1, 128), 1), (Inflight(0, 0, 1, 128), 0)):
        assert decode_reply(request.reply(24), log.pack(), right, request) == log
        with pytest.raises(IncorrectFds):
            decode_reply(request.reply(24), log.pack(), 1 - right, request)


@pytest.mark.parametrize("value", [U64(2**64), VringState(-1, 0), VringFd(256), Header(2**32)])
def test_given_numbers_too_large_our_own_caller_is_told(value: Payload | Header) -> None:
    """What does not fit a field is not cut to fit it."""
    with pytest.raises(Unsendable):
        value.pack()
