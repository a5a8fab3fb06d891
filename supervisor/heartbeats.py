"""Whether workers' hearts beat, for devices that have a heartbeat configured: looked at now and then."""

from __future__ import annotations

import time

from supervisor.policy.events import Silent
from supervisor.reactor import Reactor
from supervisor.seat import Seat
from supervisor.worker.layout import HEARTBEAT

__all__ = ["Heartbeats"]


class Heartbeats:
    """Says :class:`~supervisor.policy.events.Silent` of a worker whose heart has not beaten for too long."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor

    def watch(self, seat: Seat) -> None:
        """Looks after the worker in ``seat`` until it leaves."""
        if seat.watch_timer is not None:
            seat.watch_timer.cancel()
        heartbeat = seat.child.heartbeat
        if heartbeat is not None:
            seat.look_due_ns = time.monotonic_ns() + heartbeat.every_ns
            seat.watch_timer = self._reactor.call_at(seat.look_due_ns, lambda: self._look(seat))

    def _look(self, seat: Seat) -> None:
        heartbeat = seat.child.heartbeat
        if not seat.ready or heartbeat is None:
            return
        now_ns = time.monotonic_ns()
        beats = seat.handle.ledger.words[HEARTBEAT]
        late_ns = now_ns - seat.look_due_ns
        if beats != seat.heartbeat[0] or late_ns > heartbeat.every_ns:
            seat.heartbeat = (beats, now_ns)  # who looks late was stopped itself, and proves nothing
        elif now_ns - seat.heartbeat[1] >= heartbeat.timeout_ns:
            self._reactor.post(Silent(seat.name, seat.generation))
            return
        self.watch(seat)
