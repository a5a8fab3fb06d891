"""The chaos monkey: kills devices on purpose while the rest runs.

A rule says whom, how often and with what: ``kill=uart0,every=50ms`` (also ``signal=KILL``, ``count=10``,
``jitter=0.5`` as a fraction of ``every``, ``seed=1``, ``charge=yes``); ``kill=*`` picks one live device at
random at each tick. Deaths that the monkey causes are charged neither to the restart budget nor to the
backoff, so that a board keeps its ordinary policy; ``charge=yes`` tests the policy itself.

The monkey lives in the supervisor's own loop, as a timer: it needs no thread, and what it does is repeatable
up to the speed of the machine. It keeps count; so does :class:`Outages`, of what the kills cost.
"""

from __future__ import annotations

import random
import re
import signal
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from supervisor.errors import LocalError
from supervisor.policy.records import DeviceRestarted, Record
from supervisor.timeline import RestartTimeline

__all__ = ["ChaosRule", "DeviceToll", "Monkey", "Outages", "Victims"]

KEYS = ("kill", "every", "signal", "count", "jitter", "seed", "charge")
EVERYONE = "*"
_DIGITS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosRule:
    """Whom to kill, how often (ns), with which signal, how many times at most, and from which seed."""

    kill: str
    every_ns: int
    signal: int = signal.SIGKILL
    count: int | None = None
    jitter: float = 0.0
    seed: int | None = None
    charge: bool = False

    @classmethod
    def parse(cls, text: str) -> ChaosRule:
        """A rule as written on the command line. Raises :class:`LocalError` naming what is wrong."""
        fields: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = part.strip().partition("=")
            if not equals or key not in KEYS:
                raise LocalError(
                    f"chaos rule {text!r}: {part!r} is not KEY=VALUE with KEY of {', '.join(KEYS)}"
                )
            if key in fields:
                raise LocalError(f"chaos rule {text!r}: {key} is given twice")
            fields[key] = value
        for needed in ("kill", "every"):
            if not fields.get(needed):
                raise LocalError(f"chaos rule {text!r}: {needed}=... is missing")
        return cls(
            kill=fields["kill"],
            every_ns=_duration_ns(text, fields["every"]),
            signal=_signal(text, fields.get("signal", "KILL")),
            count=_number(text, "count", fields["count"], least=1) if "count" in fields else None,
            jitter=_fraction(text, fields.get("jitter", "0")),
            seed=_number(text, "seed", fields["seed"]) if "seed" in fields else None,
            charge=_yes_or_no(text, fields.get("charge", "no")),
        )

    def check(self, devices: Collection[str]) -> None:
        """Raises :class:`LocalError` where none of ``devices`` is meant by this rule."""
        if not devices:
            raise LocalError("chaos rule: there are no devices to kill")
        if self.kill != EVERYONE and self.kill not in devices:
            raise LocalError(f"chaos rule: no device {self.kill!r}; there are {', '.join(devices)}")


class Victims(Protocol):
    """What the monkey needs of a :class:`~supervisor.host.Supervisor`."""

    @property
    def devices(self) -> Collection[str]:
        """The names of all devices."""

    def kill(self, name: str, *, send_signal: int, charged: bool) -> int | None:
        """Signals the process that serves; returns its pid, ``None`` where there is none."""

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Any:
        """Calls back in ``delay_ns``; what is returned can be cancelled (``cancel``)."""


@dataclass(slots=True)
class _Running:
    rule: ChaosRule
    random: random.Random
    seed: int
    left: int | None


