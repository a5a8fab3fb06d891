"""The guests of ``make guests`` as machines, for tests: booted, talked to, and read.

Skips where a guest or QEMU is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp.qmp_client import ExecInterruptedError

from machines.qemu import Qemu
from machines.uml import Uml
from machines.vmm import Vmm
from supervisor.host import Supervisor

__all__ = ["DEADLINE_S", "VMMS", "Scenario", "boot", "qemu", "transcript", "uml"]

GUESTS = Path(__file__).parents[2] / ".cache" / "guests"
DEADLINE_S = 240.0
Scenario = Callable[[Any], Awaitable[None]]
"""What is done to a guest while it runs."""


def _needed(*names: str) -> list[str]:
    missing = [name for name in names if not (GUESTS / name).exists()]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: run make guests")
    return [str(GUESTS / name) for name in names]


def qemu(sup: Supervisor, append: str, **options: object) -> Qemu:
    """QEMU with all devices of the board; a guest that reboots has ended unless ``reboot`` says otherwise."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64: install qemu-system-x86")
    kernel, initrd = _needed("vmlinuz", "initramfs-qemu.gz")
    words = {"kernel": kernel, "initrd": initrd, "append": append, "reboot": False}
    return Qemu(sup, stdin=io.StringIO(), stdout=io.StringIO(), **words | options)


def uml(sup: Supervisor, append: str, **options: object) -> Uml:
    """User-Mode Linux with all devices of the board."""
    kernel, initrd = _needed("linux.uml", "initramfs-uml.gz")
    words = {"kernel": kernel, "initrd": initrd, "append": append, "memory": "128M"}
    return Uml(sup, stdin=io.StringIO(), stdout=io.StringIO(), **words | options)


VMMS: dict[str, Callable[..., Vmm]] = {"qemu": qemu, "uml": uml}


def boot(machine: Vmm, *scenario: Scenario) -> str:
    """Runs the guest to its end, with what is done to it meanwhile; returns what it has printed."""

    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            guest = group.create_task(machine.serve())
            done = [group.create_task(_as_long_as_it_runs(one, machine)) for one in scenario]
            await guest
            for task in done:
                task.cancel()

    with contextlib.redirect_stderr(io.StringIO()):
        try:
            asyncio.run(run())
        except TimeoutError:
            pytest.fail(f"the guest has not ended:\n{transcript(machine)[-3000:]}")
    return transcript(machine)


async def _as_long_as_it_runs(scenario: Scenario, machine: Vmm) -> None:
    with contextlib.suppress(ExecInterruptedError):  # the guest has ended: its verdict counts
        await scenario(machine)


def transcript(machine: Vmm) -> str:
    """What the guest has printed so far."""
    output = machine._stdout
    assert isinstance(output, io.StringIO)
    return output.getvalue()
