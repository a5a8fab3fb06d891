"""Groups on real processes: supervisors as children of supervisors, devices of one template, exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.config import Config, parse_config
from supervisor.errors import DeviceGone, LocalError, StartFailed
from supervisor.events import (
    DeviceDied,
    DeviceFailed,
    DeviceRestarted,
    DeviceStopped,
    ExitKind,
    GroupEnded,
    GroupFailed,
    GroupKilled,
    GroupReady,
    GroupRemoved,
    GroupRestarted,
    GroupRestarting,
    OutcomeKind,
    Record,
)
from supervisor.host import Supervisor
from supervisor.policy import Counts
from tests.chaos import census

COUNT, NEXT, ADD = 0x00, 0x04, 0x08

TREE = """
supervisor: {intensity: 2, period: 10s}
devices:
  - {name: rng, device: "tests.devices.counting:Counting", backoff: {max: 0s}}
groups:
  - name: usb
    supervisor: {strategy: one_for_one, intensity: 1, period: 10s}
    backoff: {max: 0s}
    depends_on: [rng]
    devices:
      - {name: hub, device: "tests.devices.counting:Counting", backoff: {max: 0s}}
    groups:
      - name: ports
        supervisor: {strategy: one_for_all, intensity: 1, period: 10s}
        backoff: {max: 0s}
        devices:
          - {name: port0, device: "tests.devices.counting:Counting", backoff: {max: 0s}}
          - {name: port1, device: "tests.devices.counting:Counting", backoff: {max: 0s}}
"""
SESSIONS = """
groups:
  - name: sessions
    supervisor: {strategy: simple_one_for_one, intensity: 3}
    template: {device: "tests.devices.counting:Counting", backoff: {max: 0s}}
"""


def _pids(sup: Supervisor) -> dict[str, int | None]:
    return {name: sup[name].pid for name in sup.devices}


def _until(sup: Supervisor, kind: type[Record], name: str, times: int = 1) -> list[Record]:
    """Dispatches until such a record has come so often; returns what has been read."""
    seen: list[Record] = []
    while sum(isinstance(one, kind) and getattr(one, "name", "") == name for one in seen) < times:
        sup.dispatch(1)
        seen += sup.events()
    return seen


@pytest.fixture
def tree() -> Iterator[Supervisor]:
    with census(), Supervisor(parse_config(TREE)) as sup:
        list(sup.events())
        yield sup


def test_tree(tree: Supervisor) -> None:
    """A worker's death restarts it alone, or its group by the group's own strategy; nobody else notices."""
    before = _pids(tree)
    tree.kill("hub")
    _until(tree, DeviceRestarted, "hub")
    assert [name for name, pid in _pids(tree).items() if pid != before[name]] == ["hub"]
    before = _pids(tree)
    tree.kill("port1")
    _until(tree, DeviceRestarted, "port1")
    assert [name for name, pid in _pids(tree).items() if pid != before[name]] == ["port0", "port1"]
    assert tree.outcome is None


def test_tree_escalation(tree: Supervisor) -> None:
    """An inner supervisor that gives up is restarted by the one above, with its devices' states."""
    for name in ("rng", "hub", "port0", "port1"):
        tree[name].write(ADD, 4, 5)
    before = _pids(tree)
    tree.kill("port0")
    _until(tree, DeviceRestarted, "port1")
    while tree.kill("port0") is None:  # it may be ready later than port1
        tree.dispatch(1)
    tree["port0"].write(ADD, 4, 1)  # in flight while the device dies, its group gives up and comes back
    assert tree["port0"].read(COUNT, 4) == 6
    records = _until(tree, GroupRestarted, "ports")
    ended = next(one for one in records if isinstance(one, GroupEnded))
    assert (ended.name, ended.exit.kind, ended.charged) == ("ports", ExitKind.SHUTDOWN, True)
    restarted = next(one for one in records if isinstance(one, GroupRestarted))
    assert restarted.restarts == 1
    assert restarted.outage_ns > 0
    assert [
        one.generation for one in records if isinstance(one, DeviceRestarted) and one.name == "port1"
    ] != []
    outages = [one.outage_ns for one in records if isinstance(one, DeviceRestarted) and one.name == "port1"]
    assert outages
    assert all(outages)
    changed = [name for name, pid in _pids(tree).items() if pid != before[name]]
    assert changed == ["port0", "port1"]
    assert [tree[name].read(COUNT, 4) for name in ("rng", "hub", "port0", "port1")] == [5, 5, 6, 5]


