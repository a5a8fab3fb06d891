"""From pidfds and credentials to ``Process``. The only place of the Tube that asks the kernel who somebody
is.

May be called from any thread. Nothing here keeps a descriptor. Sources: pidfd_open(2), unix(7), and
linux/pidfd.h for PIDFD_GET_INFO (6.13), which works without a mounted /proc.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct

from supervisor.tube.descriptor import Descriptor, Eventfd
from supervisor.tube.peer import Process

__all__ = [
    "current_process",
    "exit_of_the_leaving",
    "exit_of_the_reaped",
    "kill_process_group",
    "open_pidfd",
    "pidfd_for",
    "process_by_pid",
    "process_of_pidfd",
]

# _IOWR(0xFF, 11, struct pidfd_info), whose first published size is 64 bytes.
PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2  # <linux/pidfd.h>, Linux 6.9
PF_EXITING = 0x4  # of a thread's flags, <linux/sched.h>
_STAT_BYTES = 4096  # more than all of its fields can take
_PIDFD_INFO_BYTES = 64
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO_BYTES << 16) | (0xFF << 8) | 11
_PIDFD_INFO_PID = 1
_PIDFD_INFO_EXIT = 1 << 3  # in the mask, the first 8 bytes; Linux 6.15
_PIDFD_INFO_EXIT_AT = 60  # the wait status, 32 bits
_PID_OFFSET = 16  # after mask and cgroupid, u64 each

_current: tuple[int, Process] | None = None
_pidfs: bool | None = None


def _has_pidfs() -> bool:
    """Tell whether pidfds have inodes of their own; before 6.9 all anonymous inodes share one."""
    global _pidfs
    if _pidfs is None:
        try:
            pidfd = os.pidfd_open(os.getpid())
        except OSError:
            return False  # short of descriptors, perhaps: asked again next time
        with Descriptor(pidfd), Eventfd() as other:
            _pidfs = os.fstat(pidfd).st_dev != os.fstat(other.fileno()).st_dev
    return _pidfs


def unique_of_pidfd(pidfd: int) -> int | None:
    """Return the number that names the pidfd's process until the next boot, or None before Linux 6.9."""
    return os.fstat(pidfd).st_ino if _has_pidfs() else None


def process_of_pidfd(pidfd: int, pid: int | None = None) -> Process:
    """Return whose pidfd this is. ``pid``, if given, is already known from the kernel's credentials.

    Raises ``OSError`` when the descriptor is not a pidfd.
    """
    if pid is None:
        pid = _pid_of_pidfd(pidfd)
    return Process(pid, unique_of_pidfd(pidfd))


def _pid_of_pidfd(pidfd: int) -> int:
    """Return the process's number in our namespace.

    0 when it has none there, or is dead and the kernel forgot.
    """
    info = bytearray(_PIDFD_INFO_BYTES)
    struct.pack_into("<Q", info, 0, _PIDFD_INFO_PID)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return _pid_from_fdinfo(pidfd)
    return int(struct.unpack_from("<I", info, _PID_OFFSET)[0])


def _pid_from_fdinfo(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as fdinfo:
        for line in fdinfo:
            if line.startswith("Pid:"):
                return max(0, int(line[4:]))
    raise OSError("not a pidfd")


def process_by_pid(pid: int) -> Process:
    """Return the process that has this number now; only the number of one that is gone already."""
    pidfd = open_pidfd(pid)
    if pidfd is None:
        return Process(pid)
    try:
        return process_of_pidfd(pidfd, pid)
    finally:
        os.close(pidfd)


def open_pidfd(pid: int) -> int | None:
    """Open a pidfd (close-on-exec), or return None when there is no such process to be seen from here."""
    if pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def current_process() -> Process:
    """Return the calling process. Remembered, and asked again after a fork."""
    global _current
    pid = os.getpid()
    if _current is None or _current[0] != pid:
        process = process_by_pid(pid)
        if process.unique is None and _has_pidfs():
            return process  # no descriptor was to be had just now
        _current = (pid, process)
    return _current[1]


def _forget_current_process() -> None:
    """Ask the kernel again next time; for a child that has the parent's number in another namespace."""
    global _current
    _current = None


def pidfd_for(process: Process | None) -> Descriptor | None:
    """Return a pidfd of a process, or None when it is not known, gone, or not to be seen from here."""
    fd = None if process is None else open_pidfd(process.pid)
    if process is None or fd is None:
        return None
    pidfd = Descriptor(fd)
    # The number may belong to somebody else by now.
    if not process.same_as(process_of_pidfd(fd, process.pid)):
        pidfd.close()
        return None
    return pidfd


os.register_at_fork(after_in_child=_forget_current_process)


def exit_of_the_reaped(pidfd: int) -> int | None:
    """The wait status of a process that somebody has waited for; ``None`` if nobody has, or the kernel does
    not tell (before Linux 6.15)."""
    info = bytearray(_PIDFD_INFO_BYTES)
    struct.pack_into("<Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    if not struct.unpack_from("<Q", info)[0] & _PIDFD_INFO_EXIT:
        return None
    return int(struct.unpack_from("<i", info, _PIDFD_INFO_EXIT_AT)[0])


def kill_process_group(pidfd: int) -> None:
    """SIGKILL to all in the process group that a process has led, dead or not. Nothing before Linux 6.9."""
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, PIDFD_SIGNAL_PROCESS_GROUP)


def exit_of_the_leaving(pid: int) -> tuple[int, int] | None:
    """(Wait status, core) of a process whose last thread is on its way out; ``None`` while any may run on.

    ``pid`` must be a child's, or somebody else's who has not been waited for. A thread that is marked as
    exiting (PF_EXITING, proc_pid_stat(5)) never returns to user mode, and no system call of its is under way.
    """
    try:
        stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(stat, _STAT_BYTES).rpartition(b")")[2].split()
        finally:
            os.close(stat)
    except OSError:
        return None
    flags, threads, core, status = int(fields[6]), int(fields[17]), int(fields[36]), int(fields[49])
    return (status, core) if flags & PF_EXITING and threads == 1 else None
