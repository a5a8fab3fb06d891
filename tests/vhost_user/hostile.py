"""A VMM that hands over what cannot be served: descriptors of the wrong kind, places that are not there, logs
that cannot be. And what has to hold afterwards."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from devices.virtio.blk import SECTOR
from supervisor.events import DeviceCrashed, DeviceDied, DeviceFailed, GaveUp
from supervisor.host import Supervisor
from supervisor.vhost_user import region_bytes
from supervisor.vhost_user.areas import Inflight, Region
from supervisor.vhost_user.errors import BackEndRefused
from supervisor.vhost_user.frontend import FrontEnd
from supervisor.vhost_user.messages import VringAddr
from tests.chaos import COUNTING, board, census
from tests.vhost_user.driver import GUEST_BASE, Driver, Guest
from tests.vhost_user.test_keeper import Vmm
from tests.vhost_user.test_worker_rings import MEMORY_BYTES, QUEUE, SECTORS, USER_BASE, Work

Open = Callable[[contextlib.ExitStack], int]
Attack = Callable[["Hostile"], None]
MEMORY = Region(GUEST_BASE, MEMORY_BYTES, USER_BASE)
LOG_BYTES = region_bytes(QUEUE)


class Hostile(Vmm):
    """A VMM that can be told to hand over something else."""

    def __init__(self, sup: Supervisor, path: Path) -> None:
        super().__init__(sup, path)
        self.stack = contextlib.ExitStack()
        self.instead: dict[str, Callable[[], object]] = {}

    def say(self, what: str) -> None:
        if what in self.instead:
            with contextlib.suppress(BackEndRefused):
                self.ask(self.instead[what])
        else:
            super().say(what)

    def fd(self, kind: str) -> int:
        """A descriptor of that kind, closed in the end."""
        return KINDS[kind](self.stack)

    def renew(self) -> None:
        """Another VMM, with another guest."""
        self.instead.clear()
        self.connect()
        self.ask(self.front.get_queue_num)  # answered once the worker of the one before is gone
        self.driver.release()
        self.guest._free = GUEST_BASE
        self.driver = Driver(self.guest, QUEUE, event_idx=True)

    def connect(self) -> None:
        """Another connection in the place of the one that there was."""
        self.ask(self.front.close)
        self.front = self.ask(lambda: FrontEnd(self.path, need_reply=True))

    def restore(self) -> None:
        """Memory again, after it was cut short."""
        os.truncate(self.fds["memory"], MEMORY_BYTES)
        self.mapping = mmap.mmap(self.fds["memory"], MEMORY_BYTES)
        self.guest = Guest(memory=memoryview(self.mapping))
        self.driver = Driver(self.guest, QUEUE, event_idx=True)

    def close(self) -> None:
        self.stack.close()
        super().close()


def _owned(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _file(stack: contextlib.ExitStack, size: int = MEMORY_BYTES) -> int:
    fd, path = tempfile.mkstemp()
    os.unlink(path)
    os.truncate(fd, size)
    return _owned(stack, fd)


def _pipe(stack: contextlib.ExitStack, end: int, *, alone: bool) -> int:
    ends = os.pipe()
    if alone:
        os.close(ends[1 - end])
    else:
        _owned(stack, ends[1 - end])
    return _owned(stack, ends[end])


def _socket(stack: contextlib.ExitStack) -> int:
    ends = socket.socketpair()
    ends[1].close()
    return stack.enter_context(ends[0]).fileno()


KINDS: dict[str, Open] = {
    "regular file": _file,
    "file cut short": lambda stack: _file(stack, 4096),
    "eventfd": lambda stack: _owned(stack, os.eventfd(0)),
    "directory": lambda stack: _owned(stack, os.open("/", os.O_RDONLY)),
    "/dev/null": lambda stack: _owned(stack, os.open("/dev/null", os.O_RDWR)),
    "/dev/zero": lambda stack: _owned(stack, os.open("/dev/zero", os.O_RDWR)),
    "path only": lambda stack: _owned(stack, os.open("/proc/self/exe", os.O_PATH)),
    "for reading only": lambda stack: _owned(stack, os.open("/proc/self/exe", os.O_RDONLY)),
    "pipe to read, alone": lambda stack: _pipe(stack, 0, alone=True),
    "pipe to write, alone": lambda stack: _pipe(stack, 1, alone=True),
    "pipe to write": lambda stack: _pipe(stack, 1, alone=False),
    "socket, alone": _socket,
    "pidfd": lambda stack: _owned(stack, os.pidfd_open(os.getpid())),
}


def _memory(kind: str, *regions: Region) -> Attack:
    def attack(vmm: Hostile) -> None:
        table = regions or (MEMORY,)
        fd = vmm.fd(kind) if kind else vmm.fds["memory"]
        vmm.instead["memory"] = lambda: vmm.front.set_mem_table(table, [fd] * len(table))

    return attack


def _places(desc: int, avail: int, used: int) -> Attack:
    def attack(vmm: Hostile) -> None:
        vmm.instead["addr"] = lambda: vmm.front.set_vring_addr(VringAddr(0, 0, desc, used, avail))

    return attack


def _doorbell(what: str, kind: str) -> Attack:
    def attack(vmm: Hostile) -> None:
        fd = vmm.fd(kind)
        setters = {"kick": vmm.front.set_vring_kick, "call": vmm.front.set_vring_call}
        vmm.instead[what] = lambda: setters[what](0, fd)

    return attack


def _log(kind: str, *, offset: int = 0, size: int = LOG_BYTES, entries: int = QUEUE) -> Attack:
    def attack(vmm: Hostile) -> None:
        fd = vmm.fd(kind) if kind else vmm.fds["log"]
        vmm.ask(lambda: vmm.front.set_inflight_fd(Inflight(size, offset, 1, entries), fd))

    return attack


def _log_of(words: dict[int, int], quads: dict[int, int]) -> Attack:
    """A log of the right kind, whose words are these (u16 and u64, by index)."""

    def attack(vmm: Hostile) -> None:
        content = memoryview(bytearray(LOG_BYTES))
        for index, value in quads.items():
            content.cast("Q")[index] = value
        for index, value in words.items():
            content.cast("H")[index] = value
        os.pwrite(vmm.fds["log"], content, 0)
        _log("")(vmm)

    return attack


HIGH = 1 << 62
TOGETHER = Region(GUEST_BASE + (1 << 30), MEMORY_BYTES, USER_BASE + 4096)
ATTACKS: dict[str, Attack] = {
    **{f"memory: {kind}": _memory(kind) for kind in KINDS if kind != "regular file"},
    "memory: longer than its file": _memory("", Region(GUEST_BASE, MEMORY_BYTES + 4096, USER_BASE)),
    "memory: beyond its file": _memory("", Region(GUEST_BASE, MEMORY_BYTES, USER_BASE, HIGH)),
    "memory: overlapping user addresses": _memory("", MEMORY, TOGETHER),
    "memory: at the end of the address space": _memory("", Region(2**64 - 8192, 4096, USER_BASE)),
    "ring: nowhere": _places(0, 0, 0),
    "ring: across the end": _places(USER_BASE + MEMORY_BYTES - 16, USER_BASE, USER_BASE),
    "ring: far away": _places(2**64 - 16, 2**64 - 16, 2**64 - 16),
    "ring: all areas in one place": _places(USER_BASE, USER_BASE, USER_BASE),
    **{f"kick: {kind}": _doorbell("kick", kind) for kind in KINDS},
    **{f"call: {kind}": _doorbell("call", kind) for kind in KINDS},
    **{f"log: {kind}": _log(kind) for kind in KINDS},
    "log: beyond its file": _log("regular file", offset=1 << 30),
    "log: beyond any file": _log("regular file", offset=1 << 63),
    "log: not at a page": _log("", offset=8),
    "log: counter at its end": _log_of({4: 1, 5: QUEUE, 8: 1}, {3: 2**64 - 1}),
    "log: everything under way": _log_of({4: 1} | {8 + 8 * n: 1 for n in range(QUEUE)}, {}),
    "log: a batch that leads out of it": _log_of({4: 1, 6: 0xFFFF, 7: 0xFFFF}, {}),
    "log: of version 7": _log_of({4: 7, 7: 0x8000}, {}),
}


NO_BUDGET = "intensity: 0, period: 60s, spares: 0"  # nobody may die, and descriptors can be counted


@contextlib.contextmanager
def besieged(folder: Path, supervisor: str = NO_BUDGET) -> Iterator[Hostile]:
    """A board of a disk with a hostile VMM, and of another device beside it."""
    image = folder / "disk.img"
    image.write_bytes(bytes(SECTORS * SECTOR))
    path = folder / "disk.sock"
    disk = f'device: virtio.blk, options: {{image: "{image}"}}, vhost_user: {{socket: "{path}"}}'
    config = board(f"name: disk, {disk}, backoff: {{max: 0s}}", COUNTING, supervisor=supervisor)
    with census(), Supervisor(config) as sup:
        made = Hostile(sup, path)
        try:
            yield made
        finally:
            made.close()


def is_unharmed(vmm: Hostile) -> None:
    """Nobody has died, the device beside it answers, and the next VMM is served."""
    bad = DeviceCrashed | DeviceDied | DeviceFailed | GaveUp
    assert not [one for one in vmm.sup.events() if isinstance(one, bad)]
    goes_on(vmm)


def goes_on(vmm: Hostile) -> None:
    """The device beside it has not noticed anything, and the next VMM is served."""
    assert vmm.sup["counter"].generation == 1
    assert vmm.sup["counter"].read(0, 4) == 0
    vmm.renew()
    vmm.bring_up()
    serve(vmm)


def serve(vmm: Hostile, requests: int = 20) -> None:
    """Random writes and reads, each checked."""
    work = Work(vmm, 1)
    deadline = time.monotonic() + 30
    while work.done < requests or work.under_way:
        if work.done < requests:
            work.submit()
        vmm.wait()
        work.collect()
        assert time.monotonic() < deadline
