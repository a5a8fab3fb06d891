"""Every row of vectors/vhost_connection.json: what a connection makes of bytes and descriptors."""

from __future__ import annotations

import errno
import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.vhost_user import errors, messages, requests
from supervisor.vhost_user.areas import MemoryTable, Region
from supervisor.vhost_user.assembler import Assembler, Message
from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import InvalidMessage, VhostUserError
from supervisor.vhost_user.frontend import FrontEnd
from supervisor.vhost_user.messages import Config, Header, Opaque, VringAddr
from supervisor.vhost_user.requests import FrontEndRequest
from supervisor.vhost_user.rules import FRONT_END_RULES
from supervisor.vhost_user.stream import advance_slices
from supervisor.vhost_user.wire import MAX_SCARCE, SocketWire, receive_message
from tests.vhost_user.wires import TIMEOUT_S, Failing, Recorder, eventfds, pair, put

pytestmark = pytest.mark.usefixtures("census")

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "vectors" / "vhost_connection.json").read_text()
)
OUTCOMES: dict[str, type[VhostUserError] | None] = {
    "ok": None,
    "ClientExit": errors.Disconnected,
    "PartialMessage": errors.PartialMessage,
    "InvalidMessage": errors.InvalidMessage,
    "OversizedMsg": errors.OversizedMessage,
    "BackendInternalError": errors.BackEndRefused,
}
COVERED: set[str] = set()


def rows(section: str, of: str = "", **wanted: str) -> pytest.MarkDecorator:
    """Run a test for every row of a section, or of one part of it, and note that it is covered."""
    found = VECTORS[section][of] if of else VECTORS[section]
    name = f"{section}.{of}" if of else section
    COVERED.add(name + "".join(f".{value}" for value in wanted.values()))
    picked = [row for row in found if all(row[key] == value for key, value in wanted.items())]
    return pytest.mark.parametrize(
        "row", picked, ids=lambda row: row.get("name") if isinstance(row, dict) else None
    )


def outcome(work: Callable[[], Any]) -> type[VhostUserError] | None:
    """What the work raised."""
    try:
        work()
    except VhostUserError as error:
        return type(error)
    return None


def assert_is(got: type[VhostUserError] | None, expected: str) -> None:
    wanted = OUTCOMES[expected]
    assert got is wanted or (wanted is not None and got is not None and issubclass(got, wanted)), (
        got,
        expected,
    )


@rows("advance_slices")
def test_given_slices_advancing_leaves_the_rest(row: dict[str, Any]) -> None:
    """What is left starts behind the count, without empty slices in front."""
    slices = [memoryview(bytes([index + 1]) * size) for index, size in enumerate(row["lens"])]
    left = advance_slices(slices, row["count"])
    assert [len(each) for each in left] == row["result_lens"]
    assert b"".join(left) == b"".join(slices)[row["count"] :]


@rows("header_validity")
def test_given_header_it_is_valid_or_not(row: dict[str, Any]) -> None:
    """Version and reserved bits are the framing's, the request's number is the table's."""
    data = bytes.fromhex(row["bytes"])
    assert struct.unpack("<III", data) == (row["request"], row["flags"], row["size"])
    assert (outcome(lambda: Header.unpack(data)) is None) == row["valid"]["framing"]
    if row["valid"]["framing"]:
        assert (row["request"] in FRONT_END_RULES) == row["valid"]["known"]
        assert Header.unpack(data).pack() == data


@rows("header_build")
def test_given_parts_header_is_built(row: dict[str, Any]) -> None:
    """Requests, replies and headers of foreign flags come out byte for byte."""
    if row["kind"] == "seed_new":
        header = Header.of_flags(row["request"], row["flags_in"], row["size"])
    elif row["kind"] == "reply":
        header = Header(row["request"]).reply(row["size"])
    else:
        header = Header(row["request"], row["size"], need_reply=row["need_reply"])
    assert header.pack().hex() == row["bytes"]


