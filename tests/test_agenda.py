"""What dispatch looks at: devices that stir, and the earliest alarm of all, whoever stirs meanwhile."""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import time
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from supervisor.agenda import Agenda
from supervisor.device import NO_ALARM
from supervisor.handle import DeviceHandle
from supervisor.host import Supervisor
from tests.chaos import COUNTING, board, census, until_witnessed

TRACE = 0x0C


class _Handle:
    """Of a device that rests when told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rests = True
        self.published_alarm_ns = NO_ALARM


def _handles(*names: str) -> list[Any]:
    return [_Handle(name) for name in names]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=60))
def test_given_any_changes_the_earliest_alarm_is_the_one_of_a_plain_search(
    changes: list[tuple[int, int, bool]],
) -> None:
    """Ties go by name. A change is an alarm (3: none) of one device, which stirs, and may rest again."""
    handles = _handles("a", "b", "c", "d", "e")
    agenda = Agenda()
    for index, alarm, rests in changes:
        handle = handles[index]
        handle.published_alarm_ns, handle.rests = NO_ALARM if alarm == 3 else alarm, rests
        agenda.stir(cast(DeviceHandle, handle))
        if rests:
            agenda.settle()
        known = [one for one in handles if one.published_alarm_ns != NO_ALARM]
        first = min(known, key=lambda one: (one.published_alarm_ns, one.name), default=None)
        assert agenda.earliest_alarm() == (None if first is None else (first.published_alarm_ns, first))


def test_given_device_that_is_forgotten_it_neither_stirs_nor_has_an_alarm() -> None:
    """Whether it rested or not."""
    resting, stirring = _handles("a", "b")
    agenda = Agenda()
    resting.published_alarm_ns, stirring.published_alarm_ns, stirring.rests = 5, 6, False
    for handle in (resting, stirring):
        agenda.stir(handle)
    agenda.settle()
    assert agenda.stirring() == [stirring]
    for handle in (resting, stirring):
        agenda.forget(handle)
    assert agenda.stirring() == []
    assert agenda.earliest_alarm() is None


def test_given_device_that_stirs_often_before_its_alarm_nothing_piles_up() -> None:
    """An alarm that is far off, and ten thousand requests meanwhile."""
    handles = _handles("a", "b")
    agenda = Agenda()
    for number in range(10_000):
        for handle in handles:
            handle.published_alarm_ns = 1_000_000 - number
            agenda.stir(cast(DeviceHandle, handle))
        agenda.settle()
        assert agenda.earliest_alarm() == (1_000_000 - number, handles[0])
    for handle in handles:  # later ones, which do not come to the top
        for number in range(10_000):
            handle.published_alarm_ns = 2_000_000 + number
            agenda.stir(handle)
            agenda.settle()
    assert len(agenda._alarms) < 100


def test_given_devices_at_rest_none_is_looked_at_and_each_that_speaks_is_heard() -> None:
    """Posted writes that nobody waits for: the bell tells, and every output arrives in its order."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    names = [f"counter{number}" for number in range(4)]
    with census(), Supervisor(board(*(COUNTING.replace("counter", name, 1) for name in names))) as sup:
        heard: dict[str, list[int]] = {name: [] for name in names}
        for name in names:
            sink = heard[name]
            sup[name].on_output(lambda data, sink=sink: sink.append(struct.unpack("<I", data)[0]))  # type: ignore[misc]
        _until_at_rest(sup)
        asked = dict.fromkeys(names, 0)
        for _ in range(30):
            name = chooser.choice(names)
            asked[name] += 1
            sup[name].write(TRACE, 4, 1)
            assert sup._agenda.stirring() == [sup[name]]
            if chooser.random() < 0.2:
                sup.kill(name, charged=False)
            _until_at_rest(sup)
            assert len(heard[name]) == asked[name]
        for name in names:
            assert heard[name] == list(range(1, asked[name] + 1))


def test_given_alarm_and_input_that_nobody_waits_for_the_bell_tells_when_the_alarm_is_known_again() -> None:
    """What is on its way might change the alarm: who sleeps until then has to be woken, or sleeps past it."""
    timer_in_an_hour = 'name: timer, device: "tests.devices.alarming:Exploding", request_timeout: 60s'
    with census(), Supervisor(board(timer_in_an_hour, supervisor="spares: 0")) as sup:
        until_witnessed(sup)
        timer = sup["timer"]
        timer.write(0x0, 4, 3_600_000)
        _until_at_rest(sup)
        assert sup._agenda.earliest_alarm() is not None
        poller = select.poll()
        poller.register(sup.fileno(), select.POLLIN)
        while poller.poll(0):
            sup.dispatch(0)
        pid = sup.kill("timer", send_signal=signal.SIGSTOP, charged=False)
        assert pid is not None
        timer.send(b"x")
        assert sup._agenda.earliest_alarm() is None
        sup.next_timeout()  # as who is about to sleep
        os.kill(pid, signal.SIGCONT)
        assert poller.poll(20_000)
        _until_at_rest(sup)
        assert sup._agenda.earliest_alarm() is not None


def _until_at_rest(sup: Supervisor) -> None:
    deadline = time.monotonic() + 20
    sup.dispatch(0)
    while sup._agenda.stirring():
        sup.dispatch(1)
        assert time.monotonic() < deadline
