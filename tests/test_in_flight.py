"""Requests that are on their way while their device is restarted on purpose, or on a sibling's account."""

from __future__ import annotations

import pytest

from supervisor.errors import DeviceFault, DeviceGone
from supervisor.host import Supervisor
from supervisor.remote import RemoteHandle
from supervisor.worker.records import InputKind
from tests.chaos import board, census

PRESSING = 'device: "tests.devices.pressing:Pressing", backoff: {max: 0s}'


def _submit(sup: Supervisor, name: str, payload: bytes, answers: list[bytes | DeviceFault]) -> None:
    handle = sup[name]
    assert isinstance(handle, RemoteHandle)
    handle.submit(InputKind.CALL, answers.append, payload=payload)


def _wait(sup: Supervisor, answers: list[bytes | DeviceFault], count: int) -> None:
    while len(answers) < count:
        sup.dispatch(1)


@pytest.mark.chaos
def test_given_requests_in_flight_a_restart_asked_for_answers_all_of_them() -> None:
    """A worker that is killed because it did not drain in time leaves what it did not get to to the next."""
    config = board(f"name: d, {PRESSING}, stop_timeout: 50ms")
    with census(), Supervisor(config) as sup:
        answers: list[bytes | DeviceFault] = []
        _submit(sup, "d", b"take 0.3", answers)
        for _ in range(3):
            _submit(sup, "d", b"", answers)
        sup.restart_device("d")
        _wait(sup, answers, 4)
        assert answers == [b"1", b"2", b"3", b"4"]


@pytest.mark.chaos
def test_given_requests_in_flight_a_siblings_death_ends_none_of_them() -> None:
    """Under one_for_all the innocent sibling is stopped and comes back: who asked it waits for that."""
    config = board(
        f"name: a, {PRESSING}",
        f"name: b, {PRESSING}, stop_timeout: 50ms",
        supervisor="strategy: one_for_all, intensity: 100",
    )
    with census(), Supervisor(config) as sup:
        answers: list[bytes | DeviceFault] = []
        _submit(sup, "b", b"take 0.3", answers)
        _submit(sup, "b", b"", answers)
        sup.kill("a")
        _wait(sup, answers, 2)
        assert answers == [b"1", b"2"]


@pytest.mark.chaos
def test_given_requests_in_flight_a_stop_asked_for_ends_what_it_did_not_get_to() -> None:
    """A stop is no restart: what was not handled is told so."""
    with census(), Supervisor(board(f"name: d, {PRESSING}, stop_timeout: 50ms")) as sup:
        answers: list[bytes | DeviceFault] = []
        _submit(sup, "d", b"take 0.3", answers)
        _submit(sup, "d", b"", answers)
        sup.stop_device("d")
        _wait(sup, answers, 2)
        assert all(isinstance(answer, DeviceGone) for answer in answers)