def test_tree_added_devices_are_not_resurrected(tree: Supervisor) -> None:
    """What was added to a group is forgotten when the group starts afresh from its specification."""
    added = tree.add_device({"name": "stick", "device": "tests.devices.counting:Counting"}, group="ports")
    assert added.read(NEXT, 4) == 1
    assert [one.name for one in tree.which_devices(group="ports")] == ["stick", "port1", "port0"]
    tree.kill("port0")
    _until(tree, DeviceRestarted, "port0")
    tree.kill("port0")
    _until(tree, GroupRestarted, "ports")
    assert [one.name for one in tree.which_devices(group="ports")] == ["port1", "port0"]
    with pytest.raises(DeviceGone, match="removed"):
        added.read(NEXT, 4)


def test_tree_escalation_to_the_top(tree: Supervisor) -> None:
    """Each supervisor spends its own budget on those below, until the outermost gives up."""
    while tree.outcome is None:
        tree.kill("port0")
        tree.dispatch(0.01)
    assert tree.outcome.kind is OutcomeKind.GAVE_UP
    assert tree.outcome.culprit == "usb"
    with pytest.raises(DeviceGone):
        tree["rng"].read(NEXT, 4)


def test_count_children_supervisor(tree: Supervisor) -> None:
    """Groups are counted as supervisors, devices as workers, on each level for itself."""
    assert tree.count_devices() == Counts(specs=2, active=2, supervisors=1, workers=1)
    assert tree.count_devices(group="usb") == Counts(specs=2, active=2, supervisors=1, workers=1)
    assert tree.count_devices(group="ports") == Counts(specs=2, active=2, supervisors=0, workers=2)
    assert [(one.name, one.is_group) for one in tree.which_devices()] == [("usb", True), ("rng", False)]
    with pytest.raises(LocalError, match=r"not_found: .*'nobody'; there are usb, ports"):
        tree.count_devices(group="nobody")


def test_group_stopped_and_started(tree: Supervisor) -> None:
    """A group is stopped, started and restarted by its name; its devices are gone meanwhile."""
    tree["port0"].write(ADD, 4, 3)
    before = _pids(tree)
    tree.stop_device("usb")
    while any(one.name == "usb" and one.state != "down" for one in tree.which_devices()):
        tree.dispatch(1)
    with pytest.raises(DeviceGone, match="stopped"):
        tree["port0"].read(NEXT, 4)
    assert tree["rng"].read(NEXT, 4) == 1
    tree.start_device("usb")
    _until(tree, GroupReady, "usb")
    assert tree["port0"].read(COUNT, 4) == 3
    tree.restart_device("ports")
    _until(tree, GroupReady, "ports")
    assert tree["port0"].read(NEXT, 4) == 4
    assert tree["rng"].pid == before["rng"]
    with pytest.raises(LocalError, match="running"):
        tree.remove_device("usb")


def test_group_removed() -> None:
    """A group that is down is removed with everything in it; its names are free again."""
    with census(), Supervisor(parse_config(TREE)) as sup:
        sup.stop_device("usb")
        while sup.which_devices()[0].state != "down":
            sup.dispatch(1)
        list(sup.events())
        sup.remove_device("usb")
        sup.dispatch(0)
        assert [one.name for one in sup.events() if isinstance(one, GroupRemoved)] == ["usb"]
        assert list(sup.devices) == ["rng"]
        sup.add_device({"name": "port0", "device": "tests.devices.counting:Counting"})
        assert sup["port0"].read(NEXT, 4) == 1


