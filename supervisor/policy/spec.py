"""What the supervisor is told: frozen values, checked when they are made.

The words are OTP's (``strategy``, ``intensity``, ``period``, ``permanent`` and so on); ``depends_on``,
``backoff`` and ``heartbeat`` are added. Every time is an integer of nanoseconds and says so in its name.
A value that cannot be raises ``LocalError`` with the culprit's name in it, so that no later part of this
room has to doubt what it reads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from supervisor.errors import LocalError
from supervisor.policy.order import find_circle

__all__ = [
    "AutoShutdown",
    "BackoffSpec",
    "ChildSpec",
    "HeartbeatSpec",
    "OnGiveUp",
    "Restart",
    "Strategy",
    "SupervisorSpec",
]

_MS = 1_000_000
_S = 1_000_000_000


class Strategy(Enum):
    """Which siblings restart together with a child that died."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"
    SIMPLE_ONE_FOR_ONE = "simple_one_for_one"
    """As one_for_one, for children of one template: all are added while running, none outlasts its end."""


class Restart(Enum):
    """Which ends of a child call for a new one: every end, an unclean one, none."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class OnGiveUp(Enum):
    """What happens when the restart budget is spent: stop everything, or mark the one device failed."""

    STOP = "stop"
    ISOLATE = "isolate"


class AutoShutdown(Enum):
    """Whether the end of significant children ends the supervisor."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    ALL_SIGNIFICANT = "all_significant"


def _at_least(owner: str, name: str, value: float, least: float) -> None:
    # "not >=" instead of "<" refuses NaN as well.
    if not value >= least:
        raise LocalError(f"{owner}: {name} is {value}, but must be at least {least}")


@dataclass(frozen=True, slots=True)
class BackoffSpec:
    """How long a restart waits.

    ``first_ns`` before the first restart, then ``next_ns`` times ``factor`` at each further one, never more
    than ``max_ns``; back to ``first_ns`` after ``healthy_after_ns`` of being ready. ``jitter`` is the part
    of the delay that chance may take away. ``max_ns=0`` switches the delay off.
    """

    first_ns: int = 0
    next_ns: int = 10 * _MS
    factor: float = 2.0
    max_ns: int = 30 * _S
    jitter: float = 0.1
    healthy_after_ns: int = _S

    def __post_init__(self) -> None:
        for name in ("first_ns", "next_ns", "max_ns", "healthy_after_ns"):
            _at_least("backoff", name, getattr(self, name), 0)
        _at_least("backoff", "factor", self.factor, 1)
        if self.factor == float("inf"):
            raise LocalError("backoff: factor must be finite")
        if not 0 <= self.jitter <= 1:
            raise LocalError(f"backoff: jitter is {self.jitter}, but must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class HeartbeatSpec:
    """A worker counts up every ``every_ns``; one that has not for ``timeout_ns`` is silent."""

    every_ns: int
    timeout_ns: int

    def __post_init__(self) -> None:
        _at_least("heartbeat", "every_ns", self.every_ns, 1)
        if self.timeout_ns <= self.every_ns:
            raise LocalError(
                f"heartbeat: timeout_ns ({self.timeout_ns}) must be longer than every_ns ({self.every_ns})"
            )


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child. ``stop_timeout_ns``: None waits for ever (infinity), 0 kills at once (brutal_kill).

    The exit statuses that force and that prevent a restart are codes, or, for signals, negative numbers
    (``-15``: ended by SIGTERM). A child with a ``supervisor`` of its own is a group: no process, but the
    children of that supervisor.
    """

    name: str
    restart: Restart = Restart.PERMANENT
    depends_on: tuple[str, ...] = ()
    hello_timeout_ns: int = 5 * _S
    start_timeout_ns: int = 5 * _S
    stop_timeout_ns: int | None = 2 * _S
    significant: bool = False
    heartbeat: HeartbeatSpec | None = None
    backoff: BackoffSpec = field(default_factory=BackoffSpec)
    clean_exit_codes: frozenset[int] = frozenset({0})
    force_restart: frozenset[int] = frozenset()
    prevent_restart: frozenset[int] = frozenset()
    supervisor: SupervisorSpec | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise LocalError("a child has no name")
        owner = f"child {self.name!r}"
        _at_least(owner, "hello_timeout_ns", self.hello_timeout_ns, 1)
        _at_least(owner, "start_timeout_ns", self.start_timeout_ns, 1)
        if self.stop_timeout_ns is not None:
            _at_least(owner, "stop_timeout_ns", self.stop_timeout_ns, 0)
        # OTP refuses it too: a permanent child never ends for good, so it could never be significant.
        if self.significant and self.restart is Restart.PERMANENT:
            raise LocalError(
                f"{owner}: a permanent child cannot be significant; make it transient or temporary"
            )
        both = self.force_restart & self.prevent_restart
        if both:
            raise LocalError(f"{owner}: exit status {min(both)} both forces and prevents a restart")


@dataclass(frozen=True, slots=True)
class SupervisorSpec:
    """One supervisor: at most ``intensity`` restarts within ``period_ns``, children in list order.

    In a tree of supervisors every name is there once, whatever group it is in.
    """

    strategy: Strategy = Strategy.ONE_FOR_ONE
    intensity: int = 5
    period_ns: int = 10 * _S
    on_give_up: OnGiveUp = OnGiveUp.STOP
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER
    children: tuple[ChildSpec, ...] = ()

    def __post_init__(self) -> None:
        _at_least("supervisor", "intensity", self.intensity, 0)
        _at_least("supervisor", "period_ns", self.period_ns, 1)
        for name, count in Counter(spec.name for spec in self.children).items():
            if count > 1:
                raise LocalError(f"child {name!r} is named {count} times")
        if self.strategy is Strategy.SIMPLE_ONE_FOR_ONE:
            if self.children:
                raise LocalError("simple_one_for_one starts without children: they are added while it runs")
            # OTP refuses it too: which child would be the significant one?
            if self.auto_shutdown is not AutoShutdown.NEVER:
                raise LocalError("simple_one_for_one cannot have an auto_shutdown")
        known = {spec.name for spec in self.children}
        for spec in self.children:
            for target in spec.depends_on:
                if target not in known:
                    raise LocalError(f"child {spec.name!r} depends on {target!r}, which is not there")
            # OTP refuses it too: nothing would ever come of the mark.
            if spec.significant and self.auto_shutdown is AutoShutdown.NEVER:
                raise LocalError(f"child {spec.name!r} is significant, but auto_shutdown is never")
        circle = find_circle({spec.name: spec.depends_on for spec in self.children})
        if circle is not None:
            raise LocalError(f"children depend on each other in a circle: {' → '.join(circle)}")
