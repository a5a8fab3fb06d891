"""``tubevisor run``: machines and devices of the user's, their ends, and what is said about them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from tests.command.board import COMMAND, LAMP, Board, Ended, assert_silent_end


def _objects(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_given_machine_its_exit_code_is_the_commands(board: Board) -> None:
    """A machine of the user's own, beside the YAML, with the options that the YAML gives it."""
    board.write(LAMP, machine="do: leave, code: 7")
    ended = board.run("run", board.config)
    assert (ended.code, ended.stdout, ended.stderr) == (7, "lamp: 1\n", "")


def test_given_another_working_directory_package_beside_the_yaml_is_found(board: Board) -> None:
    """Devices and machine are found from wherever the command is called, in either mode."""
    board.write(LAMP, machine="do: leave")
    for mode in ("false", "true"):
        ended = board.run("run", board.config, "--set", f"supervisor.in_process={mode}", cwd=Path("/"))
        assert (ended.code, ended.stdout) == (0, "lamp: 1\n"), ended.stderr


def test_given_machine_without_devices_it_runs(board: Board) -> None:
    """A machine may do without any."""
    board.write(machine="do: dispatch")
    with board.start("run", board.config) as command:
        command.wait_until_said("dispatches")
        command.interrupt()
        command.wait()
    assert_silent_end(Ended(command), 130)


def test_given_nothing_to_run_it_says_so(board: Board) -> None:
    """Neither devices nor a machine: there is nothing that could ever end."""
    board.write()
    ended = board.run("run", board.config)
    assert ended.code == 2
    assert ended.stderr == f"{board.config} has neither devices nor a machine: there is nothing to run\n"


def test_given_devices_only_they_run_until_they_have_ended(board: Board) -> None:
    """Without a machine the devices run; the end of a significant one is the end, and a good one."""
    board.write(
        'name: lamp, device: "mine.parts:Lamp", restart: temporary, significant: true',
        supervisor="auto_shutdown: any_significant",
    )
    ended = board.run("run", board.config, "--chaos", "kill=lamp,every=1ms,count=1")
    assert ended.code == 0, ended.stderr


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ('"mine.parts:Nothing"', "module mine.parts has no Nothing"),
        ('"mine.parts:Machine"', "mine.parts:Machine is not a subclass of supervisor.Device"),
        ('"mine.parts:Raises"', "ValueError: no such lamp"),
        ('"mine.parts:Lamp", options: {colour: red}', "Lamp takes no options; got colour"),
        ('"mine.parts:HangsInStart", start_timeout: 200ms', "bad: no Ready within start_timeout"),
    ],
)
def test_given_device_that_cannot_start_report_names_it(board: Board, device: str, told: str) -> None:
    """The reason and the device's name are in the report; the exit code is 1."""
    board.write(LAMP, f"name: bad, device: {device}", machine="do: leave")
    ended = board.run("run", board.config)
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("the start failed"), ended.stderr
    assert told in ended.stderr
    assert "bad" in ended.stderr


def test_given_device_that_cannot_be_built_in_process_report_names_it(board: Board) -> None:
    """Where authors debug, the traceback leads into their own code."""
    board.write('name: bad, device: "mine.parts:Raises"')
    ended = board.run("run", board.config, "--set", "supervisor.in_process=true")
    assert ended.code == 1
    assert ended.stderr.startswith("the start failed: bad: ValueError: no such lamp\nTraceback")
    assert 'mine/parts.py", line' in ended.stderr


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        ("do: raise in constructor", "machine mine.parts:Machine: ValueError: no such machine\nTraceback"),
        ("do: fail", "machine mine.parts:Machine: KeyError: 'what the machine looked for'\nTraceback"),
    ],
)
def test_given_machine_that_fails_report_names_it(board: Board, machine: str, told: str) -> None:
    """What a machine raises is its author's to see; the devices are stopped in order."""
    board.write(LAMP, machine=machine)
    ended = board.run("run", board.config)
    assert ended.code == 1
    assert ended.stderr.startswith(told)
    assert board.has_said("lamp stopped")


def test_given_no_such_machine_class_report_names_it(board: Board) -> None:
    """The module is there, which is all that a check can tell; the class is not."""
    board.write(LAMP, extra='machine: {class: "mine.parts:Absent"}')
    ended = board.run("run", board.config)
    assert ended.code == 1
    assert "machine mine.parts:Absent: AttributeError" in ended.stderr