def test_group_stop_timeout_kills_what_is_left(tmp_path: Path) -> None:
    """The stop_timeout of a group is one deadline for everything in it."""
    text = f"""
groups:
  - name: slow
    stop_timeout: 100ms
    devices:
      - {{name: a, device: "tests.devices.stopping:Stopping", stop_timeout: infinity,
          options: {{diary: "{tmp_path / "diary"}", linger_ms: 60000}}}}
      - {{name: b, device: "tests.devices.stopping:Stopping", stop_timeout: infinity,
          options: {{diary: "{tmp_path / "diary"}", linger_ms: 60000}}}}
"""
    with census():
        records: list[Record] = []
        with Supervisor(parse_config(text)) as sup:
            sup.on_event(records.append)
        assert [one.name for one in records if isinstance(one, GroupKilled)] == ["slow"]
        assert sorted((tmp_path / "diary").read_text().split()) == ["a+", "b+"]


def test_group_that_cannot_start_fails_the_start_with_its_reason() -> None:
    """A start failure deep in the tree surfaces with its cause (OTP: faulty_application_shutdown)."""
    text = """
groups:
  - name: outer
    groups:
      - {name: inner, devices: [{name: bad, device: "tests.devices.naughty:RaisesInStart"}]}
"""
    with census(), pytest.raises(StartFailed, match="bad") as raised, Supervisor(parse_config(text)):
        pass
    assert "Traceback" in str(raised.value)


def test_group_isolated_fails_alone() -> None:
    """on_give_up: isolate above a group: it fails with everything in it, and says so; the rest serves."""
    config = parse_config(
        TREE,
        overrides=["supervisor={on_give_up: isolate, intensity: 0}", "groups.usb.supervisor.intensity=0"],
    )
    with census(), Supervisor(config) as sup:
        sup.kill("hub")
        _until(sup, GroupFailed, "usb")
        with pytest.raises(DeviceGone, match="'usb'"):
            sup["port0"].read(NEXT, 4)
        assert sup["rng"].read(NEXT, 4) == 1


def test_significant_escalation() -> None:
    """Auto-shutdown of an inner supervisor goes up if the group is significant, and stops there if not."""
    text = """
supervisor: {auto_shutdown: any_significant}
groups:
  - name: inner
    significant: SIGNIFICANT
    restart: transient
    supervisor: {auto_shutdown: any_significant}
    devices:
      - {name: leader, device: "tests.devices.leaving:Leaving", restart: transient, significant: true}
      - {name: other, device: "tests.devices.counting:Counting"}
devices: [{name: outside, device: "tests.devices.counting:Counting"}]
"""
    with census(), Supervisor(parse_config(text.replace("SIGNIFICANT", "true"))) as sup:
        with pytest.raises(DeviceGone):
            sup["leader"].write(4, 4, 0)
        while sup.outcome is None:
            sup.dispatch(1)
        assert (sup.outcome.kind, sup.outcome.culprit) == (OutcomeKind.AUTO_SHUTDOWN, "inner")
    with census(), Supervisor(parse_config(text.replace("SIGNIFICANT", "false"))) as sup:
        with pytest.raises(DeviceGone):
            sup["leader"].write(4, 4, 0)
        while sup.which_devices()[0].state != "finished":
            sup.dispatch(1)
        assert sup["outside"].read(NEXT, 4) == 1
        with pytest.raises(DeviceGone):
            sup["other"].read(NEXT, 4)


# One template.


def test_child_adm_simple() -> None:
    """Devices of a template: numbered or named, stopped and with that forgotten; strangers survive."""
    with census(), Supervisor(parse_config(SESSIONS)) as sup:
        first = sup.add_device({}, group="sessions")
        second = sup.add_device({"name": "mine", "request_timeout": "1s"}, group="sessions")
        assert (first.name, second.name) == ("sessions-1", "mine")
        assert sup.device_spec("mine").request_timeout_ns == 1_000_000_000
        assert sup.count_devices(group="sessions") == Counts(specs=2, active=2, supervisors=0, workers=2)
        with pytest.raises(LocalError, match="already_started"):
            sup.add_device({"name": "mine"}, group="sessions")
        with pytest.raises(LocalError, match="running"):
            sup.remove_device("mine")
        sup.stop_device("mine")
        while "mine" in sup.devices:
            sup.dispatch(1)
        with pytest.raises(LocalError, match="not_found"):
            sup.remove_device("mine")
        with pytest.raises(KeyError):
            sup.stop_device("mine")
        assert first.read(NEXT, 4) == 1
        assert sup.add_device({}, group="sessions").name == "sessions-2"


