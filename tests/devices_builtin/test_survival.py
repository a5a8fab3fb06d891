"""Every built-in device survives kill -9 between any two inputs: its declared state is all of its state."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

import devices
from supervisor.device import Device
from supervisor.registers import Register
from supervisor.worker.records import Input, InputKind
from supervisor.worker.session import Launch, Session

ROOM = Path(devices.__file__).parent
BUILT_IN = sorted(
    f"{path.parent.name}.{path.stem}"
    for path in ROOM.glob("*/*.py")
    if not path.stem.startswith("_") and "virtio" not in path.parent.name
)
INPUTS = 400
INTERESTING = (0, 1, 2, 3, 5, 7, 0x80, 0xFF, 0x100, 0x1234, 0xFFFF, 0x8000_0000, 0xFFFF_FFFF)


def _class(name: str) -> type[Device]:
    found: type[Device] = importlib.import_module(f"devices.{name}").DEVICE
    assert issubclass(found, Device)
    return found


def _inputs(device_class: type[Device], chooser: random.Random) -> list[Input]:
    offsets = [*device_class.sheet.by_offset, 0xEE0]
    stamp_ns = 0
    records = []
    takes_bytes = device_class.receive is not Device.receive
    kinds = [InputKind.READ, InputKind.POSTED, InputKind.POSTED, InputKind.ALARM]
    kinds += [InputKind.RECEIVE] if takes_bytes else []
    for number in range(1, INPUTS + 1):
        stamp_ns += chooser.choice((0, 0, 1_000, 70_000, 3_000_000, 40_000_000))
        kind = chooser.choice(kinds)
        value = chooser.choice(INTERESTING)
        payload = bytes([value & 0xFF]) * 3 if kind == InputKind.RECEIVE else b""
        records.append(Input(number, kind, stamp_ns, chooser.choice(offsets), 4, value, payload))
    return records


def _session(device_class: type[Device]) -> Session:
    session = Session(device_class, Launch(name="dut", options={}), _NoLoop())
    session.start(0)
    return session


class _NoLoop:
    def watch(self, fd: int, handler: Any) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def connect(self, name: str) -> Any: ...

    def hand_over(self, target_pid: int, fd: int) -> None: ...

    def keep(self, name: str, fd: int | None) -> None: ...


def _successor(session: Session, device_class: type[Device]) -> Session:
    """What a new worker makes of the committed state."""
    successor = _session(device_class)
    successor.outputs.clear()
    successor.words[:] = session.words
    successor.irq_levels = session.irq_levels
    successor.alarms = dict(session.alarms)
    successor.device.restore(session.device.snapshot(), session.device.state_version)
    return successor


@pytest.mark.parametrize("name", BUILT_IN)
def test_given_random_inputs_a_device_replaced_after_each_one_acts_like_one_that_lives(name: str) -> None:
    """Registers, interrupt line, alarms and outputs are those of a device that was never killed."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    device_class = _class(name)
    living = _session(device_class)
    mortal = _session(device_class)
    for record in _inputs(device_class, random.Random(seed)):
        living.handle(record)
        mortal.handle(record)
        assert mortal.outputs == living.outputs, record
        living.outputs.clear()
        mortal = _successor(mortal, device_class)
        assert mortal.words.tobytes() == living.words.tobytes(), record
        assert (mortal.irq_levels, mortal.alarms) == (living.irq_levels, living.alarms), record


@pytest.mark.parametrize("name", BUILT_IN)
def test_given_its_data_sheet_a_device_explains_itself_and_fits_its_window(name: str) -> None:
    """There is a docstring, and no register lies beyond 4 KiB."""
    device_class = _class(name)
    module = importlib.import_module(device_class.__module__)
    assert module.__doc__ is not None
    assert device_class.__doc__ is not None
    for register in device_class.sheet.registers:
        assert isinstance(register, Register)
        assert register.offset + register.stride * (register.count - 1) + register.width <= 0x1000
