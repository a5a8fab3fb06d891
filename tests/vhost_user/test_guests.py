"""Real guests: QEMU and User-Mode Linux boot a Linux whose devices are workers that are killed all the time.

What each of them has to come to is one sentence: no I/O error, nothing differs when it is read back, the
image is what the guest believes it to be, and the VMM never saw a socket close. The budget allows no restart
at all where a monkey does the killing: a death that was charged, or a worker that ended by itself, ends the
board.

The guests come from ``make guests``, QEMU from Debian's qemu-system-x86: without them the tests are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machines.qemu import Qemu
from machines.vmm import Verdict, Vmm
from supervisor.chaos import ChaosRule, Monkey
from supervisor.config import parse_config
from supervisor.events import DeviceDied, DeviceFailed, GaveUp
from supervisor.host import Supervisor
from tests.chaos import census
from tests.vhost_user.guests import DEADLINE_S, VMMS, Scenario, boot, qemu, transcript
from tests.vhost_user.mortal import Mortal

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(280)]

MIB = 16
MANY = "tv.kib=16"  # small requests, so that many are in flight: only then can a log be missed


@contextlib.contextmanager
def _board(
    folder: Path, *, device: str = "virtio.blk", options: str = "", rng: bool = False, charged: bool = False
) -> Iterator[Supervisor]:
    """A disk, and perhaps a random number generator; ``charged`` lets them die by themselves."""
    image = folder / "disk.img"
    image.write_bytes(b"")
    os.truncate(image, (MIB << 20) + 4096)  # behind the workload's: how often the guest has booted
    budget = "{intensity: 1000000, period: 1s, spares: 1}" if charged else "{intensity: 0, period: 60s}"
    poison = "poison: 1000000" if charged else ""
    rng0 = "- {name: rng0, device: virtio.rng, vhost_user: {}, backoff: {max: 0s}}" if rng else ""
    text = f"""
supervisor: {budget}
devices:
  - name: disk0
    device: {device}
    options: {{image: "{image}"{options}}}
    vhost_user: {{}}
    backoff: {{max: 0s}}
    {poison}
  {rng0}