def test_simple_one_for_one() -> None:
    """Only the dead one is replaced, with its state; over the budget all of them end with their group."""
    with census(), Supervisor(parse_config(SESSIONS)) as sup:
        handles = [sup.add_device({}, group="sessions") for _ in range(3)]
        handles[0].write(ADD, 4, 7)
        pids = [handle.pid for handle in handles]
        sup.kill("sessions-1")
        assert handles[0].read(NEXT, 4) == 8
        assert [handle.pid == pid for handle, pid in zip(handles, pids, strict=True)] == [False, True, True]
        while any(handle.state != "removed" for handle in handles):
            sup.kill("sessions-2")
            sup.dispatch(0.01)
        assert sup.outcome is None
        _until(sup, GroupRestarted, "sessions")
        assert sup.count_devices(group="sessions").specs == 0


def test_sup_stop_brutal_kill_dynamic() -> None:
    """Ten devices of a template that are killed at once all end, and nothing is left."""
    with (
        census(),
        Supervisor(
            parse_config(SESSIONS, overrides=["groups.sessions.template.stop_timeout=brutal_kill"])
        ) as sup,
    ):
        for _ in range(10):
            sup.add_device({}, group="sessions")
        died = list(sup.events())
        sup.stop_device("sessions")
        while sup.which_devices()[0].state != "down":
            sup.dispatch(1)
        died = [one for one in sup.events() if isinstance(one, DeviceStopped)]
        assert len(died) == 10


# Exit codes.


def _leaving(extra: str) -> Config:
    return parse_config(
        "supervisor: {on_give_up: isolate}\n"
        f'devices: [{{name: x, device: "tests.devices.leaving:Leaving", backoff: {{max: 0s}}, {extra}}}]'
    )


@pytest.mark.parametrize(
    ("extra", "code", "outcome"),
    [
        ("restart: transient", 0, "finished"),
        ("restart: transient, exit_codes: {force_restart: [0]}", 0, "ready"),
        ("restart: temporary, exit_codes: {force_restart: [3]}", 3, "ready"),
        ("restart: permanent, exit_codes: {prevent_restart: [3]}", 3, "failed"),
        ("restart: permanent, exit_codes: {clean: [0, 3], prevent_restart: [3]}", 3, "finished"),
        ("restart: transient, exit_codes: {clean: [3]}", 3, "finished"),
        ("restart: transient, exit_codes: {clean: [3]}", 0, "ready"),
    ],
)
def test_given_exit_codes_the_way_it_ends_decides(extra: str, code: int, outcome: str) -> None:
    """Codes that are clean, that force and that prevent a restart, whatever the restart type says."""
    with census(), Supervisor(_leaving(f"poison: 1, {extra}")) as sup:
        pid = sup["x"].pid
        request = sup["x"]
        try:
            request.write(4, 4, code)
        except Exception as error:
            print(error)
        while sup["x"].state != outcome or sup["x"].pid == pid:
            sup.dispatch(1)
        if outcome == "failed":
            failed = [one for one in sup.events() if isinstance(one, DeviceFailed)]
            assert failed[0].why == "exited with code 3, which prevents a restart"


def test_given_signal_that_prevents_a_restart_device_fails() -> None:
    """Signals are named: SIGTERM from somebody who wants it down for good."""
    with census(), Supervisor(_leaving("exit_codes: {prevent_restart: [SIGTERM]}")) as sup:
        sup.kill("x", send_signal=15)
        records = _until(sup, DeviceFailed, "x")
        assert any(isinstance(one, DeviceDied) and one.exit.status == -15 for one in records)


# Ignore.


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_sup_start_ignore_child(tmp_path: Path, restart: str) -> None:
    """A device that finds nothing to do ends without a fault, its specification stays, its siblings run."""
    flag = tmp_path / "absent"
    flag.touch()
    text = f"""
devices:
  - {{name: x, device: "tests.devices.leaving:Leaving", restart: {restart}, options: {{unless: "{flag}"}}}}
  - {{name: y, device: "tests.devices.counting:Counting"}}
"""
    with census(), Supervisor(parse_config(text)) as sup:
        assert sup.count_devices() == Counts(specs=2, active=1, supervisors=0, workers=2)
        assert (sup["x"].state, sup["x"].pid) == ("finished", None)
        with pytest.raises(DeviceGone):
            sup["x"].read(0, 4)
        assert sup["y"].read(NEXT, 4) == 1
        flag.unlink()
        sup.start_device("x")
        while sup["x"].state != "ready":
            sup.dispatch(1)


