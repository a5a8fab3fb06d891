"""OTP's cases that stand nowhere else (see test_otp_suite): starts, stops, templates, significance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.config import Config, parse_config
from supervisor.errors import DeviceFault, StartFailed
from supervisor.events import (
    DeviceCrashed,
    DeviceDied,
    DeviceKilled,
    DeviceReady,
    DeviceStopped,
    ExitKind,
    GroupEnded,
    OutcomeKind,
    Record,
)
from supervisor.host import Supervisor
from supervisor.policy import Counts, Restart
from tests.chaos import COUNTING, board, census

EXIT, NEXT = 0x04, 0x04


def _leaving(name: str, extra: str = "") -> str:
    kind = 'device: "tests.devices.leaving:Leaving", backoff: {max: 0s}, poison: 1'
    return f"name: {name}, {kind}" + (f", {extra}" if extra else "")


def _group(template: str, supervisor: str = "intensity: 5") -> Config:
    options = f"strategy: simple_one_for_one, {supervisor}"
    return parse_config(f"groups: [{{name: g, supervisor: {{{options}}}, template: {{{template}}}}}]")


def _until(sup: Supervisor, happened: Callable[[], bool]) -> None:
    while not happened():
        sup.dispatch(1)


def _end_of(sup: Supervisor) -> OutcomeKind:
    """How the supervisor ends, which it does by itself."""
    while sup.outcome is None:
        sup.dispatch(1)
    return sup.outcome.kind


def _leave(sup: Supervisor, name: str, code: int) -> None:
    """Has a device end by itself; the request that asked for it has an end as well."""
    generation = sup[name].generation
    with pytest.raises(DeviceFault):
        sup[name].write(EXIT, 4, code)
    _until(sup, lambda: sup[name].state != "ready" or sup[name].generation > generation)


# Start.


def test_sup_start_normal() -> None:
    """An empty supervisor starts, counts nobody, and stops in order."""
    with census():
        with Supervisor(board()) as sup:
            assert sup.count_devices() == Counts(specs=0, active=0, supervisors=0, workers=0)
        assert sup.outcome is not None
        assert sup.outcome.kind is OutcomeKind.STOPPED


def test_sup_start_ignore_start_child(tmp_path: Path) -> None:
    """An added temporary device that has nothing to do is no error, and nothing is kept of it."""
    ignoring = {
        "name": "x",
        "device": "tests.devices.leaving:Leaving",
        "options": {"unless": str(tmp_path)},
    }
    with census(), Supervisor(board(COUNTING)) as sup:
        handle = sup.add_device({**ignoring, "restart": "temporary"})
        assert handle.state == "removed"
        assert list(sup.devices) == ["counter"]
        handle = sup.add_device({**ignoring, "restart": "permanent"})
        assert (handle.state, handle.pid) == ("finished", None)
        assert sup["counter"].read(NEXT, 4) == 1


@pytest.mark.parametrize("restart", ["permanent", "temporary"])
def test_sup_start_ignore_simple(tmp_path: Path, restart: str) -> None:
    """Of a template's device that has nothing to do nothing is kept, even if it is permanent."""
    template = (
        f'device: "tests.devices.leaving:Leaving", options: {{unless: "{tmp_path}"}}, restart: {restart}'
    )
    with census(), Supervisor(_group(template)) as sup:
        assert sup.add_device({}, group="g").state == "removed"
        assert sup.count_devices(group="g").specs == 0


def test_sup_start_child_returns_error_simple() -> None:
    """A template's device that cannot start raises its reason and leaves nothing."""
    with census(), Supervisor(_group('device: "tests.devices.naughty:RaisesInStart"')) as sup:
        with pytest.raises(StartFailed, match="g-1: the start failed"):
            sup.add_device({}, group="g")
        assert sup.count_devices(group="g").specs == 0
        assert sup.outcome is None


def test_sup_start_map() -> None:
    """Defaults are permanent and two seconds to stop; all of it can be read back."""
    with census(), Supervisor(board('name: x, device: "tests.devices.counting:Counting"')) as sup:
        child = sup.device_spec("x").child
        assert (child.restart, child.stop_timeout_ns) == (Restart.PERMANENT, 2_000_000_000)
        assert (child.significant, child.depends_on, child.supervisor) == (False, (), None)


