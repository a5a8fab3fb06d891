"""Devices that come and go while a supervisor runs: OTP's cases under OTP's names, on real processes.

Not here: cases of supervisors of one template (``_simple``), for there are none. Where OTP's restart_child
returns the error of a start that fails, ``start_device`` returns at once and the policy goes on trying.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from supervisor.chaos import ChaosRule, Monkey
from supervisor.config import DeviceConfig, Mmio
from supervisor.errors import ConfigError, DeviceGone, EnvironmentFault, LocalError, StartFailed
from supervisor.handle import DeviceHandle
from supervisor.host import Supervisor
from supervisor.policy import Counts, Restart
from supervisor.policy.records import DeviceRemoved, OutcomeKind, Record
from tests.chaos import COUNTING, board, census, mapped_journals, open_descriptors, until_witnessed

FAR = {"first": "30s"}  # a restart that does not come while the test looks


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def _device(diary: Path, name: str, *, fail_starts_after: int = -1, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "device": "tests.devices.stopping:Stopping",
        "options": {"diary": str(diary), "fail_starts_after": fail_starts_after},
        "backoff": {"max": "0s"},
        **more,
    }


def _story(diary: Path) -> str:
    return " ".join(diary.read_text().split())


def _until(sup: Supervisor, name: str, state: str) -> None:
    while sup[name].state != state:
        sup.dispatch(1)


def _until_removed(sup: Supervisor, handle: DeviceHandle) -> None:
    while handle.state != "removed":
        sup.dispatch(1)


def _counts(specs: int, active: int) -> Counts:
    return Counts(specs=specs, active=active, supervisors=0, workers=specs)


def test_child_adm(diary: Path) -> None:
    """Start, terminate, restart and delete of an added device, every error, right counts at every step."""
    with census(), Supervisor(board(COUNTING)) as sup:
        with pytest.raises(LocalError, match="not_found"):
            sup.remove_device("x")
        with pytest.raises(LocalError, match="not_found"):
            sup.device_spec("x")
        handle = sup.add_device(_device(diary, "x"))
        assert handle is sup["x"]
        pid = handle.read(0, 4)
        assert pid == handle.pid
        assert sup.count_devices() == _counts(2, 2)
        with pytest.raises(LocalError, match="already_started"):
            sup.add_device(_device(diary, "x"))
        with pytest.raises(LocalError, match="running"):
            sup.remove_device("x")
        sup.stop_device("x")
        _until(sup, "x", "down")
        sup.stop_device("x")  # idempotent
        assert sup.count_devices() == _counts(2, 1)
        with pytest.raises(LocalError, match="already_present"):
            sup.add_device(_device(diary, "x"))
        sup.start_device("x")
        _until(sup, "x", "ready")
        assert handle.read(0, 4) != pid
        sup.stop_device("x")
        _until(sup, "x", "down")
        sup.remove_device("x")
        assert sup.count_devices() == _counts(1, 1)
        assert list(sup.devices) == ["counter"]
        with pytest.raises(KeyError):
            sup["x"]
        with pytest.raises(DeviceGone, match="x: the device is stopped"):
            handle.read(0, 4)
        assert sup.add_device(_device(diary, "x")).generation == 1
    assert _story(diary) == "x+ x- x+ x- x+ x-"


def test_child_adm_text_mapping_and_value_are_the_same(diary: Path) -> None:
    """YAML text, a mapping and a DeviceConfig; the specification is read back in full."""
    with census(), Supervisor(board()) as sup:
        text = f"name: a\ndevice: tests.devices.stopping:Stopping\noptions: {{diary: '{diary}'}}\n"
        sup.add_device(text + "mmio: {base: 0x1000, size: 0x100}\nrestart: transient\nstop_timeout: 3s\n")
        spec = sup.device_spec("a")
        assert isinstance(spec, DeviceConfig)
        assert (spec.child.restart, spec.child.stop_timeout_ns) == (Restart.TRANSIENT, 3_000_000_000)
        assert spec.mmio == Mmio(0x1000, 0x100, None)
        sup.stop_device("a")
        _until(sup, "a", "down")
        sup.remove_device("a")
        assert sup.add_device(spec).state == "ready"
        assert sup.device_spec("a") == spec


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("name: x\ndevice: no.such\n", r"<device>:2:9: devices.x.device: "),
        ("name: x\ndevice: nrf51.uart\nrestrat: permanent\n", "<device>:3:1: devices.x.restrat: unknown key"),
        ({"name": "x", "device": "nrf51.uart", "stop_timeout": 3}, "devices.x.stop_timeout: "),
        ({"name": "x"}, "devices.x.device: is missing"),
        ("[", "<device>:2:1: not valid YAML"),
        ("", "is missing"),
        ("name: x\ndevice: nrf51.uart\nrestart: transient\nsignificant: true\n", "auto_shutdown"),
        ("name: x\ndevice: nrf51.uart\ndepends_on: [y]\n", "'x' depends on 'y', which is not there"),
        ("name: x\ndevice: nrf51.uart\ndepends_on: [x]\n", "'x' depends on 'x', which is not there"),
        (
            "name: x\ndevice: nrf51.uart\nmmio: {base: 0x10ff, size: 1}\n",
            "0x10ff..0x10ff overlaps what",
        ),
    ],
)
def test_child_specs(device: Any, told: str) -> None:
    """A device that cannot be is refused with what is wrong and where; nothing has changed."""
    with census(), Supervisor(board(COUNTING + ", mmio: {base: 0x1000, size: 0x100}")) as sup:
        before = open_descriptors()
        with pytest.raises(LocalError) as refused:
            sup.add_device(device)
        assert told in str(refused.value)
        assert isinstance(refused.value, ConfigError) or "depends" in told or "overlaps" in told
        assert sup.count_devices() == _counts(1, 1)
        assert open_descriptors() == before


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_sup_start_child_returns_error(diary: Path, restart: str) -> None:
    """An added device whose start fails raises its reason and leaves nothing; nobody is charged for it."""
    with (
        census(),
        Supervisor(board(COUNTING, supervisor="intensity: 0, strategy: one_for_all, spares: 0")) as sup,
    ):
        until_witnessed(sup)
        counter = sup["counter"].pid
        before = open_descriptors(), mapped_journals()
        with pytest.raises(StartFailed, match="x: the start failed") as failure:
            sup.add_device(_device(diary, "x", fail_starts_after=0, restart=restart))
        assert "RuntimeError: not this time" in str(failure.value)
        sup.dispatch(0)
        assert (open_descriptors(), mapped_journals()) == before
        assert [status.name for status in sup.which_devices()] == ["counter"]
        assert sup["counter"].pid == counter
        sup.add_device(_device(diary, "x"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"device": "tests.devices.naughty:Nothing"}, "has no Nothing"),
        ({"device": "tests.devices.naughty:HangsInStart", "start_timeout": "200ms"}, "no Ready within"),
        ({"options": {"colour": "red"}}, "has no option colour"),
    ],
)
def test_sup_start_child_returns_error_refused_or_late(diary: Path, more: dict[str, Any], told: str) -> None:
    """The same for a class that is not there, options that it refuses, a start that hangs."""
    device = _device(diary, "x") | more
    if "device" in more:
        del device["options"]
    with census(), Supervisor(board(COUNTING)) as sup:
        with pytest.raises(StartFailed) as failure:
            sup.add_device(device)
        assert told in str(failure.value)
        assert list(sup.devices) == ["counter"]
        assert sup["counter"].read(0x04, 4) == 1


def test_sup_start_restart_child_returns_error(diary: Path) -> None:
    """A device that was ready once and does not start again keeps its specification, and has no pid."""
    config = board(supervisor="intensity: 0, on_give_up: isolate")
    with census(), Supervisor(config) as sup:
        handle = sup.add_device(_device(diary, "x", fail_starts_after=1))
        sup.stop_device("x")
        _until(sup, "x", "down")
        sup.start_device("x")
        _until(sup, "x", "failed")
        assert handle.pid is None
        assert sup.device_spec("x").name == "x"
        assert sup.count_devices() == _counts(1, 0)
        sup.remove_device("x")
        assert sup.count_devices() == _counts(0, 0)


def test_count_children(diary: Path) -> None:
    """Twenty, then forty added temporary devices: counts and lists agree; all killed, there are none."""
    with census(), Supervisor(board(supervisor="intensity: 0, spares: 2")) as sup:
        handles: list[DeviceHandle] = []
        for total in (20, 40):
            while len(handles) < total:
                handles.append(sup.add_device(_device(diary, f"t{len(handles)}", restart="temporary")))
            assert sup.count_devices() == _counts(total, total)
            assert len(sup.which_devices()) == total
        for handle in handles:
            assert sup.kill(handle.name) is not None
        for handle in handles:
            _until_removed(sup, handle)
        assert sup.count_devices() == _counts(0, 0)
        assert sup.which_devices() == ()
        assert dict(sup.devices) == {}
        assert mapped_journals() == 0


def test_count_restarting_children(diary: Path) -> None:
    """Who waits to be restarted is not active but is a worker, and can be stopped and removed."""
    with census(), Supervisor(board()) as sup:
        for name in ("a", "b", "c"):
            sup.add_device(_device(diary, name, backoff=FAR))
        assert sup.count_devices() == _counts(3, 3)
        for alive, name in ((2, "a"), (1, "b"), (0, "c")):
            sup.kill(name)
            _until(sup, name, "waiting")
            assert sup.count_devices() == _counts(3, alive)
        for left, name in ((2, "c"), (1, "b"), (0, "a")):
            with pytest.raises(LocalError, match="restarting"):
                sup.remove_device(name)
            sup.stop_device(name)
            sup.remove_device(name)
            assert sup.count_devices() == _counts(left, 0)


def test_which_children(diary: Path) -> None:
    """The newest first, with state and pid; none for who is stopped."""
    with census(), Supervisor(board(COUNTING)) as sup:
        sup.add_device(_device(diary, "a"))
        sup.add_device(_device(diary, "b"))
        sup.stop_device("a")
        _until(sup, "a", "down")
        told = [(status.name, status.state, status.pid) for status in sup.which_devices()]
        assert told == [
            ("b", "ready", sup["b"].pid),
            ("a", "down", None),
            ("counter", "ready", sup["counter"].pid),
        ]


@pytest.mark.parametrize("end", ["kill", "normal", "abnormal", "terminated"])
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_do_not_save_child_specs_for_temporary_children(diary: Path, restart: str, end: str) -> None:
    """However an added temporary device ends, its name is free; others are restarted or present."""
    with census(), Supervisor(board()) as sup:
        handle = sup.add_device(_device(diary, "x", restart=restart, poison=1, backoff=FAR))
        records: list[Record] = []
        sup.on_event(records.append)
        match end:
            case "kill":
                sup.kill("x", send_signal=signal.SIGKILL)
            case "terminated":
                sup.stop_device("x")
            case _:
                with pytest.raises(Exception, match="x: "):
                    handle.write(4, 4, 0 if end == "normal" else 1)
        if restart == "temporary":
            _until_removed(sup, handle)
            sup.dispatch(0)
            assert [record.name for record in records if isinstance(record, DeviceRemoved)] == ["x"]
            sup.add_device(_device(diary, "x"))
        else:
            while sup["x"].state not in ("down", "finished", "waiting"):
                sup.dispatch(1)
            with pytest.raises(LocalError, match="already_present"):
                sup.add_device(_device(diary, "x"))


def test_hanging_restart_loop(diary: Path) -> None:
    """While a device's start keeps failing the doors answer, and it can be stopped, promptly."""
    loop = {"first": "0s", "next": "20ms", "factor": 1}
    with census(), Supervisor(board(COUNTING)) as sup:
        sup.add_device(_device(diary, "x", fail_starts_after=1, backoff=loop))
        sup.kill("x")
        for _ in range(3):
            tried = sup["x"].generation
            while sup["x"].generation == tried:
                sup.dispatch(1)
            _until(sup, "x", "waiting")
            with pytest.raises(LocalError, match="already_present"):
                sup.add_device(_device(diary, "x"))
            with pytest.raises(LocalError, match="restarting"):
                sup.remove_device("x")
            assert sup["counter"].read(0x04, 4) > 0
        sup.stop_device("x")
        _until(sup, "x", "down")
        assert next((one.name, one.pid) for one in sup.which_devices()) == ("x", None)
        sup.start_device("x")
    # leaving the block in the middle of the loop is prompt, too


