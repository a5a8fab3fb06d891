"""Devices among themselves: Tubes by name, descriptors by pid, and what a kill does to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from supervisor.host import Supervisor
from tests.chaos import board, census


@contextlib.contextmanager
def _running() -> Iterator[tuple[Supervisor, list[tuple[str, str]]]]:
    heard: list[tuple[str, str]] = []
    devices = [
        f'name: {name}, device: "tests.devices.talking:Talking", backoff: {{max: 0s}}' for name in ("a", "b")
    ]
    with census(), Supervisor(board(*devices)) as sup:
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
