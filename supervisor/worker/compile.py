"""The build's hook that compiles ``_mailbox.c``, where there is a C compiler. Without one the wheel is pure.

    [tool.hatch.build.hooks.custom]
    path = "supervisor/worker/compile.py"

``TUBEVISOR_COMPILE=0`` leaves it out, ``=1`` makes it an error where it cannot be compiled. The result keeps
to the stable ABI of CPython 3.11, so one wheel for a machine serves every later version of Python.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["CompileHook"]

SOURCE = Path("supervisor/worker/_mailbox.c")
BUILT = SOURCE.with_name("_mailbox.abi3.so")
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", "-fPIC")


class CompileHook(BuildHookInterface[Any]):
    """Adds the compiled mailbox to wheels and editable installations."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles beside the source and says so to the builder."""
        wanted = os.environ.get("TUBEVISOR_COMPILE", "auto")
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        (root / BUILT).unlink(missing_ok=True)  # an older one
        if wanted == "0":
            return
        why_not = compile_mailbox(root)
        if not why_not:
            build_data["artifacts"].append(f"/{BUILT}")
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        elif wanted == "1":
            raise SystemExit(f"{SOURCE}: {why_not}; unset TUBEVISOR_COMPILE to go without it")
        else:
            self.app.display_warning(f"{SOURCE} is not compiled, requests take longer: {why_not}")


def compile_mailbox(root: Path) -> str:
    """Compiles the mailbox of the source tree at ``root``; returns why not, or nothing."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return f"it is for CPython with its lock, not {platform.python_implementation()} without"
    command = shlex.split(os.environ.get("CC", "cc"))
    if not command or shutil.which(command[0]) is None:
        return "there is no C compiler"
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        return f"there is no {include}/Python.h"
    built = root / BUILT
    half_built = built.with_name(f"{built.name}.{os.getpid()}")
    done = subprocess.run(
        [*command, *FLAGS, "-shared", f"-I{include}", str(root / SOURCE), "-o", str(half_built)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        half_built.unlink(missing_ok=True)
        return f"{command[0]} said:\n{done.stderr.strip()}"
    half_built.replace(built)
    return ""
