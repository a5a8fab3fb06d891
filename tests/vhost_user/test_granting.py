"""A VMM's set-up without a VMM: what a request changes that nothing else shows."""

from __future__ import annotations

from supervisor.messages_pb2 import VirtioOffer
from supervisor.vhost_user.areas import Inflight
from supervisor.vhost_user.granting import grant
from supervisor.vhost_user.inflight import region_bytes
from supervisor.vhost_user.messages import Empty
from supervisor.vhost_user.requests import FrontEndRequest
from supervisor.vhost_user.setup import Setup


def _setup() -> Setup:
    return Setup(VirtioOffer(queues=1), lambda size: f"{size} bytes", lambda _log, _at, _size: b"")


def test_given_reset_the_log_of_our_own_is_dropped() -> None:
    """What comes next is another driver's: its rings begin anew, and a log must not say otherwise."""
    for request in (FrontEndRequest.RESET_OWNER, FrontEndRequest.RESET_DEVICE):
        setup = _setup()
        setup.make_own_log(1, 1024)
        grant(setup, request, Empty(), [])
        assert setup.inflight is None
        assert setup.discarded == [f"{region_bytes(1024)} bytes"]


def test_given_reset_the_log_of_the_vmm_stays() -> None:
    """It is the VMM's to clear."""
    setup = _setup()
    grant(setup, FrontEndRequest.SET_INFLIGHT_FD, Inflight(4096, 0, 1, 128), ["its log"])
    grant(setup, FrontEndRequest.RESET_OWNER, Empty(), [])
    assert setup.inflight is not None
    assert setup.inflight[1] == "its log"
    assert setup.discarded == []
