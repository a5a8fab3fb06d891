"""A worker that turns against its supervisor ends in a report and the policy's answer; others go on."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from supervisor.errors import DeviceFault, DeviceGone
from supervisor.events import (
    DeviceCrashed,
    DeviceDied,
    DeviceFailed,
    DeviceKilled,
    GaveUp,
    InputGivenUp,
    OutcomeKind,
    Record,
)
from supervisor.host import Supervisor
from supervisor.remote import RemoteHandle
from supervisor.worker import layout
from supervisor.worker.records import InputKind
from tests.chaos import COUNTING, board, census, living_descendants, until_witnessed
from tests.devices.hostile import ASLEEP

pytestmark = pytest.mark.chaos

HOSTILE = 'device: "tests.devices.hostile:Hostile", backoff: {max: 0s}, poison: 1'
IMPATIENT = ", request_timeout: 500ms"
DEADLINE_S = 30.0


@dataclass(frozen=True)
class Ends:
    """What an attack ends in: a record of this kind, in whose text this is found."""

    kind: type[Record]
    text: str


def broken(text: str) -> Ends:
    """The contract is broken: the worker is killed, and the report says what it has done."""
    return Ends(DeviceCrashed, f"broke the contract: {text}")


def corrupt(text: str) -> Ends:
    """The journal cannot be believed: no restart helps, and the device is failed."""
    return Ends(DeviceFailed, f"corrupt journal: .*{text}")


DEAD = Ends(DeviceDied, "was killed by signal 9")
LEFT = Ends(DeviceDied, "exited with code 0")
SILENT = Ends(DeviceKilled, "alive but silent")
DROPPED = Ends(InputGivenUp, "no answer within 0.5 s; the request took no effect")

# The attacks as they were listed when this was promised, and what was thought of since.
ATTACKS: dict[str, Ends] = {
    # writes garbage on its Tube
    "garbage": broken("packet of 1 bytes is shorter than its header"),
    "empty_packet": broken("an empty packet"),
    "unknown_message": broken("hostile says something unknown"),
    # sends a message of 100 MB; 300 descriptors
    "huge_message": broken("packet claims a body of 100000000 bytes; the limit is 67108864"),
    "many_descriptors": broken("253 descriptors, at most 32 are expected"),
    # has more kept than there is room for
    "keeps_too_much": broken("hostile has too many descriptors kept, or too long names"),
    "keeps_under_an_endless_name": broken("hostile has too many descriptors kept, or too long names"),
    # claims another generation, or another pid
    "other_generation": broken("stopped of generation 999, not 1"),
    "other_pid": broken(r"packet from process \d+, expected from \d+"),
    "forged_credentials": broken(r"packet from process \d+, expected from \d+"),
    "second_hello": broken(r"Hello with ticket 1 from pid \d+"),
    # answers what was not asked
    "unasked_ready": broken("ready a second time"),
    "unasked_answers": corrupt("an answer to 1000000, which nobody asked"),
    "output_of_no_kind": corrupt("an output of kind 99"),
    "irq_of_no_line": corrupt("an edge of interrupt line 30000"),
    "endless_registers": broken("67108864 words of registers; the limit is 65536"),
    "needless_growth": broken("hostile: its journal has room for what it asks for"),
    "endless_journal": broken(r"a journal of \d+ bytes; the limit is"),
    "output_end_far_away": corrupt("outputs from 0 to 9223372036854775808"),
    "published_far_away": corrupt("record 0 was applied without a reply|published 9223372036854775808"),
    "whole_journal": corrupt("record 0 was applied without a reply|a state of 18446744073709551615"),
    # answers nothing; reads nothing
    "answers_nothing": SILENT,
    "reads_nothing": DROPPED,
    "asks_and_does_not_read": SILENT,
    # closes its Tube but lives; exits with 0; exits while its Tube is held by a grandchild; forks away
    "closes_tube": DEAD,
    "leaves": LEFT,
    "tube_held_by_a_grandchild": LEFT,
    "forks_away": LEFT,
    "copy_that_writes": LEFT,
    "forks_away_for_good": LEFT,
}
NUISANCES = ("flood", "flood_of_logs", "strange_logs", "answers_twice")


@contextlib.contextmanager
def _hostile_and_neighbour(
    supervisor: str = "intensity: 5, on_give_up: isolate", *, device: str = HOSTILE + IMPATIENT
) -> Iterator[Supervisor]:
    config = board(f"name: hostile, {device}", COUNTING, supervisor=supervisor)
    with census(), Supervisor(config) as sup:
        yield sup


def _wait(sup: Supervisor, done: Callable[[list[Record]], bool]) -> list[Record]:
    """Dispatches, and asks the neighbour, until what has been told satisfies ``done``."""
    told: list[Record] = []
    deadline = time.monotonic() + DEADLINE_S
    while not done(told):
        assert time.monotonic() < deadline, told
        sup.dispatch(0.1)
        before = sup["counter"].read(0x00, 4)
        assert sup["counter"].read(0x04, 4) == before + 1
        told += sup.events()
    return told


def _matches(ends: Ends) -> Callable[[list[Record]], bool]:
    def found(told: list[Record]) -> bool:
        return any(
            isinstance(record, ends.kind) and re.search(ends.text, str(_text(record))) for record in told
        )

    return found


def _text(record: Record) -> object:
    match record:
        case DeviceCrashed():
            return record.exception
        case DeviceDied():
            return record.exit
        case DeviceFailed() | DeviceKilled() | InputGivenUp():
            return record.why
    return record


@pytest.mark.parametrize("attack", ATTACKS)
def test_given_attack_it_ends_in_its_report_and_the_neighbour_is_answered(attack: str) -> None:
    """The report names what was done; the policy restarts the device or fails it; others notice nothing."""
    with _hostile_and_neighbour() as sup:
        with contextlib.suppress(DeviceFault):
            sup["hostile"].call_bytes(attack.encode())
        assert sup["counter"].read(0x04, 4) == 1
        _wait(sup, _matches(ATTACKS[attack]))
        assert sup.outcome is None
        if ATTACKS[attack].kind is DeviceFailed:
            with pytest.raises(DeviceGone, match="corrupt journal"):
                sup["hostile"].read(0x04, 4)
        else:
            value = sup["hostile"].read(0x04, 4)
            assert sup["hostile"].read(0x04, 4) == value + 1
            assert sup["hostile"].generation > 1


@pytest.mark.parametrize("attack", NUISANCES)
def test_given_nuisance_it_is_borne_and_delays_nobody(attack: str) -> None:
    """Floods of messages, logs and answers are the worker's own trouble: all requests are answered."""
    with _hostile_and_neighbour(device=HOSTILE) as sup:
        sup["hostile"].call_bytes(attack.encode())
        assert sup["counter"].read(0x04, 4) == 1
        assert sup["hostile"].read(0x04, 4) == 2
        assert sup["hostile"].generation == 1


