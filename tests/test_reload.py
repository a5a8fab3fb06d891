"""Another configuration for a running board: OTP's code_change and significant_upgrade cases, adapted.

What a code change is there is a reload here. As there, nothing is started, stopped or replaced by it.
"""

from __future__ import annotations

import pytest

from supervisor.config import Config, parse_config
from supervisor.errors import DeviceGone, LocalError, StartFailed
from supervisor.events import DeviceFailed, DeviceRestarted, OutcomeKind
from supervisor.host import Supervisor
from tests.chaos import census, living_descendants

COUNT, NEXT = 0x00, 0x04


def _board(*devices: str, supervisor: str = "", groups: str = "") -> Config:
    listed = "".join(f"\n  - {{{_full(device)}}}" for device in devices) or " []"
    return parse_config(f"supervisor: {{{supervisor}}}\ndevices:{listed}\n{groups}")


def _full(device: str) -> str:
    name, _, extra = device.partition(" ")
    kind = "leaving:Leaving" if "restart" in extra else "counting:Counting"
    return f'name: {name}, device: "tests.devices.{kind}", backoff: {{max: 0s}}' + (extra and f", {extra}")


def test_code_change_flags() -> None:
    """Other flags count at once: the budget that was two is none."""
    with census(), Supervisor(_board("a", supervisor="intensity: 2")) as sup:
        sup.reload(_board("a", supervisor="intensity: 0"))
        sup.kill("a")
        while sup.outcome is None:
            sup.dispatch(1)
        assert sup.outcome.kind is OutcomeKind.GAVE_UP


def test_code_change_strategy() -> None:
    """Another strategy decides about the next death."""
    with census(), Supervisor(_board("a", "b")) as sup:
        before = sup["b"].pid
        sup.reload(_board("a", "b", supervisor="strategy: one_for_all"))
        assert sup["b"].pid == before
        sup.kill("a")
        while not any(isinstance(one, DeviceRestarted) and one.name == "b" for one in sup.events()):
            sup.dispatch(1)
        assert sup["b"].pid != before


def test_code_change_children() -> None:
    """New devices are down until they are started, changed ones keep their process, missing ones go on."""
    with census(), Supervisor(_board("a", "b", "c")) as sup:
        assert sup["b"].read(NEXT, 4) == 1
        before = {name: sup[name].pid for name in sup.devices}
        reloaded = sup.reload(_board("c", "b request_timeout: 7s", "new"))
        assert (reloaded.added, reloaded.changed, reloaded.left) == (("new",), ("b",), ("a",))
        assert {name: sup[name].pid for name in before} == before
        assert sup.device_spec("b").request_timeout_ns == 7_000_000_000
        assert (sup["new"].state, sup["new"].pid) == ("down", None)
        with pytest.raises(DeviceGone, match="not been started"):
            sup["new"].read(NEXT, 4)
        sup.start_device("new")
        assert sup["new"].read(NEXT, 4) == 1
        assert sup["a"].read(NEXT, 4) == 1
        assert sup["b"].read(NEXT, 4) == 2
        sup.stop_device("a")
        while sup["a"].state != "down":
            sup.dispatch(1)
        sup.remove_device("a")
        assert sup.reload(_board("c", "b request_timeout: 7s", "new")).changed == ()


def test_code_change_changed_device_is_new_from_its_next_process_on() -> None:
    """What only a process can be told, its successor is told: here another environment."""
    plain = 'x", device: "tests.devices.naughty:Inquisitive'
    first, second = (
        parse_config(f'devices: [{{name: "{plain}", env: {{TUBEVISOR_TEST: "{value}"}}}}]') for value in "12"
    )
    with census(), Supervisor(first) as sup:
        assert sup["x"].call_bytes(b"env") == b"1"
        sup.reload(second)
        assert sup["x"].call_bytes(b"env") == b"1"
        sup.restart_device("x")
        while sup["x"].generation != 2:
            sup.dispatch(1)
        assert sup["x"].call_bytes(b"env") == b"2"


