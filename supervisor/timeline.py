"""Where the time of one restart went, from instants that its participants have noted.

All clocks are CLOCK_MONOTONIC, which is the same for every process of a machine, so instants of the
supervisor and of the worker stand in one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from supervisor.policy.records import Record

__all__ = ["INSTANTS", "RestartTimeline"]

INSTANTS = ("killed", "noticed", "settled", "activated", "assigned", "started", "restored", "ready")


@dataclass(frozen=True, slots=True)
class RestartTimeline(Record):
    """One restart of a device, as instants in host monotonic ns.

    They happen in this order, but that a standby which takes over by itself has read nothing: its
    ``assigned_ns`` is when it has begun, and it has usually restored before anybody else has noticed.

    ``killed_ns``: the supervisor has sent SIGKILL; 0 where it was not its doing. ``noticed_ns``: the witness,
    or the pidfd, has told of the death. ``settled_ns``: what the dead had committed is published, and it can
    write no more. ``activated_ns``: its successor (a spare, or a fork that was ordered) is being told which
    device it is. ``assigned_ns``: it has read that. ``started_ns``: class and options are there, the device
    is made. ``restored_ns``: ``start`` has run, and the committed state is back. ``ready_ns``: the supervisor
    has heard so. Requests are answered from ``restored_ns`` on.
    """

    name: str
    generation: int
    killed_ns: int
    noticed_ns: int
    settled_ns: int
    activated_ns: int
    assigned_ns: int
    started_ns: int
    restored_ns: int
    ready_ns: int

    @property
    def outage_ns(self) -> int:
        """How long nobody served, from the first of these instants on, that of the kill where it is known."""
        return self.restored_ns - self._known()[0][1]

    def steps(self) -> dict[str, int]:
        """How long (ns) each instant came after the one before it in time, by its name without ``_ns``.

        ``noticed`` is missing where nobody knows when the process was killed.
        """
        return {name: at_ns - before_ns for (_, before_ns), (name, at_ns) in pairwise(self._known())}

    def _known(self) -> list[tuple[str, int]]:
        """The instants that are known, by name, in the order in which they came."""
        known = [(name, at_ns) for name in INSTANTS if (at_ns := getattr(self, f"{name}_ns"))]
        known.sort(key=lambda instant: instant[1])
        return known
