"""OTP's strategies, restart types and stop rules on real processes (the rest of its suite: tests/policy)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from supervisor.errors import DeviceFault, DeviceGone, StartFailed
from supervisor.host import Supervisor
from supervisor.policy.records import DeviceKilled, DeviceReady, DeviceStopped, OutcomeKind, Record
from tests.chaos import board, census


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def _config(diary: Path, *devices: str, supervisor: str) -> Supervisor:
    lines = []
    for device in devices:
        name, _, extra = device.partition(" ")
        options = f'options: {{diary: "{diary}"'
        if extra.startswith("{"):
            inner, _, extra = extra[1:].partition("}")
            options += f", {inner}"
        lines.append(
            f'name: {name}, device: "tests.devices.stopping:Stopping", {options}}}, backoff: {{max: 0s}}'
            + (f", {extra.strip()}" if extra.strip() else "")
        )
    return Supervisor(board(*lines, supervisor=supervisor))


def _story(diary: Path) -> str:
    return " ".join(diary.read_text().split())


def _pids(sup: Supervisor) -> dict[str, int]:
    return {name: sup[name].read(0, 4) for name in sup.devices}


def _wait_ready(sup: Supervisor, names: set[str]) -> list[Record]:
    """Dispatches until each of ``names`` has said Ready once more."""
    seen: list[Record] = []
    while names - {record.name for record in seen if isinstance(record, DeviceReady)}:
        sup.dispatch(1)
        seen += sup.events()
    return seen


def test_one_for_one(diary: Path) -> None:
    """Only the dead child is replaced; the siblings keep their processes."""
    with census(), _config(diary, "a", "b", "c", supervisor="intensity: 5") as sup:
        before = _pids(sup)
        list(sup.events())
        sup.kill("b")
        _wait_ready(sup, {"b"})
        after = _pids(sup)
        assert [name for name in before if before[name] != after[name]] == ["b"]


def test_one_for_all(diary: Path) -> None:
    """All siblings are stopped in reverse order and all are replaced; one incident is charged once."""
    with census(), _config(diary, "a", "b", "c", supervisor="strategy: one_for_all, intensity: 1") as sup:
        before = _pids(sup)
        list(sup.events())
        diary.write_text("")
        sup.kill("b")
        _wait_ready(sup, {"a", "b", "c"})
        after = _pids(sup)
        assert all(before[name] != after[name] for name in before)
        assert sup.outcome is None
        story = _story(diary)
        assert sorted(story.split()) == ["a+", "a-", "b+", "c+", "c-"]
        assert story.index("a-") < story.index("a+")


def test_rest_for_one(diary: Path) -> None:
    """The dead child and those started after it are replaced; earlier ones keep their processes."""
    with census(), _config(diary, "a", "b", "c", supervisor="strategy: rest_for_one, intensity: 1") as sup:
        before = _pids(sup)
        list(sup.events())
        sup.kill("b")
        _wait_ready(sup, {"b", "c"})
        after = _pids(sup)
        assert [name for name in before if before[name] != after[name]] == ["b", "c"]


def test_order_of_children(diary: Path) -> None:
    """With dependencies the start waits for Ready in order, and the stop is its exact reverse."""
    devices = ("a", "b depends_on: [a]", "c depends_on: [b]")
    with census():
        with _config(diary, *devices, supervisor="intensity: 1"):
            pass
        assert _story(diary) == "a+ b+ c+ c- b- a-"


def test_sup_stop_timeout(diary: Path) -> None:
    """A child that ignores the stop is killed after its timeout; obedient siblings end gracefully."""
    with census():
        with _config(
            diary, "a", "slow {linger_ms: 60000} stop_timeout: 100ms", supervisor="intensity: 1"
        ) as sup:
            records: list[Record] = []
            sup.on_event(records.append)
            began = time.monotonic()
        assert time.monotonic() - began < 10
        assert [record.name for record in records if isinstance(record, DeviceKilled)] == ["slow"]
        assert _story(diary).endswith("a-")


def test_sup_stop_brutal_kill(diary: Path) -> None:
    """A brutal_kill child is killed at once, its sibling ends gracefully."""
    with census():
        with _config(diary, "a", "b stop_timeout: brutal_kill", supervisor="intensity: 1"):
            pass
        assert sorted(_story(diary).split()) == ["a+", "a-", "b+"]


def test_sup_stop_infinity(diary: Path) -> None:
    """With infinity a slow child gets all the time that it needs."""
    with census():
        with _config(diary, "slow {linger_ms: 300} stop_timeout: infinity", supervisor="intensity: 1"):
            pass
        assert _story(diary) == "slow+ slow-"


@pytest.mark.parametrize(
    ("restart", "code", "comes_back"),
    [
        ("permanent", 0, True),
        ("permanent", 1, True),
        ("transient", 0, False),
        ("transient", 1, True),
        ("temporary", 0, False),
        ("temporary", 1, False),
    ],
)
def test_normal_and_abnormal_termination(diary: Path, restart: str, code: int, comes_back: bool) -> None:
    """permanent/transient/temporary_normal/abnormal: who comes back after which exit code."""
    device = f"a restart: {restart}, poison: 1, request_timeout: 2s"
    with census(), _config(diary, device, supervisor="intensity: 5") as sup:
        pid = sup["a"].read(0, 4)
        with pytest.raises(DeviceFault):
            sup["a"].write(4, 4, code)
        if comes_back:
            assert sup["a"].read(0, 4) != pid
        else:
            with pytest.raises(DeviceGone):
                sup["a"].read(0x100, 4)


def test_sup_start_fail_stops_what_was_started(diary: Path) -> None:
    """A child that fails in the very first start ends the start; its elders are stopped again."""
    devices = ("a", "b {fail_starts_after: 0} depends_on: [a]")
    with census():
        with (
            pytest.raises(StartFailed, match="not this time"),
            _config(diary, *devices, supervisor="intensity: 5"),
        ):
            pass
        assert _story(diary) == "a+ b+ a-"


def test_one_for_one_escalation(diary: Path) -> None:
    """A child whose restart attempts fail uses up the intensity; the supervisor takes the siblings along."""
    devices = ("a", "b {fail_starts_after: 1}")
    with census(), _config(diary, *devices, supervisor="intensity: 2, period: 60s") as sup:
        sup.kill("b")
        outcome = sup.run()
        assert outcome.kind is OutcomeKind.GAVE_UP
        assert outcome.culprit == "b"
        assert _story(diary).split().count("b+") == 3
        assert _story(diary).endswith("a-")


def test_multiple_restarts_inside_the_window_never_give_up(diary: Path) -> None:
    """Deaths that stay within intensity and period go on for ever: the window slides."""
    with census(), _config(diary, "a", supervisor="intensity: 1, period: 50ms") as sup:
        for _ in range(5):
            list(sup.events())
            assert sup.kill("a")
            _wait_ready(sup, {"a"})
            slides_at = time.monotonic() + 0.06
            while time.monotonic() < slides_at:
                sup.dispatch(max(0.0, slides_at - time.monotonic()))
        assert sup.outcome is None


def test_stop_while_children_die_ends_promptly(diary: Path) -> None:
    """sup_stop_race: whoever dies during the stop is not restarted, and the stop ends."""
    with census(), _config(diary, "a", "b", "c", supervisor="intensity: 100") as sup:
        for name in ("a", "b", "c"):
            sup.kill(name)
    assert _story(diary).split().count("a+") <= 2


def test_manual_stop_and_start_of_one_child(diary: Path) -> None:
    """child_adm: terminate is a state, not a death; start brings it back; both are told."""
    with census(), _config(diary, "a", "b", supervisor="intensity: 0") as sup:
        list(sup.events())
        sup.stop_device("a")
        records: list[Record] = []
        while not any(isinstance(record, DeviceStopped) for record in records):
            sup.dispatch(1)
            records += sup.events()
        assert "a-" in _story(diary)
        sup.start_device("a")
        _wait_ready(sup, {"a"})
        assert sup["a"].read(0, 4) not in (0, os.getpid())
        assert sup.outcome is None
