"""Unmodified MicroPython on the micro:bit board; needs ``make firmware``."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.config import parse_config
from supervisor.errors import LocalError
from supervisor.host import Supervisor
from tests.chaos import census
from tests.machines.sessions import CHAOS, CONFIG, Session, run_session

pytest.importorskip("unicorn")

from machines.microbit import Microbit, find_firmware

FIRMWARE = CONFIG.parent / ".cache/firmware/firmware.hex"
needs_firmware = pytest.mark.skipif(not FIRMWARE.is_file(), reason=f"{FIRMWARE} is missing: make firmware")
SESSION = (CONFIG / "session.txt").read_text()


@pytest.fixture(scope="module")
def undisturbed() -> Session:
    """The session in process, to which the others are compared."""
    return run_session("microbit", SESSION, in_process=True)


@pytest.mark.firmware
@needs_firmware
def test_given_session_micropython_answers(undisturbed: Session) -> None:
    """Arithmetic, a function, the seeded generator, half a second of sleep, the display."""
    assert undisturbed.code == 0
    assert "MicroPython v1.9.2" in undisturbed.transcript
    for answer in (
        "42\n",
        "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n",
        "True\n",
        "09090\n99999\n99999\n09990\n",
    ):
        assert answer in undisturbed.transcript
    assert "Error" not in undisturbed.transcript


@pytest.mark.firmware
@needs_firmware
def test_given_workers_the_transcript_is_that_of_one_process(undisturbed: Session) -> None:
    """A process for each of eighteen devices changes nothing that the guest can see."""
    with census():
        session = run_session("microbit", SESSION)
    assert session.transcript == undisturbed.transcript


@pytest.mark.firmware
@pytest.mark.chaos
@needs_firmware
def test_given_kills_the_transcript_is_that_of_one_process(undisturbed: Session) -> None:
    """Devices die while the guest works, and it does not notice."""
    with census():
        session = run_session("microbit", SESSION, chaos=CHAOS)
    assert session.transcript == undisturbed.transcript
    assert session.kills > 10


@pytest.mark.firmware
@needs_firmware
@pytest.mark.parametrize("chaos", ["", CHAOS])
def test_given_sleep_it_lasts_what_it_says_in_guest_time_and_no_less_on_the_wall(chaos: str) -> None:
    """``sleep(500)`` is right to 10 ms by the guest's own clock, whoever dies meanwhile."""
    typed = (
        "from microbit import sleep, running_time\n"
        "def nap():\n    t = running_time(); sleep(500); return running_time() - t\n\n"
        "print('slept', nap(), nap())\n"
    )
    session = run_session("microbit", typed, chaos=chaos)
    words = session.transcript.rpartition("slept ")[2].split()
    assert all(500 <= int(word) <= 510 for word in words[:2]), session.transcript
    assert session.seconds > 1
    assert session.seconds >= session.guest_seconds


@pytest.mark.firmware
@needs_firmware
def test_given_file_written_by_the_guest_flash_keeps_it() -> None:
    """Programming clears bits, word by word; the NVMC's erase brings them back."""
    write = "f = open('a.txt', 'w'); n = f.write('x' * 2000); f.close()\n"
    typed = "import os\n" + 15 * (write + "os.remove('a.txt')\n") + write
    typed += "print(len(open('a.txt').read()), os.listdir())\n"
    session = run_session("microbit", typed, in_process=True)
    assert "2000 ['a.txt']\n" in session.transcript
    assert "Error" not in session.transcript


def test_given_missing_firmware_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    """Neither from here nor beside the configuration."""
    with pytest.raises(LocalError, match="make firmware"):
        find_firmware("nowhere.hex", str(tmp_path / "config" / "board.yaml"))
    (tmp_path / "fw.hex").touch()
    assert find_firmware("fw.hex", str(tmp_path / "config" / "board.yaml")) == tmp_path / "fw.hex"


def test_given_broken_firmware_the_error_names_file_and_line(tmp_path: Path) -> None:
    """Before anything runs."""
    (tmp_path / "fw.hex").write_text(":00000001FF\n:junk\n")
    config = parse_config("name: empty\nsupervisor: {in_process: true}\ndevices: []")
    with Supervisor(config) as sup, pytest.raises(LocalError, match=r"fw\.hex:2"):
        Microbit(sup, firmware=str(tmp_path / "fw.hex"))
