"""Devices that come and go while a supervisor runs: OTP's start_child, delete_child and which_children.

The roster asks at the door: what cannot be is refused with a ``LocalError`` that begins with OTP's word
(``already_started``, ``already_present``, ``running``, ``restarting``, ``not_found``), and nothing has
changed. What is let in is the policy's from then on. Places for devices are made here before the policy
hears of them, and given back by the reactor when it forgets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from supervisor import policy
from supervisor.bus import Bus
from supervisor.config import DeviceConfig, parse_device
from supervisor.errors import EnvironmentFault, LocalError, StartFailed
from supervisor.handle import DeviceFacts, DeviceHandle
from supervisor.policy import Counts, Phase
from supervisor.policy.actions import DeviceFailed, DeviceKilled, Record
from supervisor.policy.events import AddChild, RemoveChild
from supervisor.policy.states import ALIVE, ChildState
from supervisor.reactor import Reactor
from supervisor.seat import DeviceCrashed, Seat

__all__ = ["DeviceStatus", "Roster", "start_report"]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One line of ``which_devices``: ``pid`` is ``None`` where no process serves the device."""

    name: str
    state: str
    pid: int | None


class Seats(Protocol):
    """Who makes places for devices, and knows who sits in them."""

    on_forget: Callable[[DeviceHandle], None]

    def add(self, device: DeviceConfig) -> DeviceHandle: ...

    def seat(self, name: str) -> Seat: ...

    def facts(self, name: str) -> DeviceFacts: ...


class Roster:
    """All devices of a running supervisor, those added included."""

    def __init__(self, reactor: Reactor, seats: Seats, bus: Bus, now_ns: Callable[[], int]) -> None:
        self._reactor = reactor
        self._seats = seats
        self._bus = bus
        self._now_ns = now_ns
        seats.on_forget = bus.remove

    def add(self, device: DeviceConfig | str | Mapping[str, Any]) -> DeviceHandle:
        """Starts a device; returns when it is ready, or has ended by itself and need not come back."""
        reactor = self._reactor
        if not isinstance(device, DeviceConfig):
            auto_shutdown = reactor.state.plan.spec.auto_shutdown
            device = parse_device(device, auto_shutdown=auto_shutdown)
        self._check(device)
        begun_ns = self._now_ns()
        try:
            handle = self._seats.add(device)
        except OSError as error:
            raise EnvironmentFault(f"{device.name}: there is no room for its journal: {error}") from error
        self._bus.add(handle)
        reactor.post(AddChild(device.child))
        reactor.step()
        while self._is_coming(device.name):
            reactor.poll(None)
        if device.name in reactor.state.children and reactor.outcome is None:
            return handle
        records = [record for record in reactor.records if record.at_ns >= begun_ns]
        own = [record for record in records if getattr(record, "name", None) == device.name]
        raise StartFailed(start_report(f"{device.name}: the start failed", own))

    def remove(self, name: str) -> None:
        """Forgets a device that is down, failed or finished; gives back what is held for it."""
        self._reactor.step()
        self._must_run()
        why_not = policy.why_not_remove(self._reactor.state, name)
        if why_not:
            raise LocalError(why_not)
        self._reactor.post(RemoveChild(name))
        self._reactor.step()

    def which(self) -> tuple[DeviceStatus, ...]:
        """All devices, the newest first."""
        known = [(view.name, self._seats.facts(view.name)) for view in policy.children(self._reactor.state)]
        return tuple(DeviceStatus(name, facts.state, facts.pid) for name, facts in known)

    def count(self) -> Counts:
        """How many devices there are, and how many have a process."""
        return policy.count(self._reactor.state)

    def spec(self, name: str) -> DeviceConfig:
        """What a device was started with."""
        if name not in self._reactor.state.children:
            raise LocalError(f"not_found: there is no {name!r}")
        return self._seats.seat(name).config

    def _check(self, device: DeviceConfig) -> None:
        reactor = self._reactor
        reactor.step()  # what has been said before is done before
        self._must_run()
        why_not = policy.why_not_add(reactor.state, device.child)
        if why_not:
            raise LocalError(why_not)
        mmio = device.mmio
        taken = None if mmio is None else self._bus.taken(mmio.base, mmio.size)
        if mmio is not None and taken is not None:
            addresses = f"{mmio.base:#x}..{mmio.base + mmio.size - 1:#x}"
            raise LocalError(f"device {device.name!r}: {addresses} overlaps what {taken.name!r} has")

    def _must_run(self) -> None:
        phase = policy.phase(self._reactor.state)
        if phase not in (Phase.STARTING, Phase.RUNNING):
            raise LocalError(f"devices come and go while the supervisor runs; it is {phase.value}")

    def _is_coming(self, name: str) -> bool:
        state = self._reactor.state
        if self._reactor.outcome is not None or name not in state.children:
            return False
        child = state.children[name]
        coming = child.state is ChildState.WAITING or child.state in ALIVE - {ChildState.READY}
        return child.new and coming


def start_report(headline: str, records: Iterable[Record]) -> str:
    """What went wrong in a start, for people: last words, log lines, reasons."""
    lines = [headline]
    for record in records:
        if isinstance(record, DeviceCrashed):
            lines.append(f"{record.name}: {record.exception}")
            lines += [f"    {line}" for line in record.traceback.rstrip().splitlines()]
            lines += [f"    log: {line}" for line in record.log if line not in record.traceback]
        elif isinstance(record, DeviceFailed | DeviceKilled):
            lines.append(f"{record.name}: {record.why}")
    return "\n".join(lines)
