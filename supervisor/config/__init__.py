"""The configuration room: one YAML file in, one frozen ``Config`` or every mistake at once out.

Theory. A mistake in a configuration is told as ``file:line:column: path: what is wrong, and what would be
right``; all mistakes are told together, the ones between fields too, whatever single fields are wrong. For
that the text becomes plain data that remembers where everything stands (``document``), the command line is
laid over it (``overrides``), what concerns several fields is checked on it (``checks``, ``modules``), and
only then do the models (``model``) look at the single fields. ``values`` is what the others see. Only
``load`` reads a file; the rest is pure, but for the look at which modules there are.

Importing this package is cheap: pydantic and yaml are loaded by the first call that needs them, because a
program that builds its ``Config`` itself needs neither.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from supervisor.config.values import (
    Config,
    DeviceConfig,
    GroupConfig,
    Limits,
    MachineConfig,
    Mmio,
    Supervision,
    SupervisorOptions,
    VhostUser,
    policy_spec,
)
from supervisor.policy.spec import AutoShutdown

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
    "json_schema",
    "load_config",
    "parse_config",
    "parse_device",
    "policy_spec",
]


def load_config(path: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the file ``path``, with each ``PATH=VALUE`` of ``overrides`` laid over it.

    Raises ConfigError with every finding, sorted by position; also when the file cannot be read.
    """
    from supervisor.config.load import load

    return load(os.fspath(path), overrides)


def parse_config(text: str, *, source: str = "<string>", overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML text; ``source`` is what findings name, paths are relative to here."""
    from supervisor.config.load import parse

    return parse(text, source, os.curdir, "unnamed", overrides)


def parse_device(
    device: str | Mapping[str, Any],
    *,
    source: str = "<device>",
    auto_shutdown: AutoShutdown,
    template: Mapping[str, Any] | None = None,
) -> DeviceConfig:
    """One device, as it would stand under ``devices``: YAML text, or the same as a mapping.

    What it does not say is taken from ``template``, that of a simple_one_for_one group.
    """
    from supervisor.config.load import parse_one_device

    return parse_one_device(device, source, auto_shutdown.value, template)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration file, for editors."""
    from supervisor.config.load import schema

    return schema()
