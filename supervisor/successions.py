"""When a standby may take over by itself, and what becomes of it when the death before it is judged."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from supervisor import policy
from supervisor.launch.launcher import WorkerProcess
from supervisor.policy import Restart
from supervisor.policy.events import ExitKind, ExitReason
from supervisor.processes import Processes
from supervisor.reactor import Reactor
from supervisor.seat import Seat, exit_reason
from supervisor.standbys import Standby, Standbys

__all__ = ["Successions"]

_KILLED = ExitReason(ExitKind.SIGNALED, signal.SIGKILL)


class Successions:
    """Of all devices' standbys.

    ``is_blameless`` says that no request in a device's queues could be failed for the next death.
    """

    def __init__(self, reactor: Reactor, processes: Processes, is_blameless: Callable[[Seat], bool]) -> None:
        self._reactor = reactor
        self._processes = processes
        self._is_blameless = is_blameless
        self.standbys: Standbys
        self._young: dict[str, Standby] = {}  # by device: have been adopted, and not yet said Ready

    def may_succeed(self, seat: Seat) -> bool | None:
        """True if all that a death now could lead to is the next process, which needs to be told nothing.

        ``None`` where that will not change as long as the present process lives.
        """
        worker, child = seat.worker, seat.child
        if worker is None or worker.exclusive or not seat.ready or seat.stop_wanted or seat.refused:
            return None
        if child.restart is not Restart.PERMANENT or child.prevent_restart or seat.config.poison < 2:
            return None
        return (
            seat.handle.ledger.is_blameless
            and self._is_blameless(seat)
            and policy.comes_back_at_once(self._reactor.state, seat.name, _KILLED, time.monotonic_ns())
        )

    def on_succession(self, seat: Seat, now: bool = True) -> None:
        """A standby has taken over, so its predecessor is dead; unless ``now``, others may go first."""
        if seat.worker is None:
            return
        if now:
            self._processes.on_followed(seat.worker.ticket)
            self._reactor.step()
        else:
            self._processes.on_witnessed(seat.worker.ticket)

    def catch_up(self, seat: Seat) -> None:
        """Who asks for a device's process gets the one that serves, though that is news to us, too."""
        if seat.ready and self.standbys.has_successor(seat):
            self.on_succession(seat)
        else:
            self._reactor.step()  # a death may have been taken in, and not yet decided upon

    def awaits_another(self, seat: Seat, worker: WorkerProcess, wait_status: int | None) -> bool:
        """``worker`` is dead. True while one who has taken its place, and is not wanted, has still to end."""
        if not self._reactor.is_deciding and self.standbys.successor(seat) is not None:
            self._reactor.step()  # what happened before this death counts for it
        successor = self.standbys.successor(seat)  # which may not be wanted any more by now
        if successor is None:
            return self.standbys.is_ending(seat)
        if not self._reactor.is_deciding:
            ended, now_ns = exit_reason(wait_status), time.monotonic_ns()
            charged = self.is_charged(seat, worker)
            if policy.comes_back_at_once(self._reactor.state, seat.name, ended, now_ns, charged=charged):
                return False
        self.standbys.unseat(successor)
        return self.standbys.is_ending(seat)

    def adopt(self, seat: Seat, successor: Standby) -> None:
        """``successor``, which has taken over, is the device's process from now on."""
        self.standbys.adopt(successor)
        self._young[seat.name] = successor

    def is_young(self, seat: Seat) -> bool:
        """True if the device's process has been adopted, and has not yet said that it is ready."""
        return seat.name in self._young

    def has_looked(self, seat: Seat) -> bool:
        """The device's process is ready, or leaves: true if it had served queues before it was ready."""
        young = self._young.pop(seat.name, None)
        if young is None:
            return False
        bequest = young.bequest()
        young.close()
        return bequest is not None and bequest.requests is not None

    def close(self) -> None:
        """Gives back what is held for those who are not ready yet."""
        for young in self._young.values():
            young.close()
        self._young.clear()

    def is_charged(self, seat: Seat, worker: WorkerProcess) -> bool:
        """True if a worker's death counts: nobody has announced it, nor has its zygote taken it along."""
        return not (seat.uncharged or self._processes.forgives(worker))