def test_sup_start_map_simple() -> None:
    """Every device of a template reports the template's specification in full."""
    template = 'device: "tests.devices.counting:Counting", restart: transient, stop_timeout: 700ms'
    with census(), Supervisor(_group(template)) as sup:
        names = [sup.add_device({}, group="g").name for _ in range(2)]
        children = [sup.device_spec(name).child for name in names]
        assert {child.stop_timeout_ns for child in children} == {700_000_000}
        assert {child.restart for child in children} == {Restart.TRANSIENT}
        assert not any(child.significant for child in children)


# Stop.


def _lingering(diary: Path, extra: str) -> str:
    options = f'options: {{diary: "{diary}", linger_ms: 60000}}'
    return f'device: "tests.devices.stopping:Stopping", {options}, {extra}'


def test_sup_stop_timeout_dynamic(tmp_path: Path) -> None:
    """Devices of a template are stopped together; who is not gone at the end of its time is killed."""
    diary = tmp_path / "diary"
    records: list[Record] = []
    with census():
        with Supervisor(_group(_lingering(diary, "stop_timeout: 100ms"))) as sup:
            for linger_ms in (60000, 0, 60000, 0):
                sup.add_device({"options": {"linger_ms": linger_ms}}, group="g")
            sup.on_event(records.append)
        assert {one.name for one in records if isinstance(one, DeviceKilled)} == {"g-1", "g-3"}
        assert sorted(line for line in diary.read_text().split() if line.endswith("-")) == ["g-2-", "g-4-"]


def test_simple_one_for_one_shutdown(tmp_path: Path) -> None:
    """All are asked at the same time: the last has been asked before the first is gone."""
    diary = tmp_path / "diary"
    records: list[Record] = []
    with census():
        with Supervisor(_group(_lingering(diary, "stop_timeout: 5s"))) as sup:
            for _ in range(4):
                sup.add_device({"options": {"linger_ms": 300}}, group="g")
            sup.on_event(records.append)
        gone_ns = [one.at_ns for one in records if isinstance(one, DeviceStopped)]
        assert len(gone_ns) == 4
        assert max(gone_ns) - min(gone_ns) < 3 * 300_000_000  # one after the other they cannot be nearer
        assert not [one for one in records if isinstance(one, DeviceKilled)]


def test_sup_stop_race() -> None:
    """Devices of each restart type that end by themselves, with any code, while all stop: nobody returns."""
    devices = [
        _leaving(f"{restart}_{code}", f"restart: {restart}, exit_codes: {{clean: [0, 3]}}")
        for restart in ("permanent", "transient", "temporary")
        for code in (0, 3, 1)
    ]
    records: list[Record] = []
    with census():
        with Supervisor(board(*devices, supervisor="intensity: 100")) as sup:
            list(sup.events())
            sup.on_event(records.append)
            for name in sup.devices:
                sup[name].send(bytes([int(name[-1])]))  # answered by nobody: it ends while all stop
        assert sup.outcome is not None
        assert sup.outcome.kind is OutcomeKind.STOPPED
        assert not [one for one in records if isinstance(one, DeviceReady)]


def test_sup_stop_non_shutdown_exit_dynamic() -> None:
    """A template's devices that answer the stop with another exit code are stopped all the same."""
    records: list[Record] = []
    with census():
        with Supervisor(_group('device: "tests.devices.leaving:Leaving", options: {stop_code: 7}')) as sup:
            for _ in range(3):
                sup.add_device({}, group="g")
            sup.on_event(records.append)
        assert sorted(one.name for one in records if isinstance(one, DeviceStopped)) == ["g-1", "g-2", "g-3"]
        assert not [one for one in records if isinstance(one, DeviceDied | GroupEnded)]


# Restarts.


def test_third_death_at_intensity_two() -> None:
    """Two deaths are two restarts; the third takes the supervisor down."""
    with census(), Supervisor(board(COUNTING, supervisor="intensity: 2, period: 60s")) as sup:
        for expected in (2, 3):
            sup.kill("counter")
            _until(sup, lambda: sup["counter"].state == "ready" and sup["counter"].generation == expected)  # noqa: B023
        assert sup.outcome is None
        sup.kill("counter")
        assert _end_of(sup) is OutcomeKind.GAVE_UP


