"""``tubevisor check``, ``schema``, ``doctor`` and wrong usage: answers that start nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command.board import LAMP, Board

WRONG = """\
name: board
supervisor: {strategy: all_for_one, intensity: many}
devices:
  - {name: lamp, device: "mine.parts:Lamp", mmio: {base: 0x1000, size: 0x100}}
  - {name: lamp, device: "mine.absent:Lamp", mmio: {base: 0x1080, size: 0x100}}
  - {name: other, device: nrf51.uarrt, restart: sometimes, depends_on: [nobody], stop_timeout: 3}
machine: {class: "mine.nowhere:Machine"}
"""


def test_given_valid_config_check_says_so(board: Board) -> None:
    """One line, exit code 0, nothing started."""
    board.write(LAMP, machine="do: leave")
    ended = board.run("check", board.config)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout == f"{board.config}: 1 device, no mistakes\n"
    assert not board.said.exists()


def test_given_valid_config_check_as_json_lists_the_devices(board: Board) -> None:
    """The same as an object."""
    board.write(LAMP)
    ended = board.run("check", board.config, "--json")
    assert json.loads(ended.stdout) == {"ok": True, "name": "board", "devices": ["lamp"]}


@pytest.mark.parametrize("command", ["check", "run"])
def test_given_wrong_config_every_finding_comes_at_once(board: Board, command: str) -> None:
    """Exit code 3, each finding with file, line and column, and nothing started."""
    board.config.write_text(WRONG)
    ended = board.run(command, board.config)
    assert (ended.code, ended.stdout) == (3, "")
    findings = ended.stderr.splitlines()
    assert all(line.startswith(f"{board.config}:") for line in findings), findings
    for words in (
        ":2:",
        "supervisor.strategy",
        "supervisor.intensity",
        "mine.absent",
        "nrf51.uarrt",
        "restart",
        "nobody",
        "stop_timeout",
        "mine.nowhere",
    ):
        assert any(words in line for line in findings), (words, findings)
    assert not board.said.exists()


@pytest.mark.parametrize("command", ["check", "run"])
def test_given_wrong_config_json_holds_the_same_findings(board: Board, command: str) -> None:
    """``check`` was asked, and answers on stdout; the stdout of ``run`` is the guest's."""
    board.config.write_text(WRONG)
    told = board.run(command, board.config).stderr.splitlines()
    ended = board.run(command, board.config, "--json")
    answer = json.loads(ended.stdout if command == "check" else ended.stderr)
    assert ended.code == 3
    assert answer["ok"] is False
    assert "\n".join(answer["findings"]).splitlines() == told


@pytest.mark.parametrize("name", ["absent.yaml", ".", "\udcff.yaml"])
def test_given_no_readable_config_it_is_a_finding(board: Board, name: str) -> None:
    """A file that is not there, is none, or has a name that is no text."""
    ended = board.run("check", name)
    assert ended.code == 3
    assert "cannot be read" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_given_good_set_it_is_laid_over_the_file(board: Board) -> None:
    """The last word has the command line."""
    board.write(LAMP, machine="do: leave, code: 3")
    ended = board.run(
        "run", board.config, "--set", "machine.options.code=4", "--set", "devices.lamp.poison=7"
    )
    assert (ended.code, ended.stderr) == (4, "")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("supervisor.intensity=lots", "supervisor.intensity"),
        ("devices.limp.poison=7", "did you mean 'lamp'?"),
        ("nonsense", "must be PATH=VALUE"),
        ("supervisor.tempo=1", "unknown key"),
    ],
)
def test_given_bad_set_the_finding_names_it(board: Board, override: str, told: str) -> None:
    """A mistake on the command line is told like one in the file, and where it was made."""
    board.write(LAMP)
    for command in ("check", "run"):
        ended = board.run(command, board.config, "--set", override)
        assert ended.code == 3
        assert f"--set {override}" in ended.stderr
        assert told in ended.stderr