class Monkey:
    """Carries rules out on a supervisor. ``kills`` counts by device; ``seeds`` are for repeating a run."""

    def __init__(self, supervisor: Victims, rules: Iterable[ChaosRule]) -> None:
        self._supervisor = supervisor
        self._running: list[_Running] = []
        self._timers: dict[int, Any] = {}  # the next tick, by the rule's place
        self._dying: dict[str, int] = {}  # whom SIGKILL has hit last, by device
        self.kills: Counter[str] = Counter()
        for rule in rules:
            rule.check(supervisor.devices)
            seed = random.SystemRandom().randrange(2**32) if rule.seed is None else rule.seed
            self._running.append(_Running(rule, random.Random(seed), seed, rule.count))

    @property
    def seeds(self) -> list[int]:
        """The seed of each rule, given or chosen."""
        return [running.seed for running in self._running]

    def start(self) -> None:
        """The first tick of each rule is one interval away."""
        for place in range(len(self._running)):
            self._schedule(place)

    def stop(self) -> None:
        """No more kills."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _schedule(self, place: int) -> None:
        running = self._running[place]
        spread = running.rule.jitter * (2 * running.random.random() - 1)
        delay_ns = max(1, int(running.rule.every_ns * (1 + spread)))
        self._timers[place] = self._supervisor.call_later(delay_ns, lambda: self._tick(place))

    def _tick(self, place: int) -> None:
        running = self._running[place]
        rule = running.rule
        # Devices come and go: one that is not there just now is left alone.
        names = [name for name in self._supervisor.devices if rule.kill in (EVERYONE, name)]
        running.random.shuffle(names)
        for name in names:
            if self._hit(name, rule):
                self.kills[name] += 1
                if running.left is not None:
                    running.left -= 1
                break
        if running.left != 0:
            self._schedule(place)

    def _hit(self, name: str, rule: ChaosRule) -> bool:
        """True if a live process was hit: one that has had its SIGKILL and is still dying is none."""
        pid = self._supervisor.kill(name, send_signal=rule.signal, charged=rule.charge)
        if pid is None or (rule.signal == signal.SIGKILL and self._dying.get(name) == pid):
            return False
        if rule.signal == signal.SIGKILL:
            self._dying[name] = pid
        return True


@dataclass(frozen=True, slots=True)
class DeviceToll:
    """What chaos cost one device; outages in ms, ``None`` where it was never down."""

    device: str
    kills: int
    restarts: int
    median_ms: float | None
    worst_ms: float | None


@dataclass(slots=True)
class Outages:
    """Counts restarts and outages; give ``record`` to ``Supervisor.on_event``."""

    by_device: dict[str, list[int]] = field(default_factory=dict)
    timelines: dict[str, RestartTimeline] = field(default_factory=dict)

    def record(self, event: Record) -> None:
        """Takes a lifecycle record."""
        match event:
            case RestartTimeline():
                self.timelines[event.name] = event
            case DeviceRestarted():
                self.by_device.setdefault(event.name, []).append(self._outage_ns(event))

    def _outage_ns(self, restarted: DeviceRestarted) -> int:
        """As it really was: the policy may be told of the death when all is over."""
        timeline = self.timelines.get(restarted.name)
        if timeline is None or timeline.generation != restarted.generation:
            return restarted.outage_ns
        return timeline.outage_ns

    def toll(self, devices: Iterable[str], kills: Mapping[str, int]) -> list[DeviceToll]:
        """One line for each device, in the order given."""
        lines = []
        for name in devices:
            outages = [outage / 1e6 for outage in self.by_device.get(name, [])]
            lines.append(
                DeviceToll(
                    name,
                    kills.get(name, 0),
                    len(outages),
                    statistics.median(outages) if outages else None,
                    max(outages) if outages else None,
                )
            )
        return lines


def _duration_ns(rule: str, text: str) -> int:
    from supervisor.config.units import parse_duration_ns

    try:
        value = parse_duration_ns(text)
    except ValueError as error:
        raise LocalError(f"chaos rule {rule!r}: every={text}: {error}") from error
    if value <= 0:
        raise LocalError(f"chaos rule {rule!r}: every={text}: a time above zero is needed, such as 50ms")
    return value


def _signal(rule: str, text: str) -> int:
    name = text.upper().removeprefix("SIG")
    try:
        number = int(text) if _DIGITS.fullmatch(text) else int(signal.Signals[f"SIG{name}"])
    except KeyError:
        number = 0
    if number not in signal.valid_signals():
        raise LocalError(f"chaos rule {rule!r}: no signal {text!r}; there are KILL, TERM, SEGV, STOP...")
    return number


def _number(rule: str, key: str, text: str, *, least: int = 0) -> int:
    if not _DIGITS.fullmatch(text) or int(text) < least:
        raise LocalError(f"chaos rule {rule!r}: {key}={text}: a whole number from {least} on is needed")
    return int(text)


def _fraction(rule: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise LocalError(f"chaos rule {rule!r}: jitter={text}: a fraction from 0 to 1 is needed")
    return value


def _yes_or_no(rule: str, text: str) -> bool:
    if text not in ("yes", "no"):
        raise LocalError(f"chaos rule {rule!r}: charge={text}: yes or no")
    return text == "yes"