@rows("is_reply_for")
def test_given_two_headers_one_answers_the_other_or_not(row: dict[str, Any]) -> None:
    """A reply has the reply bit and its request's number; the request has not."""
    reply, request = (Header.of_flags(row[key][0], row[key][1], 0) for key in ("reply", "request"))
    assert reply.is_reply_for(request) is row["value"]


@rows("stream_fd_scenarios")
def test_given_segments_reads_give_bytes_and_descriptors(row: dict[str, Any]) -> None:
    """What a stream makes of descriptors, through an endpoint that allows them or does not."""
    with pair() as (one, other), Endpoint(other, timeout=0) as end:
        for data, fd_count in row["sends"]:
            if data:
                put(one, bytes.fromhex(data), fd_count)
            else:
                with eventfds(fd_count) as fds:
                    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))]
                    assert one.sendmsg([b""], control) == 0
        for (size, room), got in zip(row["recvs"], row["got"], strict=True):
            if got == "EAGAIN":
                with pytest.raises(errors.WireTimeout):
                    end.recv_into_bufs([bytearray(size)], allow_fds=True)
                continue
            if size == 0:
                # The kernel's own habit, which the endpoint keeps clear of: it never reads nothing.
                assert end.recv_into_bufs([bytearray(0)], allow_fds=True) == (0, [])
                return
            count, descriptors = end.recv_into_bufs([bytearray(size)], allow_fds=room > 0)
            assert [count, len(descriptors)] == got
            for each in descriptors:
                each.close()


@rows("round_trips")
def test_given_message_it_arrives_as_it_was_sent(row: dict[str, Any]) -> None:
    """Header, body and descriptors of one message come out together, then those of a header alone."""
    header, body = Header.unpack(bytes.fromhex(row["header"])), bytes.fromhex(row["body"])
    with (
        pair() as (one, other),
        Endpoint(one, timeout=TIMEOUT_S) as a,
        Endpoint(other, timeout=TIMEOUT_S) as b,
    ):
        with eventfds(row["fds"]) as fds:
            a.send_message(header, Opaque(body), fds)
        a.send_header(Header(3))
        got, found, rest, descriptors = b.recv_payload_into_buf(0)
        assert (got, found, rest, len(descriptors)) == (header, b"", body, row["fds"])
        for each in descriptors:
            each.close()
        assert b.recv_header() == (Header(3), [])


COVERED.add("send_segmentation")


