"""QEMU, with the supervisor's virtio devices over vhost-user.

Devices with ``vhost_user`` become PCI devices of QEMU's, in the configuration's order; guest memory is
shared, as vhost-user needs it. Without KVM by default (``accel: kvm`` where the host's can be relied upon).

QMP, QEMU's machine protocol, is spoken over a socket that QEMU inherits, through ``qemu.qmp``::

    machine = Qemu(sup, kernel="vmlinuz", initrd="initramfs.gz")
    async with asyncio.TaskGroup() as group:
        guest = group.create_task(machine.serve())
        await machine.execute("stop")
        await machine.execute("cont")
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from importlib import import_module
from typing import Any, TextIO

from machines.files import find_file, find_program
from machines.vmm import Vmm, VmmOptions, read_options
from supervisor import Supervisor
from supervisor.errors import LocalError
from supervisor.handle import VhostUserFacts

__all__ = ["Qemu", "QemuOptions"]

PROGRAM = "qemu-system-x86_64"
REMEDY = "`make guests` gets it"


class QemuOptions(VmmOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``max_memory`` leaves room to plug memory in; without ``reboot`` a guest that reboots has ended."""

    accel: str = "tcg"
    machine: str = "pc"
    cpus: int = 1
    max_memory: str = ""
    reboot: bool = True


class Qemu(Vmm):
    """One run of QEMU. Options: :class:`QemuOptions`. Raises :class:`LocalError` for those that cannot be."""

    def __init__(
        self, supervisor: Supervisor, *, stdin: Any = None, stdout: TextIO | None = None, **options: Any
    ) -> None:
        self.options = read_options(QemuOptions, "qemu", options)
        super().__init__(supervisor, self.options, stdin=stdin, stdout=stdout)
        self.qmp = _qmp_client()
        self._ours, self._theirs = socket.socketpair()
        self._connected = asyncio.Event()

    def command(self) -> list[str]:
        options = self.options
        size = options.memory
        memory = f"{size},slots=8,maxmem={options.max_memory}" if options.max_memory else size
        return [
            find_program(PROGRAM, "qemu-system-x86"),
            *("-nodefaults", "-display", "none", "-serial", "stdio"),
            *("-accel", options.accel, "-smp", str(options.cpus), "-m", memory),
            *("-object", f"memory-backend-memfd,id=mem,size={size},share=on"),
            *("-machine", f"{options.machine},memory-backend=mem"),
            *("-chardev", f"socket,id=qmp,fd={self._theirs.fileno()}", "-mon", "chardev=qmp,mode=control"),
            *self._boot(),
            *([] if options.reboot else ["-no-reboot"]),
            *self._devices(),
            *options.args,
        ]

    def _boot(self) -> list[str]:
        options, source = self.options, self.sup.config.source
        words = []
        if options.kernel:
            words += ["-kernel", str(find_file("kernel", options.kernel, source, REMEDY))]
            words += ["-append", f"console=ttyS0 quiet panic=-1 {options.append}".rstrip()]
        if options.initrd:
            words += ["-initrd", str(find_file("initial RAM file system", options.initrd, source, REMEDY))]
        return words

    def _devices(self) -> list[str]:
        words: list[str] = []
        for name, handle in self.sup.devices.items():
            facts = handle.vhost_user
            if facts is None:
                continue
            if facts.device_id not in _DEVICES:
                raise LocalError(
                    f"{name}: QEMU has no vhost-user device for virtio's kind {facts.device_id}, "
                    f"only for {', '.join(map(str, _DEVICES))}"
                )
            words += ["-chardev", f"socket,id={name},path={facts.socket}"]
            words += _DEVICES[facts.device_id](name, facts)
        return words

    def handed_down(self) -> tuple[int, ...]:
        return (self._theirs.fileno(),)

    async def attend(self) -> None:
        """Connects QMP."""
        self._theirs.close()
        os.set_blocking(self._ours.fileno(), False)
        with contextlib.suppress(Exception):  # a QEMU that ends says itself why
            await self.qmp.connect(self._ours)
            self._connected.set()
            try:
                await asyncio.Event().wait()
            finally:
                self._connected.clear()
                await self.qmp.disconnect()

    async def execute(self, command: str, **arguments: Any) -> Any:
        """A command of QMP's; waits until QEMU listens. Raises ``qemu.qmp.ExecuteError``."""
        await self._connected.wait()
        return await self.qmp.execute(command, arguments or None)

    async def ask_to_end(self) -> None:
        with contextlib.suppress(Exception):  # who cannot be asked is killed
            await self.execute("quit")


def _qmp_client() -> Any:
    try:
        client = import_module("qemu.qmp").QMPClient("tubevisor")
    except ImportError as error:
        raise LocalError(
            "this machine speaks to QEMU with qemu.qmp, which is not installed: pip install 'tubevisor[qemu]'"
        ) from error
    client.logger.setLevel(logging.CRITICAL + 1)  # that QEMU has ended is no error of ours
    return client


def _blk(name: str, facts: VhostUserFacts) -> list[str]:
    return ["-device", f"vhost-user-blk-pci,chardev={name},num-queues={facts.queues}"]


def _rng(name: str, _facts: VhostUserFacts) -> list[str]:
    return ["-device", f"vhost-user-rng-pci,chardev={name}"]


def _net(name: str, facts: VhostUserFacts) -> list[str]:
    netdev = f"vhost-user,id=net-{name},chardev={name}"
    mac = f",mac={facts.config[:6].hex(':')}" if facts.config else ""  # or QEMU thinks one up
    # Without MSI-X: QEMU 7.2 ends by a signal where such a card starts with it and there is no KVM.
    return ["-netdev", netdev, "-device", f"virtio-net-pci,netdev=net-{name}{mac},romfile=,vectors=0"]


_DEVICES: dict[int, Callable[[str, VhostUserFacts], list[str]]] = {1: _net, 2: _blk, 4: _rng}
"""QEMU 7.2's vhost-user devices by virtio's number of the kind; there is none for a console."""
