"""The peers: installed into a virtualenv of their own, and started with children that say when they live.

supervisord's import name is ``supervisor``, as ours is: it runs from its own virtualenv, in a temporary
folder, with nothing of ours on its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "NO_PEERS",
    "Family",
    "Peers",
    "circus",
    "die_with_parent",
    "fork_floor",
    "install",
    "running",
    "spawn_floor",
    "supervisord",
    "wait_for",
    "wait_readable",
]

ROOT = Path(__file__).parent.parent
CHILD, FLOOR = (str(Path(__file__).with_name(name)) for name in ("child.py", "floor.py"))
PINNED = {"supervisor": "4.3.0", "circus": "0.19.0", "pyzmq": "27.3.0"}  # distributions
MODULES = {"supervisor": "supervisor.supervisord", "circus": "circus.circusd", "pyzmq": "zmq"}
INSTALL_TIMEOUT_S = 180
ANSWER_TIMEOUT_S = 30.0  # circus may take its whole check_delay
PR_SET_PDEATHSIG = 1
PYTHON = (sys.executable, "-S", "-E")  # neither site-packages nor the environment: 10 ms instead of 15


@dataclass(frozen=True, slots=True)
class Peers:
    """The peers' interpreter, which versions it has, and why it lacks the others."""

    python: Path | None = None
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def has(self, distribution: str) -> bool:
        """True if it can be run."""
        return self.python is not None and distribution in self.versions


NO_PEERS = Peers(missing=dict.fromkeys(PINNED, "not asked for"))


def install(folder: Path) -> Peers:
    """Sees to it that ``folder`` is a virtualenv with the peers; names those that cannot be had."""
    python = folder.absolute() / "bin" / "python"  # not resolved: the link is what makes it a virtualenv
    if not python.exists():
        made = _run([sys.executable, "-m", "venv", str(folder)])
        if made:
            return Peers(missing=dict.fromkeys(PINNED, f"no virtualenv: {made}"))
    versions, missing = {}, {}
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for name, wanted in PINNED.items():
        why = ""
        if not _works(python, name):
            why = _run([*pip, f"{name}=={wanted}"])
            if not why and not _works(python, name):
                why = f"{MODULES[name]} cannot be imported"
        if why:
            missing[name] = f"pip install {name}=={wanted}: {why}"
        else:
            versions[name] = wanted
    return Peers(python, versions, missing)


