"""Names of devices and machines, checked without importing what they name.

A built-in device is named by its place below ``devices/``: ``nrf51.uart`` is ``devices/nrf51/uart.py``, whose
attribute ``DEVICE`` is the class. Everything else is ``package.module:Class``. The supervisor never imports
device code, so a name is followed through the packages' search paths as an import would, except that nothing
is executed. Whether the attribute is there only the worker can tell.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from pathlib import Path

__all__ = ["close_to", "resolve_device", "resolve_module", "resolve_object"]

_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_BUILT_IN = "devices"
_ATTRIBUTE = "DEVICE"


def close_to(word: str, words: Iterable[str]) -> str:
    """``; did you mean 'x'?`` if one of ``words`` looks like ``word``, otherwise nothing."""
    close = get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def resolve_device(name: str) -> str:
    """``module:attribute`` of a device as written; ValueError says what is wrong and what there is."""
    if ":" in name:
        return resolve_object(name)
    if not _DOTTED.fullmatch(name) or "." not in name:
        there = _there(_families(), "families", "/")
        raise ValueError(
            f"{name!r} names no device; write family.device or package.module:Class"
            f"{close_to(name, _all())}{there}"
        )
    module = f"{_BUILT_IN}.{name}"
    if _is_file(module) and "._" not in module:
        return f"{module}:{_ATTRIBUTE}"
    family = name.split(".")[0]
    there = _there(_files(family), f"devices/{family} has", "")
    if not there:
        there = _there(_families(), "families", "/")
    raise ValueError(f"there is no device {name!r}{close_to(name, _all())}{there}")


def resolve_object(name: str) -> str:
    """``package.module:Class`` if there is such a module; ValueError says what would be right."""
    module, _, attribute = name.partition(":")
    if not _DOTTED.fullmatch(module) or not attribute.isidentifier():
        raise ValueError(f"must be package.module:Class, not {name!r}")
    if module == "__main__":
        raise ValueError("__main__ is not imported in workers; put the class into a module of its own")
    resolve_module(module)
    return name


def resolve_module(module: str) -> str:
    """The dotted name of a module if there is one; ValueError says what is missing and what there is."""
    if not _DOTTED.fullmatch(module):
        raise ValueError(f"must be a module such as package.module, not {module!r}")
    if _find(module) is not None:
        return module
    package, _, last = module.rpartition(".")
    if package and _find(package) is None:
        raise ValueError(f"there is no package {package!r} to hold {module!r}")
    siblings = _modules_in(_search_path(package)) if package else []
    raise ValueError(f"there is no module {module!r}{close_to(last, siblings)}")


def _find(module: str) -> ModuleSpec | None:
    """The spec of a module, found as an import would find it, without executing any package on the way."""
    found = _follow(module)
    return None if found is None else found[0]


def _follow(module: str) -> tuple[ModuleSpec, Sequence[str] | None] | None:
    """The spec of a module and, if it is a package, the folders that hold its parts."""
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    name = ""
    for part in module.split("."):
        if name and path is None:
            return None  # the module before is no package
        name = f"{name}.{part}" if name else part
        spec = _find_one(name, path)
        if spec is None:
            return None
        if spec.submodule_search_locations is None:
            path = None
        elif spec.origin is None:
            # A namespace package's own list of folders asks its parent, which nobody has imported.
            folders = [Path(entry or ".", part) for entry in (sys.path if path is None else path)]
            path = [str(folder) for folder in folders if folder.is_dir()]
        else:
            path = list(spec.submodule_search_locations)
    return None if spec is None else (spec, path)


def _find_one(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        try:
            spec = find_spec(name, path) if find_spec is not None else None
        except (ImportError, OSError, ValueError):
            continue  # a finder that cannot tell is not a finder that says no
        except KeyError:
            # A namespace package looks for its parent among what is imported, and finds nothing there.
            return ModuleSpec(name, None, is_package=True)
        if spec is not None:
            return spec if isinstance(spec, ModuleSpec) else None
    return None


def _is_file(module: str) -> bool:
    found = _follow(module)
    return found is not None and found[1] is None


def _search_path(package: str) -> Sequence[str]:
    found = _follow(package)
    return (found[1] or []) if found is not None else []


def _modules_in(folders: Sequence[str]) -> list[str]:
    names: set[str] = set()
    for folder in folders:
        try:
            names |= {entry.stem for entry in Path(folder).iterdir() if entry.suffix == ".py"}
        except OSError:
            continue
    return sorted(name for name in names if not name.startswith("_"))


def _families() -> list[str]:
    names: set[str] = set()
    for folder in _search_path(_BUILT_IN):
        try:
            names |= {entry.name for entry in Path(folder).iterdir() if entry.is_dir()}
        except OSError:
            continue
    return sorted(name for name in names if name[0] not in "_.")


def _files(family: str) -> list[str]:
    return _modules_in(_search_path(f"{_BUILT_IN}.{family}"))


def _all() -> list[str]:
    return [f"{family}.{file}" for family in _families() for file in _files(family)]


def _there(names: list[str], words: str, suffix: str) -> str:
    return f"; {words}: {', '.join(name + suffix for name in names)}" if names else ""
