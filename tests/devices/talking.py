"""Devices that talk to each other, watch descriptors and hand them on."""

from __future__ import annotations

import os
from typing import Any

from supervisor.device import Context, Device
from supervisor.registers import Register


class Talking(Device):
    """``call`` is a little command language; what comes over a Tube is counted in HEARD."""

    HEARD = Register(0)

    def start(self, ctx: Context) -> None:
        self._peers: dict[str, Any] = {}
        self._handed: list[Any] = []

    def call(self, request: bytes) -> bytes:
        command, _, rest = request.partition(b" ")
        match command:
            case b"pid":
                return str(os.getpid()).encode()
            case b"connect":
                name = rest.decode()
                tube = self._peers[name] = self.ctx.connect(name)
                self.ctx.watch(tube.fileno(), lambda: self._on_tube(name, tube))
                return str(tube.target_pid).encode()
            case b"try":
                try:
                    return self.call(rest)
                except Exception as error:
                    return f"{type(error).__name__}: {error}".encode()
            case b"say":
                name, _, text = rest.decode().partition(" ")
                self._peers[name].send(text, timeout=1)
                return b"said"
            case b"hand":
                pid, _, secret = rest.partition(b" ")
                fd = os.memfd_create("handed")
                os.write(fd, secret)
                try:
                    self.ctx.hand_over(int(pid), fd)
                except Exception as error:
                    return f"{type(error).__name__}: {error}".encode()
                finally:
                    os.close(fd)
                return b"done"
            case b"keep":
                label, _, secret = rest.partition(b" ")
                fd = os.memfd_create("kept")
                os.write(fd, secret)
                self.ctx.keep(label.decode(), fd)
                os.close(fd)
                return b"kept"
            case b"give_up":
                self.ctx.keep(rest.decode(), None)
                return b"given up"
            case b"passed":
                held = sorted(self.ctx.passed.items())
                return b",".join(name.encode() + b"=" + os.pread(fd, 100, 0) for name, fd in held)
            case b"handed":
                return b",".join(os.pread(held.fileno(), 100, 0) for held in self._handed)
        return b"?"

    def handed(self, descriptor: Any, from_pid: int) -> None:
        self._handed.append(descriptor)
        self.ctx.emit(b"handed")

    def _on_tube(self, name: str, tube: Any) -> None:
        try:
            text = tube.recv(str, timeout=0)
        except Exception as error:
            self.ctx.unwatch(tube.fileno())
            self.ctx.emit(f"{name}: {type(error).__name__}".encode())
            return
        self.HEARD += 1
        self.ctx.emit(f"{name}: {text}".encode())
