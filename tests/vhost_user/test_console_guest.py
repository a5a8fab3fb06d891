"""A console in real workers that are killed all the time: behind our front-end, and under a real Linux.

Transcripts are compared byte by byte, in both directions. QEMU has no vhost-user console; User-Mode Linux
takes any virtio device, and comes from ``make guests``: without it those tests are skipped.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.virtio.console import RX, TX
from supervisor.chaos import ChaosRule, Monkey
from supervisor.events import DeviceDied, DeviceFailed, GaveUp
from supervisor.host import Supervisor
from tests.chaos import board, census
from tests.vhost_user.guests import boot, uml
from tests.vhost_user.mortal import MortalConsole
from tests.vhost_user.stations import SLOT_BYTES, stations, until
from tests.vhost_user.terminals import Terminal

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(280)]

MORTAL = f"{MortalConsole.__module__}:MortalConsole"
LINES, TYPED_LINES = 6000, 1500  # a hundred KB in all
FEW_LINES, FEW_TYPED_LINES = 40, 10  # where it dies every few dozen bytes


class Typist:
    """Who sits at the console: takes down what it says, and types a little whenever it says something."""

    def __init__(self, sup: Supervisor, text: bytes, *, after: bytes = b"") -> None:
        self.handle = sup["console0"]
        self.heard = bytearray()
        self.text = text
        self._left = text
        self._after = after
        self.handle.on_output(self._hear)

    def _hear(self, data: bytes) -> None:
        self.heard += data
        if self._left and self._after in self.heard[: len(self._after) + 64]:
            self.type()

    def type(self, count: int = 100) -> None:
        """Types so many bytes more."""
        self.handle.send(self._left[:count])
        self._left = self._left[count:]


def _lines(count: int) -> bytes:
    return b"".join(b"line %d is typed\n" % number for number in range(count))


def _no_death_but_on_purpose(sup: Supervisor) -> None:
    events = list(sup.events())
    assert not [one for one in events if isinstance(one, GaveUp | DeviceFailed)]
    assert not [one for one in events if isinstance(one, DeviceDied) and one.charged]


def _console(path: Path | None = None, device: str = "virtio.console", more: str = "") -> str:
    socket = f'{{socket: "{path}"}}' if path is not None else "{}"
    options = "options: {cols: 132, rows: 43}"
    return f'name: console0, device: "{device}", {options}, vhost_user: {socket}, backoff: {{max: 0s}}{more}'


@pytest.fixture
def device() -> str:
    """The console's class, as its board names it."""
    return "virtio.console"


@pytest.fixture
def terminal(tmp_path: Path, device: str) -> Iterator[Terminal]:
    """A console whose driver is ours."""
    path = tmp_path / "console0.sock"
    text = _console(path, device, ", poison: 1000000" if device == MORTAL else "")
    with census(), Supervisor(board(text)) as sup, stations(sup, path, kind=Terminal) as (made,):
        yield made


def _talk(terminal: Terminal, rounds: int, chooser: random.Random) -> None:
    """Text of any length in both directions until both have all of it, each byte once."""
    sup = terminal.sup
    said, heard, typed = bytearray(), bytearray(), bytearray()
    sup["console0"].on_output(heard.extend)
    terminal.post()
    for number in range(rounds):
        for _ in range(chooser.randint(1, 8)):
            text = b"%d:" % number + chooser.randbytes(chooser.randint(1, SLOT_BYTES - 32))
            if terminal.send(text):
                said += text
        text = b"<%d>" % number + chooser.randbytes(chooser.randint(1, 3000))
        sup["console0"].send(text)
        typed += text
        until(lambda: len(terminal.free[TX]) > 8, sup, terminal)
    until(lambda: len(heard) >= len(said) and len(terminal.typed) >= len(typed), sup, terminal)
    until(lambda: not terminal.slots[TX], sup, terminal)
    assert heard == said
    assert terminal.typed == typed
    assert len(terminal.slots[RX]) == len(terminal.drivers[RX].chains)


def _until_served(terminal: Terminal, typed: bytes) -> None:
    """Until the guest has said what it had to say, and read what was typed."""
    until(lambda: not terminal.slots[TX] and len(terminal.typed) >= len(typed), terminal.sup, terminal)


def test_given_console_killed_every_few_ms_no_byte_is_lost_or_doubled(terminal: Terminal) -> None:
    """A hundred kills or so, more than a MB each way."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    terminal.bring_up()
    monkey = Monkey(terminal.sup, [ChaosRule(kill="console0", every_ns=5_000_000, jitter=0.5, seed=seed)])
    monkey.start()
    _talk(terminal, 1200, random.Random(seed))
    monkey.stop()
    print(f"kills={monkey.kills}")
    assert monkey.kills["console0"] > 20


@pytest.mark.parametrize("device", [MORTAL])
def test_given_deaths_between_any_two_stores_no_byte_is_lost_or_doubled(terminal: Terminal) -> None:
    """The worker kills itself at any line of the device, the rings, the runtime and its commits."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    terminal.bring_up()
    _talk(terminal, 20, random.Random(seed))
    print(f"deaths={terminal.sup['console0'].restarts}")
    assert terminal.sup["console0"].restarts > 30


