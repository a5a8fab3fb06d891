"""The page about the configuration in the documentation, written from the models that check it.

``docs/configuration.md`` holds exactly what ``configuration_page`` returns; a test compares them. To write it
anew::

    python -m supervisor.config.reference > docs/configuration.md

It is the JSON Schema in another shape: one section for each mapping, in the order and the depth of the YAML,
and a line for each key. A mapping that stands in several places is described where it comes first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from supervisor.config import model
from supervisor.config.load import schema

__all__ = ["configuration_page"]

_INTRODUCTION = """\
# Configuration

Written from the models in `supervisor/config/model.py` by `supervisor/config/reference.py`; do not edit.

A board is one YAML file. Everything has a default but what is marked *required*; unknown keys are errors.
`tubevisor check FILE` tells every mistake at once, each as `file:line:column`, and `tubevisor schema` prints
the JSON Schema for editors. `--set PATH=VALUE` lays a value over the file; there a device is addressed by its
name: `--set devices.uart0.restart=transient`.

```yaml
name: example
supervisor: {intensity: 3, period: 1m}
devices:
  - name: uart0
    device: arm.pl011
    mmio: {base: 0x40000000, size: 4KiB, irq: 0}
  - name: rng0
    device: demo.rng
    options: {seed: 7}
    mmio: {base: 0x40003000, size: 0x1000}
    depends_on: [uart0]
    stop_timeout: 500ms
    heartbeat: {every: 1s, timeout: 3s}
    backoff: {max: 5s}
    limits: {open_files: 64}
```

- The YAML is version 1.2: `010` is ten, and `NO` is a string.
- A *duration* is a number with its unit, `ns`, `us`, `ms`, `s`, `m` or `h`, of at most ten years: `150ms`. A
  number without a unit is refused.
- A *size* is a number with its unit, `B`, `KiB`, `MiB`, `GiB` or `TiB`: `512MiB`.
- What holds between keys (names that are unique, addresses that do not overlap, dependencies without circles,
  what `significant` asks for) is told by `check`.
"""

_KINDS = {
    model.DURATION_PATTERN: "duration",
    model.POSITIVE_PATTERN: "duration above `0s`",
    model.SIZE_PATTERN: "size",
    model.NAME_PATTERN: "string of letters, digits, `_` and `-`, not starting with a digit",
}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}
_LARGE = 1 << 32  # such numbers are addresses
_DEEPEST_HEADING = 4


@dataclass(frozen=True)
class _Section:
    """A mapping at ``path``, in YAML's words: ``devices[].mmio``."""

    path: str
    shape: dict[str, Any]
    depth: int

    @property
    def anchor(self) -> str:
        """Where links to it lead."""
        return re.sub(r"[^a-z0-9_-]", "", (self.path or "top level").lower().replace(" ", "-"))


def configuration_page() -> str:
    """The text of ``docs/configuration.md``."""
    root = schema()
    shapes: dict[str, Any] = root.get("$defs", {})
    sections = dict(_sections(root, shapes))
    anchors = {name: section.anchor for name, section in sections.items()}
    parts = [_INTRODUCTION]
    parts += [_section_text(section, shapes, anchors) for section in sections.values()]
    return "\n".join(parts)


def _sections(root: dict[str, Any], shapes: dict[str, Any]) -> Iterator[tuple[str, _Section]]:
    """Each mapping once, with the name of its shape, before those inside it."""
    seen: set[str] = set()
    waiting = [("", _Section("", root, 2))]
    while waiting:
        name, section = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        yield name, section
        inner = []
        for key, field in section.shape.get("properties", {}).items():
            for target, suffix in _references(field):
                path = f"{section.path}.{key}{suffix}".lstrip(".")
                inner.append(
                    (target, _Section(path, shapes[target], min(section.depth + 1, _DEEPEST_HEADING)))
                )
        waiting = inner + waiting


def _references(field: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The shapes that a key may hold, and ``[]`` for those inside a list."""
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2], ""
    for choice in (*field.get("anyOf", ()), *field.get("oneOf", ()), *field.get("allOf", ())):
        yield from _references(choice)
    if isinstance(field.get("items"), dict):
        yield from ((name, f"[]{suffix}") for name, suffix in _references(field["items"]))
    if isinstance(field.get("additionalProperties"), dict):
        yield from ((name, f".NAME{suffix}") for name, suffix in _references(field["additionalProperties"]))


def _section_text(section: _Section, shapes: dict[str, Any], anchors: dict[str, str]) -> str:
    title = f"`{section.path}`" if section.path else "Top level"
    lines = [f"{'#' * section.depth} {title}", ""]
    if section.path:
        lines += [_one_line(section.shape.get("description", "")), ""]
    lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    required = section.shape.get("required", [])
    for key, field in section.shape.get("properties", {}).items():
        value = _cell(_value(field, anchors))
        default = "*required*" if key in required else _cell(_default(field))
        lines.append(f"| `{key}` | {value} | {default} | {_cell(_meaning(field, shapes))} |")
    return "\n".join([*lines, ""])


def _value(field: dict[str, Any], anchors: dict[str, str]) -> str:
    """What may be written, in words, with its bounds."""
    choices = [
        choice for choice in field.get("anyOf", field.get("oneOf", ())) if choice.get("type") != "null"
    ]
    if choices:
        return ", or ".join(_value(choice, anchors) for choice in choices)
    if "$ref" in field:
        return f"[mapping](#{anchors[field['$ref'].rpartition('/')[2]]})"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{_scalar(word)}`" for word in field.get("enum", [field.get("const")]))
    match field.get("type"):
        case "array":
            words = f"list: {_value(field.get('items', {}), anchors)}"
        case "object":
            inner = field.get("additionalProperties")
            words = f"mapping: {_value(inner, anchors)}" if isinstance(inner, dict) and inner else "mapping"
        case "boolean":
            words = "`true`, `false`"
        case "string":
            pattern = field.get("pattern")
            words = "string" if pattern is None else _KINDS.get(pattern, f"string like `{pattern}`")
        case None:
            words = "anything"
        case other:
            words = str(other)
    bounds = [text.format(_scalar(field[name])) for name, text in _BOUNDS.items() if name in field]
    return ", ".join([words, *bounds])


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default is None:
        return "–"
    return f"`{_scalar(default)}`"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= _LARGE:
        return f"{value:#x}"
    return json.dumps(value)


def _meaning(field: dict[str, Any], shapes: dict[str, Any]) -> str:
    if "description" in field:
        return _one_line(field["description"])
    # A mapping says itself what it is for.
    return " ".join(_one_line(shapes[name].get("description", "")) for name, _suffix in _references(field))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(configuration_page(), end="")  # noqa: T201 - the page is what was asked for