def test_given_budget_spent_while_machine_waits_it_ends_with_1(board: Board) -> None:
    """A machine that touches no device any more learns from dispatch that they have ended."""
    board.write(LAMP + ", poison: 100", machine="do: crash and wait", supervisor="intensity: 2, period: 1m")
    ended = board.run("run", board.config)
    assert ended.code == 1
    assert "lamp crashed: RuntimeError: a fuse of 13 A has blown" in ended.stderr
    assert "gave up: lamp died, and the 2 restarts in 60 s are used up" in ended.stderr


def test_given_request_to_device_that_is_gone_machine_ends_with_its_reason(board: Board) -> None:
    """DeviceGone comes out of the machine and is a message, not a traceback of the supervisor's."""
    board.write(LAMP + ", poison: 100", machine="do: crash", supervisor="intensity: 2, period: 1m")
    ended = board.run("run", board.config)
    assert ended.code == 1
    last = ended.stderr.splitlines()[-2:]
    assert last[0] == "gave up: lamp died, and the 2 restarts in 60 s are used up"
    assert last[1].startswith("lamp: ")


def test_given_poisonous_request_machine_ends_with_device_error(board: Board) -> None:
    """So does DeviceError."""
    board.write(LAMP, machine="do: crash")
    ended = board.run("run", board.config)
    assert ended.code == 1
    assert "lamp: write of 4 bytes at 0x8 has killed 3 workers; it was dropped" in ended.stderr


def test_given_json_every_line_on_stderr_is_an_object(board: Board) -> None:
    """Lifecycle records, messages and the toll: one object a line; stdout is the guest's."""
    board.write(LAMP, machine="do: crash and wait", supervisor="intensity: 100")
    with board.start(
        "run", board.config, "--json", "-vv", "--chaos", "kill=lamp,every=20ms,seed=4"
    ) as command:
        command.wait_until_said("DeviceError")
        command.wait_until(lambda: "DeviceRestarted" in command.stderr.read_text(), "a restart")
        command.interrupt()
        command.wait()
    ended = Ended(command)
    assert (ended.code, ended.stdout) == (130, "")
    lines = _objects(ended.stderr)
    events = {line["event"] for line in lines if "event" in line}
    assert {"DeviceStarting", "DeviceReady", "SupervisorReady", "DeviceCrashed", "DeviceRestarted"} <= events
    assert {"message": "chaos seeds: 4"} in lines
    assert lines[-1]["device"] == "lamp"
    assert set(lines[-1]) == {"device", "kills", "restarts", "median_ms", "worst_ms"}


def test_given_chaos_devices_are_killed_and_the_toll_is_shown(board: Board) -> None:
    """A row for each device; the uncharged kills do not touch the small budget."""
    board.write(LAMP, 'name: spared, device: "mine.parts:Lamp"', supervisor="intensity: 1, period: 1m")
    with board.start("run", board.config, "--chaos", "kill=lamp,every=5ms,count=9,jitter=0.5") as command:
        command.wait_until(lambda: _starts(board, "lamp") >= 10, "nine restarts")
        command.interrupt()
        command.wait()
    ended = Ended(command)
    assert ended.code == 130
    rows = {line.split()[0]: line.split()[1:] for line in ended.stderr.splitlines()}
    assert rows["device"] == ["kills", "restarts", "median", "ms", "worst", "ms"]
    assert rows["lamp"][0] == "9"
    assert rows["spared"] == ["0", "0", "-", "-"]


def _starts(board: Board, name: str) -> int:
    return board.said.read_text().splitlines().count(f"{name} started") if board.said.exists() else 0


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("kill=nobody,every=50ms", "no device 'nobody'; there are lamp"),
        ("kill=lamp", "every=... is missing"),
        ("every=1s", "kill=... is missing"),
        ("kill=lamp,every=50", "must be a duration such as"),
        ("kill=lamp,every=1s,often=yes", "'often=yes' is not KEY=VALUE"),
        ("", "'' is not KEY=VALUE"),
    ],
)
def test_given_bad_chaos_rule_nothing_is_started(board: Board, rule: str, told: str) -> None:
    """A rule that cannot be is a mistake in usage: exit code 2, and no device has seen the light."""
    board.write(LAMP, machine="do: leave")
    ended = board.run("run", board.config, "--chaos", rule)
    assert (ended.code, ended.stdout) == (2, "")
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not board.said.exists()