def test_given_nobody_listens_the_guest_waits_and_nothing_is_lost(terminal: Terminal) -> None:
    """What is said before there is a sink is there when one comes, through deaths."""
    sup = terminal.sup
    terminal.bring_up()
    said = b""
    while not said or len(terminal.free[TX]) > 0:  # until no request comes back any more
        text = b"%09d" % terminal.sent + bytes(SLOT_BYTES - 9)
        if terminal.send(text):
            said += text
        else:
            until(lambda: True, sup, terminal)
        if terminal.sent % 100 == 0:
            sup.kill("console0", charged=False)
        if terminal.sent > 4000:
            pytest.fail("nothing holds it back")
    heard = bytearray()
    sup["console0"].on_output(heard.extend)
    until(lambda: len(heard) >= len(said), sup, terminal)
    assert heard == said


def test_given_reset_and_another_driver_nothing_is_said_twice_and_what_waits_is_kept(
    terminal: Terminal,
) -> None:
    """Rings begin at 0 again, before and after deaths; what the old guest has not read the new one gets."""
    sup = terminal.sup
    heard, typed = bytearray(), b""
    sup["console0"].on_output(heard.extend)
    sup["console0"].send(b"typed before there was a guest;")
    typed += b"typed before there was a guest;"
    terminal.bring_up()
    for boot_number in range(6):
        terminal.post()
        for number in range(5 + boot_number):
            assert terminal.send(b"boot %d line %d;" % (boot_number, number))
        sup["console0"].send(b"typed in boot %d;" % boot_number)
        typed += b"typed in boot %d;" % boot_number
        _until_served(terminal, typed)
        if boot_number % 2:
            sup.kill("console0", charged=False)
        for index in (RX, TX):
            terminal.ask(lambda index=index: terminal.front.get_vring_base(index))  # type: ignore[misc]
        terminal.forget()
        terminal.bring_up()
    expected = b"".join(b"boot %d line %d;" % (boot, n) for boot in range(6) for n in range(5 + boot))
    until(lambda: len(heard) >= len(expected), sup, terminal)
    assert (bytes(heard), bytes(terminal.typed)) == (expected, typed)


@pytest.mark.parametrize("way", ["quiet", "killed", "mortal"])
def test_given_linux_at_the_console_its_transcript_is_exact(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A hundred KB of lines and what it was sent, said back; its VMM sees no socket close."""
    caplog.set_level(logging.INFO, "tubevisor")
    device = _console(None, MORTAL, ", poison: 1000000") if way == "mortal" else _console()
    budget = "intensity: 1000000, period: 1s" if way == "mortal" else "intensity: 0, period: 60s"
    with census(), Supervisor(board(device, supervisor=budget)) as sup:
        lines, typed = (FEW_LINES, FEW_TYPED_LINES) if way == "mortal" else (LINES, TYPED_LINES)
        typist = Typist(sup, _lines(typed), after=b"ready\n")
        append = f"tv.what=console tv.lines={lines} tv.bytes={len(typist.text)}"
        rules = [ChaosRule(kill="console0", every_ns=50_000_000, jitter=0.5)] if way == "killed" else []
        monkey = Monkey(sup, rules)
        print(f"seeds={monkey.seeds}")
        monkey.start()
        text = boot(uml(sup, append))
        monkey.stop()
        while sup["console0"].has_outputs:
            sup.dispatch(0)
        kills, deaths = sum(monkey.kills.values()), sup["console0"].restarts
        if way != "mortal":
            _no_death_but_on_purpose(sup)
    print(f"kills={kills} deaths={deaths} bytes={len(typist.heard)}")
    said = b"".join(b"%d of %d\n" % (number, lines) for number in range(1, lines + 1))
    assert bytes(typist.heard) == b"ready\n" + said + typist.text + b"done\n"
    assert f"took={hashlib.sha256(typist.text).hexdigest()}" in text, text[-2000:]
    assert {"quiet": kills == 0, "killed": kills > 10, "mortal": deaths > 20}[way], (kills, deaths)
    assert len([one for one in caplog.messages if "a VMM has connected" in one]) == 1


def test_given_input_and_rings_at_once_a_new_process_has_both(terminal: Terminal) -> None:
    """Input that is too long for its record is asked for, while the rings are being handed over."""
    sup = terminal.sup
    terminal.bring_up()
    terminal.post()
    typed = b""
    for number in range(5):
        sup.kill("console0", charged=False)
        text = b"%d" % number * 40_000
        sup["console0"].send(text)
        typed += text
        _until_served(terminal, typed)
    assert terminal.typed == typed
