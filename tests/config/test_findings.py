"""Each kind of mistake, with the exact line that tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.config import load_config, parse_config
from supervisor.errors import ConfigError

DEVICE = "json.decoder:JSONDecoder"  # a module that is always there; nothing imports it here


def findings(text: str, *overrides: str) -> list[str]:
    """What is wrong with ``text``, each finding without its ``file:``."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="x.yaml", overrides=overrides)
    return [line.removeprefix("x.yaml:") for line in caught.value.findings]


def devices(*bodies: str) -> str:
    """A configuration of devices a, b, ... each on a line of its own, from line 2 on."""
    lines = [
        f"- {{name: {name}, device: '{DEVICE}'{', ' * bool(body)}{body}}}"
        for name, body in zip("abcdef", bodies, strict=False)
    ]
    return "devices:\n" + "\n".join(lines)


ONE_LINE = [
    # unknown keys
    ("supervisr: {}", "1:1: supervisr: unknown key; did you mean 'supervisor'?"),
    (
        "name: x\nqqq: 1",
        "2:1: qqq: unknown key; there are name, supervisor, devices, groups, machine",
    ),
    (
        "supervisor: {spares: 1, intensty: 3}",
        "1:25: supervisor.intensty: unknown key; did you mean 'intensity'?",
    ),
    (
        "supervisor:\n  backoff: {}",
        "2:3: supervisor.backoff: unknown key; there are strategy, intensity, period, on_give_up, "
        "auto_shutdown, spares, in_process, preload",
    ),
    (
        devices("mmio: {base: 0, size: 1, irk: 2}"),
        "2:74: devices.a.mmio.irk: unknown key; did you mean 'irq'?",
    ),
    # types
    ("[]", "1:1: must be a mapping, not a list"),
    ("hello", "1:1: must be a mapping, not 'hello'"),
    ("devices: 7", "1:10: devices: must be a list, not 7"),
    ("devices: [7]", "1:11: devices.0: must be a mapping, not 7"),
    ("name: 7", "1:7: name: must be a string, not 7; quote it"),
    ("supervisor: {in_process: yes}", "1:26: supervisor.in_process: must be true or false, not 'yes'"),
    ("supervisor: {intensity: '5'}", "1:25: supervisor.intensity: must be an integer, not '5'"),
    ("supervisor: {intensity: true}", "1:25: supervisor.intensity: must be an integer, not true"),
    ("supervisor: {intensity: 5.0}", "1:25: supervisor.intensity: must be an integer, not 5.0"),
    ("supervisor:", "1:12: supervisor: must be a mapping, not null"),
    (
        "supervisor: {intensity: -1}",
        "1:25: supervisor.intensity: must be greater than or equal to 0, not -1",
    ),
    (
        "supervisor: {strategy: one_for_al}",
        "1:24: supervisor.strategy: must be one of one_for_one, one_for_all, rest_for_one, "
        "not 'one_for_al'; did you mean 'one_for_all'?",
    ),
    (devices("restart: 1"), "2:58: devices.a.restart: must be one of permanent, transient, temporary, not 1"),
    (devices("env: {A: 1}"), "2:58: devices.a.env.A: must be a string, not 1; quote it"),
    (devices("backoff: {factor: .inf}"), "2:67: devices.a.backoff.factor: must be a finite number, not inf"),
    (
        devices("backoff: {jitter: 2}"),
        "2:67: devices.a.backoff.jitter: must be less than or equal to 1, not 2",
    ),
    ("devices: [{name: a}]", "1:11: devices.a.device: is missing"),
    (
        f"devices: [{{name: 'a b', device: '{DEVICE}'}}]",
        "1:18: devices.a b.name: must be letters, digits, _ and -, not starting with a digit, not 'a b'",
    ),
    # durations and sizes
    (
        "supervisor: {period: 10}",
        "1:22: supervisor.period: 10 has no unit; write a duration such as 2s, 150ms or 500us",
    ),
    (
        "supervisor: {period: soon}",
        "1:22: supervisor.period: must be a duration such as 2s, 150ms or 500us, not 'soon'",
    ),
    (
        "supervisor: {period: 2 weeks}",
        "1:22: supervisor.period: unknown unit 'weeks' in '2 weeks'; units are ns, us, ms, s, m, h",
    ),
    ("supervisor: {period: 0s}", "1:22: supervisor.period: must be longer than 0s"),
    ("supervisor: {period: 99999h}", "1:22: supervisor.period: '99999h' is more than ten years"),
    (
        "supervisor: {period: infinity}",
        "1:22: supervisor.period: infinity is possible for stop_timeout only; write a duration such as 10s",
    ),
    (
        devices("stop_timeout: never"),
        "2:63: devices.a.stop_timeout: must be a duration such as 2s, 150ms or 500us, not 'never'; "
        "or brutal_kill, infinity",
    ),
    (
        devices("limits: {data: 512MB}"),
        "2:64: devices.a.limits.data: unknown unit 'MB' in '512MB'; units are B, KiB, MiB, GiB, TiB",
    ),
    # between fields
    (
        devices("", "").replace("name: b", "name: a"),
        "3:10: devices.a.name: the name 'a' is taken already (x.yaml:2:10)",
    ),
    (
        devices("mmio: {base: 0x1000, size: 0x1000}", "mmio: {base: 0x1800, size: 4}"),
        "3:55: devices.b.mmio: 0x1800..0x1803 of 'b' overlaps 0x1000..0x1fff of 'a'",
    ),
    (
        devices("mmio: {base: 0xffffffffffffffff, size: 2}"),
        "2:55: devices.a.mmio: 0xffffffffffffffff..0x10000000000000000 goes beyond the 64-bit address space",
    ),
    (
        devices("mmio: {base: 0, size: 4, irq: -1}"),
        "2:79: devices.a.mmio.irq: must be greater than or equal to 0, not -1",
    ),
    (devices("depends_on: [aa]"), "2:62: devices.a.depends_on.0: there is no device 'aa'; did you mean 'a'?"),
    (devices("depends_on: [z]"), "2:62: devices.a.depends_on.0: there is no device 'z'; there are a"),
    (
        devices("depends_on: [b]", "depends_on: [a]"),
        "2:62: devices.a.depends_on.0: devices depend on each other in a circle: a→b→a",
    ),
    (
        devices("depends_on: [a]"),
        "2:62: devices.a.depends_on.0: devices depend on each other in a circle: a→a",
    ),
    (
        "supervisor: {auto_shutdown: any_significant}\n" + devices("significant: true"),
        "3:62: devices.a.significant: a permanent device is always restarted and so cannot be significant; "
        "make it transient or temporary",
    ),
    (
        devices("significant: true, restart: transient"),
        "2:62: devices.a.significant: a significant device needs supervisor.auto_shutdown: "
        "any_significant or all_significant",
    ),
    (
        devices("heartbeat: {every: 3s, timeout: 3s}"),
        "2:81: devices.a.heartbeat.timeout: must be longer than every (3s)",
    ),
    (
        devices("vhost_user: {socket: s}", "vhost_user: {socket: s}"),
        "3:70: devices.b.vhost_user.socket: the socket 's' is taken already (x.yaml:2:70)",
    ),
    (devices("env: {A=B: x}"), "2:55: devices.a.env.A=B: 'A=B' cannot be the name of a variable"),
    (devices('env: {A: "\\0"}'), "2:58: devices.a.env.A: a variable cannot hold a null character"),
    (
        "supervisor: {preload: [json.decodr]}",
        "1:24: supervisor.preload.0: there is no module 'json.decodr'; did you mean 'decoder'?",
    ),
    # YAML
    ("name: a\nname: b", "2:1: the key 'name' is there already (x.yaml:1:1)"),
    ("1: a", "1:1: a key must be a string, not '1'"),
    ("[a]: b", "1:1: a key must be a string, not a collection"),
    (
        "name: !!python/name:os.system x",
        "1:7: name: 'x' cannot have the tag !!python/name:os.system; write plain data",
    ),
    ("name: !!set {a}", "1:7: name: the tag !!set is not allowed; write plain data"),
    ("devices: &a [*a]", "1:10: devices.0: an alias must not contain itself"),
    ("name: {a", "2:1: not valid YAML: did not find expected ',' or '}' (while parsing a flow mapping)"),
    (
        "a: b\n---\nc: d",
        "2:1: not valid YAML: but found another document (expected a single document in the stream)",
    ),
    ("name: a\n\x07", "2:1: not valid YAML: control characters are not allowed"),
    ("[" * 100_000, "1:65: nested more than 64 deep"),
    (
        f"supervisor: {{intensity: {'9' * 50}}}",
        "1:25: supervisor.intensity: the number has more than 40 digits",
    ),
]


