"""The demo board: a Cortex-M0 with four devices, running a guest of the project's own.

It needs nothing to be fetched. The guest is ``demo_guest.s`` beside this file, assembled when the board is
built; the configuration (``config/demo.yaml``) says where the devices are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from machines.board import Board
from machines.console import Console
from machines.thumb import assemble
from supervisor import Supervisor

__all__ = ["Demo", "demo_guest"]

ROM_BASE, ROM_BYTES = 0x0000_0000, 64 * 1024
RAM_BASE, RAM_BYTES = 0x2000_0000, 16 * 1024
GUEST = Path(__file__).with_name("demo_guest.s")


class Demo(Board):
    """Options: ``serial``, the name of the UART that is the console."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        serial: str = "uart0",
        stdin: Any = None,
        stdout: TextIO | None = None,
    ) -> None:
        console = Console(supervisor, supervisor[serial], stdin=stdin, stdout=stdout)
        super().__init__(supervisor, console)
        self.core.map_memory(ROM_BASE, ROM_BYTES)
        self.core.map_memory(RAM_BASE, RAM_BYTES)
        self.core.load(ROM_BASE, demo_guest())


def demo_guest() -> bytes:
    """The guest's code."""
    return assemble(GUEST.read_text("utf-8"), GUEST.name, base=ROM_BASE)