# What was removed, and what is told to whoever orders.


def _down(sup: Supervisor, name: str) -> None:
    sup.stop_device(name)
    while sup[name].state != "down":
        sup.dispatch(1)


def test_given_removed_device_no_restart_of_its_group_brings_it_back() -> None:
    """Not even by the groups around it; and its name may be somebody else's by then."""
    with census(), Supervisor(parse_config(TREE)) as sup:
        _down(sup, "port0")
        sup.remove_device("port0")
        outside = sup.add_device({"name": "port0", "device": "tests.devices.counting:Counting"})
        assert outside.read(NEXT, 4) == 1
        for group in ("ports", "usb"):
            list(sup.events())
            sup.restart_device(group)
            _until(sup, GroupReady, group)
            assert [one.name for one in sup.which_devices(group="ports")] == ["port1"]
        assert outside.read(NEXT, 4) == 2
        assert outside.generation == 1


def test_given_group_that_is_down_orders_to_its_devices_are_refused() -> None:
    """Nobody would hear them: the error says so, instead of nothing happening."""
    with census(), Supervisor(parse_config(TREE)) as sup:
        sup.stop_device("ports")
        while any(one.name == "ports" and one.state != "down" for one in sup.which_devices(group="usb")):
            sup.dispatch(1)
        for order in (sup.start_device, sup.stop_device, sup.restart_device, sup.remove_device):
            with pytest.raises(LocalError, match="'port0' cannot be given orders: group 'ports' is down"):
                order("port0")
        with pytest.raises(LocalError, match="group 'ports' is down"):
            sup.add_device({"name": "new", "device": "demo.rng"}, group="ports")


def test_given_group_gives_up_while_a_device_is_added_the_addition_has_failed() -> None:
    """A handle is returned for what is there, and an error for what is not."""
    config = parse_config(TREE, overrides=["groups.usb.groups.ports.supervisor.intensity=0"])
    with census(), Supervisor(config) as sup:

        def kill() -> None:
            sup.kill("port1")

        sup.call_later(50_000_000, kill)
        with pytest.raises(StartFailed, match="'ports'"):
            sup.add_device({"name": "slow", "device": "tests.devices.sleepy:Sleepy"}, group="ports")


def test_given_failed_start_whose_records_somebody_has_read_it_is_still_an_error() -> None:
    """Records may be dropped: nothing depends on them."""
    with census(), Supervisor(parse_config(SESSIONS)) as sup:

        def read() -> None:
            list(sup.events())
            sup.call_later(1_000_000, read)

        read()
        with pytest.raises(StartFailed, match="the start failed"):
            sup.add_device({"device": "tests.devices.naughty:RaisesInStart"}, group="sessions")


def test_given_transient_group_that_gives_up_its_devices_say_why() -> None:
    """Not that it was stopped, which nobody has done."""
    config = parse_config(
        TREE, overrides=["groups.usb.restart=transient", "groups.usb.supervisor.intensity=0"]
    )
    with census(), Supervisor(config) as sup:
        sup.kill("hub")
        while any(one.name == "usb" and one.state != "finished" for one in sup.which_devices()):
            sup.dispatch(1)
        with pytest.raises(DeviceGone, match=r"group 'usb' has ended: 'hub' died"):
            sup["port0"].read(NEXT, 4)


def test_given_group_with_a_backoff_it_waits_for_it() -> None:
    """The group's own delay, from its first restart on if it says so."""
    config = parse_config(
        TREE, overrides=["groups.usb.supervisor.intensity=0", "groups.usb.backoff={first: 20ms}"]
    )
    with census(), Supervisor(config) as sup:
        sup.kill("hub")
        records = _until(sup, GroupRestarted, "usb")
        (waits,) = [one.delay_ns for one in records if isinstance(one, GroupRestarting)]
        assert 18_000_000 <= waits <= 20_000_000