@pytest.mark.parametrize("attack", [name for name, ends in ATTACKS.items() if ends.kind is DeviceFailed])
def test_given_corrupt_journal_whoever_waits_for_an_answer_is_told(attack: str) -> None:
    """Requests by way of a waiter end too where nothing in the journal can be believed."""
    with _hostile_and_neighbour() as sup:
        handle = sup["hostile"]
        assert isinstance(handle, RemoteHandle)
        answers: list[object] = []
        handle.submit(InputKind.CALL, answers.append, payload=attack.encode())
        for _ in range(3):
            handle.submit(InputKind.READ, answers.append, offset=0x04, size=4)
        _wait(sup, lambda _told: len(answers) == 4)
        assert isinstance(answers[3], DeviceGone)


def test_given_reply_that_is_no_value_no_value_is_made_of_it() -> None:
    """A read that is answered with nothing ends in an error, never in zero."""
    with _hostile_and_neighbour() as sup:
        sup["hostile"].call_bytes(b"half_a_value")
        with pytest.raises(DeviceGone, match="a value of 0 bytes"):
            sup["hostile"].read(0x04, 4)
        _wait(sup, _matches(corrupt("a value of 0 bytes")))


def test_given_bell_that_is_never_answered_nobody_waits_who_rings_it() -> None:
    """A worker may do what it likes with its end of a bell, the supervisor goes on."""
    with _hostile_and_neighbour() as sup:
        sup["hostile"].call_bytes(b"never_answers_its_door")
        handle = sup["hostile"]
        assert isinstance(handle, RemoteHandle)
        answers: list[object] = []
        handle.submit(InputKind.READ, answers.append, offset=0x04, size=4)
        words = handle.ledger.words
        _wait(sup, lambda _told: words[layout.HEARTBEAT] == ASLEEP)
        for _ in range(100):
            assert words[layout.WORKER_SLEEPS]
            handle.submit(InputKind.READ, answers.append, offset=0x04, size=4)
        _wait(sup, _matches(SILENT))
        _wait(sup, lambda _told: len(answers) == 101)
        assert isinstance(answers[0], DeviceFault)
        assert answers[1:] == [value.to_bytes(8, "little") for value in range(2, 102)]


