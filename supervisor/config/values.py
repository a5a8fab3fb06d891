"""The configuration as frozen values: what everybody else sees of it. Pure, and cheap to import.

Times are nanoseconds, sizes bytes. Names of devices are unique, dependencies are known and free of circles,
address ranges do not overlap: a ``Config`` that exists has been checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from supervisor.policy.spec import AutoShutdown, ChildSpec, OnGiveUp, Strategy, SupervisorSpec

__all__ = [
    "Config",
    "DeviceConfig",
    "GroupConfig",
    "Limits",
    "MachineConfig",
    "Mmio",
    "Supervision",
    "SupervisorOptions",
    "VhostUser",
    "policy_spec",
]


@dataclass(frozen=True, slots=True)
class Supervision:
    """The ``supervisor`` section of a group: how its children are supervised together."""

    strategy: Strategy
    intensity: int
    period_ns: int
    on_give_up: OnGiveUp
    auto_shutdown: AutoShutdown


@dataclass(frozen=True, slots=True)
class SupervisorOptions(Supervision):
    """The outermost ``supervisor`` section. ``preload`` names modules that the zygote imports beforehand."""

    spares: int
    in_process: bool
    preload: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mmio:
    """Where a device's registers are: ``size`` bytes from the guest address ``base``; ``irq`` its line."""

    base: int
    size: int
    irq: int | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of a worker; None leaves the limit as it is inherited."""

    open_files: int | None = None
    data_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class VhostUser:
    """The socket the keeper listens on, relative to ``Config.directory``; empty: one of the board's own.

    ``connect``: the VMM listens there, and the keeper connects.
    """

    socket: str
    connect: bool = False


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """One device. ``device`` is its name as written, ``device_class`` that name as ``module:attribute``."""

    name: str
    device: str
    device_class: str
    options: dict[str, Any]
    mmio: Mmio | None
    child: ChildSpec
    request_timeout_ns: int
    limits: Limits
    poison: int
    on_bad_state: Literal["fail", "fresh"]
    vhost_user: VhostUser | None
    env: dict[str, str] = field(default_factory=dict)
    standby: bool = False
    """A second process is kept ready to take its place."""
    group: str = ""
    """The name of the group it is in; empty: the outermost supervisor."""


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """A group. ``child`` is what the supervisor above is told of it, but for its children."""

    name: str
    group: str
    """The name of the group that it is in itself."""
    supervision: Supervision
    child: ChildSpec
    template: dict[str, Any] | None = None
    """What its devices have in common, as written; for simple_one_for_one."""


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """The machine's class as ``module:attribute`` and the keyword arguments it is built with."""

    machine_class: str
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, read from ``source``; paths in it are relative to ``directory``."""

    name: str
    supervisor: SupervisorOptions
    devices: tuple[DeviceConfig, ...]
    """All devices, those in groups included."""
    machine: MachineConfig | None
    source: str
    directory: str
    groups: tuple[GroupConfig, ...] = ()
    """All groups, each after the one that it is in."""


def policy_spec(config: Config) -> SupervisorSpec:
    """What the policy is told of a configuration."""
    return _supervisor_spec(config, "", config.supervisor)


def _supervisor_spec(config: Config, name: str, options: Supervision) -> SupervisorSpec:
    devices = [device.child for device in config.devices if device.group == name]
    groups = [
        replace(group.child, supervisor=_supervisor_spec(config, group.name, group.supervision))
        for group in config.groups
        if group.group == name
    ]
    return SupervisorSpec(
        strategy=options.strategy,
        intensity=options.intensity,
        period_ns=options.period_ns,
        on_give_up=options.on_give_up,
        auto_shutdown=options.auto_shutdown,
        children=(*devices, *groups),
    )
