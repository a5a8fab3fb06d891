"""A device in a worker, and its twin in this process that nobody kills: the same inputs, the same results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from supervisor.device import Device
from supervisor.handle import DeviceHandle, LocalHandle
from supervisor.host import Supervisor
from supervisor.remote import RemoteHandle
from supervisor.seat import Seat
from supervisor.worker import layout
from supervisor.worker.records import InputKind
from supervisor.worker.session import Launch
from tests.chaos import board

__all__ = ["Act", "Side", "Twins", "ask", "twins"]

DEADLINE_S = 30.0
MOST_ALARMS = 64  # in one go: 40 ms can be 640,000 ticks


@dataclass
class Side:
    """One of the two: its handle, and what came out of it."""

    handle: DeviceHandle
    sup: Supervisor | None
    clock: list[int]
    emitted: list[bytes] = field(default_factory=list)
    edges: list[tuple[int, bool]] = field(default_factory=list)
    turn: int = 0

    def listen(self) -> None:
        """Takes its outputs from now on."""
        self.handle.on_output(self.emitted.append)
        self.handle.on_irq(lambda line, raised: self.edges.append((line, raised)))

    def observe(self) -> tuple[object, ...]:
        """What can be seen of the device once everything so far has taken effect."""
        self.handle.flush()
        self.handle.deliver_outputs()
        return (b"".join(self.emitted), list(self.edges), self.handle.irq_levels, self.handle.next_alarm_ns)

    def advance(self, nanoseconds: int) -> None:
        """Lets guest time pass, alarm by alarm; less of it where a timer wants one at each of its ticks."""
        end_ns = self.clock[0] + nanoseconds
        for _ in range(MOST_ALARMS):
            if self.handle.next_alarm_ns > end_ns:
                self.clock[0] = end_ns
                return
            self.clock[0] = self.handle.next_alarm_ns
            self.handle.deliver_alarm(self.clock[0])


Act = Callable[[Side], object]


def ask(side: Side, kind: InputKind, offset: int = 0, value: int = 0, payload: bytes = b"") -> bytes:
    """A request by way of a waiter, as asyncio users have it; the twin is simply asked."""
    handle = side.handle
    if not isinstance(handle, RemoteHandle) or side.sup is None:
        if kind == InputKind.READ:
            return handle.read(offset, 4).to_bytes(8, "little")
        if kind == InputKind.CALL:
            return handle.call_bytes(payload)
        handle.write(offset, 4, value)
        return b""
    answers: list[bytes | Exception] = []
    handle.submit(kind, answers.append, offset=offset, size=4, value=value, payload=payload)
    deadline = time.monotonic() + DEADLINE_S
    while not answers:
        side.sup.dispatch(1)
        assert time.monotonic() < deadline, f"no answer to {kind!r} within {DEADLINE_S} s"
    answer = answers[0]
    if isinstance(answer, Exception):
        raise answer
    return answer


class Twins:
    """``both`` does the same with the device in a worker and with its twin, and holds them to each other."""

    def __init__(
        self, sup: Supervisor, device_class: type[Device], device: str, real_clock: list[int]
    ) -> None:
        self.sup = sup
        self._class = device_class
        self._device = device
        self._clock = [0]
        self._real_clock = real_clock
        self._born = 0
        self._begin("dut")

    def _begin(self, name: str) -> None:
        self.name = name
        local = LocalHandle(self._class, Launch(name=name, options={}), lambda: self._clock[0])
        self.twin = Side(local, None, self._clock)
        self.real = Side(self.sup[name], self.sup, self._real_clock)
        for side in (self.twin, self.real):
            side.listen()

    def renew(self) -> None:
        """Both begin from scratch, with a new journal."""
        self._born += 1
        self.sup.add_device(_entry(f"dut{self._born}", self._device))
        old, turn = self.name, self.real.turn
        self._begin(f"dut{self._born}")
        self.real.turn = self.twin.turn = turn
        self.sup.stop_device(old)
        deadline = time.monotonic() + DEADLINE_S
        while self.sup._workers is not None and self.seat(old).worker is not None:
            self.sup.dispatch(1)
            assert time.monotonic() < deadline, f"{old} did not stop"
        self.sup.remove_device(old)

    def seat(self, name: str | None = None) -> Seat:
        """The worker's place."""
        assert self.sup._workers is not None
        return self.sup._workers.seat(name or self.name)

    def both(
        self, act: Act, around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    ) -> None:
        """``around`` is entered while the worker's side acts."""
        with around():
            got = act(self.real), self.real.observe()
        want = act(self.twin), self.twin.observe()
        assert got == want
        for side in (self.real, self.twin):
            side.turn += 1
            side.emitted.clear()
            side.edges.clear()

    def wait_until_asleep(self, stopped: Callable[[], bool]) -> None:
        """Returns when the worker sleeps, or ``stopped`` says that it never will."""
        deadline = time.monotonic() + DEADLINE_S
        while not stopped() and time.monotonic() < deadline:
            handle = self.real.handle
            assert isinstance(handle, RemoteHandle)
            if handle.ledger.words[layout.WORKER_SLEEPS]:
                return
            self.sup.dispatch(0.001)


def _entry(name: str, inside: str) -> str:
    return f"{{name: {name}, {inside}}}"


@contextlib.contextmanager
def twins(
    device_class: type[Device], device: str, *, heartbeat: bool = False, spares: int = 0
) -> Iterator[Twins]:
    """A supervisor with the device, whose processes can be struck (``tests.steps``), and the device's twin.

    It comes back at once and is never given up. With a heartbeat whoever stands still is soon found out.
    """
    inside = f"device: {device}, backoff: {{max: 0s}}, poison: 1000, request_timeout: 20s"
    if heartbeat:
        inside += ", heartbeat: {every: 20ms, timeout: 60ms}, hello_timeout: 250ms, start_timeout: 250ms"
        inside += ", stop_timeout: 250ms"
    whole = f"intensity: 1000000, period: 1s, spares: {spares}, preload: [tests.devices.stepped]"
    supervisor, clock = Supervisor(board(_entry("dut", inside)[1:-1], supervisor=whole)), [0]
    supervisor.clock = lambda: clock[0]
    with supervisor as sup:
        yield Twins(sup, device_class, inside, clock)
