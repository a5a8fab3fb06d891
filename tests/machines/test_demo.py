"""The demo board from end to end: in process, in workers, under chaos, and as the command runs it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import pytest

from tests.chaos import census
from tests.machines.sessions import CHAOS, CONFIG, run_session

pytest.importorskip("unicorn")

COMMAND = [sys.executable, "-c", "from supervisor.cli import main; main()"]
SESSION = (CONFIG / "demo.session.txt").read_text()
TRANSCRIPT = """\
tubevisor demo guest: a Cortex-M0 and four devices
h for help
>>> h
e TEXT echo, r random words, s sleep 0.5 s, t test the clock, c count
>>> e hello from the guest
hello from the guest
>>> r
eb56ce19 070a380b fbd367f8 37ba677e 00000004
>>> r
f4bc20b4 8bb72392 e85bedc0 6b8dbc9e 00000008
>>> c
2a06b550
>>> s
yes
>>> t
yes
>>> r
f29b8fd7 abc876bf 060a6f81 056e5017 0000000c
>>> 
"""  # noqa: W291 - the prompt ends in a blank


@pytest.mark.parametrize("in_process", [True, False])
def test_given_session_the_demo_guest_answers_the_same_in_both_modes(in_process: bool) -> None:
    """Every byte of the transcript is known beforehand."""
    with census():
        session = run_session("demo", SESSION, in_process=in_process)
    assert session.transcript == TRANSCRIPT
    assert session.code == 0
    assert session.guest_seconds > 1.6  # it slept 0.5 s and waited 1.1 s


@pytest.mark.chaos
def test_given_kills_the_demo_guest_notices_none() -> None:
    """The same bytes while its devices die."""
    with census():
        session = run_session("demo", SESSION, chaos=CHAOS)
    assert session.transcript == TRANSCRIPT
    assert session.kills > 10


def test_given_backspace_the_guest_takes_a_character_back() -> None:
    """The line editor of the guest."""
    session = run_session("demo", "e ab\x7fc\n", in_process=True)
    assert "\nac\n" in session.transcript


def test_given_pipe_the_command_runs_the_board_and_ends_with_zero() -> None:
    """As a user would: ``printf ... | tubevisor run config/demo.yaml``."""
    done = subprocess.run(
        [*COMMAND, "run", str(CONFIG / "demo.yaml")],
        input="e piped\nc\n",
        capture_output=True,
        text=True,
        timeout=60,
        cwd=CONFIG.parent,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ">>> e piped\npiped\n>>> c\n2a06b550\n>>> \n" in done.stdout


def test_given_terminal_the_command_is_interactive_and_leaves_at_ctrl_bracket() -> None:
    """Keys reach the guest as they are pressed, Ctrl-C among them."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "run", str(CONFIG / "demo.yaml")],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        cwd=CONFIG.parent,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        _expect(ours, b">>> ")
        os.write(ours, b"e key\x03s\r")
        _expect(ours, b"key\x03s\r\n>>> ")
        os.write(ours, b"\x1d")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(ours)


def _expect(fd: int, ending: bytes) -> None:
    seen = b""
    deadline = time.monotonic() + 30
    while not seen.endswith(ending):
        left = deadline - time.monotonic()
        assert left > 0, seen
        assert select.select([fd], [], [], left)[0], seen
        seen += os.read(fd, 4096)


def test_given_no_unicorn_the_command_says_what_to_install() -> None:
    """The CPU emulator is an extra."""
    code = "import sys; sys.modules['unicorn'] = None; from supervisor.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(CONFIG / "demo.yaml")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=CONFIG.parent,
        check=False,
    )
    assert done.returncode != 0
    assert "pip install 'tubevisor[unicorn]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_given_device_that_is_given_up_a_sleeping_guest_does_not_keep_the_board() -> None:
    """Over budget the command reports and ends, though nobody types anything."""
    chaos = ["--chaos", "kill=rng0,every=1ms,charge=yes", "--set", "supervisor.intensity=3"]
    read_end, write_end = os.pipe()
    try:
        done = subprocess.run(
            [*COMMAND, "run", str(CONFIG / "demo.yaml"), *chaos],
            stdin=read_end,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=CONFIG.parent,
            check=False,
        )
    finally:
        os.close(read_end)
        os.close(write_end)
    assert done.returncode == 1
    assert "gave up" in done.stderr
