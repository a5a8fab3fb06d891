"""User-Mode Linux, a Linux kernel that is a program, with the supervisor's virtio devices over vhost-user.

It takes any kind of virtio device, and cannot reconnect to one: its driver breaks the device when the socket
closes. So a guest here that lives through the deaths of its disk has never seen one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, TextIO

from machines.files import find_file
from machines.vmm import Vmm, VmmOptions, read_options
from supervisor import Supervisor
from supervisor.scratch import ScratchFolder

__all__ = ["Uml"]

REMEDY = "apt-get install user-mode-linux, or `make guests`, which gets it"


class Uml(Vmm):
    """One run of User-Mode Linux. Options: :class:`~machines.vmm.VmmOptions`; ``kernel`` is the program.

    Raises :class:`~supervisor.errors.LocalError` for options that cannot be.
    """

    def __init__(
        self, supervisor: Supervisor, *, stdin: Any = None, stdout: TextIO | None = None, **options: Any
    ) -> None:
        self.options = read_options(VmmOptions, "uml", options)
        super().__init__(supervisor, self.options, stdin=stdin, stdout=stdout)
        self._folder: ScratchFolder | None = None

    def command(self) -> list[str]:
        options, source = self.options, self.sup.config.source
        installed = shutil.which("linux.uml")
        if options.kernel or installed is None:
            name = options.kernel or "linux.uml"
            kernel = find_file("User-Mode Linux", name, source, REMEDY)
        else:
            kernel = Path(installed)
        self._folder = ScratchFolder("uml")
        words = [
            str(kernel),
            *(f"mem={options.memory}", f"uml_dir={self._folder.path}/"),
            *("con=null", "con0=fd:0,fd:1", "quiet"),
        ]
        if options.initrd:
            words.append(f"initrd={find_file('initial RAM file system', options.initrd, source, REMEDY)}")
        words += options.append.split()
        for handle in self.sup.devices.values():
            facts = handle.vhost_user
            if facts is not None:
                words.append(f"virtio_uml.device={facts.socket}:{facts.device_id}")
        return [*words, *options.args]

    async def serve(self) -> int:
        try:
            return await super().serve()
        finally:
            if self._folder is not None:
                self._folder.close()
