"""``tubevisor run`` on the boards that boot Linux: under chaos, typed at, interrupted, killed, set up badly.

The guests come from ``make guests``, QEMU from Debian's qemu-system-x86: without them the tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.command.board import Board, Ended, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
BOARDS = ["qemu-linux", "uml-linux"]
GUEST_S = 150.0
LINES = "echo the answer is $((6 * 7))\n"


def _words(board: Board, name: str, append: str = "tv.rounds=2 tv.mib=16 loglevel=3") -> list[str]:
    """The command line for board ``name``, with a disk of the test's own."""
    if not (ROOT / ".cache" / "guests" / "linux.uml").exists():
        pytest.skip("no guests: run make guests")
    if name == "qemu-linux" and shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64: install qemu-system-x86")
    disk = board.directory / "disk.img"
    disk.touch()
    os.truncate(disk, 16 << 20)
    image = f"devices.disk0.options.image={disk}"
    return ["run", str(ROOT / "config" / f"{name}.yaml"), "--set", image, "--set", _append(append)]


def _append(append: str) -> str:
    return f"machine.options.append={append}"


@pytest.mark.parametrize("name", BOARDS)
def test_given_chaos_the_last_line_is_the_verdict(board: Board, name: str) -> None:
    """Every device of the board is killed all the time, and its guest says that nothing was wrong."""
    words = _words(board, name)
    with board.start(*words, "--chaos", "kill=*,every=50ms,jitter=0.5", cwd=ROOT) as command:
        command.wait(GUEST_S)
    ended = Ended(command)
    assert ended.code == 0, ended.stderr
    assert "guest: io_errors=0 failed=0" in ended.stdout
    verdict = re.search(r"^kills=(\d+) io_errors=0 hash=ok$", ended.stderr, re.MULTILINE)
    assert verdict is not None, ended.stderr
    assert int(verdict[1]) >= 30


@pytest.mark.parametrize("name", BOARDS)
def test_given_lines_typed_at_a_shell_they_are_answered(board: Board, name: str) -> None:
    """The guest's console is the command's standard input and output; its end is the guest's."""
    words = _words(board, name, "tv.what=shell loglevel=3")
    with board.start(*words, "--set", "machine.options.verdict=", stdin=LINES, cwd=ROOT) as command:
        command.wait(GUEST_S)
    ended = Ended(command)
    assert ended.code == 0, ended.stderr
    assert "the answer is 42" in ended.stdout


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_given_the_command_ends_so_does_the_guest(board: Board, name: str, number: signal.Signals) -> None:
    """Interrupted or killed, it leaves no VMM behind, nor what that has started."""
    with board.start(*_words(board, name), cwd=ROOT) as command:
        wait_until(lambda: "guest: ready" in Ended(command).stdout, "the guest is not up", within_s=GUEST_S)
        command.process.send_signal(number)
        code = command.wait()
    assert code == (130 if number == signal.SIGINT else -number)
    wait_until(lambda: not board.processes(), "processes are left", within_s=2)
    if number == signal.SIGKILL:
        for left in board.temporary.iterdir():  # nobody was there to clear up: sockets, and UML's files
            shutil.rmtree(left)


def test_given_what_is_not_there_it_says_how_to_get_it(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU, a kernel, an option that does not exist."""
    words = _words(board, "qemu-linux")
    for wrong, told in (
        ("kernel=nowhere/vmlinuz", "there is no kernel 'nowhere/vmlinuz', neither here nor"),
        ("kernl=x", "machine qemu: options: Object contains unknown field `kernl`; there are kernel,"),
        ("verdict=disk7", "there is no disk 'disk7' with an image"),
    ):
        ended = board.run(*words, "--set", f"machine.options.{wrong}", cwd=ROOT)
        assert (ended.code, ended.stdout) == (1, "")
        assert told in ended.stderr
    monkeypatch.setenv("PATH", "/nowhere")
    ended = board.run(*words, cwd=ROOT)
    assert ended.code == 1
    assert "no qemu-system-x86_64 on this system: apt-get install qemu-system-x86" in ended.stderr


def test_given_socket_that_cannot_be_the_start_says_why(board: Board) -> None:
    """A path that cannot be listened at, and a device that has nothing to offer a VMM."""
    words = _words(board, "uml-linux")
    ended = board.run(*words, "--set", "devices.disk0.vhost_user.socket=/nowhere/x.sock", cwd=ROOT)
    assert ended.code == 1
    assert "'disk0': cannot listen at /nowhere/x.sock: [Errno 2] No such file or directory" in ended.stderr
    ended = board.run("run", "config/demo.yaml", "--set", "devices.uart0.vhost_user={}", cwd=ROOT)
    assert ended.code == 1
    assert "arm.pl011 is no virtio device, so it cannot have vhost_user" in ended.stderr