def test_code_change_addresses() -> None:
    """A device's window moves at once; where it would overlap what still runs, nothing changes."""
    with census(), Supervisor(_board("a mmio: {base: 0x1000, size: 16}", "b")) as sup:
        with pytest.raises(LocalError, match="within what 'a' has"):
            sup.reload(_board("b mmio: {base: 0x1008, size: 16}"))
        assert sup.bus.read(0x1000 + NEXT, 4) == 1
        sup.reload(_board("a mmio: {base: 0x2000, size: 16}", "b mmio: {base: 0x1000, size: 16}"))
        assert sup.bus.read(0x2000 + NEXT, 4) == 2
        assert sup.bus.read(0x1000 + NEXT, 4) == 1


GROUP = """
groups:
  - name: g
    supervisor: {strategy: STRATEGY}
    LISTED
"""


def _group(listed: str, strategy: str = "one_for_one") -> str:
    return GROUP.replace("STRATEGY", strategy).replace("LISTED", listed)


def test_code_change_simple() -> None:
    """A group of a template keeps exactly one template; another one holds for devices added from then on."""
    template = 'template: {device: "tests.devices.counting:Counting", request_timeout: TIMEOUT}'
    simple = "simple_one_for_one"
    with census(), Supervisor(_board(groups=_group(template.replace("TIMEOUT", "1s"), simple))) as sup:
        first = sup.add_device({}, group="g")
        sup.reload(_board(groups=_group(template.replace("TIMEOUT", "2s"), simple)))
        second = sup.add_device({}, group="g")
        timeouts = [sup.device_spec(one.name).request_timeout_ns for one in (first, second)]
        assert timeouts == [1_000_000_000, 2_000_000_000]
        with pytest.raises(LocalError, match="group 'g': the strategy cannot become one_for_one"):
            sup.reload(_board(groups=_group("devices: []")))
        assert first.read(NEXT, 4) == 1


def test_code_change_groups() -> None:
    """Groups follow the same rules: a new one is down, a missing one goes on, nobody moves between them."""
    one = _group('devices: [{name: x, device: "tests.devices.counting:Counting"}]')
    with census(), Supervisor(_board("a")) as sup:
        assert sup.reload(_board("a", groups=one)).added == ("x", "g")
        assert [(s.name, s.state) for s in sup.which_devices()] == [("g", "down"), ("a", "ready")]
        sup.start_device("g")
        while sup["x"].state != "ready":
            sup.dispatch(1)
        assert sup["x"].read(NEXT, 4) == 1
        with pytest.raises(LocalError, match="'x' is in group 'g' and cannot move to"):
            sup.reload(_board("a", "x"))
        with pytest.raises(LocalError, match="from a device into a group"):
            sup.reload(_board("b", groups=one.replace("name: g", "name: a").replace("name: x", "name: y")))
        assert sup.reload(_board("a")).left == ("x", "g")
        assert sup["x"].read(NEXT, 4) == 2


LEADER = "leader restart: transient, significant: SIGNIFICANT"


def _significant(auto_shutdown: str, *, leader: bool = True) -> Config:
    return _board(
        LEADER.replace("SIGNIFICANT", "true" if leader else "false"),
        "second restart: transient, significant: " + ("false" if auto_shutdown == "never" else "true"),
        supervisor=f"auto_shutdown: {auto_shutdown}",
    )


def _leave(sup: Supervisor, name: str) -> None:
    with pytest.raises(DeviceGone):
        sup[name].write(4, 4, 0)


@pytest.mark.parametrize(
    ("before", "after", "ends_with"),
    [
        ("never", "any_significant", 1),
        ("any_significant", "never", None),
        ("never", "all_significant", 2),
        ("all_significant", "never", None),
        ("any_significant", "all_significant", 2),
        ("all_significant", "any_significant", 1),
    ],
)
def test_significant_upgrade(before: str, after: str, ends_with: int | None) -> None:
    """auto_shutdown that a reload changes counts for the devices that run already."""
    with census(), Supervisor(_significant(before, leader=before != "never")) as sup:
        sup.reload(_significant(after, leader=after != "never"))
        for count, name in enumerate(("leader", "second"), start=1):
            _leave(sup, name)
            while sup[name].state not in ("finished", "down"):
                sup.dispatch(1)
            if ends_with == count:
                while sup.outcome is None:
                    sup.dispatch(1)
                assert sup.outcome.kind is OutcomeKind.AUTO_SHUTDOWN
                return
            assert sup.outcome is None
        assert ends_with is None


