"""A device as its user sees it, wherever it runs: ``sup["uart0"]``.

``DeviceHandle`` is the contract and the common part (sinks, bookkeeping); ``LocalHandle`` is a device in
this process, for debugging and as the yardstick; the handle of a device in a worker is in
``supervisor.remote``. One contract suite in the tests runs on both.

Outputs (bytes, interrupt edges) are queued here and delivered only from ``dispatch``, never inside
another delivery or a blocking request. A sink that raises stops the delivery; what it was given counts
as delivered.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervisor.config import Mmio
from supervisor.datasheet import AccessTable, evaluate_counter
from supervisor.device import NO_ALARM, Device
from supervisor.errors import LocalError
from supervisor.timeline import RestartTimeline
from supervisor.worker.records import Input, InputKind, Output, OutputKind
from supervisor.worker.session import Launch, Session

__all__ = ["ByteSink", "Clock", "DeviceFacts", "DeviceHandle", "IrqSink", "LocalHandle", "VhostUserFacts"]

Clock = Callable[[], int]  # guest time in ns
ByteSink = Callable[[bytes], None]
IrqSink = Callable[[int, bool], None]


@dataclass(frozen=True, slots=True)
class VhostUserFacts:
    """What a VMM has to know of a device: its socket's path, virtio's number of its kind, its queues.

    ``config`` is its configuration space, for VMMs that keep one of their own.
    """

    socket: str
    device_id: int
    queues: int
    config: bytes


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What is known of a device just now. ``pid`` is ``None`` while no process serves it.

    ``generation`` counts its processes from 1 (0: none yet), ``restarts`` how often it has come back.
    ``state`` is one of the policy's words (docs/states.md), or ``in_process``, or ``removed``.
    """

    state: str
    pid: int | None
    generation: int
    restarts: int
    last_exit: str
    vhost_user: VhostUserFacts | None = None
    last_restart: RestartTimeline | None = None
    standby_pid: int | None = None


class DeviceHandle(ABC):
    """One device: its registers, its requests, its outputs.

    Sizes are bytes, times seconds where they are called ``timeout`` and guest ns otherwise. Every request
    blocks through a restart and returns the true answer, or raises :class:`~supervisor.errors.DeviceGone`,
    :class:`~supervisor.errors.DeviceError` or :class:`~supervisor.errors.RequestTimeout`.
    """

    def __init__(self, name: str, mmio: Mmio | None, clock: Clock) -> None:
        self.name = name
        self.mmio = mmio
        self.clock = clock
        self.ask_facts: Callable[[], DeviceFacts] = _in_process
        self._outputs: deque[Output] = deque()
        self._byte_sink: ByteSink | None = None
        self._irq_sink: IrqSink | None = None

    # -- facts -------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """Where the device is in its life, in the policy's words: ``ready``, ``waiting``, ``failed``..."""
        return self.ask_facts().state

    @property
    def pid(self) -> int | None:
        """The process that serves the device, or ``None``."""
        return self.ask_facts().pid

    @property
    def standby_pid(self) -> int | None:
        """The process that is ready to take the present one's place; ``None`` where none is (yet)."""
        return self.ask_facts().standby_pid

    @property
    def generation(self) -> int:
        """The number of the device's present process, counted from 1."""
        return self.ask_facts().generation

    @property
    def restarts(self) -> int:
        """How often the device has come back."""
        return self.ask_facts().restarts

    @property
    def last_exit(self) -> str:
        """How the process before the present one ended; empty if there was none."""
        return self.ask_facts().last_exit

    @property
    def last_restart(self) -> RestartTimeline | None:
        """Where the time of its last restart went; ``None`` before the first."""
        return self.ask_facts().last_restart

    @property
    def vhost_user(self) -> VhostUserFacts | None:
        """Where a VMM finds the device; ``None`` where it is not served over vhost-user."""
        return self.ask_facts().vhost_user

    # -- requests --------------------------------------------------------------------------------

    @abstractmethod
    def read(self, offset: int, size: int) -> int:
        """Reads ``size`` bytes (1, 2, 4 or 8) at ``offset``."""

    @abstractmethod
    def write(self, offset: int, size: int, value: int) -> None:
        """Writes ``value``, ``size`` bytes, at ``offset``."""

    @abstractmethod
    def call_bytes(self, request: bytes) -> bytes:
        """A request of the device's own protocol: serialized in, serialized out."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Hands bytes from outside (console input and the like) to the device's ``receive``."""

    def call(self, request: Any, reply_type: Any = None) -> Any:
        """A protobuf request; the reply is parsed as ``reply_type`` (default: the request's own type)."""
        reply = (reply_type or type(request))()
        reply.ParseFromString(self.call_bytes(request.SerializeToString()))
        return reply

    @abstractmethod
    def flush(self) -> None:
        """Returns when every posted write and every ``send`` so far has taken effect."""

    # -- levels and time -------------------------------------------------------------------------

    @property
    @abstractmethod
    def irq_levels(self) -> int:
        """The interrupt lines that are raised, as a bit mask; sees all earlier writes. No system call."""

    @property
    @abstractmethod
    def next_alarm_ns(self) -> int:
        """Guest time of the device's next alarm, or ``NO_ALARM``; sees all earlier writes."""

    @property
    def published_alarm_ns(self) -> int:
        """Guest time of the next alarm as far as it is known without waiting: ``NO_ALARM`` while inputs are
        outstanding, which may change it. The bell rings when they are done."""
        return self.next_alarm_ns

    @abstractmethod
    def deliver_alarm(self, at_ns: int) -> None:
        """Tells the device that guest time has reached ``at_ns``. The fleet calls this from ``dispatch``."""

    # -- outputs ---------------------------------------------------------------------------------

    def on_output(self, sink: ByteSink | None) -> None:
        """Registers who takes the bytes that the device emits; they are called from ``dispatch``."""
        self._byte_sink = sink

    def on_irq(self, sink: IrqSink | None) -> None:
        """Registers who takes every edge ``(line, raised)``, for a machine that does not poll levels."""
        self._irq_sink = sink

    @property
    def rests(self) -> bool:
        """True if nothing is owed and nothing to be delivered until the bell rings or somebody asks."""
        return False

    def may_be_waited_for(self) -> bool:
        """True if its bell will ring before there is anything to look at; asks for that, where it must."""
        return True

    @property
    def has_outputs(self) -> bool:
        """True if there is something that ``deliver_outputs`` could deliver."""
        outputs = self._outputs
        return bool(outputs) and (self._byte_sink is not None or outputs[0].kind != OutputKind.BYTES)

    def deliver_outputs(self) -> bool:
        """Hands queued outputs to the sinks; true if there was anything. Bytes wait until there is a sink."""
        delivered = False
        outputs = self._outputs
        while outputs:
            output = outputs[0]
            if output.kind == OutputKind.BYTES and self._byte_sink is None:
                break
            outputs.popleft()
            delivered = True
            if output.kind == OutputKind.BYTES:
                assert self._byte_sink is not None  # noqa: S101 - checked above
                self._byte_sink(output.payload)
            elif self._irq_sink is not None:
                self._irq_sink(output.detail >> 1, bool(output.detail & 1))
        return delivered


