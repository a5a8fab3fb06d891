"""The public door. Lazy: a worker that takes ``Device`` through it loads neither host nor config."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supervisor.config import load_config as load_config
    from supervisor.device import Device as Device
    from supervisor.device import Ignore as Ignore
    from supervisor.host import Supervisor as Supervisor

_DOORS = {
    "Device": "supervisor.device",
    "Ignore": "supervisor.device",
    "Supervisor": "supervisor.host",
    "load_config": "supervisor.config",
}

__all__ = ["Device", "Ignore", "Supervisor", "load_config"]


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_DOORS[name]), name)
    globals()[name] = value
    return value
