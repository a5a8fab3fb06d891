"""Files that a machine needs: firmware, kernels, and programs of the system."""

from __future__ import annotations

import shutil
from pathlib import Path

from supervisor.errors import LocalError

__all__ = ["find_file", "find_program"]


def find_file(kind: str, name: str, source: str, remedy: str) -> Path:
    """The file ``name``: as seen from the working directory, else from the folder above the configuration's.

    ``source`` is the configuration. Raises :class:`LocalError` that ends in ``remedy``.
    """
    here = Path(name)
    beside = Path(source).resolve().parent.parent / name
    for path in (here, beside):
        if path.is_file():
            return path.resolve()
    raise LocalError(f"there is no {kind} {name!r}, neither here nor at {beside}; {remedy}")


def find_program(name: str, package: str) -> str:
    """The path of a program. Raises :class:`LocalError` that names Debian's package."""
    found = shutil.which(name)
    if found is None:
        raise LocalError(f"there is no {name} on this system: apt-get install {package}")
    return found
