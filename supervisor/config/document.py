"""YAML text as plain data that remembers where everything stands.

The scalars are those of YAML 1.2's core schema: ``010`` is ten, ``NO`` is a string, ``0x10`` sixteen. Only
plain data is made: other tags than the core ones, keys that are no strings, doubled keys and aliases that
contain themselves are findings. What is wrong is noted, and reading goes on, so that everything can be said
at once.

Everything here is iterative or limited in depth: the C parser underneath would overrun its stack on a file
of nothing but brackets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

__all__ = ["Document", "Finding", "Path", "Place", "read_document", "shown_path"]

MAX_DEPTH: Final = 64
"""Deeper than any board; the composer recurses in C and would crash near 10,000."""

MAX_VALUES: Final = 100_000
"""Aliases can double what they name with each line; a thousand devices need less than half of this."""

MAX_NUMBER_CHARS: Final = 40
"""128 bits in decimal; addresses have 64, and longer numbers only cost time."""

MAX_TEXT_CHARS: Final = 8 << 20
"""Far more than MAX_VALUES values need: a file given by mistake (an image) is refused before it is parsed."""

Path = tuple[str | int, ...]

_CORE = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's C loader with the implicit types of YAML 1.2 in place of those of 1.1."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_Loader.add_implicit_resolver(f"{_CORE}null", re.compile(f"(?:{_NULL.pattern})$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_CORE}bool", re.compile(f"(?:{_BOOL.pattern})$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_CORE}int", re.compile(f"(?:{_INT.pattern})$"), list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_CORE}float", re.compile(f"(?:{_FLOAT.pattern})$"), list("-+.0123456789"))


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands. ``late`` sorts the command line after the file; ``text`` is what is printed."""

    late: int
    line: int
    column: int
    text: str


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong, where, and what would be right."""

    place: Place
    path: str
    what: str

    def __str__(self) -> str:
        return (
            f"{self.place.text}: {self.path}: {self.what}" if self.path else f"{self.place.text}: {self.what}"
        )


@dataclass(slots=True)
class Document:
    """Plain data with the place of each value and of each key, and what has been found wrong so far."""

    source: str
    data: Any = None
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    refused: set[Path] = field(default_factory=set)
    """Where a value was not taken over: what the models then miss there has been told already."""

    def place(self, path: Path, *, key: bool = False) -> Place:
        """The place of a value (or of its key); of what is missing, the place of what should hold it."""
        if key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path) or Place(0, 1, 1, f"{self.source}:1:1")

    def find(self, path: Path, what: str, *, key: bool = False) -> None:
        """Notes that something is wrong at ``path``."""
        self.findings.append(Finding(self.place(path, key=key), shown_path(self.data, path), what))


def shown_path(data: Any, path: Path) -> str:
    """A path as it is written for ``--set``: devices by name where they have one, otherwise by number."""
    parts = []
    for part in path:
        inner = data[part] if _has(data, part) else None
        name = inner.get("name") if isinstance(part, int) and isinstance(inner, dict) else None
        parts.append(name if isinstance(name, str) and name else str(part))
        data = inner
    return ".".join(parts)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data)


def read_document(text: str, source: str, *, late: int = 0) -> Document:
    """Reads one YAML document; ``late`` above 0 makes ``source`` itself the place of everything in it."""
    document = Document(source)
    reader = _Reader(document, late)
    node = reader.compose(text)
    if node is not None:
        document.data = reader.value(node, (), frozenset())
        document.findings += reader.findings(document.data)
    elif not document.findings:
        document.values[()] = reader.at(0, 0)
    return document


class _Reader:
    def __init__(self, document: Document, late: int) -> None:
        self._document = document
        self._late = late
        self._count = 0
        self._found_at: list[tuple[Place, Path, str]] = []

    def at(self, line: int, column: int) -> Place:
        """The place of a mark, which counts from 0; people count from 1."""
        source = self._document.source
        text = source if self._late else f"{source}:{line + 1}:{column + 1}"
        return Place(self._late, line + 1, column + 1, text)

    def findings(self, data: Any) -> list[Finding]:
        """What was wrong in ``data``; a path can be shown only when all of it is known."""
        return [Finding(place, shown_path(data, path), what) for place, path, what in self._found_at]

    def _found(self, place: Place, what: str, path: Path) -> None:
        self._found_at.append((place, path, what))
        self._document.refused.add(path)

    def _unreadable(self, place: Place, what: str) -> None:
        self._document.findings.append(Finding(place, "", what))

    def compose(self, text: str) -> yaml.Node | None:
        """The tree of nodes, or None if there is none (a finding says why, unless the text is just empty)."""
        if len(text) > MAX_TEXT_CHARS:
            self._unreadable(self.at(0, 0), f"the text is longer than {MAX_TEXT_CHARS} characters")
            return None
        try:
            if not self._is_shallow(text):
                return None
            loader = _Loader(text)
            try:
                node: yaml.Node | None = loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self.at(mark.line, mark.column) if mark is not None else self.at(0, 0)
            context = f" ({error.context})" if error.context else ""
            self._unreadable(place, f"not valid YAML: {error.problem}{context}")
        except yaml.reader.ReaderError as error:
            before = text[: error.position] if isinstance(error.position, int) else ""
            place = self.at(before.count("\n"), len(before) - (before.rfind("\n") + 1))
            self._unreadable(place, f"not valid YAML: {error.reason}")
        except (yaml.YAMLError, UnicodeError) as error:
            self._unreadable(self.at(0, 0), f"not valid YAML: {' '.join(str(error).split())}")
        else:
            return node
        return None

    def _is_shallow(self, text: str) -> bool:
        loader = _Loader(text)
        depth = 0
        try:
            while loader.check_event():
                event = loader.get_event()
                if isinstance(event, yaml.CollectionStartEvent):
                    depth += 1
                elif isinstance(event, yaml.CollectionEndEvent):
                    depth -= 1
                if depth > MAX_DEPTH:
                    mark = event.start_mark
                    self._unreadable(self.at(mark.line, mark.column), f"nested more than {MAX_DEPTH} deep")
                    return False
        finally:
            loader.dispose()
        return True

    def value(self, node: yaml.Node, path: Path, above: frozenset[int]) -> Any:
        """The plain value of a node; notes where it stands."""
        place = self.at(node.start_mark.line, node.start_mark.column)
        self._document.values[path] = place
        self._count += 1
        if self._count == MAX_VALUES:
            self._found(place, f"more than {MAX_VALUES} values", path)
        # Past the limit nothing is expanded any more: this is what bounds aliases of aliases.
        if self._count >= MAX_VALUES:
            return None
        if id(node) in above:
            self._found(place, "an alias must not contain itself", path)
            return None
        if len(path) > MAX_DEPTH:  # the text is shallow, but aliases of aliases need not be
            self._found(place, f"nested more than {MAX_DEPTH} deep", path)
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place, path)
        above |= {id(node)}
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq", place, path)
            return [self.value(item, (*path, index), above) for index, item in enumerate(node.value)]
        self._check_tag(node, "map", place, path)
        return self._mapping(node, path, above)

    def _check_tag(self, node: yaml.Node, expected: str, place: Place, path: Path) -> None:
        if node.tag != _CORE + expected:
            self._found(place, f"the tag {_short_tag(node.tag)} is not allowed; write plain data", path)

    def _mapping(self, node: yaml.Node, path: Path, above: frozenset[int]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self.at(key_node.start_mark.line, key_node.start_mark.column)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_CORE}str":
                shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a collection"
                self._found(place, f"a key must be a string, not {shown}", path)
                continue
            key = key_node.value
            inner = (*path, key)
            if key in made:
                first = self._document.keys[inner]
                self._found(place, f"the key {key!r} is there already ({first.text})", path)
                continue
            self._document.keys[inner] = place
            made[key] = self.value(value_node, inner, above)
        return made

    def _scalar(self, node: yaml.ScalarNode, place: Place, path: Path) -> Any:
        text: str = node.value
        match node.tag.removeprefix(_CORE):
            case "str":
                return text
            case "null" if _NULL.fullmatch(text):
                return None
            case "bool" if _BOOL.fullmatch(text):
                return text.lower() == "true"
            case "int" if _INT.fullmatch(text) and len(text) <= MAX_NUMBER_CHARS:
                return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
            case "float" if _FLOAT.fullmatch(text):
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            case "int" if _INT.fullmatch(text):
                self._found(place, f"the number has more than {MAX_NUMBER_CHARS} digits", path)
                return None
        self._found(place, f"{text!r} cannot have the tag {_short_tag(node.tag)}; write plain data", path)
        return None


def _short_tag(tag: str) -> str:
    return f"!!{tag.removeprefix(_CORE)}" if tag.startswith(_CORE) else tag
