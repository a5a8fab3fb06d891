"""A Linux guest in QEMU with three disks, ours, qemu-storage-daemon's and QEMU's own; fio in it.

All three are there at once, on images of their own in memory, so that they are measured in turns in the same
guest. The guest's processor is emulated (TCG), which costs all of them alike and makes each of the guest's
instructions dear. There could be a second one, but is not: before 8.1, QEMU leaves out the fences of a guest
that has only one, and it and qemu-storage-daemon then miss each other's bells and hang. What the host has to
know of the guest it reads in the guest's memory, which is shared: QEMU says where the rings are.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.disk_tools import FIO, initramfs
from benchmarks.peers import die_with_parent

__all__ = ["PATTERNS", "Guest", "Outcome", "Pattern", "outcome", "why_not"]

GUESTS = Path(__file__).parent.parent / ".cache" / "guests"
QEMU = "qemu-system-x86_64"
MEMORY_MIB = 768  # of which fio's libraries take 170
BOOT_S, COMMAND_S = 120.0, 60.0
RAMP_S = 0.2
DONE = re.compile(rb"^@done (\d+)\r?\n", re.MULTILINE)
NAMES = ("vda", "vdb", "vdc")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A way to read or write, as fio has it."""

    key: str
    title: str
    rw: str
    block: int
    depth: int
    processes: int = 1


PATTERNS = (
    Pattern("randread1", "random read of 4 KiB in a guest, depth 1", "randread", 4096, 1),
    Pattern("randwrite1", "random write of 4 KiB in a guest, depth 1", "randwrite", 4096, 1),
    Pattern("randread32", "random read of 4 KiB in a guest, depth 32", "randread", 4096, 32),
    Pattern("randwrite32", "random write of 4 KiB in a guest, depth 32", "randwrite", 4096, 32),
    Pattern("randread4", "random read of 4 KiB in a guest, 4 processes, depth 32", "randread", 4096, 32, 4),
    Pattern(
        "randwrite4", "random write of 4 KiB in a guest, 4 processes, depth 32", "randwrite", 4096, 32, 4
    ),
    Pattern("read", "sequential read of 128 KiB in a guest, depth 8", "read", 131072, 8),
    Pattern("write", "sequential write of 128 KiB in a guest, depth 8", "write", 131072, 8),
)


CPUS = "1,maxcpus=2"
"""One, and room for another: QEMU before 8.1 leaves the fences of a guest with one out, and disks that do not
look again may then miss a bell for ever (qemu-storage-daemon does)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one pattern: ns a request (the whole time by the number of requests), and the 99th percentile."""

    request_ns: int
    p99_ns: int


