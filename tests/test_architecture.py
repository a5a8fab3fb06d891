"""The rooms and their ranks: imports point down, the pure rooms stay pure, each name has one door."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RANKS = {
    "supervisor.errors": 0,
    "supervisor.exit_codes": 0,
    "supervisor.exits": 0,
    "supervisor.census": 0,
    "supervisor.scratch": 0,
    "supervisor.datasheet": 1,
    "supervisor.registers": 2,
    "supervisor.timeline": 2,
    "supervisor.device": 3,
    "supervisor.messages_pb2": 0,
    "supervisor.policy": 1,
    "supervisor.tube": 1,
    "supervisor.memory": 1,
    "supervisor.config": 3,
    "supervisor.vhost_user": 4,
    "supervisor.worker": 5,
    "supervisor.launch": 6,
    "supervisor.placement": 1,
    "supervisor.agenda": 7,
    "supervisor.bus": 7,
    "supervisor.handle": 6,
    "supervisor.switchboard": 6,
    "supervisor.ledger": 6,
    "supervisor.remote": 7,
    "supervisor.reactor": 8,
    "supervisor.lull": 9,
    "supervisor.processes": 10,
    "supervisor.seat": 10,
    "supervisor.conversation": 11,
    "supervisor.keeper": 10,
    "supervisor.keepers": 11,
    "supervisor.heartbeats": 11,
    "supervisor.witness": 11,
    "supervisor.standbys": 11,
    "supervisor.successions": 12,
    "supervisor.workers": 13,
    "supervisor.reload": 11,
    "supervisor.roster": 13,
    "supervisor.events": 13,
    "supervisor.host": 14,
    "supervisor.aio": 14,
    "supervisor.chaos": 15,
    "supervisor.doctor": 15,
    "supervisor.foreground": 15,
    "supervisor.pytest_plugin": 16,
    "supervisor.reporting": 16,
    "supervisor.running": 17,
    "supervisor.commands": 18,
    "supervisor.cli": 19,
}
"""A module imports modules of a lower rank, or of its own room. Same rank: not at all."""

LATE = {("supervisor.host", "supervisor.aio"), ("supervisor", "supervisor.host")}
"""Imports inside functions that point sideways, each with its reason in the code."""

PURE = {
    "supervisor.errors",
    "supervisor.exit_codes",
    "supervisor.exits",
    "supervisor.datasheet",
    "supervisor.registers",
    "supervisor.device",
    "supervisor.policy",
    "supervisor.timeline",
    "supervisor.worker.records",
    "supervisor.tube.packet",
    "supervisor.tube.peer",
    "supervisor.memory.errors",
    "supervisor.memory.access",
    "supervisor.memory.ranges",
    "supervisor.memory.blocks",
    "supervisor.memory.io",
    "supervisor.memory.sequence",
    "supervisor.memory.regions",
    "supervisor.memory.segments",
    "supervisor.vhost_user.areas",
    "supervisor.vhost_user.assembler",
    "supervisor.vhost_user.errors",
    "supervisor.vhost_user.inflight",
    "supervisor.vhost_user.messages",
    "supervisor.vhost_user.requests",
    "supervisor.vhost_user.rules",
    "supervisor.vhost_user.granting",
    "supervisor.vhost_user.setup",
    "supervisor.bus",
}
IMPURE_MODULES = {
    "asyncio",
    "ctypes",
    "fcntl",
    "io",
    "mmap",
    "multiprocess",
    "os",
    "pathlib",
    "psutil",
    "random",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the three packages with its file."""
    for package in ("supervisor", "devices", "machines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path, module: str) -> Iterator[tuple[str, bool]]:
    """(imported module, whether at the top of the file); imports for type checkers do not count."""
    tree = ast.parse(path.read_text())
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module} has a relative import"
            yield node.module, id(node) in top
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if (ROOT / submodule.replace(".", "/")).with_suffix(".py").exists():
                    yield submodule, id(node) in top


def room_of(module: str) -> str | None:
    """The entry of RANKS that ``module`` belongs to."""
    while module and module not in RANKS:
        module = module.rpartition(".")[0]
    return module or None


def test_given_every_module_it_has_a_rank() -> None:
    """A new file is given its place."""
    homeless = [
        name
        for name, _path in modules()
        if name.startswith("supervisor.") and room_of(name) is None and name != "supervisor.vhost_user"
    ]
    assert homeless == []


def test_given_every_import_it_points_down() -> None:
    """No room imports one of its own rank or above; no cycles."""
    wrong = []
    for name, path in modules():
        room = room_of(name)
        if room is None:
            continue
        for imported, at_top in imports(path, name):
            target = room_of(imported)
            if target is None or target == room or ((name, imported) in LATE and not at_top):
                continue
            if RANKS[target] >= RANKS[room]:
                wrong.append(f"{name} (rank {RANKS[room]}) imports {imported} (rank {RANKS[target]})")
    assert wrong == []


def test_given_pure_rooms_they_import_nothing_that_acts() -> None:
    """What decides in values has no way to a clock, a descriptor or a process."""
    wrong = []
    for name, path in modules():
        if any(name == pure or name.startswith(pure + ".") for pure in PURE):
            for imported, _at_top in imports(path, name):
                if imported.split(".")[0] in IMPURE_MODULES:
                    wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_given_launch_it_alone_imports_multiprocess() -> None:
    """multiprocess is wrapped in one room."""
    users = {
        name
        for name, path in modules()
        for imported, _at_top in imports(path, name)
        if imported.split(".")[0] in ("multiprocess", "multiprocessing")
    }
    assert all(name.startswith("supervisor.launch") for name in users), users


def test_given_devices_they_import_the_device_kit_only() -> None:
    """A device knows the kit, its own family and the standard library, and nothing of the supervisor."""
    kit = ("device", "registers", "memory", "vhost_user", "errors")
    allowed = {f"supervisor.{room}" for room in kit}
    wrong = []
    for name, path in modules():
        if name.startswith("devices."):
            for imported, _at_top in imports(path, name):
                if imported.startswith("supervisor") and imported not in allowed:
                    wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_given_machines_they_import_the_public_supervisor_only() -> None:
    """A machine is what a user could have written."""
    public = ("device", "errors", "events", "handle", "scratch")
    allowed = {"supervisor", *(f"supervisor.{room}" for room in public)}
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules()
        if name.startswith("machines")
        for imported, _at_top in imports(path, name)
        if imported.startswith("supervisor") and imported not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("room", sorted(name for name, _path in modules() if name.startswith("supervisor")))
def test_given_public_names_each_exists_and_has_one_door(room: str) -> None:
    """What ``__all__`` promises is there."""
    if room == "supervisor.messages_pb2":
        return
    module = importlib.import_module(room)
    for name in getattr(module, "__all__", []):
        assert hasattr(module, name), f"{room} promises {name}"


def test_given_device_import_nothing_heavy_is_loaded() -> None:
    """A worker that takes Device through the door loads nothing of the supervisor's own."""
    code = "import sys; from supervisor import Device; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    for heavy in (
        "supervisor.host",
        "supervisor.config",
        "yaml",
        "pydantic",
        "multiprocess",
        "google.protobuf",
    ):
        assert repr(heavy) not in done.stdout