def test_significant_upgrade_child() -> None:
    """A mark that cannot be is refused with the old rules kept; one left behind needs its auto_shutdown."""
    with census(), Supervisor(_significant("any_significant")) as sup:
        with pytest.raises(LocalError, match="significant and stays until it is removed"):
            sup.reload(_board("other"))
        sup.reload(_significant("any_significant", leader=False))
        _leave(sup, "leader")
        while sup["leader"].state != "finished":
            sup.dispatch(1)
        assert sup.outcome is None
        assert not any(isinstance(one, DeviceFailed) for one in sup.events())


def test_given_added_device_it_can_be_reloaded_into_its_group() -> None:
    """Where it was added is where it is, for the configuration too."""
    empty, full = (
        _group("devices: []"),
        _group('devices: [{name: x, device: "tests.devices.counting:Counting"}]'),
    )
    with census(), Supervisor(_board(groups=empty)) as sup:
        sup.add_device({"name": "x", "device": "tests.devices.counting:Counting"}, group="g")
        assert sup.device_spec("x").group == "g"
        assert sup.reload(_board(groups=full)).changed == ()
        assert sup["x"].read(NEXT, 4) == 1


def test_given_tighter_heartbeat_the_present_process_lives_by_the_old_one() -> None:
    """It beats as it was told to; nobody is killed for what was only said to his successor."""
    slow, tight = ("heartbeat: {every: 400ms, timeout: 30s}", "heartbeat: {every: 10ms, timeout: 30ms}")
    with census(), Supervisor(_board(f"a {slow}", supervisor="intensity: 0")) as sup:
        pid = sup["a"].pid
        sup.reload(_board(f"a {tight}", supervisor="intensity: 0"))
        looks: list[int] = []
        sup.call_later(150_000_000, lambda: looks.append(1))
        while not looks:
            sup.dispatch(1)
        assert sup["a"].pid == pid
        assert sup.outcome is None


def test_given_group_down_what_is_missing_is_forgotten_and_the_rest_counts_on() -> None:
    """A reload while a group is down is what its next start finds."""
    two = 'devices: [{name: x, device: "tests.devices.counting:Counting"}, {name: y, device: demo.rng}]'
    one = two.partition(", {name: y")[0] + "]"
    with census(), Supervisor(_board(groups=_group(two))) as sup:
        assert sup["x"].read(NEXT, 4) == 1
        sup.stop_device("g")
        while sup.which_devices()[0].state != "down":
            sup.dispatch(1)
        assert sup.reload(_board(groups=_group(one))).left == ()
        assert [status.name for status in sup.which_devices(group="g")] == ["x"]
        sup.start_device("g")
        while sup["x"].state != "ready":
            sup.dispatch(1)
        assert sup["x"].read(NEXT, 4) == 2


def test_given_reload_with_more_spares_they_are_kept() -> None:
    """The number of spares is the new one's."""
    with census(), Supervisor(_board("a", supervisor="spares: 0")) as sup:
        before = len(living_descendants())
        sup.reload(_board("a", supervisor="spares: 3"))
        while len(living_descendants()) < before + 3:
            sup.dispatch(0.05)


def test_given_device_that_is_configured_while_it_is_added_its_failed_start_is_told_and_it_is_kept() -> None:
    """Who adds it hears that it has failed; the configuration names it, so it can be started again."""
    hangs = {"name": "d", "device": "tests.devices.naughty:HangsInStart", "start_timeout": "300ms"}

    def configure() -> None:
        sup.reload(_board("a", "d"))

    with census(), Supervisor(_board("a")) as sup:
        sup.call_later(20_000_000, configure)
        with pytest.raises(StartFailed, match="no Ready within start_timeout"):
            sup.add_device(hangs)
        assert sup["d"].state == "failed"
        sup.start_device("d")
        assert sup["d"].read(NEXT, 4) == 1