def test_added_device_with_addresses_is_on_the_bus_until_it_is_removed(diary: Path) -> None:
    """Whoever holds the bus sees devices come and go; freed addresses can be taken again at once."""
    with census(), Supervisor(board(COUNTING + ", mmio: {base: 0x2000, size: 0x100}")) as sup:
        bus = sup.bus
        for name in ("x", "y"):
            handle = sup.add_device(_device(diary, name, mmio={"base": 0x1000, "size": 0x100}))
            assert bus.read(0x1000, 4) == handle.pid
            assert bus.read(0x2004, 4) > 0
            sup.stop_device(name)
            _until(sup, name, "down")
            sup.remove_device(name)
            with pytest.raises(LocalError, match="no device at 0x1000"):
                bus.read(0x1000, 4)


def test_removed_device_gives_journal_and_descriptors_back() -> None:
    """A hundred devices come and go: descriptors and mappings are as before each time."""
    with census(), Supervisor(board(supervisor="spares: 1")) as sup:
        counts = set()
        for _ in range(100):
            device = sup.add_device(f"{{{COUNTING}}}")
            assert device.read(0x04, 4) == 1  # nothing of its predecessor's state
            sup.stop_device("counter")
            _until(sup, "counter", "down")
            sup.remove_device("counter")
            sup.dispatch(0)
            counts.add(mapped_journals())
        assert counts == {0}