@pytest.mark.parametrize("attack", ["asks_for_itself", "asks_for_each_other", "has_many_last_words"])
@pytest.mark.parametrize("look", ["pid", "dispatch"])
def test_given_last_words_that_lead_to_the_dead_its_standby_serves(attack: str, look: str) -> None:
    """They are heard in the middle of its end, which comes once."""
    hostile = 'device: "tests.devices.hostile:Hostile", standby: true, backoff: {max: 0s}, poison: 2'
    config = board(
        f"name: hostile, {hostile}", f"name: other, {hostile}", COUNTING, supervisor="intensity: 9"
    )
    with census(), Supervisor(config) as sup:
        assert sup._workers is not None
        standbys = sup._workers._standbys
        names = ("hostile", "other") if attack == "asks_for_each_other" else ("hostile",)
        _wait(sup, lambda _told: {"hostile", "other"} <= standbys._open.keys())
        answers: list[object] = []
        expected = [standbys._by_name[name] for name in names]
        for name in names:
            handle = sup[name]
            assert isinstance(handle, RemoteHandle)
            handle.submit(InputKind.CALL, answers.append, payload=attack.encode())
        while not all(standby.has_taken_over for standby in expected):
            os.sched_yield()
        for name in names:
            assert look == "dispatch" or sup[name].pid != 0
        _wait(sup, lambda _told: len(answers) == len(names))
        assert all(isinstance(answer, DeviceFault) for answer in answers)
        for name in names:
            assert sup[name].read(0x04, 4) == 1


def test_given_map_of_registers_without_end_it_is_refused() -> None:
    """Nothing is made of it: the supervisor would be busy with that for a long time."""
    with _hostile_and_neighbour(device=HOSTILE.replace(":Hostile", ":LiesWhenItReturns")) as sup:
        sup.kill("hostile")
        _wait(sup, _matches(broken("a map of 102400 registers; the limit is 65536")))


def test_given_inputs_that_are_gone_while_nobody_serves_who_waits_is_told() -> None:
    """By the device's end: what somebody asked for cannot be found any more."""
    device = HOSTILE.replace("max: 0s", "first: 60s, max: 60s") + IMPATIENT
    with _hostile_and_neighbour(device=device) as sup:
        handle = sup["hostile"]
        assert isinstance(handle, RemoteHandle)
        answers: list[object] = []
        handle.submit(InputKind.CALL, answers.append, payload=b"forgets_its_inputs")
        handle.submit(InputKind.READ, answers.append, offset=0x04, size=4)
        _wait(sup, lambda _told: len(answers) == 2)
        assert all(isinstance(answer, DeviceGone) for answer in answers)
        with pytest.raises(DeviceGone, match="corrupt journal"):
            handle.read(0x04, 4)


def test_given_progress_that_cannot_be_it_is_seen_though_nobody_asks() -> None:
    """A bell that rings for it would have the host's loop spin."""
    with _hostile_and_neighbour() as sup:
        sup["hostile"].call_bytes(b"published_further_and_further")
        _wait(sup, _matches(corrupt(r"published \d+ of \d+")))
        assert sup.outcome is None


