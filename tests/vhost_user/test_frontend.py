"""The front-end's every method, against a back-end in another process that records what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.tube.descriptor import Eventfd
from supervisor.vhost_user.areas import Inflight, Region
from supervisor.vhost_user.assembler import Assembler, Message, Outbox
from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import (
    BackEndRefused,
    Disconnected,
    EndpointClosed,
    InvalidMessage,
    Unsendable,
    WireTimeout,
)
from supervisor.vhost_user.frontend import FrontEnd
from supervisor.vhost_user.listener import Listener
from supervisor.vhost_user.messages import U64, Config, Header, Payload, VringAddr, VringState
from supervisor.vhost_user.requests import FrontEndRequest
from supervisor.vhost_user.rules import FRONT_END_RULES
from supervisor.vhost_user.wire import receive_message
from tests.tube.conftest import Fork, readable
from tests.vhost_user.wires import TIMEOUT_S, eventfds, pair, put

pytestmark = pytest.mark.usefixtures("census")

F = FrontEndRequest
REGION = Region(0, 1 << 20, 0x7F00_0000_0000)
LOG = Inflight(2112, 0, 1, 128)

METHODS: list[tuple[F, Callable[[FrontEnd, list[int]], object], object]] = [
    (F.GET_FEATURES, lambda f, _: f.get_features(), int(F.GET_FEATURES)),
    (F.SET_FEATURES, lambda f, _: f.set_features(1 << 32), None),
    (F.SET_OWNER, lambda f, _: f.set_owner(), None),
    (F.RESET_OWNER, lambda f, _: f.reset_owner(), None),
    (F.SET_MEM_TABLE, lambda f, fds: f.set_mem_table([REGION, REGION], fds), None),
    (F.SET_LOG_BASE, lambda f, fds: f.set_log_base(4096, 0, fds[0]), None),
    (F.SET_LOG_BASE, lambda f, _: f.set_log_base(4096, 0), None),
    (F.SET_LOG_FD, lambda f, fds: f.set_log_fd(fds[0]), None),
    (F.SET_VRING_NUM, lambda f, _: f.set_vring_num(1, 256), None),
    (F.SET_VRING_ADDR, lambda f, _: f.set_vring_addr(VringAddr(1, 0, 0x1000, 0x3000, 0x2000)), None),
    (F.SET_VRING_BASE, lambda f, _: f.set_vring_base(1, 7), None),
    (F.GET_VRING_BASE, lambda f, _: f.get_vring_base(1), 7),
    (F.SET_VRING_KICK, lambda f, fds: f.set_vring_kick(1, fds[0]), None),
    (F.SET_VRING_KICK, lambda f, _: f.set_vring_kick(1, None), None),
    (F.SET_VRING_CALL, lambda f, fds: f.set_vring_call(1, fds[0]), None),
    (F.SET_VRING_ERR, lambda f, fds: f.set_vring_err(1, fds[0]), None),
    (F.GET_PROTOCOL_FEATURES, lambda f, _: f.get_protocol_features(), int(F.GET_PROTOCOL_FEATURES)),
    (F.SET_PROTOCOL_FEATURES, lambda f, _: f.set_protocol_features(0x1209), None),
    (F.GET_QUEUE_NUM, lambda f, _: f.get_queue_num(), int(F.GET_QUEUE_NUM)),
    (F.SET_VRING_ENABLE, lambda f, _: f.set_vring_enable(1, True), None),
    (F.SEND_RARP, lambda f, _: f.send_rarp(0x525400123456), None),
    (F.NET_SET_MTU, lambda f, _: f.net_set_mtu(1500), None),
    (F.SET_BACKEND_REQ_FD, lambda f, fds: f.set_backend_req_fd(fds[0]), None),
    (F.SET_VRING_ENDIAN, lambda f, _: f.set_vring_endian(1, False), None),
    (F.GET_CONFIG, lambda f, _: f.get_config(4, 57), bytes(range(57))),
    (F.SET_CONFIG, lambda f, _: f.set_config(32, b"\1"), None),
    (F.GET_INFLIGHT_FD, lambda f, _: take_log(f), LOG),
    (F.SET_INFLIGHT_FD, lambda f, fds: f.set_inflight_fd(LOG, fds[0]), None),
    (F.RESET_DEVICE, lambda f, _: f.reset_device(), None),
    (F.VRING_KICK, lambda f, _: f.vring_kick(1), None),
    (F.GET_MAX_MEM_SLOTS, lambda f, _: f.get_max_mem_slots(), int(F.GET_MAX_MEM_SLOTS)),
    (F.ADD_MEM_REG, lambda f, fds: f.add_mem_reg(REGION, fds[0]), None),
    (F.REM_MEM_REG, lambda f, _: f.rem_mem_reg(REGION), None),
    (F.SET_STATUS, lambda f, _: f.set_status(15), None),
    (F.GET_STATUS, lambda f, _: f.get_status(), int(F.GET_STATUS)),
]
"""(the request, the call, what it returns); the back-end below answers a getter with the request's number."""


def take_log(front: FrontEnd) -> Inflight:
    log, descriptor = front.get_inflight_fd(1, 128)
    assert descriptor is not None
    descriptor.close()
    return log