"""
    with census(), Supervisor(parse_config(text)) as sup:
        yield sup


def _boot(machine: Vmm, *scenario: Scenario) -> Verdict:
    """Runs the guest to its verdict, with what is done to it meanwhile."""
    text = boot(machine, *scenario)
    assert machine.verdict is not None, text[-3000:]
    print(machine.verdict)
    assert machine.verdict.good, text[-3000:]
    return machine.verdict


def _under_chaos(sup: Supervisor, machine: Vmm, rule: ChaosRule, *scenario: Scenario) -> int:
    """Runs the guest while ``rule`` is carried out; returns the number of kills."""
    monkey = Monkey(sup, [rule])
    print(f"seeds={monkey.seeds}")
    monkey.start()
    _boot(machine, *scenario)
    monkey.stop()
    events = list(sup.events())
    assert not [one for one in events if isinstance(one, GaveUp | DeviceFailed)]
    assert not [one for one in events if isinstance(one, DeviceDied) and one.charged]
    return sum(monkey.kills.values())


@pytest.fixture
def connections(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """How often a VMM has connected, so far."""
    caplog.set_level(logging.INFO, logger="tubevisor")
    return lambda: sum("a VMM has connected" in record.message for record in caplog.records)


@pytest.mark.parametrize("vmm", VMMS)
def test_given_disk_killed_every_50_ms_the_guest_notices_nothing(
    vmm: str, tmp_path: Path, connections: Callable[[], int]
) -> None:
    """The sentence above, for a disk under load."""
    with _board(tmp_path) as sup:
        machine = VMMS[vmm](sup, f"tv.rounds=5 tv.mib={MIB}", verdict="disk0")
        kills = _under_chaos(sup, machine, ChaosRule(kill="disk0", every_ns=50_000_000, jitter=0.5))
    assert kills >= 200
    assert connections() == 1


def test_given_all_devices_killed_while_the_guest_reboots_it_notices_nothing(
    tmp_path: Path, connections: Callable[[], int]
) -> None:
    """Three boots of one QEMU, under kill=*: deaths inside the BIOS, before DRIVER_OK, and in the kernel."""
    with _board(tmp_path, rng=True) as sup:
        machine = qemu(sup, f"tv.rounds=1 tv.mib={MIB} tv.boots=3", reboot=True, verdict="disk0")
        kills = _under_chaos(sup, machine, ChaosRule(kill="*", every_ns=30_000_000, jitter=0.5))
    assert "boot 3 of 3" in transcript(machine)
    assert kills >= 200
    assert connections() == 2  # one for each device


def test_given_stop_and_cont_over_qmp_the_guest_notices_no_death(tmp_path: Path) -> None:
    """Rings stop and start again forty times, under a kill every 100 ms."""
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    chance = random.Random(seed)
    stops = 0

    async def stop_and_go(qemu: Qemu) -> None:
        nonlocal stops
        while stops < 40:
            await asyncio.sleep(chance.uniform(0, 0.1))  # how long it runs, not how long we wait
            await qemu.execute("stop")
            await asyncio.sleep(chance.uniform(0, 0.05))
            await qemu.execute("cont")
            stops += 1

    with _board(tmp_path, rng=True) as sup:
        machine = qemu(sup, f"tv.rounds=3 tv.mib={MIB}", verdict="disk0")
        rule = ChaosRule(kill="*", every_ns=100_000_000, jitter=0.5)
        kills = _under_chaos(sup, machine, rule, stop_and_go)
    print(f"stops={stops} kills={kills}")
    assert stops == 40


def test_given_memory_plugged_in_while_the_disk_works_the_guest_notices_no_death(tmp_path: Path) -> None:
    """Each module is a new memory table for rings that run; the guest takes the memory into use."""
    plugged = 0

    async def plug(qemu: Qemu) -> None:
        nonlocal plugged
        while "guest: ready" not in transcript(qemu):
            await asyncio.sleep(0.05)
        for number in range(6):
            size = {"size": 128 << 20, "share": True}
            await qemu.execute(
                "object-add", **{"qom-type": "memory-backend-memfd", "id": f"more{number}"} | size
            )
            await qemu.execute("device_add", driver="pc-dimm", id=f"dimm{number}", memdev=f"more{number}")
            plugged += 1
            await asyncio.sleep(0.3)

    with _board(tmp_path, rng=True) as sup:
        machine = qemu(
            sup, f"tv.rounds=4 tv.mib={MIB} memhp_default_state=online", max_memory="2G", verdict="disk0"
        )
        kills = _under_chaos(sup, machine, ChaosRule(kill="*", every_ns=30_000_000, jitter=0.5), plug)
    print(f"plugged={plugged} kills={kills}")
    assert plugged == 6


def test_given_two_queues_and_two_processors_the_guest_notices_no_death(tmp_path: Path) -> None:
    """A disk with a queue for each processor."""
    with _board(tmp_path, options=", queues: 2") as sup:
        machine = qemu(sup, f"tv.rounds=3 tv.mib={MIB}", cpus=2, verdict="disk0")
        rule = ChaosRule(kill="disk0", every_ns=30_000_000, jitter=0.5)
        assert _under_chaos(sup, machine, rule) > 50


@pytest.mark.parametrize("shuffled", ["true", "false"])
@pytest.mark.parametrize("vmm", VMMS)
def test_given_deaths_between_any_two_stores_the_guest_notices_nothing(
    vmm: str, shuffled: str, tmp_path: Path
) -> None:
    """The worker kills itself at any line of fetch, execute and complete, in order and out of order."""
    mortal = f"{Mortal.__module__}:Mortal"
    options = f", shuffled: {shuffled}"
    with _board(tmp_path, device=mortal, options=options, charged=True) as sup:
        verdict = _boot(VMMS[vmm](sup, f"tv.rounds=1 tv.mib={MIB} {MANY}", verdict="disk0"))
    assert verdict.kills >= 200


@pytest.mark.parametrize("vmm", VMMS)
def test_given_the_log_ignored_the_guest_does_notice(vmm: str, tmp_path: Path) -> None:
    """The control: without the log the same deaths cost requests, or give some back twice."""
    forgetful = f"{Mortal.__module__}:Forgetful"
    noticed = re.compile("is not a head|I/O error")

    async def run(machine: Vmm) -> None:
        guest = asyncio.ensure_future(machine.serve())
        async with asyncio.timeout(DEADLINE_S):
            while not guest.done() and not noticed.search(transcript(machine)):
                await asyncio.wait({guest}, timeout=0.05)
        guest.cancel()
        await asyncio.gather(guest, return_exceptions=True)

    with _board(tmp_path, device=forgetful, charged=True) as sup:
        machine = VMMS[vmm](sup, f"tv.rounds=2 tv.mib={MIB} {MANY}", verdict="disk0")
        asyncio.run(run(machine))
        assert noticed.search(transcript(machine)) or not (machine.verdict and machine.verdict.good)


@pytest.mark.parametrize("vmm", VMMS)
def test_given_nobody_dies_the_guest_is_served(vmm: str, tmp_path: Path) -> None:
    """The same, undisturbed; another guest on the same socket afterwards is served as well."""
    with _board(tmp_path) as sup:
        for _ in range(2):
            assert _boot(VMMS[vmm](sup, f"tv.rounds=1 tv.mib={MIB}", verdict="disk0")).kills == 0
