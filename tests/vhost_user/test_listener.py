"""Listeners: whose socket file is it, who may connect, and what is left when they close."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from supervisor.tube.descriptor import Descriptor
from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import Disconnected, EndpointClosed, PathTaken, SocketConnect, WireTimeout
from supervisor.vhost_user.listener import Listener
from supervisor.vhost_user.messages import Header
from tests.tube.conftest import Fork, readable
from tests.vhost_user.wires import TIMEOUT_S

pytestmark = pytest.mark.usefixtures("census")

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "scm.json").read_text())


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "disk.sock")


def test_given_listener_front_ends_connect_and_are_accepted(path: str) -> None:
    """The listener becomes readable, the connection is blocking for nobody but by its own timeout."""
    with Listener(path) as listener:
        assert listener.path == path
        assert VECTORS["listener"]["bind_then_path"] == "same path"
        assert not readable(listener)
        with Endpoint.connect(path, timeout=TIMEOUT_S) as front:
            assert readable(listener, TIMEOUT_S)
            back = listener.accept(timeout=TIMEOUT_S)
            assert back is not None
            with back:
                front.send_header(Header(3))
                back.timeout = TIMEOUT_S
                assert back.recv_header() == (Header(3), [])
    assert VECTORS["listener"]["drop"] == "unlinks"
    assert not os.path.exists(path)


def test_given_nobody_accept_waits_or_does_not(path: str) -> None:
    """Non-blocking gives None, blocking ends with its timeout; it can be changed at any time."""
    with Listener(path, nonblocking=True) as listener:
        assert listener.accept() is None
        listener.set_nonblocking(False)
        with pytest.raises(WireTimeout):
            listener.accept(timeout=0.01)
        listener.set_nonblocking(True)
        assert listener.accept() is None


def test_given_file_of_a_dead_owner_it_is_replaced(path: str) -> None:
    """A process that was killed leaves its socket file behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
        dead.listen()
    with Listener(path) as listener, Endpoint.connect(path, timeout=TIMEOUT_S):
        back = listener.accept(timeout=TIMEOUT_S)
        assert back is not None
        back.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_given_file_of_a_living_owner_it_is_left_alone_and_not_disturbed(path: str, kind: int) -> None:
    """Whatever lives there stays there, also if it does not listen yet, and sees no connection of ours."""
    with socket.socket(socket.AF_UNIX, kind) as living:
        living.bind(path)
        for step in ("bound", "listening"):
            if step == "listening" and kind != socket.SOCK_DGRAM:
                living.listen(0)
            before = os.stat(path)
            with pytest.raises(PathTaken):
                Listener(path)
            assert os.stat(path) == before
            # A stream socket that neither listens nor is connected is always "readable": hung up.
            assert step == "bound" or not readable(living)


def test_given_file_that_is_no_socket_it_is_left_alone(path: str) -> None:
    """A path with a slip of the pen must not cost a disk image."""
    Path(path).write_text("precious")
    with pytest.raises(PathTaken):
        Listener(path)
    assert Path(path).read_text() == "precious"


def test_given_file_replaced_meanwhile_close_leaves_the_other_one(path: str) -> None:
    """Only one's own file is removed, and one that is gone already is no error."""
    listener = Listener(path)
    os.unlink(path)
    with Listener(path):
        listener.close()
        listener.close()
        with Endpoint.connect(path, timeout=TIMEOUT_S):
            pass
        os.unlink(path)
    with pytest.raises(EndpointClosed):
        listener.accept()


def test_given_mode_the_file_has_it_and_the_umask_is_untouched(path: str) -> None:
    """Before anybody can connect."""
    umask = os.umask(0o022)
    os.umask(umask)
    for mode in (0o600, 0o660, 0o666):
        with Listener(path, mode=mode):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
    after = os.umask(umask)
    assert after == umask


def test_given_place_that_cannot_be_bound_it_is_the_systems_no(tmp_path: Path) -> None:
    """No such directory, and a path longer than an address holds."""
    for where in (tmp_path / "none" / "x.sock", tmp_path / ("x" * 120)):
        with pytest.raises(SocketConnect):
            Listener(where)


def test_given_directory_that_another_listener_holds_binding_waits_and_then_says_so(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tests and binds while somebody else does, and nobody waits for ever."""
    monkeypatch.setattr("supervisor.vhost_user.listener.LOCK_TIMEOUT_S", 0.02)
    with Descriptor(os.open(os.path.dirname(path), os.O_RDONLY)) as held:
        fcntl.flock(held.fileno(), fcntl.LOCK_EX)
        with pytest.raises(SocketConnect):
            Listener(path)
        assert not os.path.exists(path)
    Listener(path).close()


def test_given_several_processes_at_one_dead_path_one_of_them_gets_it(path: str, fork: Fork) -> None:
    """Testing and binding are one step: nobody replaces the file of one that has just begun to listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
    start_read, start = os.pipe()
    report_read, report = os.pipe()

    def try_it() -> None:
        os.close(start)
        os.read(start_read, 1)  # until all are there
        try:
            listener = Listener(path)
        except PathTaken:
            os.write(report, b"-")
            return
        os.write(report, b"+")
        connection = listener.accept(timeout=TIMEOUT_S)
        assert connection is not None
        connection.close()
        listener.close()

    children = [fork(try_it) for _ in range(6)]
    os.close(start)
    told = b""
    while len(told) < 6:
        told += os.read(report_read, 6)
    assert sorted(told) == sorted(b"+-----")
    with Endpoint.connect(path, timeout=TIMEOUT_S) as end, pytest.raises(Disconnected):
        end.recv_header()
    assert [child.wait() for child in children] == [0] * 6
    for fd in (start_read, report_read, report):
        os.close(fd)