@pytest.mark.parametrize(
    ("text", "line"), ONE_LINE, ids=[line.split(": ", 1)[1][:50] for _, line in ONE_LINE]
)
def test_a_mistake_is_told_where_it_is_and_what_would_be_right(text: str, line: str) -> None:
    """One mistake gives this very line (a broken value may have a follow-up, which comes after it)."""
    assert findings(text)[0] == line


def test_many_mistakes_are_told_at_once_in_order() -> None:
    """Checks between fields run although single fields are wrong, and everything is sorted by position."""
    text = devices(
        "poison: 0, mmio: {base: 0, size: 8, irq: x}",
        "mmio: {base: 4, size: 4}, depends_on: [c]",
        "depends_on: [b, nobody], restrat: permanent",
    )
    assert [line.split(": ")[1] for line in findings(text)] == [
        "devices.a.poison",
        "devices.a.mmio.irq",
        "devices.b.mmio",
        "devices.b.depends_on.0",
        "devices.c.depends_on.1",
        "devices.c.restrat",
    ]


def test_two_circles_are_both_told() -> None:
    """Each circle is told once, at its first device."""
    text = devices("depends_on: [b]", "depends_on: [a]", "depends_on: [d]", "depends_on: [c]")
    assert [line.rsplit(": ", 1)[1] for line in findings(text)] == ["a→b→a", "c→d→c"]


def test_overlaps_of_one_large_range_with_many_are_all_told() -> None:
    """A small range that overlaps nobody's neighbour but a large one further up is told too."""
    text = devices(
        "mmio: {base: 0, size: 100}",
        "mmio: {base: 10, size: 1}",
        "mmio: {base: 20, size: 1}",
        "mmio: {base: 100, size: 1}",
    )
    assert [line.split(": ")[1] for line in findings(text)] == ["devices.b.mmio", "devices.c.mmio"]


def test_a_chain_of_aliases_is_bounded() -> None:
    """Aliases that double with each line are refused instead of filling the memory."""
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    assert any("more than 100000 values" in line for line in findings("\n".join(lines)))


def test_a_long_chain_of_aliases_does_not_overrun_the_stack() -> None:
    """Text that is shallow can still be deep through its aliases."""
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 2000)]
    assert any("nested more than 64 deep" in line for line in findings("\n".join(lines)))


def test_a_file_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    """Not being readable is told like everything else, and the OSError is the cause."""
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.findings == [f"{path}:1:1: cannot be read: No such file or directory"]
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_file_that_is_not_utf8_is_a_finding(tmp_path: Path) -> None:
    """The place of the first bad byte is told."""
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: x\n# caf\xe9\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.findings == [f"{path}:2:6: is not UTF-8 text: invalid continuation byte"]