@pytest.mark.parametrize("limit", [1 << 20, 5, 12, 1])
def test_given_message_it_is_one_sendmsg_and_its_rest_goes_without_descriptors(limit: int) -> None:
    """Header, body and payload leave together; what a short send has left follows without descriptors."""
    assert VECTORS["send_segmentation"] == [["header+body+payload", "fds"]]
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    recorder = Recorder(fileno=one.detach())
    recorder.calls, recorder.limit = [], limit
    with Endpoint(recorder, timeout=TIMEOUT_S) as a, Endpoint(other, timeout=TIMEOUT_S) as b:
        with eventfds(1) as fds:
            a.send_message_with_payload(Header(5, 40), Opaque(bytes(8)), bytes(32), fds)
        assert recorder.calls[0] == (52, 1)
        assert [call[1] for call in recorder.calls[1:]] == [0] * (-(-52 // limit) - 1)
        header, body, rest, descriptors = b.recv_payload_into_buf(8)
        assert (header.size, len(body), len(rest), len(descriptors)) == (40, 8, 32, 1)
        descriptors[0].close()


def serve_pieces(row: dict[str, Any], receive: Callable[[], Message | None], peer: socket.socket) -> None:
    """Send the row's segments, asking for a message after each."""
    for index, segment in enumerate(row["data"]):
        put(peer, bytes.fromhex(segment), row.get("fds", 0) if index == row.get("fds_on_segment", 0) else 0)
        message = receive()
        if message is not None:
            with message:
                message.decode()
            return
    if row.get("close"):
        peer.close()
        receive()


@rows("messages", api="server")
def test_given_pieces_assembler_makes_a_message_or_refuses(row: dict[str, Any]) -> None:
    """The event loop's way: whatever has come is taken, and nothing is waited for."""
    with pair() as (peer, sock):
        assembler, wire = Assembler(), SocketWire(sock)
        assert_is(
            outcome(lambda: serve_pieces(row, lambda: receive_message(wire, assembler), peer)), row["expect"]
        )
        assert not assembler.is_inside


@rows("messages", api="server")
def test_given_pieces_endpoint_makes_a_message_or_refuses(row: dict[str, Any]) -> None:
    """The blocking way comes to the same result."""
    with pair() as (peer, sock), Endpoint(sock, timeout=TIMEOUT_S) as end:
        for index, segment in enumerate(row["data"]):
            put(
                peer,
                bytes.fromhex(segment),
                row.get("fds", 0) if index == row.get("fds_on_segment", 0) else 0,
            )
        if row.get("close"):
            peer.close()

        def receive() -> None:
            _header, _value, descriptors = end.recv_message_with_payload()
            for each in descriptors:
                each.close()

        assert_is(outcome(receive), row["expect"])


@rows("messages", api="client_u64")
def test_given_reply_front_end_takes_it_or_refuses(row: dict[str, Any]) -> None:
    """A number is taken from a reply of the right request, size and descriptors only."""
    with pair() as (peer, sock), FrontEnd(sock, timeout=TIMEOUT_S) as front:
        put(peer, bytes.fromhex(row["data"][0]), row.get("fds", 0))
        assert row["request"] == [FrontEndRequest.GET_FEATURES, 1]
        got: list[int] = []
        assert_is(outcome(lambda: got.append(front.get_features())), row["expect"])
        assert got == ([row["value"]] if row["expect"] == "ok" else [])


@rows("messages", api="client_config")
def test_given_config_reply_front_end_takes_it_or_refuses(row: dict[str, Any]) -> None:
    """A configuration is taken only if it is the stretch that was asked for."""
    with pair() as (peer, sock), FrontEnd(sock, timeout=TIMEOUT_S) as front:
        put(peer, bytes.fromhex(row["data"][0]))
        assert_is(outcome(lambda: front.get_config(row["offset"], row["size"])), row["expect"])


def is_valid(work: Callable[[], Any]) -> bool:
    try:
        work()
    except InvalidMessage:
        return False
    return True


@rows("validators", "VhostUserMemory")
def test_given_memory_table_it_is_valid_or_not(row: dict[str, Any]) -> None:
    """Padding is zero, and there are between one region and as many as descriptors go with a message."""
    room = min(max(row["num_regions"], 1), 33)
    regions = b"".join(Region(index << 20, 4096, 0).pack() for index in range(room))
    data = struct.pack("<II", row["num_regions"], row["padding"]) + regions
    assert is_valid(lambda: MemoryTable.unpack(data)) == row["valid"]


@rows("validators", "VhostUserMemoryRegion")
def test_given_memory_region_it_is_valid_or_not(row: dict[str, Any]) -> None:
    """A region has a size, and ends where an address can still be."""
    data = struct.pack("<QQQQ", row["gpa"], row["size"], row["uaddr"], row["off"])
    assert is_valid(lambda: Region.unpack(data)) == row["valid"]


@rows("validators", "VhostUserConfig")
def test_given_config_it_is_valid_or_not(row: dict[str, Any]) -> None:
    """A stretch of the configuration lies within it, and has known flags."""
    data = struct.pack("<III", row["offset"], row["size"], row["flags"]) + bytes(row["size"])
    assert is_valid(lambda: Config.unpack(data)) == row["valid"]


@rows("validators", "VhostUserVringAddr")
def test_given_ring_addresses_they_are_valid_or_not(row: dict[str, Any]) -> None:
    """The three areas are aligned, and the flags are known."""
    addresses = VringAddr(0, row["flags"], row["desc"], row["used"], row["avail"], row.get("log", 0))
    assert is_valid(lambda: VringAddr.unpack(addresses.pack())) == row["valid"]


ERRNOS = {name: what for name, what in VECTORS["errno_map"].items() if name not in ("0 bytes", "EINTR", "*")}
COVERED.add("errno_map")


@pytest.mark.parametrize("way", ["send", "receive"])
@pytest.mark.parametrize("name", [*ERRNOS, "EIO", "ENOTCONN"])
def test_given_errno_of_a_call_it_is_retried_or_blamed(name: str, way: str) -> None:
    """What passes is waited out, a peer that is gone is the peer's, the rest is the system's."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sock = Failing(fileno=one.detach())
    with Endpoint(sock, timeout=TIMEOUT_S) as end, Endpoint(other, timeout=TIMEOUT_S) as peer:
        peer.send_header(Header(3))
        sock.number, sock.times = getattr(errno, name), 3
        work = (lambda: end.send_header(Header(3))) if way == "send" else (lambda: end.recv_message().close())
        expected = ERRNOS.get(name, "SocketError")
        if "retry" in expected:
            assert outcome(work) is None
        elif "SocketBroken" in expected or (name, way) == ("ENOTCONN", "send"):
            assert outcome(work) is errors.SocketBroken
        else:
            assert outcome(work) is errors.SocketError


@pytest.mark.parametrize("name", ["ENOBUFS", "ENOMEM"])
def test_given_memory_that_stays_short_wire_gives_up(name: str) -> None:
    """Waiting for the kernel's memory is bounded by a number of tries."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sock = Failing(fileno=one.detach())
    sock.number, sock.times = getattr(errno, name), MAX_SCARCE + 1
    with sock, other:
        wire = SocketWire(sock)
        for _ in range(MAX_SCARCE):
            assert wire.send_some([b"x"], []) == 0
        with pytest.raises(errors.SocketError):
            wire.send_some([b"x"], [])


COVERED.add("fds_allowed_requests")


def test_given_table_of_requests_those_with_descriptors_are_known() -> None:
    """Besides the listed ones: the GPU's socket, and the descriptor that some send when removing a region."""
    ours = {int(code) for code, rule in FRONT_END_RULES.items() if rule.may_have_fds}
    assert ours - set(VECTORS["fds_allowed_requests"]) == {
        FrontEndRequest.GPU_SET_SOCKET,
        FrontEndRequest.REM_MEM_REG,
    }
    assert set(VECTORS["fds_allowed_requests"]) <= ours


COVERED.add("meta")


def test_given_limits_ours_are_theirs() -> None:
    """The constants of the vectors' head."""
    limits, header = VECTORS["meta"]["limits"], VECTORS["meta"]["header"]
    assert limits["MAX_ATTACHED_FD_ENTRIES"] == requests.MAX_FDS
    assert limits["VHOST_USER_CONFIG_SIZE"] == requests.MAX_CONFIG_BYTES
    assert limits["VHOST_USER_MAX_VRINGS"] == requests.MAX_VRINGS
    assert (header["size"], header["reply"]) == (messages.HEADER_BYTES, messages.REPLY)
    assert (header["version"], header["version_mask"]) == (messages.VERSION, messages.VERSION_MASK)
    assert (header["need_reply"], header["reserved_mask"]) == (messages.NEED_REPLY, messages.RESERVED_MASK)


def test_given_vectors_none_is_skipped() -> None:
    """Each section, each part of the validators and each api of the messages has its test."""
    wanted = {name for name in VECTORS if name not in ("validators", "messages")}
    wanted |= {f"validators.{part}" for part in VECTORS["validators"]}
    wanted |= {f"messages.{row['api']}" for row in VECTORS["messages"]}
    assert wanted == COVERED
    assert {row["expect"] for row in VECTORS["messages"]} == OUTCOMES.keys()
