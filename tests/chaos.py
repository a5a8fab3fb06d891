"""What chaos tests share: boards of test devices, random kills, and the census afterwards."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import psutil

from supervisor.census import Census
from supervisor.config import Config, parse_config
from supervisor.host import Supervisor

SHARED_MEMORY = ("memfd:tubevisor", "/dev/shm/")


def board(*devices: str, supervisor: str = "intensity: 100000, period: 1s", extra: str = "") -> Config:
    """A configuration of test devices; each of ``devices`` is the inside of a YAML flow mapping."""
    listed = "".join(f"\n  - {{{device}}}" for device in devices) or " []"
    return parse_config(f"name: test\nsupervisor: {{{supervisor}}}\ndevices:{listed}\n{extra}")


COUNTING = 'name: counter, device: "tests.devices.counting:Counting", backoff: {max: 0s}'


def open_descriptors() -> dict[int, str]:
    """This process's descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def until_witnessed(sup: Supervisor) -> None:
    """Dispatches until the witness of deaths listens: from then on processes and descriptors are counted."""
    assert sup._workers is not None
    witness = sup._workers._witness
    while witness._process is None or not witness._process.hello:
        sup.dispatch(1)


def living_descendants() -> set[int]:
    """Pids of all descendants of this process that are no zombies."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def mapped_journals() -> int:
    """How many journals this process has mapped."""
    return Path("/proc/self/maps").read_text().count("memfd:tubevisor")


@contextlib.contextmanager
def census() -> Iterator[None]:
    """Afterwards there are the same processes, descriptors and shared memory as before."""
    before = Census.take()
    yield
    assert not before.leaks()


class RandomKills:
    """Kills a device's worker at random instants from inside the test's own calls. Prints its seed."""

    def __init__(self, sup: Supervisor, name: str, *, seed: int, chance: float) -> None:
        self._sup = sup
        self._name = name
        self._random = random.Random(seed)
        self._chance = chance
        self.kills = 0
        print(f"seed={seed}")

    def maybe(self) -> None:
        """Kills with the given chance."""
        if self._random.random() < self._chance and self._sup.kill(self._name, charged=False) is not None:
            self.kills += 1
