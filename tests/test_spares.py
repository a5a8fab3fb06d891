"""Spares: what they have done before they are needed, and that nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from supervisor.host import Supervisor
from tests.chaos import COUNTING, board, census

ROOT = Path(__file__).parent.parent
REHEARSE = """
import gc, os, sys
from tests.chaos import open_descriptors
if sys.argv[1] == "virtio":
    import supervisor.worker.virtio_rehearsal
from supervisor.worker import entry, lifeline, rehearsal

def left():
    gc.collect()
    with open("/proc/self/maps") as maps:
        return sorted(open_descriptors().values()), sum("memfd" in line for line in maps)

def live(tube):
    codes.append(entry._live(entry._Tube(tube)))

def counted(function, name):
    def count(*arguments):
        globals()[name] += 1
        return function(*arguments)
    return count

codes, held, given_back = [], 0, 0
lifeline.hold = counted(lifeline.hold, "held")
lifeline.give_back = counted(lifeline.give_back, "given_back")
rehearsal.rehearse_life(live, 2)
assert codes == [0] * 2, codes
first = left()
assert held == given_back == 2, (held, given_back)
rehearsal.rehearse_life(live, 2)
assert left() == first, (first, left())

def name():
    with open("/proc/self/comm") as comm:
        return comm.read()

before = name()
entry.rehearse_for_all()  # as the zygote does, whose name is not the rehearsal's
assert name() == before, (before, name())
assert left() == first, (first, left())
assert os.umask(0) == 0o027
"""


@pytest.mark.parametrize("kind", ["plain", "virtio"])
def test_given_rehearsal_it_goes_through_a_whole_life_and_leaves_nothing(kind: str) -> None:
    """All lives end in order; descriptors and mappings are those of before, and so is the umask."""
    subprocess.run([sys.executable, "-c", REHEARSE, kind], check=True, timeout=60, umask=0o027, cwd=ROOT)


@pytest.mark.parametrize("kind", ["plain", "virtio"])
def test_given_spares_they_have_rehearsed_and_hold_little(kind: str, tmp_path: Path) -> None:
    """Stdio and the Tube: no descriptor besides."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(512))
    device = {
        "plain": "name: device, device: nrf51.rng, mmio: {base: 0x4000, size: 4KiB}",
        "virtio": f'name: device, device: virtio.blk, options: {{image: "{image}"}}, vhost_user: {{}}',
    }[kind]
    with census(), Supervisor(board(device, supervisor="spares: 2")) as sup:
        assert sup._workers is not None
        while len(sup._workers.processes._spares) < 2:
            sup.dispatch(1)
        assert sup.zygote_pid is not None
        zygote = psutil.Process(sup.zygote_pid)
        spares = [one for one in zygote.children() if one.name() == "tv:rehearsal"]
        assert len(spares) == 2
        for spare in spares:
            folder = Path(f"/proc/{spare.pid}/fd")
            while any("pidfd" in os.readlink(one) for one in folder.iterdir()):
                sup.dispatch(0.01)  # it is just saying Hello
            held = [os.readlink(one) for one in folder.iterdir()]
            assert len(held) == 4, held


def test_given_program_that_goes_elsewhere_its_devices_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory and the umask of the start are those of each process of a device."""
    start, elsewhere = tmp_path / "start", tmp_path / "elsewhere"
    start.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(start)
    mask = os.umask(0o027)
    try:
        with census(), Supervisor(board(COUNTING, supervisor="spares: 1")) as sup:
            monkeypatch.chdir(elsewhere)
            os.umask(0o077)
            for generation in (1, 2, 3):
                while sup["counter"].state != "ready":
                    sup.dispatch(1)
                assert sup["counter"].generation == generation
                pid = sup["counter"].pid
                assert psutil.Process(pid).cwd() == str(start)
                assert "Umask:\t0027\n" in Path(f"/proc/{pid}/status").read_text()
                sup.restart_device("counter")
                sup.dispatch(0)
    finally:
        os.umask(mask)
        monkeypatch.chdir("/")
