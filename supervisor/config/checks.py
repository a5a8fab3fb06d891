"""What is wrong between fields: duplicates, overlaps, circles, combinations that cannot work.

These checks read plain data, before and whatever the models say: a typo in one device must not hide that two
others overlap. So nothing is taken for granted here: what has not the expected shape is passed over in
silence, since the models complain about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from supervisor.config.document import Document, Path
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
        _check_heartbeats,
        _check_sockets,
        _check_environments,
        _check_references,
    ):
        check(document)


def _section(data: Any, name: str) -> dict[str, Any]:
    section = data.get(name) if isinstance(data, dict) else None
    return section if isinstance(section, dict) else {}


def _devices(document: Document) -> Iterator[tuple[Path, dict[str, Any]]]:
    devices = document.data.get("devices") if isinstance(document.data, dict) else None
    for index, device in enumerate(devices if isinstance(devices, list) else []):
        if isinstance(device, dict):
            yield ("devices", index), device


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _check_names(document: Document) -> None:
    _check_unique(document, lambda device: device.get("name"), ("name",), "the name")


def _check_sockets(document: Document) -> None:
    _check_unique(
        document,
        lambda device: _section(device, "vhost_user").get("socket"),
        ("vhost_user", "socket"),
        "the socket",
    )


def _check_unique(
    document: Document, value_of: Callable[[dict[str, Any]], Any], inner: Path, what: str
) -> None:
    first: dict[str, Path] = {}
    for path, device in _devices(document):
        value = value_of(device)
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


def _depends_on(document: Document) -> dict[str, tuple[Path, list[Any]]]:
    """Each device's dependencies as written; of devices with the same name, the first one's."""
    found: dict[str, tuple[Path, list[Any]]] = {}
    for path, device in _devices(document):
        name, targets = device.get("name"), device.get("depends_on")
        if isinstance(name, str) and name not in found:
            found[name] = (path, targets if isinstance(targets, list) else [])
    return found


def _check_dependencies(document: Document) -> None:
    known = sorted(_depends_on(document))
    for path, device in _devices(document):
        targets = device.get("depends_on")
        for index, target in enumerate(targets if isinstance(targets, list) else []):
            if isinstance(target, str) and target not in known:
                there = close_to(target, known) or f"; there are {', '.join(known)}"
                document.find((*path, "depends_on", index), f"there is no device {target!r}{there}")


def _check_circles(document: Document) -> None:
    devices = _depends_on(document)
    graph = {
        name: [target for target in targets if isinstance(target, str)]
        for name, (_, targets) in devices.items()
    }
    while (circle := find_circle(graph)) is not None:
        # Told once, at its first device in the file; then that edge is cut to find the next circle.
        names = circle[:-1]
        start = min(range(len(names)), key=lambda index: devices[names[index]][0])
        turned = (*names[start:], *names[:start], names[start])
        path, targets = devices[turned[0]]
        index = targets.index(turned[1])
        shown = "→".join(turned)
        document.find((*path, "depends_on", index), f"devices depend on each other in a circle: {shown}")
        graph[turned[0]] = [target for target in graph[turned[0]] if target != turned[1]]


def _check_significant(document: Document) -> None:
    auto_shutdown = _section(document.data, "supervisor").get("auto_shutdown", "never")
    for path, device in _devices(document):
        if device.get("significant") is not True:
            continue
        if device.get("restart", "permanent") == "permanent":
            document.find(
                (*path, "significant"),
                "a permanent device is always restarted and so cannot be significant; "
                "make it transient or temporary",
            )
        if auto_shutdown == "never":
            document.find(
                (*path, "significant"),
                "a significant device needs supervisor.auto_shutdown: any_significant or all_significant",
            )


def _check_heartbeats(document: Document) -> None:
    for path, device in _devices(document):
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
    for path, device in _devices(document):
        for name, value in _section(device, "env").items():
            if not name or "=" in name or "\0" in name:
                document.find((*path, "env", name), f"{name!r} cannot be the name of a variable", key=True)
            elif isinstance(value, str) and "\0" in value:
                document.find((*path, "env", name), "a variable cannot hold a null character")


def _check_references(document: Document) -> None:
    for path, device in _devices(document):
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
