"""Programs with a supervisor in surroundings that fail it: ``python -m tests.surrounded NAME``.

Each is a process of its own, since limits, mounts and users are a process's. It ends with 0 and prints what
it has seen, or with a traceback.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import resource
import select
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from supervisor.errors import EnvironmentFault, StartFailed
from supervisor.events import DeviceDied, DeviceKilled
from supervisor.host import Supervisor
from tests.chaos import COUNTING, board, census, living_descendants, open_descriptors, until_witnessed

NEXT, TRACE = 0x04, 0x0C
INSIDE = 'device: "tests.devices.counting:Counting", backoff: {first: 2ms, next: 5ms, max: 20ms}'
TWO = (f"name: counter, {INSIDE}", f"name: neighbour, {INSIDE}")
PATIENT = "intensity: 100000, period: 1s"


def few_descriptors_at_start() -> None:
    """From none to enough: each start fails with a named error, or works; nothing stays behind."""
    ends: collections.Counter[str] = collections.Counter()
    with Supervisor(board(*TWO)) as sup:  # whatever is opened once and kept is open from here on
        sup["counter"].read(NEXT, 4)
    free = 0
    while ends["works"] < 3:
        with census(), _descriptors_left(free) as back:
            try:
                with Supervisor(board(*TWO, supervisor="spares: 1")) as sup:
                    assert sup["counter"].read(NEXT, 4) == 1
                    back()
                ends["works"] += 1
            except (EnvironmentFault, StartFailed) as error:
                back()
                ends[_name(error, "Too many open files")] += 1
        free += 1
    print(dict(ends))


def few_descriptors_while_running() -> None:
    """Whichever descriptor a restart does not get: others are served, and the device returns with it."""
    failures = 0
    with census(), Supervisor(board(*TWO, supervisor=f"{PATIENT}, spares: 0")) as sup:
        until_witnessed(sup)
        asked = 0
        for free in range(12):
            while _forks_on_their_way(sup):  # a descriptor is kept for each, which may be over the limit
                sup.dispatch(0.01)
            while sup["counter"].state != "ready":  # it may have answered before it was heard to be
                sup.dispatch(0.01)
            with _descriptors_left(free) as back:
                generation = sup["counter"].generation
                assert sup.kill("counter", charged=False) is not None
                rounds = 0
                while rounds < 40 or sup["counter"].generation == generation:  # at least one has been tried
                    rounds += 1
                    asked += 1
                    assert sup["neighbour"].read(NEXT, 4) == asked
                    sup.dispatch(0.005)
                failures += sup["counter"].generation - generation - 1
                back()
            assert sup["counter"].read(NEXT, 4) == free + 1
        assert sup.outcome is None
    # How many is chance: the dead worker's own descriptors are free again, and may do for its successor.
    print({"failures": failures})


def few_processes() -> None:
    """No process for the zygote, for the first worker, for the next: each is named; then a restart waits."""
    ends: collections.Counter[str] = collections.Counter()
    free = 0
    while not ends["works"]:
        with census(), _processes_left(os.getpid(), free):
            try:
                with Supervisor(board(*TWO, supervisor="spares: 0")) as sup:
                    assert sup["counter"].read(NEXT, 4) == 1
                ends["works"] += 1
            except (EnvironmentFault, StartFailed) as error:
                ends[_name(error, "Resource temporarily unavailable")] += 1
        free += 1
    print(dict(ends))
    with census(), Supervisor(board(*TWO, supervisor=f"{PATIENT}, spares: 0")) as sup:
        assert sup["counter"].read(NEXT, 4) == 1
        assert sup.zygote_pid is not None
        with _processes_left(sup.zygote_pid, -1):
            generation = sup["counter"].generation
            sup.kill("counter", charged=False)
            asked = 0
            while sup["counter"].generation < generation + 4:  # that many forks were refused
                asked += 1
                assert sup["neighbour"].read(NEXT, 4) == asked
                sup.dispatch(0.05)
        assert sup["counter"].read(NEXT, 4) == 2


def full_temporary_folder() -> None:
    """Nothing that a supervisor does needs room in a folder of files."""
    folder = _full_folder()
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    try:
        with open(Path(folder, "more"), "wb", buffering=0) as file:
            assert file.write(b"x" * 65536) < 65536
    except OSError:
        pass  # that is what is wanted
    with census(), Supervisor(board(*TWO, supervisor=f"{PATIENT}, spares: 1")) as sup:
        for expected in range(1, 11):
            sup.kill("counter", charged=False)
            assert sup["counter"].read(NEXT, 4) == expected
        assert sup["neighbour"].call_bytes(b"x" * 100_000)[4:] == b"x" * 100_000
    print({"folder": folder})


def asked_all_the_time() -> None:
    """Asks until a line comes in; tells then how many answers there were, and how many deaths."""
    heartbeat = ", heartbeat: {every: 100ms, timeout: 500ms}" if "heartbeat" in sys.argv else ""
    with census(), Supervisor(board(COUNTING + heartbeat, supervisor="intensity: 3")) as sup:
        traced: list[bytes] = []
        sup["counter"].on_output(traced.append)
        total = deaths = 0
        print("ready", flush=True)
        poller = select.poll()
        poller.register(0, select.POLLIN)
        while not poller.poll(0):
            total += 2
            sup["counter"].write(TRACE, 4, 1)
            assert sup["counter"].read(NEXT, 4) == total
            sup.dispatch(0)
            deaths += sum(isinstance(record, DeviceDied | DeviceKilled) for record in sup.events())
        assert len(traced) == total // 2
    print(f"{total} answers, {deaths} deaths")


def short_life() -> None:
    """Starts, serves a little, stops."""
    with Supervisor(board(COUNTING, *(f"name: d{n}, {INSIDE}" for n in range(3)), supervisor=PATIENT)) as sup:
        for _ in range(100):
            sup["counter"].read(NEXT, 4)
            sup.dispatch(0)
        sup.kill("d0", charged=False)
        sup["d0"].read(NEXT, 4)


def _name(error: Exception, refusal: str) -> str:
    """The kind of error, which must say what the system has said."""
    assert refusal in f"{error} {error.__cause__}", error
    return type(error).__name__


# -- surroundings -----------------------------------------------------------------------------------


def _forks_on_their_way(sup: Supervisor) -> bool:
    """True while the zygote has to report one; the worker may be ready before it does."""
    assert sup._workers is not None
    return any(worker.pidfd is None for worker in sup._workers.processes._known.values())


@contextlib.contextmanager
def _descriptors_left(free: int) -> Iterator[Callable[[], None]]:
    """So many descriptors can be opened, until what is given is called."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    taken = {fd for fd in open_descriptors() if os.path.exists(f"/proc/self/fd/{fd}")}
    limit = 0
    while limit - sum(fd < limit for fd in taken) < free:
        limit += 1

    def back() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield back
    finally:
        back()


@contextlib.contextmanager
def _processes_left(pid: int, free: int) -> Iterator[None]:
    """Process ``pid`` and those that it starts can have so many more processes than this user has now."""
    before = resource.prlimit(pid, resource.RLIMIT_NPROC)
    now = len(living_descendants()) + 1
    resource.prlimit(pid, resource.RLIMIT_NPROC, (now + free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NPROC, before)


def _full_folder() -> str:
    """A file system of one page, full, in a mount namespace of our own; without the right to that a folder
    into which nobody can write."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tempfile.mkdtemp()
    clone_newns, ms_rec_private = 0x20000, 0x4000 | 0x40000
    if libc.unshare(clone_newns) or libc.mount(b"none", b"/", None, ms_rec_private, None):
        os.rmdir(folder)
        return "/proc"
    os.rmdir(folder)
    folder = "/mnt"
    assert libc.mount(b"none", folder.encode(), b"tmpfs", 0, b"size=4096") == 0
    with contextlib.suppress(OSError), open(Path(folder, "filling"), "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return folder


if __name__ == "__main__":
    globals()[sys.argv[1]]()
