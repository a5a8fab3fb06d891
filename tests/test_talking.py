"""Devices among themselves: Tubes by name, descriptors by pid, and what a kill does to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from supervisor.errors import DeviceFault
from supervisor.events import DeviceKilled
from supervisor.host import Supervisor
from supervisor.remote import RemoteHandle
from supervisor.worker.records import InputKind
from tests.chaos import board, census

SLOW = ", backoff: {first: 20ms, factor: 1, max: 20ms}"  # to come back, so that it is asked for meanwhile


@contextlib.contextmanager
def _running(**more: str) -> Iterator[tuple[Supervisor, list[tuple[str, str]]]]:
    heard: list[tuple[str, str]] = []
    devices = [
        f'name: {name}, device: "tests.devices.talking:Talking"{more.get(name, ", backoff: {max: 0s}")}'
        for name in ("a", "b")
    ]
    with census(), Supervisor(board(*devices, supervisor="intensity: 99")) as sup:
        for name in ("a", "b"):
            sup[name].on_output(lambda data, name=name: heard.append((name, data.decode())))  # type: ignore[misc]
        yield sup, heard


def _until(sup: Supervisor, heard: list[tuple[str, str]], wanted: tuple[str, str]) -> None:
    while wanted not in heard:
        sup.dispatch(1)


def test_given_two_devices_connect_gives_each_a_tube_that_knows_the_other() -> None:
    """Both ends are handed to two workers; target_pid is right on each without anybody's help."""
    with _running() as (sup, heard):
        pid_a, pid_b = sup["a"].call_bytes(b"pid"), sup["b"].call_bytes(b"pid")
        assert sup["a"].call_bytes(b"connect b") == pid_b
        assert sup["b"].call_bytes(b"connect a") == pid_a
        assert sup["a"].call_bytes(b"say b hello") == b"said"
        _until(sup, heard, ("b", "a: hello"))
        assert sup["b"].call_bytes(b"say a hello back") == b"said"
        _until(sup, heard, ("a", "b: hello back"))


def test_given_one_of_two_killed_the_other_sees_the_end_and_they_can_meet_again() -> None:
    """A Tube to a dead device is at its end; connecting again makes a new one with the new pid."""
    with _running() as (sup, heard):
        sup["a"].call_bytes(b"connect b")
        sup["b"].call_bytes(b"connect a")
        assert sup.kill("a", charged=False)
        _until(sup, heard, ("b", "a: Disconnected"))
        pid_a = sup["a"].call_bytes(b"pid")
        assert sup["b"].call_bytes(b"connect a") == pid_a
        sup["a"].call_bytes(b"connect b")
        sup["a"].call_bytes(b"say b again")
        _until(sup, heard, ("b", "a: again"))


def test_given_device_that_is_being_restarted_who_connects_to_it_waits() -> None:
    """As a request does. Its own death on the way, or the other's, makes no difference to who asked."""
    with _running(b=SLOW) as (sup, _heard):
        for _ in range(5):
            _kill(sup, "b")
            pid_b = sup["a"].call_bytes(b"connect b")
            assert sup["b"].call_bytes(b"pid") == pid_b
        for _ in range(5):
            _kill(sup, "b")
            answers = _asked(sup, "a", b"connect b")
            assert sup.kill("a", charged=False) is not None
            while not answers:
                sup.dispatch(1)
            assert answers == [sup["b"].call_bytes(b"pid")]


def test_given_two_that_connect_to_each_other_while_one_is_restarted_they_meet() -> None:
    """The one that waits has its end from what the other one asks for."""
    with _running(b=SLOW) as (sup, heard):
        for turn in range(5):
            _kill(sup, "b")
            asked = _asked(sup, "a", b"connect b"), _asked(sup, "b", b"connect a")
            while not all(asked):
                sup.dispatch(1)
            sup["b"].call_bytes(b"say a turn %d" % turn)
            _until(sup, heard, ("a", f"b: turn {turn}"))


@pytest.mark.parametrize("ends", ["peer", "asker"])
def test_given_device_that_does_not_come_back_who_connects_to_it_is_told(ends: str) -> None:
    """Whoever waits for it learns that it stays away, and whoever is to stop itself waits no longer."""
    with _running(b=", backoff: {first: 1h, max: 1h}") as (sup, _heard):
        _kill(sup, "b")
        answers = _asked(sup, "a", b"try connect b")
        assert sup._workers is not None
        while not sup._workers._conversation._switchboard._waiting:
            sup.dispatch(1)
        sup.events()
        if ends == "peer":
            sup.stop_device("b")
            while not answers:
                sup.dispatch(1)
            assert answers == [b"LocalError: connect('b'): device 'b' is gone: the device is stopped"]
        else:
            sup.stop_device("a")
            while sup["a"].state != "down":
                sup.dispatch(1)
            assert not [event for event in sup.events() if isinstance(event, DeviceKilled)]


def _kill(sup: Supervisor, name: str) -> None:
    """Returns once the death is known; on a busy machine it may be back by then."""
    generation = sup[name].generation
    assert sup.kill(name) is not None
    while sup[name].state == "ready" and sup[name].generation == generation:
        sup.dispatch(1)


def _asked(sup: Supervisor, name: str, request: bytes) -> list[bytes | DeviceFault]:
    """A call that nobody waits for; its answer will be in what is returned."""
    handle, answers = sup[name], list[bytes | DeviceFault]()
    assert isinstance(handle, RemoteHandle)
    handle.submit(InputKind.CALL, answers.append, payload=request)
    return answers


def test_given_pid_of_another_device_hand_over_delivers_the_descriptor() -> None:
    """A worker asks the supervisor to hand a descriptor of its own to another device by pid."""
    with _running() as (sup, heard):
        pid_b = sup["b"].call_bytes(b"pid")
        assert sup["a"].call_bytes(b"hand " + pid_b + b" secret") == b"done"
        _until(sup, heard, ("b", "handed"))
        assert sup["b"].call_bytes(b"handed") == b"secret"


def test_given_unknown_pid_hand_over_is_an_error_not_a_crash() -> None:
    """Nobody serves process 1: the asker is told so and lives on."""
    with _running() as (sup, _heard):
        assert sup["a"].call_bytes(b"hand 1 secret") == b"UnknownProcess: process 1: unknown_process"
        assert sup["a"].call_bytes(b"pid")


def test_given_descriptors_that_are_kept_the_next_processes_have_them_until_the_device_is_stopped() -> None:
    """By name, replaced and given up as the device says; a kill loses none of it, a stop all."""
    with _running() as (sup, _heard):
        device = sup["a"]
        ask = device.call_bytes
        assert ask(b"passed") == b""
        for said in (b"keep one first", b"keep two other", b"keep one second", b"keep three gone"):
            assert ask(said) == b"kept"
        assert ask(b"give_up three") == b"given up"
        assert ask(b"give_up four") == b"given up"
        for _ in range(3):
            assert sup.kill("a", charged=False) is not None
            assert ask(b"passed") == b"one=second,two=other"
        assert ask(b"keep one third") == b"kept"
        sup.restart_device("a")
        while device.generation < 5:
            sup.dispatch(1)
        assert ask(b"passed") == b"one=third,two=other"
        sup.stop_device("a")
        while device.state != "down":
            sup.dispatch(1)
        sup.start_device("a")
        assert ask(b"passed") == b""
