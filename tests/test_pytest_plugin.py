"""The fixtures for users' tests, in pytest sessions of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

BOARD = """
devices:
  - {name: rng0, device: demo.rng}
  - {name: rng1, device: demo.rng}
"""
HEAD = f'''
import os
import subprocess

import pytest

from supervisor import load_config
from supervisor.chaos import ChaosRule
from supervisor.errors import LocalError, StartFailed

BOARD = """{BOARD}"""
COUNT = 0x04
'''


def _run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    pytester.makefile(".yaml", board=BOARD)
    pytester.makepyfile(HEAD + tests)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options, timeout=60)


def test_given_board_in_any_form_tubevisor_starts_it(pytester: pytest.Pytester) -> None:
    """A path, YAML text, a mapping, a Config; --set's values are laid over all but the last."""
    tests = """
MAPPING = {"devices": [{"name": "rng0", "device": "demo.rng"}]}

@pytest.mark.parametrize("board", ["board.yaml", BOARD, MAPPING])
def test_forms(tubevisor, board):
    sup = tubevisor(board, overrides=["devices.rng0.options.seed=7"])
    assert sup["rng0"].state == "ready"
    assert sup.device_spec("rng0").options == {"seed": 7}

def test_config(tubevisor):
    config = load_config("board.yaml")
    assert tubevisor(config).config is config
    with pytest.raises(LocalError, match="not over a Config"):
        tubevisor(config, overrides=["name=other"])
"""
    _run(pytester, tests).assert_outcomes(passed=4)


def test_given_device_beside_the_file_tubevisor_finds_it_as_the_command_does(
    pytester: pytest.Pytester,
) -> None:
    """Neither folder is on the path by itself, and none stays there."""
    folder = pytester.mkdir("lab")
    (folder / "mine.py").write_text("from supervisor import Device\nclass Mine(Device): ...\n")
    (folder / "lab.yaml").write_text("devices: [{name: mine, device: 'mine:Mine'}]\n")
    tests = """
import sys

def test_found(tubevisor):
    assert tubevisor("lab/lab.yaml")["mine"].state == "ready"

def test_forgotten():
    assert not [folder for folder in sys.path if folder.endswith("lab")]
"""
    _run(pytester, tests, "--import-mode=importlib").assert_outcomes(passed=2)


def test_given_board_beside_the_test_it_is_found_from_any_folder(pytester: pytest.Pytester) -> None:
    """The working directory comes first; a board in neither place is told by the path that was asked for."""
    folder = pytester.mkdir("lab")
    (folder / "lab.yaml").write_text("name: beside\ndevices: []\n")
    (folder / "test_lab.py").write_text(
        "import pytest\n"
        "from supervisor.errors import ConfigError\n"
        "def test_found(tubevisor):\n"
        "    assert tubevisor('lab.yaml').config.name == 'beside'\n"
        "    with pytest.raises(ConfigError, match='^nowhere.yaml:1:1: cannot be read'):\n"
        "        tubevisor('nowhere.yaml')\n"
    )
    options = ("-p", "no:cacheprovider", "lab/test_lab.py")
    pytester.runpytest_subprocess(*options, timeout=60).assert_outcomes(passed=1)
    pytester.makefile(".yaml", lab="name: here\ndevices: []\n")
    pytester.runpytest_subprocess(*options, timeout=60).assert_outcomes(failed=1)


def test_given_test_is_over_supervisors_are_stopped_and_nothing_is_left(pytester: pytest.Pytester) -> None:
    """Also those that the test has stopped itself, and those whose test has failed."""
    tests = """
stopped = []

def test_two(tubevisor):
    stopped.extend([tubevisor(BOARD), tubevisor(BOARD)])

def test_stopped_by_itself(tubevisor):
    sup = tubevisor(BOARD)
    sup.stop()
    stopped.append(sup)

def test_failed(tubevisor):
    stopped.append(tubevisor(BOARD))
    assert not stopped

def test_not_started(tubevisor):
    with pytest.raises(StartFailed):
        tubevisor({"devices": [{"name": "bad", "device": "demo.rng", "options": {"seed": "x"}}]})

def test_all_have_ended():
    assert [sup.outcome.kind.value for sup in stopped] == ["stopped"] * 4
"""
    _run(pytester, tests).assert_outcomes(passed=4, failed=1)


def test_given_something_is_left_the_test_fails_and_says_what(pytester: pytest.Pytester) -> None:
    """A descriptor and a process; a test that wants to keep some says so."""
    tests = """
@pytest.fixture(scope="module")
def kept():
    things = []
    yield things
    for child in things:
        child.kill()
        child.wait()

def test_descriptor(tubevisor):
    tubevisor(BOARD)
    os.dup2(os.open("/dev/zero", os.O_RDONLY), 77)

def test_process(kept, tubevisor):
    tubevisor(BOARD)
    kept.append(subprocess.Popen(["sleep", "1000"]))

def test_wanted(kept, tubevisor):
    tubevisor(BOARD, census=False)
    kept.append(subprocess.Popen(["sleep", "1000"]))
"""
    result = _run(pytester, tests)
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(["*  descriptor 77 is open: /dev/zero", "*  process * lives: sleep 1000"])


@pytest.mark.chaos
def test_given_monkey_it_kills_and_counts_and_a_failure_shows_its_seed(pytester: pytest.Pytester) -> None:
    """What was asked of the devices is true all the while; a rule with its seed can be pasted."""
    tests = """
def ask(sup, monkey):
    asked = 0
    while sum(monkey.kills.values()) < 10:
        asked += 1
        for name in ("rng0", "rng1"):
            sup[name].read(0x00, 4)
            assert sup[name].read(COUNT, 4) == asked
        sup.dispatch(0)

def test_good(chaos_monkey, tubevisor):
    sup = tubevisor(BOARD)
    monkey = chaos_monkey(sup, "kill=rng0,every=3ms", ChaosRule(kill="*", every_ns=4_000_000, seed=5))
    ask(sup, monkey)
    assert monkey.kills["rng0"] and monkey.seeds[1] == 5

def test_bad(chaos_monkey, tubevisor):
    sup = tubevisor(BOARD)
    ask(sup, chaos_monkey(sup, "kill=*,every=3ms", "kill=rng0,every=5ms,seed=9"))
    assert False
"""
    result = _run(pytester, tests)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines(
        [r"chaos_monkey: kill=\*,every=3ms,seed=\d+$", r"chaos_monkey: kill=rng0,every=5ms,seed=9$"],
        consecutive=True,
    )


def test_given_rule_that_cannot_be_monkey_is_not_let_loose(pytester: pytest.Pytester) -> None:
    """No rule, an unknown device, and devices that share the test's own process."""
    tests = """
@pytest.mark.parametrize("rules, override, told", [
    ([], "name=x", "without a rule"),
    (["kill=uart0,every=1s"], "name=x", "no device 'uart0'"),
    (["kill=*,every=1s"], "supervisor.in_process=true", "in_process is set"),
])
def test_refused(tubevisor, chaos_monkey, rules, override, told):
    sup = tubevisor("board.yaml", overrides=[override])
    with pytest.raises(LocalError, match=told):
        chaos_monkey(sup, *rules)
"""
    _run(pytester, tests).assert_outcomes(passed=3)


def test_given_plugin_imported_and_not_used_nothing_of_the_supervisor_is_loaded() -> None:
    """It is imported in every pytest session of its users."""
    code = "import pytest, sys; before = set(sys.modules); import supervisor.pytest_plugin as _; "
    code += "print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["supervisor", "supervisor.pytest_plugin"]