def _failing(diary: Path, name: str, starts: int) -> str:
    options = f'options: {{diary: "{diary}", fail_starts_after: {starts}}}'
    return f'name: {name}, device: "tests.devices.stopping:Stopping", {options}, backoff: {{max: 0s}}'


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_group_escalation(tmp_path: Path, strategy: str) -> None:
    """Where a restart keeps failing, the intensity is used up and the supervisor takes everybody along."""
    diary = tmp_path / "diary"
    devices = (_failing(diary, "a", -1), _failing(diary, "b", 1))
    with census(), Supervisor(board(*devices, supervisor=f"strategy: {strategy}, intensity: 3")) as sup:
        sup.kill("b")
        _until(sup, lambda: sup.outcome is not None)
        assert sup.outcome is not None
        assert (sup.outcome.kind, sup.outcome.culprit) == (OutcomeKind.GAVE_UP, "b")


@pytest.mark.parametrize(("strategy", "again"), [("one_for_all", True), ("rest_for_one", False)])
def test_other_child_fails_restart(tmp_path: Path, strategy: str, again: bool) -> None:
    """In a group's restart the second fails: the first, just restarted, is stopped again, or left alone."""
    diary = tmp_path / "diary"
    first = _failing(diary, "a", -1)
    second = _failing(diary, "b", 1) + ", depends_on: [a]"
    with census(), Supervisor(board(first, second, supervisor=f"strategy: {strategy}, intensity: 3")) as sup:
        diary.write_text("")
        sup.kill("a")
        _until(sup, lambda: sup.outcome is not None)
        starts = diary.read_text().split().count("a+")
        assert (starts > 1) is again


def test_simple_one_for_one_escalation(tmp_path: Path) -> None:
    """A template's device whose restarts fail takes its siblings down, and their group starts afresh."""
    template = _failing(tmp_path / "d", "row", -1)
    with census(), Supervisor(_group(template, "intensity: 2")) as sup:
        bad = sup.add_device({"options": {"fail_starts_after": 1}}, group="g")
        good = sup.add_device({}, group="g")
        sup.kill(bad.name)
        _until(sup, lambda: good.state == "removed")
        assert bad.state == "removed"
        assert sup.outcome is None


def test_simple_one_for_one_restart_ignore(tmp_path: Path) -> None:
    """A template's device that says at its restart that there is nothing to do is dropped; nobody minds."""
    flag = tmp_path / "flag"
    with (
        census(),
        Supervisor(_group(f'device: "tests.devices.leaving:Leaving", options: {{unless: "{flag}"}}')) as sup,
    ):
        first = sup.add_device({}, group="g")
        second = sup.add_device({}, group="g")
        flag.touch()
        sup.kill(first.name)
        _until(sup, lambda: first.state == "removed")
        assert second.state == "ready"
        assert sup.outcome is None


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize(("end", "code"), [("normal", 0), ("shutdown", 3), ("abnormal", 1)])
def test_termination(restart: str, end: str, code: int) -> None:
    """OTP's matrix: permanent is restarted always, transient after an abnormal end, temporary never."""
    device = _leaving("x", f"restart: {restart}, exit_codes: {{clean: [0, 3]}}")
    with census(), Supervisor(board(device)) as sup:
        _leave(sup, "x", code)
        comes_back = restart == "permanent" or (restart == "transient" and end == "abnormal")
        _until(sup, lambda: sup["x"].state == ("ready" if comes_back else "finished"))
        assert (sup["x"].pid is None) is not comes_back


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_temporary_bystander(strategy: str) -> None:
    """A temporary sibling that is stopped on somebody's account is not restarted, and harms nobody."""
    devices = (_leaving("a"), _leaving("b", "restart: temporary"))
    with census(), Supervisor(board(*devices, supervisor=f"strategy: {strategy}")) as sup:
        sup.kill("a")
        _until(sup, lambda: sup["b"].state == "finished" and sup["a"].state == "ready")
        assert sup["a"].generation == 2


def test_hanging_restart_loop_rest_for_one(tmp_path: Path) -> None:
    """While one's start keeps failing, its elder is left alone and those behind it wait; a stop is prompt."""
    diary = tmp_path / "diary"
    devices = (
        _failing(diary, "a", -1),
        _failing(diary, "b", 1),
        _failing(diary, "c", -1) + ", depends_on: [b]",
    )
    with census(), Supervisor(board(*devices, supervisor="strategy: rest_for_one, intensity: 100000")) as sup:
        elder = sup["a"].pid
        sup.kill("b")
        _until(sup, lambda: sup["b"].generation > 4)
        assert sup["a"].pid == elder
        assert (sup["c"].pid, sup["c"].state) == (None, "waiting")
        sup.stop_device("b")
        _until(sup, lambda: sup["b"].state == "down")