def test_given_schema_it_is_valid_json_that_knows_every_key(board: Board) -> None:
    """The JSON Schema names the sections and the devices' keys."""
    ended = board.run("schema")
    assert (ended.code, ended.stderr) == (0, "")
    schema = json.loads(ended.stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(schema["properties"]) == {"name", "supervisor", "devices", "groups", "machine"}
    device = schema["$defs"]["DeviceSection"]
    assert {"name", "device", "options", "mmio", "restart", "depends_on", "backoff"} <= set(
        device["properties"]
    )
    assert device["required"] == ["name", "device"]


def test_given_doctor_text_and_json_say_the_same(board: Board) -> None:
    """Each finding has its line in either form; nothing that is needed is missing where tests run."""
    text, lines = board.run("doctor"), board.run("doctor", "--json")
    findings = [json.loads(line) for line in lines.stdout.splitlines()]
    assert (text.code, lines.code) == (0, 0), text.stdout
    assert len(text.stdout.splitlines()) == len(findings)
    for finding in findings:
        assert set(finding) == {"what", "present", "detail", "needed"}
        assert finding["what"] in text.stdout
    assert any("Linux" in finding["what"] and finding["needed"] for finding in findings)


@pytest.mark.parametrize(
    "arguments",
    [["dance"], ["run"], ["run", "a.yaml", "b.yaml"], ["check", "--loudly"], ["prove", "board.yaml"]],
)
def test_given_wrong_usage_exit_code_is_2(board: Board, arguments: list[str]) -> None:
    """Unknown commands and options, and missing arguments, with the usage on stderr."""
    board.write(LAMP)
    ended = board.run(*arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Usage: tubevisor")


def test_given_prove_without_machine_it_is_wrong_usage(board: Board) -> None:
    """There is no guest whose output could be compared."""
    board.write(LAMP)
    ended = board.run("prove", board.config, "--input", "/dev/null")
    assert ended.code == 2
    assert "has no machine" in ended.stderr


def test_given_prove_same_transcripts_end_with_0(board: Board) -> None:
    """Two runs, one verdict: as text behind the transcripts, as JSON alone on stdout."""
    board.write(LAMP, machine="do: leave")
    ended = board.run("prove", board.config, "--input", "/dev/null")
    assert ended.code == 1, "a machine that writes elsewhere than to its stdout has proved nothing"
    (board.directory / "mine" / "speaking.py").write_text(SPEAKING)
    board.write(LAMP, extra='machine: {class: "mine.speaking:Machine"}')
    ended = board.run("prove", board.config, "--input", _input(board))
    assert ended.code == 0, ended.stderr
    assert ended.stdout.startswith("typed: hello\n" * 2 + "the transcripts are the same: 13 bytes, ")
    ended = board.run("prove", board.config, "--input", _input(board), "--json")
    assert json.loads(ended.stdout)["same"] is True


def test_given_prove_different_transcripts_end_with_1(board: Board) -> None:
    """Where they part is shown."""
    (board.directory / "mine" / "speaking.py").write_text(SPEAKING)
    board.write(LAMP, extra='machine: {class: "mine.speaking:Machine", options: {fickle: true}}')
    ended = board.run("prove", board.config, "--input", _input(board))
    assert ended.code == 1
    assert "THE TRANSCRIPTS DIFFER at character 1" in ended.stdout  # 13, or just behind equal digits


def _input(board: Board) -> Path:
    path = board.directory / "typed"
    path.write_text("hello")
    return path


SPEAKING = """
import os

class Machine:
    def __init__(self, supervisor, *, stdin, stdout, fickle=False):
        self.sup, self.stdin, self.stdout, self.fickle = supervisor, stdin, stdout, fickle

    def run(self):
        self.stdout.write(f"typed: {self.stdin.read()}\\n")
        if self.fickle:
            self.stdout.write(os.urandom(9).hex())
        return 0
"""
