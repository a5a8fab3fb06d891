"""Devices that come and go while a supervisor runs: OTP's start_child, delete_child and which_children.

The roster asks at the door: what cannot be is refused with a ``LocalError`` that begins with OTP's word
(``already_started``, ``already_present``, ``running``, ``restarting``, ``not_found``), and nothing has
changed. What is let in is the policy's from then on. Places for devices are made here before the policy
hears of them, and given back by the reactor when it forgets them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from supervisor import policy
from supervisor.bus import Bus
from supervisor.config import Config, DeviceConfig, parse_device, policy_spec
from supervisor.errors import EnvironmentFault, LocalError, StartFailed
from supervisor.handle import DeviceFacts, DeviceHandle
from supervisor.policy import Counts, Tree
from supervisor.policy.events import AddChild, Reload, RemoveChild
from supervisor.policy.records import DeviceFailed, DeviceKilled, Record
from supervisor.policy.states import ALIVE, ChildState
from supervisor.reactor import Reactor
from supervisor.reload import Reloaded, compare, why_not_fit
from supervisor.seat import DeviceCrashed, Seat

__all__ = ["DeviceStatus", "Roster", "start_report"]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One line of ``which_devices``: ``pid`` is ``None`` where no process serves; a group never has one."""

    name: str
    state: str
    pid: int | None
    is_group: bool = False


class Seats(Protocol):
    """Who makes places for devices, and knows who sits in them."""

    on_forget: Callable[[DeviceHandle, str], None]

    def add(self, device: DeviceConfig) -> DeviceHandle: ...

    def replace(self, device: DeviceConfig) -> None: ...

    def forget(self, name: str, restarts: int, why: str = "") -> None: ...

    def seat(self, name: str) -> Seat: ...

    def facts(self, name: str) -> DeviceFacts: ...