def test_hanging_restart_loop_simple(tmp_path: Path) -> None:
    """The same for a device of a template: it can be stopped, and is forgotten."""
    template = _failing(tmp_path / "d", "row", -1)
    with census(), Supervisor(_group(template, "intensity: 100000")) as sup:
        bad = sup.add_device({"options": {"fail_starts_after": 1}}, group="g")
        sup.kill(bad.name)
        _until(sup, lambda: bad.generation > 4)
        sup.stop_device(bad.name)
        _until(sup, lambda: bad.state == "removed")


def test_crash_report_names_the_offender() -> None:
    """A report has the device, its generation, what it raised and where, and how its process ended."""
    faulty = 'name: x, device: "tests.devices.naughty:Faulty", backoff: {max: 0s}, poison: 1'
    with census(), Supervisor(board(faulty)) as sup:
        generation = sup["x"].generation
        with pytest.raises(DeviceFault):
            sup["x"].write(0x100, 4, 9)
        records: list[Record] = []
        while not any(isinstance(one, DeviceDied) for one in records):
            sup.dispatch(1)
            records += sup.events()
        report = next(one for one in records if isinstance(one, DeviceCrashed))
        assert (report.name, report.generation) == ("x", generation)
        assert report.exception == "RuntimeError: cannot take 9"
        assert "_crash" in report.traceback
        assert any("value 9 was too much" in line for line in report.log)
        died = next(one for one in records if isinstance(one, DeviceDied))
        assert died.exit.kind is ExitKind.EXITED


# Significance.


def _significant(auto_shutdown: str, *extras: str) -> Config:
    devices = [_leaving(name, extra) for name, extra in zip("abc", extras, strict=False)]
    return board(*devices, supervisor=f"auto_shutdown: {auto_shutdown}")


@pytest.mark.parametrize("restart", ["temporary", "transient"])
@pytest.mark.parametrize("auto_shutdown", ["never", "any_significant", "all_significant"])
def test_nonsignificant(auto_shutdown: str, restart: str) -> None:
    """Ordinary devices end nothing but themselves."""
    with census(), Supervisor(_significant(auto_shutdown, f"restart: {restart}", "")) as sup:
        _leave(sup, "a", 0)
        _until(sup, lambda: sup["a"].state == "finished")
        assert sup.outcome is None
        assert sup["b"].state == "ready"


@pytest.mark.parametrize("code", [0, 1])
def test_significant_temporary(code: int) -> None:
    """Any end of its own ends the supervisor, or all of them with all_significant; a stop does not."""
    mark = "restart: temporary, significant: true"
    with census(), Supervisor(_significant("any_significant", mark, mark)) as sup:
        sup.stop_device("b")
        _until(sup, lambda: sup["b"].state == "down")
        assert sup.outcome is None
        _leave(sup, "a", code)
        assert _end_of(sup) is OutcomeKind.AUTO_SHUTDOWN
    with census(), Supervisor(_significant("all_significant", mark, mark)) as sup:
        _leave(sup, "a", code)
        assert sup.outcome is None
        _leave(sup, "b", code)
        assert _end_of(sup) is OutcomeKind.AUTO_SHUTDOWN


def test_significant_transient() -> None:
    """Only a clean end ends the supervisor; any other is a restart."""
    with (
        census(),
        Supervisor(_significant("any_significant", "restart: transient, significant: true", "")) as sup,
    ):
        _leave(sup, "a", 1)
        _until(sup, lambda: sup["a"].state == "ready" and sup["a"].generation == 2)
        assert sup.outcome is None
        _leave(sup, "a", 0)
        _until(sup, lambda: sup.outcome is not None)


def test_significant_bystander() -> None:
    """A significant device that is stopped on a sibling's account ends nothing."""
    config = board(
        _leaving("a"),
        _leaving("b", "restart: temporary, significant: true"),
        supervisor="auto_shutdown: any_significant, strategy: one_for_all",
    )
    with census(), Supervisor(config) as sup:
        sup.kill("a")
        _until(sup, lambda: sup["b"].state == "finished" and sup["a"].state == "ready")
        assert sup.outcome is None
