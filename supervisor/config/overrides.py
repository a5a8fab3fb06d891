"""``--set PATH=VALUE``: values from the command line in place of what the file says. Pure.

A path names keys, and devices by name or number: ``supervisor.in_process=true``,
``devices.uart0.options.seed=7``. The value is YAML. Sections that are not there yet are made; what a value
then breaks is found where it came from, at its ``--set``.
"""

from __future__ import annotations

from typing import Any

from supervisor.config.document import Document, Finding, Path, Place, read_document
from supervisor.config.modules import close_to

__all__ = ["apply_overrides"]


def apply_overrides(document: Document, overrides: tuple[str, ...]) -> None:
    """Puts each override into the document, in order; a later one may build on an earlier."""
    for late, text in enumerate(overrides, start=1):
        source = f"--set {text}"
        place = Place(late, 1, 1, source)
        dotted, equals, written = text.partition("=")
        parts = dotted.split(".")
        if not equals or not all(parts):
            what = "must be PATH=VALUE, such as supervisor.in_process=true"
            document.findings.append(Finding(place, "", what))
            continue
        value = read_document(written, source, late=late)
        document.findings += value.findings
        if value.findings:
            continue
        try:
            path = _put(document, parts, value.data, place)
        except ValueError as error:
            document.findings.append(Finding(place, "", str(error)))
        else:
            _forget(document, path)
            document.values.update({(*path, *inner): where for inner, where in value.values.items()})
            document.values[path] = document.keys[path] = place
            document.keys.update({(*path, *inner): where for inner, where in value.keys.items()})


def _forget(document: Document, path: Path) -> None:
    for places in (document.values, document.keys):
        for old in [known for known in places if known[: len(path)] == path]:
            del places[old]


def _put(document: Document, parts: list[str], value: Any, place: Place) -> Path:
    if document.data is None:
        document.data = {}
    inner: Any = document.data
    path: Path = ()
    for depth, part in enumerate(parts):
        key = _key(inner, part, ".".join(parts[:depth]))
        path = (*path, key)
        if depth == len(parts) - 1:
            inner[key] = value
        elif isinstance(inner, dict) and inner.get(part) is None:
            inner[key] = {}
            document.values[path] = document.keys[path] = place
        inner = inner[key]
    return path


def _key(inner: Any, part: str, where: str) -> str | int:
    if isinstance(inner, dict):
        return part
    if not isinstance(inner, list):
        raise ValueError(f"{where or 'the file'} holds nothing that could be set by name")
    names = [item.get("name") if isinstance(item, dict) else None for item in inner]
    if part in names:
        return names.index(part)
    if part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(inner):
        return int(part)
    known = [name for name in names if isinstance(name, str)]
    there = close_to(part, known) or (f"; there are {', '.join(known)}" if known else "; it is empty")
    raise ValueError(f"{where or 'the file'} has no {part!r}{there}")
