"""Hostile surroundings, on real processes: what the system refuses or does ends in an error or in recovery.

Limits, mounts and users belong to a process, so those scenes are programs (``tests.surrounded``).
"""

from __future__ import annotations

import ast
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import supervisor
from supervisor.host import Supervisor
from tests.chaos import COUNTING, board, census

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parent.parent
DEADLINE_S = 60.0
NEXT = 0x04
NOBODY = "54321"  # a user whose processes are ours alone
# Enough rights to read an interpreter that is root's, too few to be above limits on processes.
AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", "--clear-groups", "--bounding-set=-sys_resource,-sys_admin"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
]
STOPS = 4
STOPPED_FOR_S = 0.8  # longer than the heartbeat's timeout
LIVES = 25
GONE_WITHIN_S = 2.0  # the promise is 0.2: a loaded machine may schedule late, ten times that is a defect
WALL_CLOCK = {"time", "time_ns", "localtime", "gmtime", "now", "utcnow", "today", "ctime"}


def _scene(name: str, *, before: list[str] | None = None) -> str:
    done = subprocess.run(
        [*(before or []), sys.executable, "-m", "tests.surrounded", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout


# -- what the system refuses -------------------------------------------------------------------------


def test_given_few_descriptors_a_start_fails_with_a_name_or_works() -> None:
    """Every number of free descriptors from none on: EnvironmentFault or StartFailed, and nothing is left."""
    assert "EnvironmentFault" in _scene("few_descriptors_at_start")


def test_given_few_descriptors_while_running_the_device_returns_when_there_are_some() -> None:
    """A restart that finds none is tried again; others are answered meanwhile, and no count is lost."""
    _scene("few_descriptors_while_running")


def test_given_no_process_left_a_start_fails_and_a_restart_waits() -> None:
    """The refusal of fork(2) is named; a device whose fork is refused returns when one is to be had."""
    as_nobody = AS_NOBODY if os.geteuid() == 0 else []
    assert not as_nobody or shutil.which(as_nobody[0])
    told = _scene("few_processes", before=as_nobody)
    assert "EnvironmentFault" in told
    assert "StartFailed" in told


def test_given_full_temporary_folder_nobody_notices() -> None:
    """Starts, restarts and large payloads use no files."""
    _scene("full_temporary_folder")


# -- the zygote --------------------------------------------------------------------------------------


def test_given_zygote_killed_at_random_with_requests_under_way_all_counts_are_exact() -> None:
    """Its death is its workers' death: each request is answered by the next zygote's worker, once."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    with census(), Supervisor(board(COUNTING, supervisor="intensity: 100000, period: 1s, spares: 1")) as sup:
        counter = sup["counter"]
        total = 0
        for _ in range(12):
            for _ in range(chooser.randrange(1, 30)):
                counter.write(0x08, 4, 1)
                total += 1
            zygote = sup.zygote_pid
            if zygote is not None:
                os.kill(zygote, signal.SIGKILL)
            total += 1
            assert counter.read(NEXT, 4) == total


# -- clocks ------------------------------------------------------------------------------------------


def _wall_clock_calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in WALL_CLOCK and isinstance(node.value, ast.Name):
            if node.value.id in ("time", "datetime", "date"):
                yield f"{path.name}:{node.lineno}: {node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
            names = {alias.name for alias in node.names} & (WALL_CLOCK | {"datetime", "date"})
            if names:
                yield f"{path.name}:{node.lineno}: from {node.module} import {', '.join(sorted(names))}"


def test_given_the_source_nothing_in_the_supervisor_asks_the_wall_clock() -> None:
    """No deadline, timer or stamp can be moved by setting the clock: all of them are monotonic."""
    room = Path(supervisor.__file__).parent
    found = [call for path in room.rglob("*.py") for call in _wall_clock_calls(path)]
    assert not found


def test_given_clock_set_back_while_running_deadlines_and_restarts_are_as_before() -> None:
    """An hour back, a day on: heartbeats, restarts and requests go on, and nobody is killed for it."""
    moved = [0.0]
    true_time, true_time_ns = time.time, time.time_ns
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "time", lambda: true_time() + moved[0])
        patched.setattr(time, "time_ns", lambda: true_time_ns() + int(moved[0] * 1e9))
        config = board(COUNTING + ", heartbeat: {every: 100ms, timeout: 5s}", supervisor="intensity: 1")
        with census(), Supervisor(config) as sup:
            for asked, span in enumerate((-3600.0, 86400.0, -86400.0 * 365), 1):
                moved[0] = span
                sup.kill("counter", charged=False)
                assert sup["counter"].read(NEXT, 4) == asked
                sup.dispatch(0.15)
            assert sup["counter"].restarts == 3
            assert sup.outcome is None


# -- the supervisor itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("heartbeat", ["heartbeat", "no-heartbeat"])
def test_given_supervisor_stopped_and_continued_nobody_is_killed_for_it(heartbeat: str) -> None:
    """Who sees late that a heart has not beaten was stopped itself; requests go on where they were."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.surrounded", "asked_all_the_time", heartbeat],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        for _ in range(STOPS):
            program.send_signal(signal.SIGSTOP)
            signal.sigtimedwait([], STOPPED_FOR_S)
            program.send_signal(signal.SIGCONT)
            signal.sigtimedwait([], STOPPED_FOR_S / 8)
        told, _nothing = program.communicate("\n", timeout=DEADLINE_S)
    assert program.returncode == 0
    answers, deaths = (int(word) for word in told.split() if word.isdigit())
    print(told)
    assert answers > 0
    assert deaths == 0


def test_given_supervisor_killed_at_any_instant_of_its_life_everybody_ends() -> None:
    """SIGKILL during start, run and stop: every process it had is gone, and with it the shared memory."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    whole_s = _live(None)[0]
    took = []
    for _ in range(LIVES):
        lived_s, took_s = _live(chooser.random() * whole_s)
        took.append((took_s, lived_s))
    longest = max(took)
    print(f"life of {whole_s:.3f} s; slowest end {longest[0] * 1000:.0f} ms, killed after {longest[1]:.3f} s")
    assert longest[0] < GONE_WITHIN_S


def _live(killed_after_s: float | None) -> tuple[float, float]:
    """(How long the program lived, how long its family outlived it), in seconds."""
    mark = f"TUBEVISOR_MARK={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.surrounded", "short_life"],
        cwd=ROOT,
        env={**os.environ, name: value},
        stderr=subprocess.PIPE,
    )
    began = time.monotonic()
    poller = select.poll()
    pidfd = os.pidfd_open(program.pid)
    poller.register(pidfd, select.POLLIN)
    poller.poll(None if killed_after_s is None else killed_after_s * 1000)
    program.kill()
    poller.poll()
    os.close(pidfd)
    ended = time.monotonic()
    while _marked(mark.encode()):
        assert time.monotonic() - ended < DEADLINE_S, f"left behind: {_marked(mark.encode())}"
    gone = time.monotonic()
    assert program.stderr is not None
    told = program.stderr.read()
    program.stderr.close()
    code = program.wait()
    assert code == (0 if killed_after_s is None else code)
    assert killed_after_s is not None or not told
    return ended - began, gone - ended


def _marked(mark: bytes) -> list[str]:
    """What lives with this mark in its environment, and was not reaped yet."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                environment = (process / "environ").read_bytes()
                name, _, rest = (process / "stat").read_text().rpartition(")")
            except OSError:
                continue
            if mark in environment.split(b"\0") and rest.split()[0] not in "ZX":
                found.append(f"{name})")
    return found