def why_not() -> str:
    """What is missing for a guest, with what gets it; empty if nothing is."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed"
    missing = [name for name in ("vmlinuz", "initramfs-qemu.gz") if not (GUESTS / name).exists()]
    if missing:
        return f"no {', '.join(missing)} in .cache/guests: `make guests` gets them"
    if not (GUESTS / "fio.cpio").exists():
        return "no fio for the guest: `sh benchmarks/fio.sh` gets it from a Debian archive"
    return ""


class Guest:
    """QEMU and the guest in it. ``disks`` are the sockets of the first two, ``image`` is the third's.

    ``look_after`` has a descriptor and a function: which lets the supervisor go on.
    """

    def __init__(
        self,
        folder: Path,
        disks: Sequence[str],
        image: str,
        look_after: tuple[Callable[[], int], Callable[[], None]],
    ) -> None:
        self._fileno, self._dispatch = look_after
        (folder / "initramfs").write_bytes(initramfs(GUESTS))
        self._qmp, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            self._command(folder, disks, image, theirs.fileno()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it tells of each try to connect to what is dead
            pass_fds=(theirs.fileno(),),
            preexec_fn=die_with_parent,
        )
        theirs.close()
        self._heard = b""
        self._answers = self._qmp.makefile("rb")
        self._memory: mmap.mmap | None = None
        try:
            self._wait_done(BOOT_S)
        except BaseException:
            self.close()
            raise
        (folder / "initramfs").unlink()

    def _command(self, folder: Path, disks: Sequence[str], image: str, qmp: int) -> list[str]:
        words = [
            *(QEMU, "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
            *("-accel", "tcg", "-smp", CPUS, "-m", f"{MEMORY_MIB}M"),
            *("-object", f"memory-backend-memfd,id=mem,size={MEMORY_MIB}M,share=on"),
            *("-machine", "pc,memory-backend=mem"),
            *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
            *("-kernel", str(GUESTS / "vmlinuz"), "-initrd", str(folder / "initramfs")),
            *("-append", "console=ttyS0 quiet panic=-1 rdinit=/bench_init"),
        ]
        for number, path in enumerate(disks):
            words += ["-chardev", f"socket,id=c{number},path={path},reconnect=1"]
            words += ["-device", f"vhost-user-blk-pci,id=d{number},chardev=c{number},num-queues=1"]
        words += [
            "-drive",
            f"if=none,id=own,file={image},format=raw,cache=writeback,aio=threads,file.locking=off",
        ]
        words += ["-device", "virtio-blk-pci,id=own,drive=own,num-queues=1,queue-size=128"]
        return words

    # -- the guest's shell -----------------------------------------------------------------------

    def fio(self, disk: int, patterns: Sequence[Pattern], seconds: float) -> dict[str, Outcome]:
        """Measures a disk with one pattern after the other."""
        jobs = [
            f"--name={one.key} --stonewall --rw={one.rw} --bs={one.block} --iodepth={one.depth} "
            f"--new_group --numjobs={one.processes} --group_reporting"
            for one in patterns
        ]
        said = self.run(f"{_fio(disk, seconds)} --output-format=json {' '.join(jobs)}", COMMAND_S)
        result = json.loads(said[said.index("\n{") : said.rindex("}") + 1])
        return {job["jobname"]: outcome(job) for job in result["jobs"]}

    def work(self, disk: int, seconds: float) -> None:
        """Random reads at depth 32 from now on; :meth:`finish` waits for the end. Raises if any fails."""
        self._type(
            f"{_fio(disk, seconds)} --name=work --rw=randread --bs=4096 --iodepth=32 --minimal >/dev/null"
        )

    def finish(self, seconds: float) -> None:
        """See :meth:`work`."""
        _said, status = self._wait_done(seconds)
        assert status == 0, f"fio has ended with {status}: the guest has seen an error"

    def run(self, command: str, timeout_s: float) -> str:
        """Runs a command; what it has printed. Raises if it fails."""
        self._type(command)
        said, status = self._wait_done(timeout_s)
        assert status == 0, f"{command}: {status}: {said[-500:]}"
        return said

    def _type(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    def _wait_done(self, timeout_s: float) -> tuple[str, int]:
        until = time.monotonic() + timeout_s
        while not (done := DONE.search(self._heard)):
            self.hear(0.1)
            self._dispatch()
            if time.monotonic() > until:
                raise TimeoutError(f"the guest is silent: {self._heard[-500:]!r}")
        said, self._heard = self._heard[: done.start()], self._heard[done.end() :]
        return said.decode(errors="replace"), int(done[1])

    def hear(self, seconds: float) -> None:
        """Waits for something in guest or supervisor, up to ``seconds``; takes what the guest says."""
        assert self._process.stdout is not None
        fds = [self._process.stdout.fileno(), self._fileno()]
        if fds[0] in select.select(fds, [], [], seconds)[0]:
            data = os.read(fds[0], 65536)
            assert data, f"QEMU has ended: {self._heard[-500:]!r}"
            self._heard += data

    def rest(self, seconds: float) -> None:
        """Lets guest and supervisor go on for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.hear(left)
            self._dispatch()

    # -- what QEMU knows -------------------------------------------------------------------------

    def watch_ring(self, disk: int) -> Callable[[], int]:
        """What reads used.idx of a vhost-user disk's queue, in the guest's memory."""
        if self._memory is None:
            self._answers.readline()  # its greeting
            self._ask("qmp_capabilities")
            self._memory = mmap.mmap(self._memory_fd(), MEMORY_MIB << 20)
        path = next(one["path"] for one in self._ask("x-query-virtio") if f"/d{disk}/" in one["path"])
        status = self._ask("x-query-virtio-vhost-queue-status", path=path, queue=0)
        at = status["used-phys"]
        words = memoryview(self._memory)[at : at + 4].cast("H")
        return lambda: words[1]

    def _memory_fd(self) -> int:
        folder = Path(f"/proc/{self._process.pid}/fd")
        found = [one for one in folder.iterdir() if "memory-backend-memfd" in os.readlink(one)]
        return os.open(found[0], os.O_RDWR | os.O_CLOEXEC)

    def _ask(self, command: str, **arguments: Any) -> Any:
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self._answers.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._qmp.close()


def _fio(disk: int, seconds: float) -> str:
    return (
        f"{FIO} --filename=/dev/{NAMES[disk]} --thread --ioengine=libaio --direct=1 --norandommap "
        f"--randrepeat=0 --time_based --ramp_time={RAMP_S} --runtime={seconds}"
    )


def outcome(job: dict[str, Any]) -> Outcome:
    """A job of fio's JSON."""
    assert job["error"] == 0, job["error"]
    one = max((job["read"], job["write"]), key=lambda side: side["total_ios"])
    return Outcome(round(1e9 / one["iops"]), one["clat_ns"]["percentile"]["99.000000"])