def test_given_chaos_without_processes_it_is_refused(board: Board) -> None:
    """There is nothing to kill in this process but ourselves."""
    board.write(LAMP, machine="do: leave")
    ended = board.run(
        "run", board.config, "--chaos", "kill=*,every=1s", "--set", "supervisor.in_process=true"
    )
    assert ended.code == 2
    assert "supervisor.in_process is set" in ended.stderr


def test_given_reader_of_stdout_leaves_it_ends_silently(board: Board) -> None:
    """As in ``tubevisor run ... | head -1``."""
    board.write(LAMP, machine="do: chatter")
    head = subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert head.stdin is not None
    with head, board.start("run", board.config, stdout=head.stdin) as command:
        head.stdin.close()
        assert head.stdout is not None
        assert head.stdout.read() == b"chatter\n"
        command.wait()
    assert_silent_end(Ended(command), 1)
    assert command.stderr.read_text() == ""
    assert board.has_said("lamp stopped")


@pytest.mark.parametrize("arguments", ["schema", "doctor", "doctor --json", "--help", "check board.yaml"])
def test_given_stdout_that_nobody_reads_it_ends_silently(board: Board, arguments: str) -> None:
    """What is still in a buffer at the end goes nowhere, without a word of the interpreter's."""
    board.write(LAMP)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with board.start(*arguments.split(), stdout=write_end) as command:
        os.close(write_end)
        command.wait()
    assert_silent_end(Ended(command), 1)
    assert command.stderr.read_text() == ""


def test_given_closed_standard_descriptors_it_runs_all_the_same(board: Board) -> None:
    """With 0, 1 and 2 closed no socket of ours takes their place, and no device writes into one."""
    board.write(LAMP, machine="do: leave")
    done = subprocess.run(
        f"exec {COMMAND} run {board.config} <&- >&- 2>&-",
        shell=True,
        check=False,
        timeout=60,
        cwd=board.directory,
        env={**os.environ, "TMPDIR": str(board.temporary)},
    )
    assert done.returncode == 0
    assert board.has_said("lamp stopped")


@pytest.mark.parametrize("arguments", ["schema", "doctor", "doctor --json"])
def test_given_full_disk_behind_stdout_it_says_so(board: Board, arguments: str) -> None:
    """What cannot be written is a failure with its reason, not a traceback."""
    with open("/dev/full", "w") as full, board.start(*arguments.split(), stdout=full) as command:
        command.wait()
    assert_silent_end(Ended(command), 1)
    assert "No space left on device" in command.stderr.read_text()


def test_given_low_soft_limit_it_is_raised_to_what_the_devices_need(board: Board) -> None:
    """Soft limits on descriptors are low for programs that use select(2); the hard limit is what counts."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    lamps = [f'name: lamp{number}, device: "mine.parts:Lamp"' for number in range(8)]
    board.write(LAMP, *lamps, machine="do: leave")
    with board.start("run", board.config, preexec_fn=lower) as command:
        command.wait()
    assert_silent_end(Ended(command), 0)


def test_given_hard_limit_too_low_report_says_what_ran_out(board: Board) -> None:
    """Descriptors that the system does not grant are told by the system's own words."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    lamps = [f'name: lamp{number}, device: "mine.parts:Lamp"' for number in range(8)]
    board.write(LAMP, *lamps, machine="do: leave")
    with board.start("run", board.config, preexec_fn=lower) as command:
        command.wait()
    ended = Ended(command)
    assert_silent_end(ended, 1)
    assert "Too many open files" in ended.stderr


def test_given_ignored_sigint_it_is_not_deaf_to_sigterm(board: Board) -> None:
    """A shell starts background jobs with SIGINT ignored."""
    board.write(LAMP, machine="do: dispatch")

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with board.start("run", board.config, preexec_fn=ignore) as command:
        command.wait_until_said("dispatches")
        command.interrupt(signal.SIGTERM)
        command.wait()
    assert_silent_end(Ended(command), 143)
