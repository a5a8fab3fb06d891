"""The exception tree: one root, and under it the five answers to "whose fault is it?".

    TubevisorError
    ├── LocalError        our caller asked for something that cannot be (also a ValueError)
    │   └── ConfigError       the configuration; carries every finding at once
    ├── PeerError         the other side of a Tube broke the contract or went away
    ├── DeviceFault       a request has no answer, and never will have one
    │   ├── DeviceError       the device itself failed on this very request, again and again
    │   ├── DeviceGone        the device is stopped or has been given up
    │   └── RequestTimeout    the device was stuck; the request took no effect
    ├── EnvironmentFault  the operating system refused (the OSError is the __cause__)
    └── InternalError     a defect of ours

Closed means that we closed it, Broken that they went. An OSError is always chained, never turned into text.
The Tube's own errors hang below these in ``supervisor.tube``.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DeviceError",
    "DeviceFault",
    "DeviceGone",
    "EnvironmentFault",
    "InternalError",
    "LocalError",
    "PeerError",
    "RequestTimeout",
    "StartFailed",
    "TubevisorError",
]


class TubevisorError(Exception):
    """Root of everything this project raises on purpose."""


class LocalError(TubevisorError, ValueError):
    """The caller asked for something that cannot be; nothing was changed."""


class ConfigError(LocalError):
    """A configuration is wrong. ``findings`` holds every finding, each a line ``file:line:column: ...``."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


class PeerError(TubevisorError):
    """The process at the other end of a Tube broke the contract or went away."""


class DeviceFault(TubevisorError):
    """A request to a device has no answer. Never carries a made-up value."""


class DeviceError(DeviceFault):
    """The device failed on this very request as often as its poison limit allows; the request was dropped."""


class DeviceGone(DeviceFault):
    """The device is stopped, or its restart budget is spent."""


class RequestTimeout(DeviceFault):
    """The device did not answer within ``request_timeout``; it was killed and the request took no effect."""


class StartFailed(TubevisorError):
    """A start failed: the first one of all devices, and everything that had been started is stopped again;
    or that of a device that was to be added, and nothing is left of it.
    """


class EnvironmentFault(TubevisorError):
    """The operating system refused. The ``OSError`` is the cause."""


class InternalError(TubevisorError):
    """A defect of the supervisor itself."""