def test_outputs_of_a_removed_device_are_delivered(diary: Path) -> None:
    """What a device had emitted before it was removed reaches its sink."""
    device = {"name": "talker", "device": "tests.devices.counting:Counting", "restart": "temporary"}
    with census(), Supervisor(board()) as sup:
        handle = sup.add_device(device)
        taken: list[bytes] = []
        handle.on_output(taken.append)
        handle.write(0x0C, 4, 7)
        handle.flush()
        sup.kill("talker")
        _until_removed(sup, handle)
        sup.dispatch(0)
        assert taken == [bytes([7, 0, 0, 0])]


def test_added_device_stops_first_and_restarts_with_its_group(diary: Path) -> None:
    """Strategy, dependencies and order hold for those added: the last to start, the first to stop."""
    with census():
        config = board(supervisor="strategy: rest_for_one, intensity: 1")
        with Supervisor(config) as sup:
            sup.add_device(_device(diary, "a"))
            sup.add_device(_device(diary, "b", depends_on=["a"]))
            pids = {name: sup[name].pid for name in ("a", "b")}
            sup.kill("a")
            while any(sup[name].state != "ready" or sup[name].pid == pids[name] for name in pids):
                sup.dispatch(1)
            assert sup.outcome is None
            for name in ("a", "b"):
                assert sup[name].read(0, 4) not in (pids[name], os.getpid())
        assert _story(diary) == "a+ b+ b- a+ b+ b- a-"


