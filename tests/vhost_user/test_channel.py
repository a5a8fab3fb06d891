"""The channel for the back-end's own requests: a socket, or the write end of a pipe."""

from __future__ import annotations

import os

import pytest

from supervisor.tube.descriptor import Descriptor
from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import IncorrectFds, SocketBroken, Unsendable, WireTimeout
from supervisor.vhost_user.messages import U64, Empty, Header
from supervisor.vhost_user.requests import BackEndRequest
from supervisor.vhost_user.rules import BACK_END_RULES
from tests.vhost_user.wires import TIMEOUT_S, ends, eventfds, pair, send_for_ever

pytestmark = pytest.mark.usefixtures("census")


def test_given_backend_channel_it_speaks_the_back_ends_requests() -> None:
    """A socket is a channel with answers."""
    request = Header(BackEndRequest.CONFIG_CHANGE_MSG, need_reply=True)
    with (
        pair() as (mine, theirs),
        ends() as (_front, back),
        back.create_backend_request_endpoint([Descriptor(os.dup(theirs.fileno()))]) as channel,
        Endpoint(mine, rules=BACK_END_RULES, timeout=TIMEOUT_S) as front,
    ):
        channel.send_header(request)
        with front.recv_message() as message:
            assert message.decode(BACK_END_RULES) == Empty()
            front.send_message(message.header.reply(8), U64(0))
        assert channel.recv_reply(request).decode_reply(request, BACK_END_RULES) == U64(0)


def test_given_pipe_as_backend_channel_it_takes_requests_and_gives_no_answers() -> None:
    """Some front-ends hand over the write end of a pipe; a full one does not block us."""
    read_end, write_end = os.pipe()
    with (
        ends(timeout=0) as (_front, back),
        Descriptor(read_end),
        back.create_backend_request_endpoint([Descriptor(write_end)]) as channel,
    ):
        channel.send_header(Header(BackEndRequest.CONFIG_CHANGE_MSG))
        assert os.read(read_end, 99) == Header(2).pack()
        with pytest.raises(Unsendable):
            channel.recv_message()
        with eventfds(1) as fds, pytest.raises(Unsendable):
            channel.send_header(Header(3), fds)
        with pytest.raises(WireTimeout):
            send_for_ever(lambda: channel.send_header(Header(BackEndRequest.CONFIG_CHANGE_MSG)))


def test_given_pipe_whose_reader_is_gone_it_is_broken() -> None:
    """EPIPE, by whatever way."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with (
        ends() as (_front, back),
        back.create_backend_request_endpoint([Descriptor(write_end)]) as channel,
        pytest.raises(SocketBroken),
    ):
        channel.send_header(Header(BackEndRequest.CONFIG_CHANGE_MSG))


@pytest.mark.parametrize("count", [0, 2])
def test_given_wrong_number_of_channels_they_are_closed(count: int) -> None:
    """Exactly one descriptor makes a channel."""
    with ends() as (_front, back), eventfds(count) as fds, pytest.raises(IncorrectFds):
        back.create_backend_request_endpoint([Descriptor(os.dup(fd)) for fd in fds])
