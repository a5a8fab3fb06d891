"""The machine on which, and the versions with which, figures were taken."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

__all__ = ["commit", "facts", "versions"]

ROOT = Path(__file__).parent.parent
OURS = ("tubevisor", "multiprocess", "protobuf", "msgspec", "unicorn")


def facts() -> dict[str, str]:
    """What is known of this machine."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": f"{len(os.sched_getaffinity(0))}",
        "memory": f"{int((_field('/proc/meminfo', 'MemTotal') or '0').split()[0]) / 2**20:.1f} GiB",
        "virtual": "yes" if "hypervisor" in _field("/proc/cpuinfo", "flags").split() else "not known",
        "kernel": f"{platform.system()} {platform.release()}",
        "system": _field("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "priority": f"nice {os.getpriority(os.PRIO_PROCESS, 0)}",
    }


def versions() -> dict[str, str]:
    """Of Python and of what of ours is involved."""
    return {"Python": platform.python_version(), **{name: version(name) for name in OURS}, **_qemu()}


def _qemu() -> dict[str, str]:
    """QEMU's, whose daemon serves disks beside ours; empty where there is none."""
    with contextlib.suppress(OSError):
        said = subprocess.run(
            ["qemu-storage-daemon", "--version"], capture_output=True, text=True, check=False
        )
        if found := re.search(r"version (\S+)", said.stdout):
            return {"QEMU": found[1]}
    return {}


def commit() -> str:
    """The commit that was measured, and whether anything was changed in it; empty outside of a repository."""
    named = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "supervisor", "machines", "devices")
    return f"{named}, changed" if named and changed else named


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _field(path: str, name: str, separator: str = ":") -> str:
    try:
        for line in Path(path).read_text().splitlines():
            key, found, value = line.partition(separator)
            if found and key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""