def test_chaos_on_a_device_that_comes_and_goes(diary: Path) -> None:
    """The monkey leaves alone who is not there, and finds them again when they are."""
    with census(), Supervisor(board(COUNTING)) as sup:
        sup.add_device(_device(diary, "x"))
        monkey = Monkey(sup, [ChaosRule.parse("kill=x,every=2ms")])
        for _ in range(3):
            sup.stop_device("x")
            _until(sup, "x", "down")
            sup.remove_device("x")
            monkey.start()
            while monkey.kills["x"] == 0 and sup["counter"].read(0x04, 4) < 200:
                sup.dispatch(0.001)
            assert monkey.kills["x"] == 0
            monkey.stop()
            sup.add_device(_device(diary, "x"))
        monkey.start()
        while monkey.kills["x"] < 3:
            sup.dispatch(1)
        monkey.stop()


def test_no_descriptors_left_adding_is_refused_and_the_rest_lives_on(diary: Path) -> None:
    """Where the system has no room, the error says so; later there is room again."""
    with census(), Supervisor(board(COUNTING, supervisor="spares: 0")) as sup:
        until_witnessed(sup)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(EnvironmentFault, match="x: there is no room") as refused:
                sup.add_device(_device(diary, "x"))
            assert isinstance(refused.value.__cause__, OSError)
            assert sup["counter"].read(0x04, 4) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert list(sup.devices) == ["counter"]
        sup.add_device(_device(diary, "x"))


def test_significant_added_device_ends_the_supervisor(diary: Path) -> None:
    """auto_shutdown looks at those added, too."""
    config = board(COUNTING, supervisor="auto_shutdown: any_significant")
    with census(), Supervisor(config) as sup:
        sup.add_device(_device(diary, "x", restart="temporary", significant=True))
        sup.kill("x")
        assert sup.run().kind is OutcomeKind.AUTO_SHUTDOWN
        with pytest.raises(LocalError, match="while the supervisor runs; it is ended"):
            sup.add_device(_device(diary, "y"))


def test_in_process_devices_do_not_come_and_go(diary: Path) -> None:
    """Where devices run in this process, or before the start, the door says so."""
    with Supervisor(board(COUNTING, supervisor="in_process: true")) as sup, pytest.raises(LocalError):
        sup.add_device(_device(diary, "x"))
    sup = Supervisor(board(COUNTING))
    with pytest.raises(LocalError, match="in a started supervisor"):
        sup.which_devices()
    sup.close()


@pytest.mark.parametrize("look", ["state", "which"])
def test_given_death_that_is_not_decided_upon_yet_who_asks_meets_its_outcome(diary: Path, look: str) -> None:
    """A temporary device is removed by its death, which may just have been heard of in another's request."""
    with census(), Supervisor(board(COUNTING)) as sup:
        handle = sup.add_device(_device(diary, "passing", restart="temporary"))
        _until(sup, "passing", "ready")
        assert sup.kill("passing")
        while not sup._reactor._events:
            sup._reactor.poll(10**9, lambda: bool(sup._reactor._events))
        if look == "which":
            assert [device.name for device in sup.which_devices()] == ["counter"]
        assert (handle.state, handle.pid) == ("removed", None)
