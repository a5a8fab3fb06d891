"""The shape of a configuration as pydantic models: types, bounds and defaults of single fields.

What needs more than one field is in ``checks``; what pydantic reports is put into our words in ``load``. The
JSON Schema for editors comes from these models, so they say what is written in YAML, while the values that
they yield are already nanoseconds and bytes.

Only ``load`` imports this module, and only when there is something to load: importing pydantic takes longer
than everything else the supervisor does before its first fork.
"""

from __future__ import annotations

import signal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from supervisor.config.units import parse_duration_ns, parse_size_bytes

__all__ = ["DURATION_PATTERN", "NAME_PATTERN", "POSITIVE_PATTERN", "SIZE_PATTERN", "Root"]

NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_-]*$"
"""No dots: they separate the parts of a --set path. No slashes or blanks: names become those of files."""

DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(ns|us|ms|s|m|h)$"
POSITIVE_PATTERN = r"^(?=[0.]*[1-9])[0-9]+(\.[0-9]+)? ?(ns|us|ms|s|m|h)$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(B|[KMGT]iB)$"

_DURATION_SCHEMA = {"type": "string", "pattern": DURATION_PATTERN, "examples": ["150ms"]}
_POSITIVE_SCHEMA = {**_DURATION_SCHEMA, "pattern": POSITIVE_PATTERN}
_SIZE_SCHEMA = {"type": "string", "pattern": SIZE_PATTERN, "examples": ["512MiB"]}


def _positive(duration_ns: int) -> int:
    if duration_ns == 0:
        raise ValueError("must be longer than 0s")
    return duration_ns


def _stop_timeout_ns(value: object) -> int | None:
    if value == "infinity":
        return None
    if value == "brutal_kill":
        return 0
    try:
        return _positive(parse_duration_ns(value))
    except ValueError as error:
        raise ValueError(f"{error}; or brutal_kill, infinity") from None


def _bytes(value: object) -> object:
    return parse_size_bytes(value) if isinstance(value, str) else value


def _exit_status(value: object) -> object:
    """An exit code as it is, a signal's name as its number made negative."""
    if not isinstance(value, str):
        return value
    number = signal.Signals.__members__.get(value)
    if number is None:
        raise ValueError("must be an exit code (0 to 255) or the name of a signal such as SIGTERM")
    return -int(number)


def _positive_duration_ns(value: object) -> int:
    return _positive(parse_duration_ns(value))


DurationNs = Annotated[int, BeforeValidator(parse_duration_ns), WithJsonSchema(_DURATION_SCHEMA)]
PositiveNs = Annotated[int, BeforeValidator(_positive_duration_ns), WithJsonSchema(_POSITIVE_SCHEMA)]
StopTimeoutNs = Annotated[
    int | None,
    BeforeValidator(_stop_timeout_ns),
    WithJsonSchema({"anyOf": [{"enum": ["brutal_kill", "infinity"]}, _POSITIVE_SCHEMA]}),
]
SizeBytes = Annotated[int, BeforeValidator(parse_size_bytes), WithJsonSchema(_SIZE_SCHEMA)]
RangeBytes = Annotated[
    int,
    BeforeValidator(_bytes),
    Field(ge=1, le=1 << 64),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _SIZE_SCHEMA]}),
]
ExitStatus = Annotated[
    int,
    BeforeValidator(_exit_status),
    Field(ge=-64, le=255),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 255}, {"pattern": "^SIG"}]}),
]


def _written(default: str, description: str | None = None) -> Any:
    """A default as it is written in YAML; pydantic validates it, so its type is that of the field."""
    return Field(default, description=description)


class _Section(BaseModel):
    # Defaults are validated so that they can be written as in YAML, which is how the schema shows them.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True
    )


class GroupSupervisor(_Section):
    """How the devices of a group are supervised together."""

    strategy: Literal["one_for_one", "one_for_all", "rest_for_one", "simple_one_for_one"] = Field(
        "one_for_one",
        description="Which siblings restart together; simple_one_for_one: devices of one template.",
    )
    intensity: int = Field(5, ge=0, description="How many restarts within `period` are allowed.")
    period: PositiveNs = _written("10s", "The sliding window in which restarts are counted.")
    on_give_up: Literal["stop", "isolate"] = Field(
        "stop", description="Over budget: stop every device, or mark the one device failed and carry on."
    )
    auto_shutdown: Literal["never", "any_significant", "all_significant"] = Field(
        "never", description="Whether the end of significant devices ends the supervisor."
    )


class Supervisor(GroupSupervisor):
    """How the devices are supervised together."""

    strategy: Literal["one_for_one", "one_for_all", "rest_for_one"] = Field(
        "one_for_one", description="Which siblings restart together with a device that died."
    )
    spares: int = Field(1, ge=0, le=256, description="Worker processes kept forked in advance.")
    in_process: bool = Field(False, description="Run devices inside the supervisor: for debugging only.")
    preload: list[str] = Field([], description="Modules that are imported before workers are forked.")


class MmioSection(_Section):
    """Where the device's registers are in the guest's address space."""

    base: int = Field(ge=0, lt=1 << 64, description="The first guest address.")
    size: RangeBytes = Field(description="Bytes, as a number or with a unit.")
    irq: int | None = Field(None, ge=0, description="The interrupt line of the machine.")


class Heartbeat(_Section):
    """A worker that is silent for `timeout` is killed. Off unless given."""

    every: PositiveNs = Field(description="How often a worker that serves shows that it is alive.")
    timeout: PositiveNs = Field(description="Longer than `every`; past it the worker is killed.")


