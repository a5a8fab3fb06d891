"""Any bytes, with descriptors anywhere, through each way that an endpoint can receive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import EndpointClosed, VhostUserError
from supervisor.vhost_user.messages import U64, Header, VringFd, VringState
from supervisor.vhost_user.requests import FrontEndRequest
from tests.vhost_user.wires import TIMEOUT_S, count_open, pair, put

pytestmark = pytest.mark.usefixtures("census")

WAYS: list[Callable[[Endpoint], Any]] = [
    lambda end: end.recv_data(9),
    lambda end: end.recv_into_buf(9),
    lambda end: end.recv_into_bufs([bytearray(3), bytearray(6)], allow_fds=True),
    lambda end: end.recv_into_bufs([bytearray(9)], allow_fds=False),
    lambda end: end.recv_into_bufs_all([bytearray(3), bytearray(6)]),
    lambda end: end.recv_header(),
    lambda end: end.recv_body(U64),
    lambda end: end.recv_body_into_buf(bytearray(16)),
    lambda end: end.recv_payload_into_buf(8),
    lambda end: end.recv_message(),
    lambda end: end.recv_message_with_payload(),
    lambda end: end.recv_reply(Header(FrontEndRequest.GET_FEATURES)),
]
HEADERS = st.builds(
    Header, st.integers(0, 46), st.sampled_from([0, 4, 8, 8, 16, 5000]), st.booleans(), st.booleans()
)
PIECES = st.lists(
    st.tuples(HEADERS.map(Header.pack) | st.binary(min_size=1, max_size=20), st.integers(0, 3)), max_size=8
)


def close_what_came(came: Any) -> None:
    """Whatever shape the result has, descriptors are in a list at its end, or in a message."""
    if isinstance(came, tuple) and isinstance(came[-1], list):
        for descriptor in came[-1]:
            descriptor.close()
    elif hasattr(came, "close"):
        came.close()


@settings(deadline=None)
@given(PIECES, st.lists(st.sampled_from(WAYS), min_size=1, max_size=8), st.booleans())
def test_given_any_stream_each_way_of_receiving_gives_something_or_an_error_and_leaks_nothing(
    pieces: list[tuple[bytes, int]], ways: list[Callable[[Endpoint], Any]], peer_goes: bool
) -> None:
    """Without waiting, whatever is asked for in whatever order."""
    before = count_open()
    with pair() as (peer, sock), Endpoint(sock, timeout=0) as end:
        for data, fd_count in pieces:
            put(peer, data, fd_count)
        if peer_goes:
            peer.close()
        for way in ways:
            try:
                close_what_came(way(end))
            except EndpointClosed:
                break
            except VhostUserError:
                continue
    assert count_open() == before


def test_given_the_same_requests_again_and_again_nothing_grows() -> None:
    """CVE-2019-14818, CVE-2020-10726: a loop of one request, with the descriptors it may have."""
    with pair() as (peer, sock), Endpoint(sock, timeout=TIMEOUT_S) as end:
        before = count_open()
        for _ in range(500):
            put(peer, Header(FrontEndRequest.SET_VRING_NUM, 8).pack() + VringState(0, 256).pack())
            put(peer, Header(FrontEndRequest.SET_VRING_KICK, 8).pack() + VringFd(0).pack(), 1)
            for _message in range(2):
                with end.recv_message() as message:
                    message.decode()
        assert count_open() == before
