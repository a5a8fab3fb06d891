"""A fault before and after each store of the commit and each send and receive, in every built-in device.

Which statements these are is read from the source (``tests.steps.stores_and_sends``); a device's inputs are
random, from its data sheet. As in ``test_every_step`` a twin that nobody kills says what is right.
"""

from __future__ import annotations

import contextlib
import importlib
import random
from pathlib import Path

import pytest

from supervisor.device import Device
from supervisor.worker.records import InputKind
from tests import steps
from tests.chaos import census
from tests.devices_builtin.test_survival import BUILT_IN, INTERESTING
from tests.steps import SIGNALS, stores_and_sends
from tests.strikes import Strikes, shared_control, strike_from_here
from tests.twins import Act, Side, ask, twins

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(steps.TIMEOUT_S)]

MOST = {"killed": 6, "stopped": 1}  # of each kind of input, where not all are wanted
INPUTS = 1000
SPANS_NS = (0, 0, 1_000, 70_000, 3_000_000, 40_000_000)
Recipe = list[tuple[int, int, int]]  # offset, value, span


def _class(name: str) -> type[Device]:
    found: type[Device] = importlib.import_module(f"devices.{name}").DEVICE
    return found


def _recipe(device_class: type[Device], chooser: random.Random) -> Recipe:
    offsets = [*device_class.sheet.by_offset, 0xEE0]
    return [
        (chooser.choice(offsets), chooser.choice(INTERESTING), chooser.choice(SPANS_NS))
        for _ in range(INPUTS)
    ]


def _acts(device_class: type[Device], recipe: Recipe) -> dict[str, Act]:
    """Each kind of input that the device takes; the turn says which of the recipe's."""

    def now(side: Side) -> tuple[int, int]:
        offset, value, span_ns = recipe[side.turn % INPUTS]
        side.advance(span_ns)
        return offset, value

    def read(side: Side) -> object:
        offset, _value = now(side)
        return side.handle.read(offset, 4), ask(side, InputKind.READ, offset)

    def write(side: Side) -> object:
        offset, value = now(side)
        return ask(side, InputKind.WRITE, offset, value)

    def posted(side: Side) -> object:
        for number in range(3):
            offset, value, _span_ns = recipe[(side.turn + number) % INPUTS]
            side.handle.write(offset, 4, value)
        return now(side) and None

    def received(side: Side) -> object:
        return side.handle.send(b"%d" % side.turn)

    def called(side: Side) -> object:
        return side.handle.call_bytes(b"%d" % side.turn)

    acts: dict[str, Act] = {"read": read, "write": write, "posted": posted}
    if device_class.receive is not Device.receive:
        acts["received"] = received
    if device_class.call is not Device.call:
        acts["called"] = called
    return acts


@pytest.mark.parametrize("side", ["worker", "supervisor"])
@pytest.mark.parametrize("fault", SIGNALS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_given_fault_around_each_store_and_send_a_built_in_device_is_exact(
    name: str, fault: str, side: str, tmp_path: Path
) -> None:
    """Replies, registers, levels, alarms and outputs are those of its twin, whichever side does the step."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    device_class = _class(name)
    placed = 0
    board = twins(device_class, name, heartbeat=fault == "stopped")
    with shared_control(tmp_path) as control, census(), board as pair:
        for act in _acts(device_class, _recipe(device_class, random.Random(seed))).values():
            around = strike_from_here(control, pair) if side == "supervisor" else contextlib.nullcontext
            strikes = Strikes(pair, act, around=around)
            role = steps.SUPERVISOR if side == "supervisor" else steps.WORKER
            strikes.strike_all(control, role, fault, MOST[fault], stores_and_sends)
            placed += strikes.placed
    assert placed
