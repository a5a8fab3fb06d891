"""From text to ``Config``: read, override, check, validate, build; and every finding at once.

Nothing stops at the first mistake. Reading notes its findings and goes on, the checks between fields run on
whatever was read, and the models look at all fields. Only when nobody has found anything is a ``Config``
made, so making it cannot fail any more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from supervisor.config.checks import check_document
from supervisor.config.document import Document, Path, read_document
from supervisor.config.model import Backoff, DeviceSection, GroupSection, MmioSection, Root
from supervisor.config.modules import close_to, resolve_device
from supervisor.config.overrides import apply_overrides
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
)
from supervisor.errors import ConfigError
from supervisor.policy.spec import (
    AutoShutdown,
    BackoffSpec,
    ChildSpec,
    HeartbeatSpec,
    OnGiveUp,
    Restart,
    Strategy,
)

__all__ = ["load", "parse", "parse_one_device", "schema"]


def load(path: str, overrides: Sequence[str]) -> Config:
    """Reads a file; ConfigError with every finding if it, or anything in it, is wrong."""
    try:
        text = FilePath(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{path}:1:1: cannot be read: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        raise ConfigError([f"{path}:{line}:{column}: is not UTF-8 text: {error.reason}"]) from error
    except ValueError as error:  # a path that cannot be one
        raise ConfigError([f"{path!r}:1:1: cannot be read: {error}"]) from error
    return parse(text, path, str(FilePath(path).absolute().parent), FilePath(path).stem, overrides)


def parse(text: str, source: str, directory: str, stem: str, overrides: Sequence[str]) -> Config:
    """Makes a Config of YAML text; ``stem`` is its name if it has none."""
    document = read_document(text, source)
    broken = bool(document.findings) and document.data is None
    if document.data is None and not broken:
        document.data = {}
    root = None
    if not broken:
        apply_overrides(document, tuple(overrides))
        check_document(document)
        root = _validate(document)
    if document.findings or root is None:
        raise ConfigError([str(finding) for finding in sorted(set(document.findings))])
    return _build(root, document.data, source, directory, stem)


def parse_one_device(
    device: str | Mapping[str, Any], source: str, auto_shutdown: str, template: Mapping[str, Any] | None
) -> DeviceConfig:
    """Makes a DeviceConfig of one entry of ``devices``, for a supervisor with this ``auto_shutdown``.

    What the entry does not say is taken from ``template``; options are taken one by one. Whether what it
    depends on is there is not looked at: that is the running board's to say.
    """
    if isinstance(device, str):
        inner = read_document(device, source)
    else:
        inner = Document(source, copy.deepcopy(dict(device)))
    if template is not None and isinstance(inner.data, dict | None):
        inner.data = _from_template(template, inner.data or {})
    if inner.findings:
        raise ConfigError([str(finding) for finding in sorted(set(inner.findings))])
    top: Path = ("devices", 0)
    entry = {} if inner.data is None else inner.data
    document = Document(source, {"supervisor": {"auto_shutdown": auto_shutdown}, "devices": [entry]})
    document.values = {(*top, *path): place for path, place in inner.values.items()}
    document.keys = {(*top, *path): place for path, place in inner.keys.items()}
    depends_on = entry.pop("depends_on", None) if isinstance(entry, dict) else None
    check_document(document)
    if depends_on is not None:
        entry["depends_on"] = depends_on
    root = _validate(document)
    if document.findings or root is None:
        raise ConfigError([str(finding) for finding in sorted(set(document.findings))])
    return _build_device(root.devices[0])


def _from_template(template: Mapping[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    merged = {**copy.deepcopy(dict(template)), **entry}
    options, own = template.get("options"), entry.get("options")
    if isinstance(options, dict) and isinstance(own, dict):
        merged["options"] = {**copy.deepcopy(options), **own}
    return merged


def schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Root.model_json_schema()}


def _validate(document: Document) -> Root | None:
    try:
        return Root.model_validate(document.data)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["loc"] in document.refused:
                continue
            _find_in_our_words(document, detail["loc"], detail["type"], detail)
        return None


_MUST_BE = {
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}


def _find_in_our_words(document: Document, path: Path, kind: str, detail: Any) -> None:
    context: dict[str, Any] = detail.get("ctx", {})
    value = detail["input"]
    if kind == "missing":
        document.find(path, "is missing")
    elif kind == "extra_forbidden":
        names = _names_at(path[:-1])
        hint = close_to(str(path[-1]), names) or f"; there are {', '.join(names)}"
        document.find(path, f"unknown key{hint}", key=True)
    elif kind in _MUST_BE:
        quote = "; quote it" if kind == "string_type" and isinstance(value, int | float) else ""
        document.find(path, f"{_MUST_BE[kind]}, not {_shown(value)}{quote}")
    elif kind == "literal_error":
        words = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        document.find(path, f"must be one of {', '.join(words)}, not {_shown(value)}{_close(value, words)}")
    elif kind == "value_error":
        document.find(path, str(context["error"]))
    elif kind == "string_pattern_mismatch":
        document.find(
            path, f"must be letters, digits, _ and -, not starting with a digit, not {_shown(value)}"
        )
    else:
        message = detail["msg"].replace("Input should", "must").replace("String should", "must")
        document.find(path, f"{message}, not {_shown(value)}")


def _close(value: Any, words: list[str]) -> str:
    return close_to(value, words) if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _names_at(path: Path) -> list[str]:
    """The keys that the models know at ``path``, as they are written."""
    model: type[BaseModel] = Root
    for part in path:
        if isinstance(part, int):
            continue
        for name, field in list(model.model_fields.items()):
            if (field.alias or name) == part:
                model = _model_in(field.annotation) or model
                break
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)


def _build(root: Root, data: dict[str, Any], source: str, directory: str, stem: str) -> Config:
    options = root.supervisor
    machine = root.machine
    return Config(
        name=root.name or stem,
        supervisor=SupervisorOptions(
            strategy=Strategy(options.strategy),
            intensity=options.intensity,
            period_ns=options.period,
            on_give_up=OnGiveUp(options.on_give_up),
            auto_shutdown=AutoShutdown(options.auto_shutdown),
            spares=options.spares,
            in_process=options.in_process,
            preload=tuple(options.preload),
        ),
        devices=tuple(_build_device(section, group) for section, group in _devices_in(root)),
        machine=None if machine is None else MachineConfig(machine.class_, machine.options),
        source=source,
        directory=directory,
        groups=tuple(_build_group(section, group, data) for section, group, data in _groups_in(root, data)),
    )


def _devices_in(section: Root | GroupSection, group: str = "") -> Iterator[tuple[DeviceSection, str]]:
    """Every device with the name of its group, in start order but for what depends_on changes."""
    for device in section.devices:
        yield device, group
    for inner in section.groups:
        yield from _devices_in(inner, inner.name)


def _groups_in(
    section: Root | GroupSection, data: dict[str, Any], group: str = ""
) -> Iterator[tuple[GroupSection, str, dict[str, Any]]]:
    """Every group with the name of the one that it is in, and as it is written."""
    for inner, written in zip(section.groups, data.get("groups", ()), strict=True):
        yield inner, group, written
        yield from _groups_in(inner, written, inner.name)


def _build_group(section: GroupSection, group: str, data: dict[str, Any]) -> GroupConfig:
    options = section.supervisor
    return GroupConfig(
        name=section.name,
        group=group,
        supervision=Supervision(
            strategy=Strategy(options.strategy),
            intensity=options.intensity,
            period_ns=options.period,
            on_give_up=OnGiveUp(options.on_give_up),
            auto_shutdown=AutoShutdown(options.auto_shutdown),
        ),
        child=ChildSpec(
            name=section.name,
            restart=Restart(section.restart),
            depends_on=tuple(dict.fromkeys(section.depends_on)),
            stop_timeout_ns=section.stop_timeout,
            significant=section.significant,
            backoff=_build_backoff(section.backoff),
        ),
        template=None if section.template is None else copy.deepcopy(data["template"]),
    )


def _build_device(section: DeviceSection, group: str = "") -> DeviceConfig:
    vhost_user = section.vhost_user
    return DeviceConfig(
        name=section.name,
        device=section.device,
        device_class=resolve_device(section.device),
        options=section.options,
        mmio=_build_mmio(section.mmio),
        child=_build_child(section),
        request_timeout_ns=section.request_timeout,
        limits=Limits(section.limits.open_files, section.limits.data),
        poison=section.poison,
        on_bad_state=section.on_bad_state,
        vhost_user=None if vhost_user is None else VhostUser(vhost_user.socket, vhost_user.connect),
        env=section.env,
        standby=section.standby,
        group=group,
    )


def _build_mmio(section: MmioSection | None) -> Mmio | None:
    return None if section is None else Mmio(section.base, section.size, section.irq)


def _build_child(section: DeviceSection) -> ChildSpec:
    heartbeat = section.heartbeat
    codes = section.exit_codes
    return ChildSpec(
        name=section.name,
        restart=Restart(section.restart),
        depends_on=tuple(dict.fromkeys(section.depends_on)),
        hello_timeout_ns=section.hello_timeout,
        start_timeout_ns=section.start_timeout,
        stop_timeout_ns=section.stop_timeout,
        significant=section.significant,
        heartbeat=None if heartbeat is None else HeartbeatSpec(heartbeat.every, heartbeat.timeout),
        backoff=_build_backoff(section.backoff),
        clean_exit_codes=frozenset(codes.clean),
        force_restart=frozenset(codes.force_restart),
        prevent_restart=frozenset(codes.prevent_restart),
    )


def _build_backoff(section: Backoff) -> BackoffSpec:
    return BackoffSpec(
        first_ns=section.first,
        next_ns=section.next,
        factor=section.factor,
        max_ns=section.max,
        jitter=section.jitter,
        healthy_after_ns=section.healthy_after,
    )