class Roster:
    """All devices of a running supervisor, those added included."""

    def __init__(
        self, config: Config, reactor: Reactor, seats: Seats, bus: Bus, now_ns: Callable[[], int]
    ) -> None:
        self._reactor = reactor
        self._seats = seats
        self._bus = bus
        self._now_ns = now_ns
        self._numbers: Counter[str] = Counter()
        self._groups = {group.name: group for group in config.groups}
        self._failures: dict[str, str] = {}  # of devices that were forgotten while somebody adds them
        seats.on_forget = self._on_forget

    def add(self, device: DeviceConfig | str | Mapping[str, Any], group: str) -> DeviceHandle:
        """Starts a device; returns when it is ready, or has ended by itself and need not come back."""
        reactor = self._reactor
        reactor.step()  # what has been said before is done before
        if not isinstance(device, DeviceConfig):
            device = self._parse(device, group)
        self._check(device, group)
        device = replace(device, group=group)
        begun_ns = self._now_ns()
        run = self._run_of(group)
        try:
            handle = self._seats.add(device)
        except OSError as error:
            raise EnvironmentFault(f"{device.name}: there is no room for its journal: {error}") from error
        self._bus.add(handle)
        self._failures.pop(device.name, None)
        reactor.post(AddChild(device.child, group))
        reactor.step()
        while self._is_coming(device.name):
            reactor.poll(None)
        failure = self._failures.pop(device.name, "") or self._why_failed(device.name)
        if reactor.outcome is None and self._run_of(group) == run and not failure:
            return handle  # ready; or it had nothing to do, or was done before it was ready, and is forgotten
        records = [record for record in reactor.records if record.at_ns >= begun_ns]
        own = [record for record in records if getattr(record, "name", None) == device.name]
        told = failure or (f"its supervisor has ended: {group!r}" if group else "the supervisor has ended")
        raise StartFailed(start_report(f"{device.name}: the start failed: {told}", own))

    def _run_of(self, group: str) -> tuple[int, bool] | None:
        """Which run of a supervisor this is, and whether it goes on; ``None``: there is none."""
        tree = self._reactor.state
        if group not in tree.nodes:
            return None
        serving = policy.phase(tree, group) in policy.SERVING
        return (policy.child(tree, group).generation if group else 0), serving

    def _on_forget(self, handle: DeviceHandle, why: str) -> None:
        self._bus.remove(handle)
        if why:
            self._failures[handle.name] = why

    def remove(self, name: str) -> None:
        """Forgets a device or group that is down, failed or finished; gives back what is held for it."""
        self._reactor.step()
        self._must_run()
        why_not = policy.why_not_remove(self._reactor.state, name)
        if why_not:
            raise LocalError(why_not)
        self._reactor.post(RemoveChild(name))
        self._reactor.step()

    def reload(self, config: Config) -> Reloaded:
        """Goes on by another configuration. Raises ``LocalError`` where it cannot; nothing has changed."""
        reactor = self._reactor
        reactor.step()
        self._must_run()
        names = policy.devices_in(reactor.state)
        present = {name: self._seats.seat(name).config for name in names}
        reloaded = compare(present, self._groups, config)
        wanted = {device.name: device for device in config.devices}
        spec = policy_spec(config)
        why_not = policy.why_not_reload(reactor.state, spec) or why_not_fit((present | wanted).values())
        if why_not:
            raise LocalError(why_not)
        self._make_places([wanted[name] for name in reloaded.added if name in wanted])
        for name in reloaded.changed:
            if name not in wanted:
                continue  # a group
            handle = self._seats.seat(name).handle
            self._bus.remove(handle)
            self._seats.replace(wanted[name])
            self._bus.add(handle)
        reactor.post(Reload(spec))
        reactor.step()
        tree = reactor.state
        kept = {name: group for name, group in self._groups.items() if tree.knows(name)}
        self._groups = kept | {group.name: group for group in config.groups}
        return replace(reloaded, left=tuple(name for name in reloaded.left if tree.knows(name)))

    def _make_places(self, devices: Sequence[DeviceConfig]) -> None:
        """Seats for all of ``devices``, or for none of them."""
        made: list[DeviceConfig] = []
        try:
            for device in devices:
                self._bus.add(self._seats.add(device))
                made.append(device)
        except OSError as error:
            for one in made:
                self._seats.forget(one.name, 0)
            raise EnvironmentFault(f"there is no room for {len(devices)} journals: {error}") from error
        for one in made:
            self._seats.seat(one.name).handle.go("it is new and has not been started")

    def which(self, group: str) -> tuple[DeviceStatus, ...]:
        """All children of a group, the newest first."""
        self._reactor.step()  # what is known and not yet decided upon may remove somebody
        children = policy.children(self._tree_with(group), group)
        handles = [None if view.is_group else self._seats.seat(view.name).handle for view in children]
        return tuple(
            DeviceStatus(
                view.name, view.state.value, None if handle is None else handle.pid, is_group=view.is_group
            )
            for view, handle in zip(children, handles, strict=True)
        )

    def count(self, group: str) -> Counts:
        """How many children a group has, and how many of them live."""
        return policy.count(self._tree_with(group), group)

    def spec(self, name: str) -> DeviceConfig:
        """What a device was started with."""
        tree = self._reactor.state
        if not tree.knows(name) or name in tree.nodes:
            raise LocalError(f"not_found: there is no device {name!r}")
        return self._seats.seat(name).config

    def _tree_with(self, group: str) -> Tree:
        tree = self._reactor.state
        if group not in tree.nodes:
            groups = ", ".join(name for name in tree.nodes if name) or "none"
            raise LocalError(f"not_found: there is no group {group!r}; there are {groups}")
        return tree

    def _parse(self, device: str | Mapping[str, Any], group: str) -> DeviceConfig:
        auto_shutdown = self._tree_with(group).nodes[group].plan.spec.auto_shutdown
        known = self._groups.get(group)
        template = None if known is None else known.template
        if template is None:
            return parse_device(device, auto_shutdown=auto_shutdown)
        prefix = template.get("name") or group
        number = self._numbers[prefix] + 1
        while self._reactor.state.knows(f"{prefix}-{number}"):
            number += 1
        template = {**template, "name": f"{prefix}-{number}"}
        parsed = parse_device(device, auto_shutdown=auto_shutdown, template=template)
        if parsed.name == template["name"]:
            self._numbers[prefix] = number  # given once: whoever remembers the last one meets no stranger
        return parsed

    def _check(self, device: DeviceConfig, group: str) -> None:
        self._must_run()
        why_not = policy.why_not_add(self._reactor.state, device.child, group)
        if why_not:
            raise LocalError(why_not)
        mmio = device.mmio
        taken = None if mmio is None else self._bus.taken(mmio.base, mmio.size)
        if mmio is not None and taken is not None:
            addresses = f"{mmio.base:#x}..{mmio.base + mmio.size - 1:#x}"
            raise LocalError(f"device {device.name!r}: {addresses} overlaps what {taken.name!r} has")

    def _must_run(self) -> None:
        phase = policy.phase(self._reactor.state)
        if phase not in policy.SERVING:
            raise LocalError(f"devices come and go while the supervisor runs; it is {phase.value}")

    def _why_failed(self, name: str) -> str:
        """Of a device that has failed, and is still known since a configuration has come to name it."""
        tree = self._reactor.state
        return policy.child(tree, name).why if tree.knows(name) else ""

    def _is_coming(self, name: str) -> bool:
        tree = self._reactor.state
        if self._reactor.outcome is not None or not tree.knows(name):
            return False
        view = policy.child(tree, name)
        coming = view.state is ChildState.WAITING or view.state in ALIVE - {ChildState.READY}
        return view.new and coming


def start_report(headline: str, records: Iterable[Record]) -> str:
    """What went wrong in a start, for people: last words, log lines, reasons."""
    lines = [headline]
    for record in records:
        if isinstance(record, DeviceCrashed):
            if not record.traceback and record.exception in headline:
                continue
            lines.append(f"{record.name}: {record.exception}")
            lines += [f"    {line}" for line in record.traceback.rstrip().splitlines()]
            lines += [f"    log: {line}" for line in record.log if line not in record.traceback]
        elif isinstance(record, DeviceFailed | DeviceKilled) and record.why not in headline:
            lines.append(f"{record.name}: {record.why}")
    return "\n".join(lines)
