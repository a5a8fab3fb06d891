"""Ctrl-C, SIGTERM and SIGKILL at every moment: the exit code, no traceback, nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import pytest

from tests.command.board import DEADLINE_S, LAMP, Board, Command, Ended, assert_silent_end, wait_until

MOMENTS_MS = range(0, 600, 25)  # from the first signal handler on: imports, config, zygote, workers, running


def _interrupt_when(board: Board, what: str, *, times: int = 1, number: int = signal.SIGINT) -> Ended:
    with board.start("run", board.config) as command:
        command.wait_until_said(what)
        for _ in range(times):
            command.interrupt(number)
        command.wait()
    return Ended(command)


@pytest.mark.parametrize("moment_ms", MOMENTS_MS)
def test_given_any_moment_ctrl_c_ends_it_without_a_trace(board: Board, moment_ms: int) -> None:
    """Wherever the command is, Ctrl-C ends it with 130, silently, and nothing is left."""
    board.write(LAMP, 'name: other, device: "mine.parts:Lamp"')
    with board.start("run", board.config) as command:
        command.wait_until_in_charge()
        command.ended(moment_ms / 1000)
        command.interrupt()
        command.wait()
    assert_silent_end(Ended(command), 130)


def test_given_library_that_tries_the_temporary_folder_ctrl_c_leaves_no_file(board: Board) -> None:
    """Python finds the folder for temporary files by making one: Ctrl-C while it is there."""
    program = """
import os, signal
from supervisor import cli
signal.signal(signal.SIGINT, cli._leave_at_once)
unlink = os.unlink
def interrupted(path, **options):
    print("interrupts", flush=True)
    signal.raise_signal(signal.SIGINT)
    unlink(path, **options)
os.unlink = interrupted
import supervisor.launch.spawn
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(board.temporary)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "interrupts\n", "")
    board.check_nothing_is_left()


@pytest.mark.parametrize("moment_ms", MOMENTS_MS[::3])
def test_given_any_moment_ctrl_c_twice_ends_it_without_a_trace(board: Board, moment_ms: int) -> None:
    """The second Ctrl-C comes right behind the first."""
    board.write(LAMP, 'name: other, device: "mine.parts:Lamp"', machine="do: dispatch")
    with board.start("run", board.config) as command:
        command.wait_until_in_charge()
        command.ended(moment_ms / 1000)
        command.interrupt()
        command.interrupt()
        command.wait()
    assert_silent_end(Ended(command), 130)


@pytest.mark.parametrize("seed", range(8))
def test_given_any_moment_sigkill_leaves_nothing(board: Board, seed: int) -> None:
    """When the command itself is killed, zygote, spares and workers are gone at once."""
    board.write(LAMP, 'name: other, device: "mine.parts:Lamp"', supervisor="spares: 2")
    moment_s = random.Random(seed).uniform(0, 0.7)
    print(f"seed={seed}")
    with board.start("run", board.config) as command:
        command.ended(moment_s)
        command.process.kill()
        command.wait()
    board.check_nothing_is_left()


def test_given_config_being_read_ctrl_c_ends_it(board: Board) -> None:
    """The configuration is a pipe that nobody writes to."""
    os.mkfifo(board.config)
    with board.start("run", board.config) as command:
        descriptor = os.open(board.config, os.O_WRONLY)  # returns once the command has it open
        try:
            command.interrupt()
            command.wait()
        finally:
            os.close(descriptor)
    assert_silent_end(Ended(command), 130)


def test_given_zygote_that_never_gets_ready_ctrl_c_ends_it(board: Board) -> None:
    """A module to be preloaded never returns from its import."""
    (board.directory / "mine" / "endless.py").write_text(
        "from mine.parts import say\nimport signal\nsay('imports')\nwhile True: signal.pause()\n"
    )
    board.write(LAMP, supervisor="preload: [mine.endless]")
    assert_silent_end(_interrupt_when(board, "imports"), 130)


