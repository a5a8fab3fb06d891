"""What is wrong between fields: duplicates, overlaps, circles, combinations that cannot work.

These checks read plain data, before and whatever the models say: a typo in one device must not hide that two
others overlap. So nothing is taken for granted here: what has not the expected shape is passed over in
silence, since the models complain about it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from supervisor.config.document import Document, Path, shown_path
from supervisor.config.modules import close_to, resolve_device, resolve_module, resolve_object
from supervisor.config.units import parse_duration_ns, parse_size_bytes
from supervisor.policy.order import find_circle

__all__ = ["check_document"]


def check_document(document: Document) -> None:
    """Adds a finding for everything that is wrong between fields."""
    for check in (
        _check_names,
        _check_overlaps,
        _check_dependencies,
        _check_circles,
        _check_significant,
        _check_templates,
        _check_exit_codes,
        _check_heartbeats,
        _check_sockets,
        _check_connections,
        _check_environments,
        _check_references,
    ):
        check(document)


def _section(data: Any, name: str) -> dict[str, Any]:
    section = data.get(name) if isinstance(data, dict) else None
    return section if isinstance(section, dict) else {}


@dataclass(frozen=True, slots=True)
class _Level:
    """One supervisor as written: where it stands, and its children with their places."""

    path: Path
    data: dict[str, Any]
    devices: list[tuple[Path, dict[str, Any]]]
    groups: list[tuple[Path, dict[str, Any]]]

    @property
    def children(self) -> list[tuple[Path, dict[str, Any]]]:
        """Devices, then groups: in start order."""
        return [*self.devices, *self.groups]


def _levels(document: Document) -> Iterator[_Level]:
    """The outermost supervisor and every group, those outside before those inside."""
    pending: deque[tuple[Path, Any]] = deque([((), document.data)])
    while pending:
        path, data = pending.popleft()
        if isinstance(data, dict):
            devices, groups = (list(_entries(path, data, key)) for key in ("devices", "groups"))
            level = _Level(path, data, devices, groups)
            yield level
            pending += level.groups


def _entries(path: Path, data: dict[str, Any], key: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    listed = data.get(key)
    for index, entry in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(entry, dict):
            yield (*path, key, index), entry


def _devices(document: Document) -> Iterator[tuple[Path, dict[str, Any]]]:
    for level in _levels(document):
        yield from level.devices


def _devices_and_templates(document: Document) -> Iterator[tuple[Path, dict[str, Any]]]:
    for level in _levels(document):
        yield from level.devices
        if level.path and isinstance(level.data.get("template"), dict):
            yield (*level.path, "template"), level.data["template"]


def _named(document: Document) -> Iterator[tuple[Path, dict[str, Any]]]:
    for level in _levels(document):
        yield from level.children


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _check_names(document: Document) -> None:
    _check_unique(document, _named(document), lambda child: child.get("name"), ("name",), "the name")


def _check_sockets(document: Document) -> None:
    _check_unique(
        document,
        _devices(document),
        lambda device: _section(device, "vhost_user").get("socket") or None,
        ("vhost_user", "socket"),
        "the socket",
    )


def _check_connections(document: Document) -> None:
    for path, device in _devices(document):
        section = _section(device, "vhost_user")
        if section.get("connect") is True and not section.get("socket"):
            found = (*path, "vhost_user", "connect")
            document.find(found, "there is no socket to connect to: name the one that the VMM listens at")


def _check_unique(
    document: Document,
    children: Iterable[tuple[Path, dict[str, Any]]],
    value_of: Callable[[dict[str, Any]], Any],
    inner: Path,
    what: str,
) -> None:
    first: dict[str, Path] = {}
    for path, child in children:
        value = value_of(child)
        if not isinstance(value, str):
            continue
        if value in first:
            place = document.place((*first[value], *inner)).text
            document.find((*path, *inner), f"{what} {value!r} is taken already ({place})")
        else:
            first[value] = path


def _check_overlaps(document: Document) -> None:
    ranges = []
    for path, device in _devices(document):
        mmio = _section(device, "mmio")
        base, size = _integer(mmio.get("base")), mmio.get("size")
        if isinstance(size, str):
            try:
                size = parse_size_bytes(size)
            except ValueError:
                continue
        size = _integer(size)
        if base is None or size is None or base < 0 or size < 1:
            continue
        if base + size > 1 << 64:
            document.find((*path, "mmio"), f"{_range(base, size)} goes beyond the 64-bit address space")
        ranges.append((base, size, path, device.get("name")))
    ranges.sort(key=lambda one: (one[0], one[2]))
    highest = None
    for one in ranges:
        base, size, path, _ = one
        if highest is not None and base < highest[0] + highest[1]:
            # Told where the later of the two stands: that is the one just added, as a rule.
            (earlier, later) = (highest, one) if highest[2] < path else (one, highest)
            document.find(
                (*later[2], "mmio"),
                f"{_range(*later[:2])} of {later[3]!r} overlaps {_range(*earlier[:2])} of {earlier[3]!r}",
            )
        if highest is None or base + size > highest[0] + highest[1]:
            highest = one


def _range(base: int, size: int) -> str:
    return f"{base:#x}..{base + size - 1:#x}"


def _depends_on(level: _Level) -> dict[str, tuple[Path, list[Any]]]:
    """Each child's dependencies as written; of children with the same name, the first one's."""
    found: dict[str, tuple[Path, list[Any]]] = {}
    for path, child in level.children:
        name, targets = child.get("name"), child.get("depends_on")
        if isinstance(name, str) and name not in found:
            found[name] = (path, targets if isinstance(targets, list) else [])
    return found


def _check_dependencies(document: Document) -> None:
    everywhere = [child.get("name") for _path, child in _named(document)]
    for level in _levels(document):
        known = sorted(_depends_on(level))
        for path, child in level.children:
            targets = child.get("depends_on")
            for index, target in enumerate(targets if isinstance(targets, list) else []):
                if not isinstance(target, str) or target in known:
                    continue
                if target in everywhere:
                    what = f"{target!r} is not in the same group; let what holds them depend on one another"
                else:
                    there = close_to(target, known) or f"; there are {', '.join(known)}"
                    what = f"there is no device {target!r}{there}"
                document.find((*path, "depends_on", index), what)


def _check_circles(document: Document) -> None:
    for level in _levels(document):
        children = _depends_on(level)
        graph = {
            name: [target for target in targets if isinstance(target, str)]
            for name, (_, targets) in children.items()
        }
        while (circle := find_circle(graph)) is not None:
            # Told once, at its first device in the file; then that edge is cut to find the next circle.
            names = circle[:-1]
            start = min(range(len(names)), key=lambda index: children[names[index]][0])
            turned = (*names[start:], *names[:start], names[start])
            path, targets = children[turned[0]]
            index = targets.index(turned[1])
            shown = "→".join(turned)
            document.find((*path, "depends_on", index), f"devices depend on each other in a circle: {shown}")
            graph[turned[0]] = [target for target in graph[turned[0]] if target != turned[1]]


def _check_significant(document: Document) -> None:
    for level in _levels(document):
        auto_shutdown = _section(level.data, "supervisor").get("auto_shutdown", "never")
        key = shown_path(document.data, (*level.path, "supervisor", "auto_shutdown"))
        for path, child in level.children:
            if child.get("significant") is not True:
                continue
            what = "device" if path[-2] == "devices" else "group"
            if child.get("restart", "permanent") == "permanent":
                document.find(
                    (*path, "significant"),
                    f"a permanent {what} is always restarted and so cannot be significant; "
                    "make it transient or temporary",
                )
            if auto_shutdown == "never":
                document.find(
                    (*path, "significant"),
                    f"a significant {what} needs {key}: any_significant or all_significant",
                )


def _check_templates(document: Document) -> None:
    """OTP's rules for simple_one_for_one: one template, no other children, no auto_shutdown."""
    for level in _levels(document):
        if not level.path:
            continue
        options = _section(level.data, "supervisor")
        dynamic = options.get("strategy") == "simple_one_for_one"
        template = level.data.get("template")
        if dynamic and template is None:
            document.find(level.path, "a simple_one_for_one group needs a template for its devices")
        if not dynamic and template is not None:
            document.find(
                (*level.path, "template"),
                "is for groups with strategy: simple_one_for_one",
                key=True,
            )
        if dynamic:
            for key in ("devices", "groups"):
                if level.data.get(key):
                    what = "a simple_one_for_one group lists nothing: devices are added while it runs"
                    document.find((*level.path, key), what, key=True)
            if options.get("auto_shutdown", "never") != "never":
                document.find(
                    (*level.path, "supervisor", "auto_shutdown"), "must be never with simple_one_for_one"
                )
            if isinstance(template, dict) and template.get("significant") is True:
                what = "the devices of a simple_one_for_one group cannot be significant"
                document.find((*level.path, "template", "significant"), what)