def test_given_bell_that_is_shut_for_good_its_device_is_given_up() -> None:
    """Nobody would ever be woken by it, and it would seem to ring all the time."""
    with _hostile_and_neighbour() as sup:
        sup["hostile"].call_bytes(b"shuts_its_door")
        _wait(sup, _matches(Ends(DeviceCrashed, "its doorbell has been shut, and cannot wake it")))
        _wait(sup, _matches(Ends(DeviceFailed, "restarts .* are used up")))


def test_given_host_with_a_default_timeout_a_bell_that_is_full_is_not_waited_for() -> None:
    """Whoever embeds a supervisor may have set one for sockets of its own: here it never comes to an end."""
    code = """
import socket
from supervisor.worker.doorbell import make_doorbell, ring_doorbell
socket.setdefaulttimeout(1e6)
door, bell = make_doorbell()
for _ in range(10_000):
    ring_doorbell(bell)
print("alive")
"""
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, capture_output=True, timeout=60, check=True).stdout == b"alive\n"


def test_given_host_that_does_not_ignore_sigpipe_a_bell_that_is_shut_is_no_end() -> None:
    """Whoever embeds a supervisor may have restored the signal's default."""
    code = """
import signal, socket
from supervisor.worker.doorbell import make_doorbell, ring_doorbell
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
door, bell = make_doorbell()
socket.socket(fileno=door).shutdown(socket.SHUT_RD)
ring_doorbell(bell)
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "alive\n"


@pytest.mark.parametrize("attack", ["forks_away_for_good", "tube_held_by_a_grandchild", "copy_that_writes"])
def test_given_worker_that_leaves_a_copy_of_itself_the_copy_ends(attack: str) -> None:
    """A fork out of session and group still holds the journal: it ends before the next generation serves."""
    with _hostile_and_neighbour("intensity: 5, spares: 0") as sup:
        until_witnessed(sup)
        before = len(living_descendants())
        with contextlib.suppress(DeviceFault):
            sup["hostile"].call_bytes(attack.encode())
        _wait(sup, _matches(LEFT))
        assert sup["hostile"].read(0x04, 4)
        assert len(living_descendants()) == before


def test_given_worker_that_dies_in_restore_each_time_the_budget_ends_it() -> None:
    """A state that kills whoever takes it: a named death each time, then the policy gives the device up."""
    device = 'name: hostile, device: "tests.devices.naughty:DiesInRestore", backoff: {max: 0s}'
    config = board(device, COUNTING, supervisor="intensity: 3, period: 60s, on_give_up: isolate")
    with census(), Supervisor(config) as sup:
        assert sup["hostile"].read(0x0, 4) == 0
        assert sup.kill("hostile")
        told = _wait(
            sup,
            _matches(Ends(DeviceFailed, "died, and the 3 restarts .* are used up")),
        )
        codes = [record.exit.code for record in told if isinstance(record, DeviceDied)]
        assert codes == [9, 7, 7, 7]
        with pytest.raises(DeviceGone, match="the 3 restarts"):
            sup["hostile"].write(0x0, 4, 1)


def test_given_worker_that_dies_in_restore_and_one_budget_for_all_the_supervisor_stops_in_order() -> None:
    """Without isolation the culprit is named and everything ends: no hang, no second start."""
    device = 'name: hostile, device: "tests.devices.naughty:DiesInRestore", backoff: {max: 0s}'
    with census(), Supervisor(board(device, COUNTING, supervisor="intensity: 3, period: 60s")) as sup:
        assert sup["hostile"].read(0x0, 4) == 0
        assert sup.kill("hostile")
        outcome = sup.run()
        assert (outcome.kind, outcome.culprit) == (OutcomeKind.GAVE_UP, "hostile")
        assert [record.culprit for record in sup.events() if isinstance(record, GaveUp)] == ["hostile"]
        with pytest.raises(DeviceGone):
            sup["counter"].read(0x04, 4)