def answer(message: Message) -> tuple[Payload, list[Eventfd]]:
    """What the back-end answers, where it has to."""
    value = message.decode()
    match message.header.request:
        case F.GET_VRING_BASE:
            return VringState(value.index, 7), []
        case F.GET_CONFIG:
            return Config(value.offset, bytes(range(len(value.data)))), []
        case F.GET_INFLIGHT_FD:
            return LOG, [Eventfd()]
        case request if FRONT_END_RULES[request].answer.name == "ALWAYS":
            return U64(request), []
    return U64(0), []


def serve(listener: Listener, expected: list[F]) -> None:
    """A back-end in an event loop: never waits for a message's rest, nor for room for a reply."""
    end = listener.accept(timeout=TIMEOUT_S)
    assert end is not None
    assembler, outbox = Assembler(), Outbox()
    seen: list[int] = []
    with end:
        while True:
            try:
                message = receive_message(end.wire, assembler)
            except Disconnected:
                break
            if message is None:
                assert readable(end, TIMEOUT_S)
                continue
            with message:
                reply, descriptors = answer(message)
                seen.append(message.header.request)
                rule = FRONT_END_RULES[message.header.request]
                if rule.is_answered(message.header, len(message.descriptors)):
                    data = reply.pack()
                    outbox.push(message.header.reply(len(data)), data, descriptors)
            assert outbox.send(end.wire)
    assert seen == expected, seen


@pytest.mark.parametrize("need_reply", [False, True])
def test_given_back_end_in_another_process_every_request_gets_its_answer(
    need_reply: bool, tmp_path: Path, fork: Fork
) -> None:
    """All requests over one connection, with and without need_reply, descriptors and all."""
    path = str(tmp_path / "x.sock")
    with Listener(path) as listener:
        child = fork(lambda: serve(listener, [request for request, _call, _result in METHODS]))
        with FrontEnd(path, timeout=TIMEOUT_S, need_reply=need_reply) as front, eventfds(2) as fds:
            for request, call, result in METHODS:
                assert call(front, fds) == result, request.name
        assert child.wait() == 0


@pytest.mark.parametrize(
    ("request_", "call"), [(r, c) for r, c, _ in METHODS], ids=[r.name for r, _, _ in METHODS]
)
def test_given_back_end_that_is_gone_every_request_says_so(
    request_: F, call: Callable[[FrontEnd, list[int]], object]
) -> None:
    """A dead back-end never returns a plausible value."""
    with (
        pair() as (peer, sock),
        FrontEnd(sock, timeout=TIMEOUT_S, need_reply=True) as front,
        eventfds(2) as fds,
    ):
        peer.close()
        with pytest.raises(Disconnected):
            call(front, fds)
        with pytest.raises(EndpointClosed):
            call(front, fds)


def test_given_no_as_answer_it_is_raised_and_the_connection_goes_on() -> None:
    """A refused request is an answer: the next one can be asked."""
    with pair() as (peer, sock), FrontEnd(sock, timeout=TIMEOUT_S, need_reply=True) as front:
        put(peer, Header(F.SET_OWNER).reply(8).pack() + U64(22).pack())
        with pytest.raises(BackEndRefused, match="SET_OWNER") as caught:
            front.set_owner()
        assert caught.value.code == 22
        put(peer, Header(F.GET_QUEUE_NUM).reply(8).pack() + U64(4).pack())
        assert front.get_queue_num() == 4


def test_given_no_answer_in_time_the_connection_is_closed() -> None:
    """A reply that came later would be taken for the next request's."""
    with pair() as (_peer, sock), FrontEnd(sock, timeout=0.01) as front:
        with pytest.raises(WireTimeout):
            front.get_features()
        with pytest.raises(EndpointClosed):
            front.set_owner()


def test_given_answer_for_another_ring_it_is_refused() -> None:
    """The reply has to be about what was asked."""
    with pair() as (peer, sock), FrontEnd(sock, timeout=TIMEOUT_S) as front:
        put(peer, Header(F.GET_VRING_BASE).reply(8).pack() + VringState(2, 9).pack())
        with pytest.raises(InvalidMessage, match="ring 2 where 1"):
            front.get_vring_base(1)


def test_given_need_reply_of_one_request_it_alone_is_answered() -> None:
    """need_reply can be asked for with a single request, as User-Mode Linux does."""
    with (
        pair() as (peer, sock),
        FrontEnd(sock, timeout=TIMEOUT_S) as front,
        Endpoint(peer, timeout=TIMEOUT_S) as back,
    ):
        front.set_owner()
        back.send_message(Header(F.SET_PROTOCOL_FEATURES).reply(8), U64(0))
        assert front.request(F.SET_PROTOCOL_FEATURES, U64(8), need_reply=True) == (U64(0), [])
        assert not back.recv_header()[0].need_reply
        assert back.recv_body(U64)[0].need_reply


def test_given_arguments_that_cannot_be_sent_nothing_is() -> None:
    """The caller's mistakes do not cost the connection."""
    with pair() as (peer, sock), FrontEnd(sock, timeout=TIMEOUT_S) as front:
        with pytest.raises(Unsendable):
            front.get_config(0, 4097)
        with pytest.raises(Unsendable):
            front.set_vring_num(-1, 4)
        with pytest.raises(Unsendable):
            front.set_log_fd(987654)
        front.set_owner()
        assert peer.recv(99) == Header(F.SET_OWNER).pack()


def test_given_all_methods_none_is_untested() -> None:
    """Every request that has a method of its own is in the list above."""
    named = {name for name in vars(FrontEnd) if not name.startswith("_")} - {"close", "request"}
    assert named == {request.name.lower() for request, _call, _result in METHODS}
