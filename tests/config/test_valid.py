"""Files that are right: what becomes of them, defaults, scalars, overrides, and the schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.config import (
    Limits,
    MachineConfig,
    Mmio,
    VhostUser,
    json_schema,
    load_config,
    parse_config,
    policy_spec,
)
from supervisor.errors import ConfigError
from supervisor.policy import (
    AutoShutdown,
    BackoffSpec,
    ChildSpec,
    HeartbeatSpec,
    OnGiveUp,
    Restart,
    Strategy,
    SupervisorSpec,
)

MS = 1_000_000
S = 1_000_000_000

EVERYTHING = """\
name: demo
supervisor:
  strategy: rest_for_one
  intensity: 7
  period: 1m
  on_give_up: isolate
  auto_shutdown: any_significant
  spares: 2
  in_process: true
  preload: [json]
devices:
  - name: uart0
    device: json.decoder:JSONDecoder
    options: {seed: 7, deep: {list: [1, 2.5, null, text]}}
    mmio: {base: 0x40002000, size: 0x1000, irq: 2}
    restart: transient
    hello_timeout: 1s
    start_timeout: 1.5s
    stop_timeout: brutal_kill
    request_timeout: 500us
    significant: true
    heartbeat: {every: 1s, timeout: 3s}
    backoff: {first: 1ms, next: 10ms, factor: 3, max: 0s, jitter: 0, healthy_after: 2s}
    limits: {open_files: 256, data: 512MiB}
    poison: 5
    on_bad_state: fresh
    env: {LEVEL: "3"}
  - name: disk-0
    device: json.encoder:JSONEncoder
    depends_on: [uart0]
    stop_timeout: infinity
    mmio: {base: 1073758208, size: 4KiB}
    vhost_user: {socket: run/disk0.sock}
machine: {class: "json.tool:Main", options: {x: 1}}
"""


def test_a_file_that_says_everything_becomes_these_values(tmp_path: Path) -> None:
    """Each key of the schema arrives where it belongs, in nanoseconds and bytes."""
    path = tmp_path / "board.yaml"
    path.write_text(EVERYTHING)
    config = load_config(path)
    assert (config.name, config.source, config.directory) == ("demo", str(path), str(tmp_path))
    assert config.supervisor.spares == 2
    assert config.supervisor.in_process is True
    assert config.supervisor.preload == ("json",)
    uart, disk = config.devices
    assert uart.device_class == uart.device == "json.decoder:JSONDecoder"
    assert uart.options == {"seed": 7, "deep": {"list": [1, 2.5, None, "text"]}}
    assert uart.mmio == Mmio(0x40002000, 0x1000, 2)
    assert uart.request_timeout_ns == 500_000
    assert uart.limits == Limits(256, 512 << 20)
    assert (uart.poison, uart.on_bad_state, uart.env) == (5, "fresh", {"LEVEL": "3"})
    assert disk.mmio == Mmio(0x40004000, 4096, None)
    assert disk.vhost_user == VhostUser("run/disk0.sock")
    assert config.machine == MachineConfig("json.tool:Main", {"x": 1})
    assert policy_spec(config) == SupervisorSpec(
        strategy=Strategy.REST_FOR_ONE,
        intensity=7,
        period_ns=60 * S,
        on_give_up=OnGiveUp.ISOLATE,
        auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
        children=(
            ChildSpec(
                "uart0",
                restart=Restart.TRANSIENT,
                hello_timeout_ns=S,
                start_timeout_ns=1500 * MS,
                stop_timeout_ns=0,
                significant=True,
                heartbeat=HeartbeatSpec(S, 3 * S),
                backoff=BackoffSpec(MS, 10 * MS, 3.0, 0, 0.0, 2 * S),
            ),
            ChildSpec("disk-0", depends_on=("uart0",), stop_timeout_ns=None),
        ),
    )


def test_an_empty_file_is_a_supervisor_of_nothing_with_the_defaults(tmp_path: Path) -> None:
    """Every key has a default, and they are the policy's own."""
    path = tmp_path / "nothing.yaml"
    path.write_text("# nothing\n")
    config = load_config(path)
    assert config.name == "nothing"
    assert config.devices == ()
    assert config.machine is None
    assert policy_spec(config) == SupervisorSpec()


def test_a_device_of_two_keys_has_the_defaults_of_the_policy() -> None:
    """The defaults of file and policy cannot drift apart."""
    config = parse_config("devices: [{name: a, device: 'json.decoder:X'}]")
    (device,) = config.devices
    assert device.child == ChildSpec("a")
    assert (device.request_timeout_ns, device.poison, device.on_bad_state) == (5 * S, 3, "fail")
    assert (device.options, device.env, device.limits) == ({}, {}, Limits())


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-5", -5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("NO", "NO"),
        ("on", "on"),
        ("yes", "yes"),
        ("12:30:45", "12:30:45"),
        ("2001-01-01", "2001-01-01"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("<<", "<<"),
    ],
)
def test_a_scalar_is_what_yaml_1_2_says(written: str, value: object) -> None:
    """The core schema of YAML 1.2, not what PyYAML makes of version 1.1."""
    config = parse_config(f"devices: [{{name: a, device: 'json.decoder:X', options: {{x: {written}}}}}]")
    found = config.devices[0].options["x"]
    assert found == value
    assert type(found) is type(value)