def _in_process() -> DeviceFacts:
    return DeviceFacts("in_process", os.getpid(), 1, 0, "")


class _NoLoop:
    """The in-process mode has no loop of its own: a device that watches descriptors needs a worker."""

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        raise LocalError("a device that watches descriptors cannot run in the supervisor's process")

    def unwatch(self, fd: int) -> None:
        raise LocalError("a device that watches descriptors cannot run in the supervisor's process")

    def connect(self, name: str) -> Any:
        raise LocalError("a device that connects to another cannot run in the supervisor's process")

    def hand_over(self, target_pid: int, fd: int) -> None:
        raise LocalError("a device that hands descriptors over cannot run in the supervisor's process")

    def keep(self, name: str, fd: int | None) -> None:
        """There is no next process."""


class LocalHandle(DeviceHandle):
    """A device in this process. What it raises comes out of the request that caused it."""

    def __init__(
        self, device_class: type[Device], launch: Launch, clock: Clock, mmio: Mmio | None = None
    ) -> None:
        super().__init__(launch.name, mmio, clock)
        self._session = Session(device_class, launch, _NoLoop())
        self._pending = self._session.outputs
        self._reply = b""
        self._number = 0
        self._session.start(clock())
        self._words = self._session.words
        table = AccessTable(device_class.sheet.map())
        self._plain = table.plain | table.captured  # here a capture has happened when it returns
        self._counters = table.counters
        self._collect()

    def read(self, offset: int, size: int) -> int:
        if size == 4:
            slot = self._plain.get(offset)
            if slot is not None:
                return self._words[slot]
        if offset in self._counters:
            slot, mask = self._counters[offset]
            base, since_ns, ticks, per_ns, narrowed = self._words[slot : slot + 5]
            value = evaluate_counter(base, since_ns, ticks, per_ns, self.clock(), mask & narrowed)
            return value & ((1 << (8 * size)) - 1)
        self._handle(InputKind.READ, offset, size)
        return int.from_bytes(self._reply, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self._handle(InputKind.POSTED, offset, size, value)

    def call_bytes(self, request: bytes) -> bytes:
        self._handle(InputKind.CALL, payload=request)
        return self._reply

    def send(self, data: bytes) -> None:
        self._handle(InputKind.RECEIVE, payload=data)

    def flush(self) -> None:
        """Everything takes effect at once here."""

    @property
    def irq_levels(self) -> int:
        return self._session.irq_levels

    @property
    def next_alarm_ns(self) -> int:
        return self._session.next_alarm_ns if self._session.alarms else NO_ALARM

    def deliver_alarm(self, at_ns: int) -> None:
        self._handle(InputKind.ALARM, stamp_ns=at_ns)

    def close(self) -> None:
        """Asks the device to stop."""
        self._session.device.stop()

    def _handle(
        self,
        kind: int,
        offset: int = 0,
        size: int = 0,
        value: int = 0,
        payload: bytes = b"",
        stamp_ns: int | None = None,
    ) -> None:
        self._number += 1
        stamp_ns = self.clock() if stamp_ns is None else stamp_ns
        self._session.handle(Input(self._number, kind, stamp_ns, offset, size, value, payload))
        if self._pending:
            self._collect()

    def _collect(self) -> None:
        for output in self._pending:
            if output.kind in (OutputKind.VALUE, OutputKind.REPLY):
                self._reply = output.payload
            else:
                self._outputs.append(output)
        self._pending.clear()