def _check_exit_codes(document: Document) -> None:
    for path, device in _devices_and_templates(document):
        codes = _section(device, "exit_codes")
        force, prevent = codes.get("force_restart"), codes.get("prevent_restart")
        if isinstance(force, list) and isinstance(prevent, list):
            for index, code in enumerate(prevent):
                if code in force:
                    what = f"{code} forces a restart already (exit_codes.force_restart)"
                    document.find((*path, "exit_codes", "prevent_restart", index), what)


def _check_heartbeats(document: Document) -> None:
    for path, device in _devices_and_templates(document):
        heartbeat = _section(device, "heartbeat")
        try:
            every_ns = parse_duration_ns(heartbeat.get("every"))
            timeout_ns = parse_duration_ns(heartbeat.get("timeout"))
        except ValueError:
            continue
        if timeout_ns <= every_ns:
            shown = heartbeat["every"]
            document.find((*path, "heartbeat", "timeout"), f"must be longer than every ({shown})")


def _check_environments(document: Document) -> None:
    for path, device in _devices_and_templates(document):
        for name, value in _section(device, "env").items():
            if not name or "=" in name or "\0" in name:
                document.find((*path, "env", name), f"{name!r} cannot be the name of a variable", key=True)
            elif isinstance(value, str) and "\0" in value:
                document.find((*path, "env", name), "a variable cannot hold a null character")


def _check_references(document: Document) -> None:
    for path, device in _devices_and_templates(document):
        _check_reference(document, (*path, "device"), device.get("device"), resolve_device)
    preload = _section(document.data, "supervisor").get("preload")
    for index, name in enumerate(preload if isinstance(preload, list) else []):
        _check_reference(document, ("supervisor", "preload", index), name, resolve_module)
    machine_class = _section(document.data, "machine").get("class")
    _check_reference(document, ("machine", "class"), machine_class, resolve_object)


def _check_reference(document: Document, path: Path, name: Any, resolve: Callable[[str], str]) -> None:
    if isinstance(name, str):
        try:
            resolve(name)
        except ValueError as error:
            document.find(path, str(error))
