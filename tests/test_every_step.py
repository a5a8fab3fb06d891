"""A fault at every step: kill -9 and SIGSTOP before each line that an input makes either side run.

What one kind of input makes a process run is recorded first, undisturbed; then each of these points is struck
in turn while the same kind of input is handled again, and every reply, register, level, alarm and output must
be the one of a twin that nobody kills. A sample of the points is struck, whose seed is printed; with
``TUBEVISOR_EXHAUSTIVE=1`` all of them, and in the commit and the journal each bytecode instruction. That
takes an hour; pass ``-o faulthandler_timeout=0``, which cannot look into a process that is traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.worker.records import InputKind
from tests import steps
from tests.chaos import census
from tests.devices.stepped import Stepped
from tests.steps import SIGNALS
from tests.strikes import Strikes, shared_control, strike_from_here
from tests.twins import Act, Side, Twins, ask, twins

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(steps.TIMEOUT_S)]

STEPPED = '"tests.devices.stepped:Stepped"'
COUNT, NEXT, ADD, TRACE, ADD_AND_WAIT, FIRE = range(0, 24, 4)
ALARM, OUTPUTS, GROW, FIRED = 0x20, 0x24, 0x28, 0x2C
MOST = {"killed": 40, "stopped": 5}  # points of one kind of input, where not all are wanted


def _read(side: Side) -> object:
    return side.handle.read(NEXT, 4)


def _plain_read(side: Side) -> object:
    side.handle.write(ADD, 4, 3)
    return side.handle.read(COUNT, 4)


def _write(side: Side) -> object:
    return side.handle.write(ADD_AND_WAIT, 4, 5)


def _posted(side: Side) -> object:
    for value in range(4):
        side.handle.write(ADD, 4, value)
    return None


def _call(side: Side) -> object:
    return side.handle.call_bytes(b"ask %d" % side.turn)


def _large_call(side: Side) -> object:
    return side.handle.call_bytes(bytes([side.turn & 0xFF]) * 10_000)


def _bytes(side: Side) -> object:
    return side.handle.send(b"typed %d" % side.turn)


def _large_bytes(side: Side) -> object:
    side.handle.send(bytes([side.turn & 0xFF]) * 9_000)
    return side.handle.read(COUNT, 4)


def _alarm(side: Side) -> object:
    side.handle.write(ALARM, 4, 10 + side.turn % 5)
    side.advance(20_000)
    return side.handle.read(FIRED, 4)


def _outputs(side: Side) -> object:
    return side.handle.write(OUTPUTS, 4, 3)


def _edges(side: Side) -> object:
    side.handle.write(FIRE, 4, 1)
    side.handle.write(FIRE, 4, 0)
    return side.handle.irq_levels


def _waiters(side: Side) -> object:
    return (
        ask(side, InputKind.READ, NEXT),
        ask(side, InputKind.WRITE, ADD_AND_WAIT, 7),
        ask(side, InputKind.CALL, payload=b"async"),
    )


def _growth(side: Side) -> object:
    side.handle.write(GROW, 4, 12)
    return side.handle.call_bytes(b"!" * 40_000)


def _after_a_kill(side: Side) -> object:
    """What happens when a worker comes is disturbed as well: the second dies on its way."""
    if side.sup is not None:
        side.sup.kill(side.handle.name, charged=False)
    side.handle.write(TRACE, 4, 1)
    return side.handle.read(NEXT, 4)


def _restart(side: Side) -> object:
    """A worker that drains and leaves, and its successor."""
    side.handle.write(ADD, 4, 1)
    if side.sup is not None:
        side.sup.restart_device(side.handle.name)
    side.handle.write(TRACE, 4, 1)
    return side.handle.read(NEXT, 4)


KINDS: dict[str, Act] = {
    name.strip("_"): act
    for name, act in list(globals().items())
    if name.startswith("_") and getattr(act, "__annotations__", {}).get("side") == "Side"
}
KINDS["with_a_spare"] = _after_a_kill
FRESH = ("growth",)  # every strike needs a journal that has not grown yet
SPARES = {"with_a_spare": 1}
BY_KIND = pytest.mark.parametrize("kind", KINDS)
BY_FAULT = pytest.mark.parametrize("fault", SIGNALS)


@contextlib.contextmanager
def _pair(kind: str, fault: str) -> Iterator[Twins]:
    with census(), twins(Stepped, STEPPED, heartbeat=fault == "stopped", spares=SPARES.get(kind, 0)) as pair:
        yield pair


@BY_FAULT
@BY_KIND
def test_given_fault_before_each_line_of_the_worker_nothing_is_lost_or_doubled(
    kind: str, fault: str, tmp_path: Path
) -> None:
    """The worker dies, or stands still, before each line that an input makes it run."""
    with shared_control(tmp_path) as control, _pair(kind, fault) as pair:
        strikes = Strikes(pair, KINDS[kind], fresh=kind in FRESH)
        strikes.strike_all(control, steps.WORKER, fault, MOST[fault])
    assert strikes.placed


@pytest.mark.parametrize("kind", ["after_a_kill", "restart", "with_a_spare"])
def test_given_zygote_killed_before_each_of_its_lines_nothing_is_lost_or_doubled(
    kind: str, tmp_path: Path
) -> None:
    """The zygote, and with it its worker, dies before each line that a death and a birth make it run."""
    with shared_control(tmp_path) as control, _pair(kind, "killed") as pair:
        strikes = Strikes(pair, KINDS[kind])
        strikes.strike_all(control, steps.ZYGOTE, "killed", MOST["killed"] // 4)
    assert strikes.placed


@BY_FAULT
@BY_KIND
def test_given_worker_struck_before_each_line_of_the_supervisor_nothing_is_lost_or_doubled(
    kind: str, fault: str, tmp_path: Path
) -> None:
    """Whatever the supervisor is about to do, its worker is dead, or stands still, when it does it."""
    with shared_control(tmp_path) as control, _pair(kind, fault) as pair:
        strikes = Strikes(pair, KINDS[kind], fresh=kind in FRESH, around=strike_from_here(control, pair))
        strikes.strike_all(control, steps.SUPERVISOR, fault, MOST[fault])
    assert strikes.placed
