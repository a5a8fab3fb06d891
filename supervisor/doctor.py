"""What of the optional surroundings is there, and what its absence means: ``tubevisor doctor``. Read-only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finding", "examine"]

SO_PASSPIDFD = 76  # Linux 6.5; not in the socket module yet


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked for: what, whether it is there, what it is or what its absence means."""

    what: str
    present: bool
    detail: str
    needed: bool = False


def examine(root: Path) -> list[Finding]:
    """Looks at this machine; ``root`` is the directory of the project's caches."""
    kernel = _kernel()
    return [
        Finding(
            "Python 3.11 to 3.13",
            (3, 11) <= sys.version_info[:2] <= (3, 13),
            platform.python_version(),
            needed=True,
        ),
        Finding("Linux 5.10 or newer", kernel >= (5, 10), platform.release(), needed=True),
        _ask("credentials on packets (SO_PASSCRED)", _passcred, "on", "Tubes cannot check their peers", True),
        _ask(
            "pidfds on packets (SCM_PIDFD, Linux 6.5)",
            _passpidfd,
            "on",
            "Tubes tell processes apart by their numbers alone",
        ),
        Finding(
            "exit status from a pidfd (Linux 6.15)",
            kernel >= (6, 15),
            "on" if kernel >= (6, 15) else "a worker that dies with the zygote ends for an unknown reason",
        ),
        _fence(),
        _mailbox(),
        _atomics(),
        _module("unicorn", "the micro:bit: pip install 'tubevisor[unicorn]'"),
        _program("qemu-system-x86_64", "QEMU machines: Debian package qemu-system-x86"),
        _module("qemu.qmp", "QEMU machines: pip install 'tubevisor[qemu]'"),
        _program("linux.uml", "User-Mode Linux: Debian package user-mode-linux, or make guests"),
        Finding(
            "Linux guests",
            (kernel_image := root / ".cache/guests/vmlinuz").is_file(),
            str(kernel_image.parent) if kernel_image.is_file() else "run: make guests",
        ),
        Finding(
            "micro:bit firmware",
            (found := root / ".cache/firmware/firmware.hex").is_file(),
            str(found) if found.is_file() else "run: make firmware",
        ),
        _clash(),
    ]


def _kernel() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)


def _ask(what: str, test: Callable[[], None], there: str, missing: str, needed: bool = False) -> Finding:
    try:
        test()
    except OSError as error:
        return Finding(what, False, f"{missing} ({error.strerror})", needed)
    return Finding(what, True, there, needed)


def _passcred() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def _passpidfd() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)


def _fence() -> Finding:
    from supervisor.memory.fence import FENCE

    missing = "libatomic1 is not installed: every posted write rings a doorbell"
    return Finding("memory fence", FENCE is not None, missing if FENCE is None else type(FENCE).__name__)


def _mailbox() -> Finding:
    from supervisor.worker.mailbox import PURE, compiled

    what = "compiled mailbox"
    if compiled() is not None:
        return Finding(what, True, "in use")
    if os.environ.get(PURE):
        return Finding(what, False, f"not wanted: {PURE} is set")
    return Finding(what, False, "requests take three times as long: reinstall where there is a C compiler")


def _atomics() -> Finding:
    from supervisor.memory import NoTrueAtomics, true_atomics

    try:
        return Finding("atomics across processes", True, true_atomics().name)
    except NoTrueAtomics as error:
        return Finding("atomics across processes", False, str(error))


def _module(name: str, use: str) -> Finding:
    try:
        present = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        present = False
    return Finding(f"Python package {name}", present, importlib.metadata.version(name) if present else use)


def _program(name: str, use: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, path is not None, path or use)


def _clash() -> Finding:
    """supervisord has the import name ``supervisor`` too: whichever is installed last wins in silence."""
    owners = set(importlib.metadata.packages_distributions().get("supervisor", []))
    others = sorted(owners - {"tubevisor"})
    detail = f"also installed: {', '.join(others)}; use separate environments" if others else "ours alone"
    return Finding("import name 'supervisor'", not others, detail, needed=True)
