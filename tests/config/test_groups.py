"""Groups, templates and exit codes in a configuration: what is read, and every mistake at its place."""

from __future__ import annotations

import itertools

import pytest

from supervisor.config import parse_config, policy_spec
from supervisor.errors import ConfigError
from supervisor.policy import AutoShutdown, OnGiveUp, Restart, Strategy

RNG = "{name: NAME, device: demo.rng}"


def _rng(name: str) -> str:
    return RNG.replace("NAME", name)


def _finding(text: str) -> str:
    with pytest.raises(ConfigError) as found:
        parse_config(text, source="x.yaml")
    return str(found.value).splitlines()[0]


def test_given_groups_within_groups_the_policy_is_told_the_tree() -> None:
    """Devices, then groups, in start order; each with its own rules; the devices are listed flat as well."""
    config = parse_config(f"""
devices: [{_rng("a")}]
groups:
  - name: outer
    restart: transient
    stop_timeout: 3s
    depends_on: [a]
    backoff: {{first: 1s}}
    supervisor: {{strategy: rest_for_one, intensity: 7, period: 2s, on_give_up: isolate}}
    devices: [{_rng("b")}]
    groups: [{{name: inner, devices: [{_rng("c")}]}}]
  - {{name: row, supervisor: {{strategy: simple_one_for_one}}, template: {{device: demo.rng, poison: 9}}}}
""")
    assert [(one.name, one.group) for one in config.devices] == [("a", ""), ("b", "outer"), ("c", "inner")]
    assert [(one.name, one.group) for one in config.groups] == [
        ("outer", ""),
        ("inner", "outer"),
        ("row", ""),
    ]
    assert config.groups[2].template == {"device": "demo.rng", "poison": 9}
    spec = policy_spec(config)
    assert [child.name for child in spec.children] == ["a", "outer", "row"]
    outer, row = spec.children[1:]
    assert (outer.restart, outer.stop_timeout_ns, outer.depends_on) == (
        Restart.TRANSIENT,
        3_000_000_000,
        ("a",),
    )
    assert outer.backoff.first_ns == 1_000_000_000
    inside = outer.supervisor
    assert inside is not None
    assert (inside.strategy, inside.intensity, inside.period_ns) == (Strategy.REST_FOR_ONE, 7, 2_000_000_000)
    assert inside.on_give_up is OnGiveUp.ISOLATE
    assert [child.name for child in inside.children] == ["b", "inner"]
    assert inside.children[1].stop_timeout_ns is None
    assert row.supervisor is not None
    assert (row.supervisor.strategy, row.supervisor.children) == (Strategy.SIMPLE_ONE_FOR_ONE, ())


def test_given_exit_codes_signals_are_negative_numbers() -> None:
    """Codes as they are, signals by name."""
    codes = "{clean: [0, SIGTERM], force_restart: [75, SIGHUP], prevent_restart: [78]}"
    child = parse_config(f"devices: [{{name: a, device: demo.rng, exit_codes: {codes}}}]").devices[0].child
    assert child.clean_exit_codes == {0, -15}
    assert child.force_restart == {75, -1}
    assert child.prevent_restart == {78}


GROUP = "groups: [{name: g, BODY}]"
SIMPLE = "supervisor: {strategy: simple_one_for_one}"
BEHIND = "{name: b, device: demo.rng, depends_on: [a]}"
MISTAKES = [
    (f"groups: [{{name: g, devices: [{_rng('g')}]}}]", "the name 'g' is taken already"),
    (
        f"devices: [{_rng('a')}]\ngroups: [{{name: g, devices: [{_rng('a')}]}}]",
        "the name 'a' is taken already",
    ),
    (
        f"devices: [{_rng('a')}]\ngroups: [{{name: g, devices: [{BEHIND}]}}]",
        "groups.g.devices.b.depends_on.0: 'a' is not in the same group",
    ),
    (
        "groups: [{name: g, depends_on: [h]}, {name: h, depends_on: [g]}]",
        "groups.g.depends_on.0: devices depend on each other in a circle: g→h→g",
    ),
    (GROUP.replace("BODY", SIMPLE), "groups.g: a simple_one_for_one group needs a template"),
    (
        GROUP.replace("BODY", "template: {device: demo.rng}"),
        "groups.g.template: is for groups with strategy: simple_one_for_one",
    ),
    (
        GROUP.replace("BODY", f"{SIMPLE}, template: {{device: demo.rng}}, devices: [{_rng('a')}]"),
        "groups.g.devices: a simple_one_for_one group lists nothing",
    ),
    (
        GROUP.replace(
            "BODY",
            f"{SIMPLE[:-1]}, auto_shutdown: any_significant}}, template: {{device: demo.rng}}",
        ),
        "groups.g.supervisor.auto_shutdown: must be never with simple_one_for_one",
    ),
    (
        GROUP.replace(
            "BODY", f"{SIMPLE}, template: {{device: demo.rng, significant: true, restart: transient}}"
        ),
        "groups.g.template.significant: the devices of a simple_one_for_one group cannot be significant",
    ),
    (GROUP.replace("BODY", f"{SIMPLE}, template: {{device: demo.rgn}}"), "did you mean"),
    (
        GROUP.replace("BODY", "significant: true"),
        "groups.g.significant: a permanent group is always restarted and so cannot be significant",
    ),
    (
        GROUP.replace("BODY", "restart: transient, significant: true"),
        "groups.g.significant: a significant group needs supervisor.auto_shutdown",
    ),
    (
        GROUP.replace(
            "BODY", "devices: [{name: a, device: demo.rng, restart: transient, significant: true}]"
        ),
        "groups.g.devices.a.significant: a significant device needs groups.g.supervisor.auto_shutdown",
    ),
    ("supervisor: {strategy: simple_one_for_one}", "supervisor.strategy: must be one of one_for_one,"),
    (GROUP.replace("BODY", "spares: 1"), "groups.g.spares: unknown key"),
    ("devices: [{name: a, device: demo.rng, exit_codes: {clean: [SIGNOPE]}}]", "or the name of a signal"),
    ("devices: [{name: a, device: demo.rng, exit_codes: {clean: [256]}}]", "less than or equal to 255"),
    (
        "devices: [{name: a, device: demo.rng, exit_codes: {force_restart: [3], prevent_restart: [3]}}]",
        "exit_codes.prevent_restart.0: 3 forces a restart already",
    ),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES, ids=[told[:60] for _text, told in MISTAKES])
def test_given_mistake_in_a_group_it_is_told(text: str, told: str) -> None:
    """Each with its place, in groups as outside of them."""
    assert told in _finding(text)


@pytest.mark.parametrize(
    ("auto_shutdown", "restart", "significant"),
    list(itertools.product(AutoShutdown, Restart, [True, False])),
    ids=str,
)
def test_given_any_mix_of_significance_it_is_as_in_otp(
    auto_shutdown: AutoShutdown, restart: Restart, significant: bool
) -> None:
    """The full product: a significant permanent child, or one under auto_shutdown never, is refused."""
    child = f"restart: {restart.value}, significant: {str(significant).lower()}"
    board = f"auto_shutdown: {auto_shutdown.value}"
    for listed in (
        f"devices: [{{name: a, device: demo.rng, {child}}}]",
        f"groups: [{{name: a, {child}}}]",
    ):
        text = f"supervisor: {{{board}}}\n{listed}"
        if significant and (restart is Restart.PERMANENT or auto_shutdown is AutoShutdown.NEVER):
            assert ".significant: " in _finding(text)
        else:
            parse_config(text)
