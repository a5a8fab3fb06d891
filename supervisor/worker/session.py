"""One device and its surroundings, fed one input at a time.

The session is what a worker and the in-process mode share: it builds the device, is its ``Context``, and
turns an input into a change of state, a reply and outputs. It makes no system call; who runs it commits
what it returns. Everything that must survive hangs here: register words, interrupt levels, alarms, and the
device's own snapshot.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from supervisor.device import NO_ALARM, Device
from supervisor.errors import LocalError
from supervisor.worker.records import IRQ_LINES, Input, InputKind, Output, OutputKind

__all__ = ["Launch", "Loop", "Session", "build_options"]

VALUE, REPLY = int(OutputKind.VALUE), int(OutputKind.REPLY)
READ, WRITE, POSTED, CALL, RECEIVE, ALARM, SKIP = map(int, InputKind)
SILENT = (ALARM, SKIP)  # guest time has moved on; or the supervisor has given it up, and answered itself
WORD = 2**64 - 1
_output = tuple.__new__  # what a NamedTuple's own constructor does, at a third of the price


class Loop(Protocol):
    """What the session needs of the loop it runs in."""

    def watch(self, fd: int, handler: Callable[[], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def connect(self, name: str) -> Any: ...

    def hand_over(self, target_pid: int, fd: int) -> None: ...

    def keep(self, name: str, fd: int | None) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Why and as what a device comes to life."""

    name: str
    options: Mapping[str, Any]
    restarts: int = 0
    last_exit: str = ""
    passed: Mapping[str, int] = dataclasses.field(default_factory=dict)


def build_options(device_class: type[Device], options: Mapping[str, Any]) -> Any:
    """The options of the configuration as an instance of the class's ``Options``.

    Raises :class:`LocalError` that names the class, the option and what would be right.
    """
    schema = device_class.Options
    title = device_class.__qualname__
    if schema is None:
        if options:
            raise LocalError(f"{title} takes no options; got {', '.join(sorted(options))}")
        return None
    known = _option_names(schema)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise LocalError(f"{title} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    try:
        return msgspec.convert(dict(options), schema)
    except msgspec.ValidationError as error:
        raise LocalError(f"{title}: {error}") from error


@functools.cache
def _option_names(schema: type) -> list[str]:
    return [field.encode_name for field in msgspec.inspect.type_info(schema).fields]  # type: ignore[attr-defined]


class Session:
    """Builds a device and feeds it. Implements :class:`supervisor.device.Context`."""

    def __init__(self, device_class: type[Device], launch: Launch, loop: Loop) -> None:
        self.name = launch.name
        self.options = build_options(device_class, launch.options)
        self.restarts = launch.restarts
        self.last_exit = launch.last_exit
        self.passed = launch.passed
        self.logger = logging.getLogger(f"tubevisor.device.{launch.name}")
        self.now_ns = 0
        self.irq_levels = 0
        self.alarms: dict[int, int] = {}
        self.outputs: list[Output] = []
        self._loop = loop
        self._number = 0
        sheet = device_class.sheet
        self.words = memoryview(bytearray(8 * sheet.words)).cast("Q")
        for index, value in enumerate(sheet.reset_words):
            self.words[index] = value
        self.register_bytes = self.words.cast("B")
        self.device = device_class.__new__(device_class)
        self.device.words = self.words
        self.device.ctx = self
        self.device.__init__()  # type: ignore[misc]  # words and ctx are there before the author's code

    # -- Context ---------------------------------------------------------------------------------

    def set_alarm(self, at_ns: int, token: int = 0) -> None:
        if not 0 <= at_ns < NO_ALARM:
            raise LocalError(f"{self.name}: an alarm at {at_ns} ns of guest time")
        self.alarms[token] = at_ns

    def cancel_alarm(self, token: int = 0) -> None:
        self.alarms.pop(token, None)

    def raise_irq(self, line: int = 0) -> None:
        self._set_irq(line, 1)

    def lower_irq(self, line: int = 0) -> None:
        self._set_irq(line, 0)

    def emit(self, data: bytes) -> None:
        self.outputs.append(Output(OutputKind.BYTES, 0, self._number, bytes(data)))

    def connect(self, name: str) -> Any:
        return self._loop.connect(name)

    def hand_over(self, target_pid: int, fd: int) -> None:
        self._loop.hand_over(target_pid, fd)

    def keep(self, name: str, fd: int | None) -> None:
        self._loop.keep(name, fd)

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._loop.watch(fd, handler)

    def unwatch(self, fd: int) -> None:
        self._loop.unwatch(fd)

    # -- feeding ---------------------------------------------------------------------------------

    def start(self, now_ns: int) -> None:
        """Runs the device's ``start`` at guest time ``now_ns``."""
        self.now_ns = now_ns
        self.device.start(self)

    @property
    def next_alarm_ns(self) -> int:
        """Guest time of the earliest alarm, or ``NO_ALARM``."""
        return min(self.alarms.values(), default=NO_ALARM)

    def handle(self, record: Input) -> None:
        """Fires the alarms that are due before one input, then handles it.

        What the device raises comes out of here: an exception in a device is a crash.
        """
        self.fire_alarms(record)
        self.apply(record)

    def apply(self, record: Input) -> None:
        """Handles one input; replies and outputs are appended to ``outputs``."""
        number, kind, self.now_ns, offset, size, value, payload = record
        self._number = number
        if kind == READ:
            answer = (self.device.read(offset, size) & WORD).to_bytes(8, "little")
            self.outputs.append(_output(Output, (VALUE, 0, number, answer)))
        elif kind == POSTED:
            self.device.write(offset, size, value)
        elif kind == WRITE:
            self.device.write(offset, size, value)
            self.outputs.append(_output(Output, (REPLY, 0, number, b"")))
        elif kind == CALL:
            reply = bytes(self.device.call(payload))
            self.outputs.append(_output(Output, (REPLY, 0, number, reply)))
        elif kind == RECEIVE:
            self.device.receive(payload)
        elif kind not in SILENT:
            raise ValueError(f"input {number} is of kind {kind}")

    def fire_alarms(self, record: Input) -> None:
        """Fires what is due, in the order of guest time, before an input of a later time is handled.

        A function of the state and the record's stamp alone, so a replay fires the same.
        """
        until_ns = record.stamp_ns
        self._number = record.number
        while self.alarms:
            token = min(self.alarms, key=self.alarms.__getitem__)
            at_ns = self.alarms[token]
            if at_ns > until_ns:
                return
            del self.alarms[token]
            self.now_ns = at_ns
            self.device.alarm(token)

    def drop_alarms(self, until_ns: int) -> None:
        """Forgets what is due until then: the supervisor has given it up."""
        self.alarms = {token: at_ns for token, at_ns in self.alarms.items() if at_ns > until_ns}

    def _set_irq(self, line: int, level: int) -> None:
        if not 0 <= line < IRQ_LINES:
            raise LocalError(f"{self.name}: interrupt line {line}; a device has 0 to {IRQ_LINES - 1}")
        bit = 1 << line
        if bool(self.irq_levels & bit) == bool(level):
            return
        self.irq_levels ^= bit
        self.outputs.append(Output(OutputKind.IRQ, line * 2 + level, self._number, b""))