def test_an_override_replaces_makes_and_reaches_by_name_and_number() -> None:
    """Values are YAML, sections that are missing are made, and later ones see earlier ones."""
    config = parse_config(
        "devices: [{name: a, device: 'json.decoder:X', options: {seed: 1}}]",
        overrides=[
            "supervisor.in_process=true",
            "devices.a.options.seed=7",
            "devices.0.options.more.x=[1, {y: 2}]",
            "devices.a.stop_timeout=infinity",
            "devices.a.name=b",
            "devices.b.env.A='1'",
        ],
    )
    (device,) = config.devices
    assert config.supervisor.in_process is True
    assert device.name == "b"
    assert device.options == {"seed": 7, "more": {"x": [1, {"y": 2}]}}
    assert device.child.stop_timeout_ns is None
    assert device.env == {"A": "1"}


def test_an_override_of_a_wrong_value_makes_the_file_right() -> None:
    """What is replaced is not complained about."""
    assert parse_config("supervisor: {intensity: many}", overrides=["supervisor.intensity=1"]).devices == ()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("a", "--set a: must be PATH=VALUE, such as supervisor.in_process=true"),
        ("a..b=1", "--set a..b=1: must be PATH=VALUE, such as supervisor.in_process=true"),
        (
            "devices.b.poison=1",
            "--set devices.b.poison=1: devices has no 'b'; there are uart0",
        ),
        (
            "devices.uart.poison=1",
            "--set devices.uart.poison=1: devices has no 'uart'; did you mean 'uart0'?",
        ),
        ("name.x=1", "--set name.x=1: name holds nothing that could be set by name"),
        (
            "supervisor.intensity=x",
            "--set supervisor.intensity=x: supervisor.intensity: must be an integer, not 'x'",
        ),
        ("superviso.x=1", "--set superviso.x=1: superviso: unknown key; did you mean 'supervisor'?"),
        (
            "devices.uart0.mmio={base: 0}",
            "--set devices.uart0.mmio={base: 0}: devices.uart0.mmio.size: is missing",
        ),
        (
            "name=[1",
            "--set name=[1: not valid YAML: did not find expected ',' or ']' (while parsing a flow sequence)",
        ),
    ],
)
def test_a_wrong_override_is_blamed_on_its_set(override: str, line: str) -> None:
    """The position of what an override broke is the override."""
    text = "name: x\ndevices: [{name: uart0, device: 'json.decoder:X'}]"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides=[override])
    assert caught.value.findings == [line]


def test_findings_of_overrides_come_after_those_of_the_file() -> None:
    """In the order of the command line."""
    with pytest.raises(ConfigError) as caught:
        parse_config("zzz: 1", source="x", overrides=["yyy=1", "xxx=1"])
    assert [line.split(": ")[0] for line in caught.value.findings] == ["x:1:1", "--set yyy=1", "--set xxx=1"]


def test_importing_the_room_loads_neither_pydantic_nor_yaml() -> None:
    """A program that builds its Config itself does not pay for what reads files."""
    code = "import sys, supervisor.config; print([m for m in ('pydantic', 'yaml') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == "[]"


# A few lines of JSON Schema, enough for what pydantic writes; a real validator is not worth a dependency.


def _accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    if "$ref" in schema:
        return _accepts(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], value, root)
    if "anyOf" in schema:
        return any(_accepts(one, value, root) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    match schema.get("type"):
        case "object" if isinstance(value, dict):
            known = schema.get("properties", {})
            more = schema.get("additionalProperties", True)
            if set(schema.get("required", [])) - set(value):
                return False
            if more is False and set(value) - set(known):
                return False
            inner = [known.get(key, more if isinstance(more, dict) else {}) for key in value]
            return all(_accepts(one, part, root) for one, part in zip(inner, value.values(), strict=True))
        case "array":
            return isinstance(value, list) and all(_accepts(schema["items"], one, root) for one in value)
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case None:
            return True
    return False


def test_the_schema_accepts_what_the_loader_accepts_and_no_unknown_key() -> None:
    """The file with every key in it fits; keys are written as in YAML; typos and wrong types do not fit."""
    import yaml

    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    board = yaml.safe_load(EVERYTHING)
    assert _accepts(schema, board, schema)
    assert not _accepts(schema, {**board, "nmae": "x"}, schema)
    assert not _accepts(schema, {**board, "machine": {"class_": "a:B"}}, schema)
    assert not _accepts(schema, {"devices": [{"name": "a", "device": "a:B", "poison": "x"}]}, schema)


def test_the_schema_describes_durations_as_they_are_written() -> None:
    """Editors see strings with units, not our nanoseconds, in defaults too."""
    schema = json_schema()
    start_timeout = schema["$defs"]["DeviceSection"]["properties"]["start_timeout"]
    assert start_timeout["type"] == "string"
    assert start_timeout["default"] == "5s"