class Backoff(_Section):
    """How long a restart waits."""

    first: DurationNs = _written("0s", "Before the first restart.")
    next: DurationNs = _written("10ms", "Before the second; then times `factor` each.")
    factor: float = Field(2.0, ge=1, le=1000, description="How much longer than the one before each wait is.")
    max: DurationNs = _written("30s", "Never longer than this; 0s switches the delay off.")
    jitter: float = Field(0.1, ge=0, le=1, description="The part of the delay that chance may take away.")
    healthy_after: DurationNs = _written("1s", "Back to `first` after running this long.")


class ExitCodes(_Section):
    """What the way a process ended says: exit codes, or names of signals such as SIGTERM."""

    clean: list[ExitStatus] = Field([0], description="A clean end: a transient device is not restarted.")
    force_restart: list[ExitStatus] = Field([], description="Restarted, whatever `restart` says.")
    prevent_restart: list[ExitStatus] = Field([], description="Not restarted; failed if not clean as well.")


class LimitsSection(_Section):
    """Resource limits of the worker."""

    open_files: int | None = Field(None, ge=16, description="RLIMIT_NOFILE.")
    data: SizeBytes | None = Field(None, description="RLIMIT_DATA; guest memory is not charged to it.")


class VhostUserSection(_Section):
    """The device is a virtio device, served to a VMM over vhost-user."""

    socket: str = Field(
        "", description="The socket's path, relative to this file; empty: a private one, for the machine."
    )
    connect: bool = Field(False, description="The VMM listens there (server=on), and we connect.")


class DeviceSection(_Section):
    """One device."""

    name: str = Field(pattern=NAME_PATTERN, max_length=64, description="Unique in the configuration.")
    device: str = Field(description="A built-in name such as nrf51.uart, or package.module:Class.")
    options: dict[str, Any] = Field({}, description="The device's own options.")
    mmio: MmioSection | None = None
    restart: Literal["permanent", "transient", "temporary"] = Field(
        "permanent", description="Restarted always, after unclean ends, or never."
    )
    depends_on: list[str] = Field([], description="Devices that must be ready before this one starts.")
    hello_timeout: PositiveNs = _written("5s", "From the fork until the process speaks.")
    start_timeout: PositiveNs = _written("5s", "From then until the device is ready.")
    exit_codes: ExitCodes = Field(default_factory=lambda: ExitCodes.model_validate({}))
    stop_timeout: StopTimeoutNs = _written("2s", "Killed after this; or brutal_kill, infinity.")
    request_timeout: PositiveNs = _written("5s", "A request that takes longer is a stuck worker.")
    significant: bool = Field(False, description="Its end may end the supervisor, see auto_shutdown.")
    heartbeat: Heartbeat | None = None
    backoff: Backoff = Field(default_factory=lambda: Backoff.model_validate({}))
    limits: LimitsSection = Field(default_factory=lambda: LimitsSection.model_validate({}))
    poison: int = Field(3, ge=1, description="A request that was at work in so many deaths is dropped.")
    on_bad_state: Literal["fail", "fresh"] = Field(
        "fail", description="When the saved state is refused: fail the device, or start it afresh."
    )
    vhost_user: VhostUserSection | None = None
    standby: bool = Field(False, description="A second process is kept ready to take the device's place.")
    env: dict[str, str] = Field({}, description="Environment variables of the worker.")


class TemplateSection(DeviceSection):
    """What the devices of a simple_one_for_one group have in common."""

    name: str | None = Field(  # type: ignore[assignment]  # each device that is added has one
        None,
        pattern=NAME_PATTERN,
        max_length=48,
        description="What names begin with: the group's if not given.",
    )


class GroupSection(_Section):
    """A supervisor of its own for some of the devices: it is started, stopped and restarted like a device."""

    name: str = Field(pattern=NAME_PATTERN, max_length=64, description="Unique among all devices and groups.")
    supervisor: GroupSupervisor = Field(default_factory=lambda: GroupSupervisor.model_validate({}))
    restart: Literal["permanent", "transient", "temporary"] = Field(
        "permanent", description="Whether the group is restarted when it has given up or shut itself down."
    )
    depends_on: list[str] = Field([], description="Devices and groups beside it that must be ready before.")
    stop_timeout: StopTimeoutNs = _written("infinity", "What is left of the group is killed after this.")
    significant: bool = Field(False, description="Its end may end the supervisor above, see auto_shutdown.")
    backoff: Backoff = Field(default_factory=lambda: Backoff.model_validate({}))
    template: TemplateSection | None = Field(
        None, description="What devices that are added have in common; for simple_one_for_one alone."
    )
    devices: list[DeviceSection] = Field([], description="In start order.")
    groups: list[GroupSection] = Field([], description="In start order, after the devices.")


class MachineSection(_Section):
    """The emulator or VMM whose main loop uses the devices."""

    class_: str = Field(alias="class", description="package.module:Class")
    options: dict[str, Any] = Field({}, description="Keyword arguments for the class.")


class Root(_Section):
    """A tubevisor configuration."""

    name: str | None = Field(None, min_length=1, description="Shown to people; the file's name by default.")
    supervisor: Supervisor = Field(default_factory=lambda: Supervisor.model_validate({}))
    devices: list[DeviceSection] = Field([], description="In start order.")
    groups: list[GroupSection] = Field([], description="In start order, after the devices.")
    machine: MachineSection | None = None
