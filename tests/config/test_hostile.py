"""Whatever the input, reading a configuration ends in a Config or in a ConfigError."""

from __future__ import annotations

import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.config import load_config, parse_config
from supervisor.errors import ConfigError
from tests.config.test_valid import EVERYTHING

SLOWLY = settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

KEYS = sorted(
    {word.strip("{[,:\"'") for word in EVERYTHING.replace("{", " ").split() if word.endswith(":")}
    | {"-", "x"}
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.sampled_from(
        ["a", "b", "one_for_all", "2s", "infinity", "json.decoder:X", "nrf51.uart", "4KiB", "__main__:X"]
    ),
    st.text(string.printable, max_size=5),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=15,
)
DEVICES = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), max_size=4)
OVERRIDES = st.lists(
    st.builds(
        lambda path, value: f"{'.'.join(path)}={value}",
        st.lists(st.sampled_from([*KEYS, "0", "1", "a", ""]), max_size=4),
        st.sampled_from(["1", "x", "[1", "{a: 1}", "[]", "", "&a [*a]", "\x00", "2s"]),
    ),
    max_size=3,
)


def _parse(text: str, overrides: list[str]) -> None:
    lines = ["<string>:"]
    try:
        parse_config(text, overrides=overrides)
    except ConfigError as error:
        lines = error.findings
    assert lines
    assert all(line.startswith(("<string>:", "--set ")) for line in lines)


@SLOWLY
@given(text=st.text(), overrides=OVERRIDES)
def test_any_text_raises_nothing_but_config_error(text: str, overrides: list[str]) -> None:
    """Surrogates, control characters and broken YAML are findings."""
    _parse(text, overrides)


@SLOWLY
@given(text=st.text(st.sampled_from("{}[]:-,&*!|>'\"?# \n\tab0~%@"), max_size=40))
def test_any_punctuation_raises_nothing_but_config_error(text: str) -> None:
    """What the YAML grammar is made of, in any order."""
    _parse(text, [])


@SLOWLY
@given(
    root=st.fixed_dictionaries(
        {}, optional={"devices": DEVICES, "supervisor": VALUES, "machine": VALUES, "name": VALUES}
    ),
    overrides=OVERRIDES,
)
def test_any_tree_of_our_keys_raises_nothing_but_config_error(
    root: dict[str, Any], overrides: list[str]
) -> None:
    """Known keys with any values in any place: no check may rely on a shape."""
    with suppress(UnicodeError):
        _parse(yaml.safe_dump(root), overrides)


@SLOWLY
@given(data=st.binary(max_size=60))
def test_any_bytes_raise_nothing_but_config_error(data: bytes, tmp_path: Path) -> None:
    """A file of noise is a finding."""
    path = tmp_path / "noise.yaml"
    path.write_bytes(data)
    with suppress(ConfigError):
        load_config(path)


@pytest.mark.parametrize("character", ["[", "{", "- ", "? ", "{a: "])
def test_deep_nesting_is_a_finding_and_no_crash(character: str) -> None:
    """The parser below recurses in C; nobody gets it that deep."""
    with pytest.raises(ConfigError):
        parse_config(character * 50_000)


def test_a_text_of_many_megabytes_is_refused_unread() -> None:
    """An image given by mistake costs no memory."""
    with pytest.raises(ConfigError, match="longer than"):
        parse_config("a" * (9 << 20))


def test_a_directory_and_a_name_that_is_none_are_findings(tmp_path: Path) -> None:
    """Everything the system refuses to open is told as a finding."""
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("a\0b")
