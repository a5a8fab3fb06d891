"""Another configuration for a running supervisor: OTP's code_change, for boards.

What is asked here is what has changed, and whether the board can go on by it. Nothing is started, stopped or
replaced: a changed device keeps its process and is what the new configuration says from its next process on
(the limits of requests count at once); a new one is down until it is started; one that is missing goes on as
it is until it is stopped and removed. What is refused changes nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supervisor.config import Config, DeviceConfig
from supervisor.errors import LocalError

__all__ = ["Reloaded", "compare", "why_not_fit"]


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What another configuration means to the devices: their names, in its order.

    ``added`` are down, ``changed`` will be what it says from their next process on, ``left`` are no longer in
    it and go on as they are.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    left: tuple[str, ...]


def compare(present: Mapping[str, DeviceConfig], config: Config) -> Reloaded:
    """What differs between the devices that are there and those that ``config`` lists."""
    wanted = {device.name: device for device in config.devices}
    for name, device in wanted.items():
        if name in present and present[name].group != device.group:
            there, here = _called(present[name].group), _called(device.group)
            raise LocalError(f"{name!r} cannot move from {there} to {here}; stop and remove it first")
    return Reloaded(
        added=tuple(name for name in wanted if name not in present),
        changed=tuple(name for name in wanted if name in present and wanted[name] != present[name]),
        left=tuple(name for name in present if name not in wanted),
    )


def why_not_fit(devices: Iterable[DeviceConfig]) -> str:
    """Which two devices claim the same addresses; empty if none do."""
    highest: DeviceConfig | None = None
    mapped = [device for device in devices if device.mmio is not None]
    for device in sorted(mapped, key=_base):
        if highest is not None and _base(device) < _end(highest):
            return f"device {device.name!r}: {_base(device):#x} is within what {highest.name!r} has"
        if highest is None or _end(device) > _end(highest):
            highest = device
    return ""


def _called(group: str) -> str:
    return f"group {group!r}" if group else "no group"


def _base(device: DeviceConfig) -> int:
    return 0 if device.mmio is None else device.mmio.base


def _end(device: DeviceConfig) -> int:
    return 0 if device.mmio is None else device.mmio.base + device.mmio.size