def test_given_device_in_start_ctrl_c_ends_it(board: Board) -> None:
    """A device is hanging in its start; the one before it is stopped in order."""
    board.write(LAMP, 'name: slow, device: "mine.parts:HangsInStart", stop_timeout: 100ms')
    assert_silent_end(_interrupt_when(board, "hangs in start"), 130)
    assert board.has_said("lamp stopped")


def test_given_running_devices_ctrl_c_stops_them_in_order(board: Board) -> None:
    """The devices' stop is called, in the reverse of what they depend on."""
    board.write(LAMP, 'name: other, device: "mine.parts:Lamp", depends_on: [lamp]', machine="do: dispatch")
    assert_silent_end(_interrupt_when(board, "dispatches"), 130)
    assert board.said.read_text().splitlines()[-2:] == ["other stopped", "lamp stopped"]


def test_given_request_that_blocks_ctrl_c_ends_it(board: Board) -> None:
    """The machine waits for an answer that does not come."""
    board.write(LAMP + ", stop_timeout: 100ms", machine="do: hang")
    assert_silent_end(_interrupt_when(board, "hangs"), 130)


def test_given_device_in_stop_second_ctrl_c_ends_it_at_once(board: Board) -> None:
    """A device that never stops, and is given for ever to do so, yields to the second Ctrl-C."""
    board.write(
        'name: stuck, device: "mine.parts:HangsInStop", stop_timeout: infinity', machine="do: dispatch"
    )
    with board.start("run", board.config) as command:
        command.wait_until_said("dispatches")
        command.interrupt()
        command.wait_until_said("hangs in stop")
        command.interrupt()
        command.wait()
    assert_silent_end(Ended(command), 130)


def test_given_machine_that_ended_by_itself_ctrl_c_while_stopping_is_told_by_the_code(board: Board) -> None:
    """The stop that is under way goes on in order."""
    board.write(
        LAMP, 'name: stuck, device: "mine.parts:HangsInStop", stop_timeout: 500ms', machine="do: leave"
    )
    assert_silent_end(_interrupt_when(board, "hangs in stop"), 130)
    assert board.has_said("lamp stopped")


def test_given_machine_that_sleeps_a_later_ctrl_c_interrupts_it_where_it_is(board: Board) -> None:
    """A machine that never dispatches does not hear the first one; after a second of patience, the next."""
    board.write(LAMP, machine="do: sleep")
    with board.start("run", board.config) as command:
        command.wait_until_said("sleeps")
        command.interrupt()
        assert not command.ended(1.2)
        command.interrupt()
        command.wait()
    assert_silent_end(Ended(command), 130)
    assert board.has_said("lamp stopped")


def test_given_running_devices_sigterm_stops_them_in_order(board: Board) -> None:
    """A service manager's request: the same, with the exit code of that signal."""
    board.write(LAMP, machine="do: dispatch")
    assert_silent_end(_interrupt_when(board, "dispatches", number=signal.SIGTERM), 143)
    assert board.has_said("lamp stopped")


def test_given_terminal_that_hangs_up_everything_goes(board: Board) -> None:
    """SIGHUP is left to the system: the command dies of it, and with it its processes."""
    board.write(LAMP, machine="do: dispatch")
    ended = _interrupt_when(board, "dispatches", number=signal.SIGHUP)
    assert ended.code == -signal.SIGHUP
    wait_until(lambda: not board.processes(), "processes are left", within_s=2)


def test_given_ctrl_c_on_a_real_terminal_it_reaches_the_command(board: Board) -> None:
    """The character itself, typed on a terminal, to its foreground process group."""
    board.write(LAMP, machine="do: dispatch")
    ours, theirs = os.openpty()
    with Command(board, ["run", str(board.config)], None, None, _on_terminal(theirs)) as command:
        os.close(theirs)
        command.wait_until_said("dispatches")
        os.write(ours, b"\x03")
        command.wait()
    os.close(ours)
    assert_silent_end(Ended(command), 130)


def _on_terminal(fd: int) -> dict[str, object]:
    import fcntl
    import termios

    def control() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    return {"stdin": fd, "process_group": -1, "start_new_session": True, "preexec_fn": control}
