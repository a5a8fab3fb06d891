"""Another configuration for a running supervisor: OTP's code_change, for boards.

What is asked here is what has changed, and whether the board can go on by it. Nothing is started, stopped or
replaced: a changed device keeps its process and is what the new configuration says from its next process on
(the limits of requests count at once); a new one is down until it is started; one that is missing goes on as
it is until it is stopped and removed, or its group starts afresh. What is refused changes nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supervisor.config import Config, DeviceConfig, GroupConfig

__all__ = ["Reloaded", "compare", "why_not_fit"]


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What another configuration means to devices and groups: their names, in its order.

    ``added`` are down, ``changed`` will be what it says from their next process on, ``left`` are no longer in
    it and go on as they are, until they are removed or their group starts afresh.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    left: tuple[str, ...]


def compare(
    present: Mapping[str, DeviceConfig], groups: Mapping[str, GroupConfig], config: Config
) -> Reloaded:
    """What differs between the devices and groups that are there and those that ``config`` lists."""
    there: dict[str, DeviceConfig | GroupConfig] = {**present, **groups}
    wanted: dict[str, DeviceConfig | GroupConfig] = {device.name: device for device in config.devices}
    wanted |= {group.name: group for group in config.groups}
    return Reloaded(
        added=tuple(name for name in wanted if name not in there),
        changed=tuple(name for name in wanted if name in there and wanted[name] != there[name]),
        left=tuple(name for name in there if name not in wanted),
    )


def why_not_fit(devices: Iterable[DeviceConfig]) -> str:
    """Which two devices claim the same addresses; empty if none do."""
    mapped = sorted((_range(device), device.name) for device in devices if device.mmio is not None)
    highest, owner = 0, ""
    for (base, end), name in mapped:
        if base < highest:
            return f"device {name!r}: {base:#x} is within what {owner!r} has"
        if end > highest:
            highest, owner = end, name
    return ""


def _range(device: DeviceConfig) -> tuple[int, int]:
    mmio = device.mmio
    return (0, 0) if mmio is None else (mmio.base, mmio.base + mmio.size)
