"""Connected pairs, bytes with descriptors through them, and values for Hypothesis."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from supervisor.vhost_user.areas import HostNotifier, Inflight, Log, MemoryTable, Region, SingleRegion
from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.messages import U64, Config, Empty, Opaque, Payload, VringAddr, VringFd, VringState
from supervisor.vhost_user.requests import MAX_CONFIG_BYTES, MAX_RING_SIZE, MAX_VRINGS

TIMEOUT_S = 10.0


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected stream sockets, closed in the end."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        yield one, other


@contextlib.contextmanager
def ends(timeout: float | None = TIMEOUT_S) -> Iterator[tuple[Endpoint, Endpoint]]:
    """Two connected endpoints, closed in the end."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with Endpoint(one, timeout=timeout) as a, Endpoint(other, timeout=timeout) as b:
        yield a, b


@contextlib.contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    """So many descriptors, closed in the end."""
    made = [os.eventfd(0) for _ in range(count)]
    try:
        yield made
    finally:
        for fd in made:
            os.close(fd)


def put(sock: socket.socket, data: bytes, fd_count: int = 0) -> None:
    """Send bytes with that many descriptors on their first one, as one segment."""
    with eventfds(fd_count) as fds:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(fd.to_bytes(4, "little") for fd in fds))]
        assert sock.sendmsg([data], control if fds else []) == len(data)


def send_for_ever(send: Callable[[], object]) -> None:
    """Far more than any socket or pipe holds."""
    for _ in range(100_000):
        send()


def count_open() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Recorder(socket.socket):
    """A socket that notes what each sendmsg is given, and takes at most ``limit`` bytes of it."""

    calls: list[tuple[int, int]]
    limit = 1 << 20

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        data = b"".join(buffers)
        self.calls.append((len(data), len(list(ancdata))))
        return super().sendmsg([data[: self.limit]], ancdata, flags)


class Failing(socket.socket):
    """A socket whose system calls fail with ``number`` for ``times`` times."""

    number = 0
    times = 0

    def _fail(self) -> None:
        if self.times:
            self.times -= 1
            raise OSError(self.number, "fails on purpose")

    def sendmsg(self, *args: Any) -> int:
        self._fail()
        return super().sendmsg(*args)

    def recvmsg(self, *args: Any) -> Any:
        self._fail()
        return super().recvmsg(*args)


U32 = st.integers(0, 2**32 - 1)
U64_NUMBERS = st.integers(0, 2**64 - 1)
INDEX = st.integers(0, MAX_VRINGS - 1)
SIZE = st.integers(1, 2**40)
START = st.integers(0, 2**64 - 1 - 2**40)
REGIONS = st.builds(Region, START, SIZE, START, START)
CONFIGS = st.integers(1, MAX_CONFIG_BYTES).flatmap(
    lambda size: st.builds(
        Config,
        st.integers(0, MAX_CONFIG_BYTES - size),
        st.binary(min_size=size, max_size=size),
        st.integers(0, 3),
    )
)
PAYLOADS: dict[type[Payload], st.SearchStrategy[Payload]] = {
    Empty: st.builds(Empty),
    Opaque: st.builds(Opaque, st.binary(max_size=64)),
    U64: st.builds(U64, U64_NUMBERS),
    VringState: st.builds(VringState, INDEX, U32),
    VringAddr: st.builds(
        VringAddr,
        INDEX,
        st.integers(0, 1),
        st.integers(0, 2**60 - 1).map(lambda n: n * 16),
        st.integers(0, 2**62 - 1).map(lambda n: n * 4),
        st.integers(0, 2**63 - 1).map(lambda n: n * 2),
        U64_NUMBERS,
    ),
    VringFd: st.builds(VringFd, st.integers(0, 255), st.booleans()),
    MemoryTable: st.builds(MemoryTable, st.lists(REGIONS, min_size=1, max_size=32).map(tuple)),
    SingleRegion: st.builds(SingleRegion, REGIONS),
    Config: CONFIGS,
    Log: st.builds(Log, SIZE, START),
    Inflight: st.builds(Inflight, SIZE, START, INDEX, st.integers(0, MAX_RING_SIZE)),
    HostNotifier: st.builds(HostNotifier, U64_NUMBERS, SIZE, START),
}
"""Every kind of payload with values of it that are right."""