def _run(command: Sequence[str]) -> str:
    """Runs a command; empty if all went well, or else its last words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _works(python: Path, name: str) -> bool:
    """True if the pinned version is there and can be imported."""
    code = f"import {MODULES[name]}; from importlib.metadata import version; print(version({name!r}))"
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == PINNED[name]


class Family:
    """A parent with children that it brings back, each of which stamps the moment at which it lives.

    Its processes end with this one: the parent by PR_SET_PDEATHSIG, the children by the FIFO ``life``.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.pidfds: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self.parent: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self.stamps, self.life = str(folder / "stamps"), str(folder / "life")
        os.mkfifo(self.stamps)
        os.mkfifo(self.life)
        self._stamps_fd = os.open(self.stamps, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._life_fd = os.open(self.life, os.O_RDWR | os.O_CLOEXEC)

    def child_command(self, index: object) -> list[str]:
        """The command line of a child, for the parent's configuration."""
        return [*PYTHON, CHILD, str(index), self.stamps, self.life]

    def start(self, command: Sequence[str]) -> None:
        """Starts the parent and returns when all its children live."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with open(self.folder / "log", "wb") as log:
            self.parent = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        while len(self.pids) < self.count:
            self._hear()

    def kill_one(self, chooser: random.Random) -> int:
        """Kills a child at random; ns from before the kill to the first statement of the next one."""
        index = chooser.randrange(self.count)
        before = self.pids[index]
        began_ns = time.monotonic_ns()
        signal.pidfd_send_signal(self.pidfds[index], signal.SIGKILL)
        while True:
            for heard, stamp_ns in self._hear():
                if heard == index and self.pids[index] != before:
                    return stamp_ns - began_ns

    def kill_all(self) -> int:
        """Kills all children; ns from before the first kill to the first statement of the last next one."""
        left = dict(self.pids)
        began_ns = time.monotonic_ns()
        for pidfd in self.pidfds.values():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        last_ns = began_ns
        while left:
            for heard, stamp_ns in self._hear():
                if left.get(heard, self.pids[heard]) != self.pids[heard]:
                    del left[heard]
                    last_ns = max(last_ns, stamp_ns)
        return last_ns - began_ns

    def _hear(self) -> list[tuple[int, int]]:
        """Waits for stamps; (index, ns) of each."""
        if not wait_readable(self._stamps_fd, ANSWER_TIMEOUT_S):
            log = (self.folder / "log").read_text(errors="replace")[-500:]
            raise TimeoutError(f"no child has come up in {ANSWER_TIMEOUT_S:g} s: {log}")
        *lines, self._rest = (self._rest + os.read(self._stamps_fd, 65536)).split(b"\n")
        heard = []
        for line in lines:
            index, pid, stamp_ns = (int(word) for word in line.split())
            self._know(index, pid)
            heard.append((index, stamp_ns))
        return heard

    def _know(self, index: int, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        if index in self.pidfds:
            os.close(self.pidfds[index])
        self.pidfds[index], self.pids[index] = pidfd, pid

    def suspend(self) -> None:
        """Stops the parent (SIGSTOP): it disturbs nobody until :meth:`resume`."""
        assert self.parent is not None
        self.parent.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets the parent go on."""
        assert self.parent is not None
        self.parent.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the parent, then the children, and returns when all are gone."""
        if self.parent is not None:
            self.parent.kill()
            self.parent.wait()
        os.close(self._life_fd)
        for pidfd in self.pidfds.values():
            wait_readable(pidfd, ANSWER_TIMEOUT_S)
            os.close(pidfd)
        os.close(self._stamps_fd)


def wait_readable(fd: int, timeout_s: float) -> bool:
    """True once ``fd`` is readable. With poll(2): there are more descriptors than select(2) can bear."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(1000 * timeout_s))


def wait_for(path: str) -> None:
    """Returns once there is such a file. Raises ``TimeoutError``."""
    until = time.monotonic() + ANSWER_TIMEOUT_S
    while not os.path.exists(path):
        if time.monotonic() > until:
            raise TimeoutError(f"no {path} in {ANSWER_TIMEOUT_S:g} s")
        time.sleep(0.001)


def die_with_parent() -> None:
    """For a child, before it becomes another program: it ends with the process that has started it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def running(folder: Path, count: int) -> Iterator[Family]:
    """A family in a new folder, which is ended in any case."""
    folder.mkdir()
    family = Family(folder, count)
    try:
        yield family
    finally:
        family.close()


def fork_floor(family: Family) -> None:
    """A lean parent that forks."""
    family.start([*PYTHON, FLOOR, "fork", str(family.count), family.stamps, family.life, CHILD])


def spawn_floor(family: Family) -> None:
    """A lean parent that spawns ``python -S``."""
    family.start([*PYTHON, FLOOR, "spawn", str(family.count), family.stamps, family.life, CHILD])


def supervisord(family: Family, peers: Peers) -> None:
    """supervisord as its users would set it up to restart at once."""
    lines = [
        "[supervisord]",
        "nodaemon=true",
        f"logfile={family.folder}/supervisord.log",
        f"pidfile={family.folder}/supervisord.pid",
        f"childlogdir={family.folder}",
        "[unix_http_server]",
        f"file={family.folder}/sock",
    ]
    for index in range(family.count):
        lines += [
            f"[program:child{index}]",
            f"command={' '.join(family.child_command(index))}",
            "autorestart=true",
            "startsecs=0",
            "startretries=1000000",
            "stdout_logfile=NONE",
            "stderr_logfile=NONE",
        ]
    config = family.folder / "supervisord.conf"
    config.write_text("\n".join(lines) + "\n")
    family.start([str(peers.python), str(_script(peers, "supervisord")), "-c", str(config)])


def circus(family: Family, peers: Peers, *, check_delay_s: float) -> None:
    """circus, which looks after its children every ``check_delay_s`` seconds."""
    lines = [
        "[circus]",
        f"check_delay = {check_delay_s:g}",
        "warmup_delay = 0",
        "loglevel = WARNING",
        *(f"{name} = ipc://{family.folder}/{name}" for name in ("endpoint", "pubsub_endpoint")),
    ]
    for index in range(family.count):
        lines += [
            f"[watcher:child{index}]",
            f"cmd = {' '.join(family.child_command(index))}",
            "numprocesses = 1",
            "warmup_delay = 0",
            "max_retry = -1",
        ]
    config = family.folder / "circus.ini"
    config.write_text("\n".join(lines) + "\n")
    family.start([str(peers.python), str(_script(peers, "circusd")), str(config)])


def _script(peers: Peers, name: str) -> Path:
    assert peers.python is not None
    return peers.python.with_name(name)
