"""The vhost-user sockets of a board: a keeper for each device that has one.

A keeper is made when its device is ready for the first time, since only then is it known what is offered to
a VMM; from then on it hears of each worker that comes and goes, and ends with the device or the board.

A device whose configuration names no socket gets one in a folder of this supervisor's own, for the board's
own machine: the same board can then run twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from supervisor.errors import EnvironmentFault, LocalError
from supervisor.handle import VhostUserFacts
from supervisor.launch.launcher import WorkerProcess
from supervisor.messages_pb2 import Attach, VirtioOffer
from supervisor.policy.events import RestartChild
from supervisor.reactor import Reactor
from supervisor.scratch import ScratchFolder
from supervisor.seat import Seat

if TYPE_CHECKING:
    from supervisor.keeper import Keeper, Suspects

__all__ = ["Keepers"]

FAST_START_NS = 100_000_000  # who takes longer is not asked to get out of the way before it is ready
Attacher = Callable[[Seat, Attach, tuple[object, ...]], None]


class Keepers:
    """The keepers by device. ``directory`` is what sockets' paths are relative to."""

    def __init__(
        self, reactor: Reactor, directory: str, attach: Attacher, kill: Callable[[WorkerProcess], None]
    ) -> None:
        self._reactor = reactor
        self._directory = directory
        self._attach = attach
        self._kill = kill
        self._private: ScratchFolder | None = None  # of sockets that the configuration does not name
        self._paths: dict[str, str] = {}
        self._keepers: dict[str, Keeper] = {}

    def worker_ready(self, seat: Seat) -> None:
        """A device serves; its socket is there when this returns.

        Raises ``LocalError`` for a device that has nothing to offer a VMM, ``EnvironmentFault`` where there
        is no folder for its socket, and what ``Listener`` does.
        """
        if seat.config.vhost_user is None:
            return
        if seat.offer is None:
            raise LocalError(f"{seat.config.device} is no virtio device, so it cannot have vhost_user")
        keeper = self._keepers.get(seat.name)
        if keeper is None:
            from supervisor.keeper import Keeper  # only for boards that have such a device

            served = _Served(self._reactor, seat, self._attach, self._kill)
            path = self._path(seat.name, seat.config.vhost_user.socket)
            keeper = Keeper(
                path,
                self._reactor,
                served,
                time.monotonic_ns,
                poison=seat.config.poison,
                dials=seat.config.vhost_user.connect,
            )
            self._keepers[seat.name] = keeper
        keeper.worker_ready()

    def queues_ahead(
        self, seat: Seat, most_descriptors: int, *, stands_by: bool = False
    ) -> tuple[Attach, tuple[object, ...]] | None:
        """What a worker that is about to become the device is to serve at once, if anything.

        ``stands_by``: it has made everything else ready before that.
        """
        keeper = self._keepers.get(seat.name)
        if keeper is None or (seat.begin_ns if stands_by else seat.start_ns) > FAST_START_NS:
            return None
        return keeper.queues_ahead(most_descriptors)

    def given_ahead(self, seat: Seat) -> None:
        """The worker that is about to become the device has been given :meth:`queues_ahead`."""
        self._keepers[seat.name].given_ahead()

    def is_blameless(self, seat: Seat) -> bool:
        """True if the next process has nothing to be told but what it can see."""
        keeper = self._keepers.get(seat.name)
        return keeper is None or keeper.is_blameless

    def worker_gone(
        self, seat: Seat, *, charged: bool, looked: bool, suspects: Callable[[], Suspects | None]
    ) -> None:
        """A device's worker is gone: see ``Keeper.worker_gone``."""
        keeper = self._keepers.get(seat.name)
        if keeper is not None:
            keeper.worker_gone(seat.ring_positions, charged=charged, looked=looked, suspects=suspects)

    def worker_stays_away(self, name: str) -> None:
        """A device is stopped or given up; its VMM stays connected, and need not wait."""
        keeper = self._keepers.get(name)
        if keeper is not None:
            keeper.worker_stays_away()

    def facts(self, seat: Seat) -> VhostUserFacts | None:
        """What a VMM has to know of a device; ``None`` where there is no socket (yet)."""
        if seat.name not in self._keepers or seat.offer is None:
            return None
        offer = seat.offer
        return VhostUserFacts(self._paths[seat.name], offer.device_id, offer.queues, offer.config)

    def forget(self, name: str) -> None:
        """The device was removed: its VMM is hung up on."""
        keeper = self._keepers.pop(name, None)
        if keeper is not None:
            keeper.close()

    def close(self) -> None:
        """Gives every socket back."""
        for name in list(self._keepers):
            self.forget(name)
        if self._private is not None:
            self._private.close()
            self._private = None

    def _path(self, name: str, socket: str) -> str:
        if not socket:
            if self._private is None:
                try:
                    self._private = ScratchFolder("vhost")
                except OSError as error:
                    raise EnvironmentFault("there is no folder to be had for its socket") from error
            path = os.path.join(self._private.path, f"{name}.sock")
        else:
            path = os.path.abspath(os.path.join(self._directory, socket))
        self._paths[name] = path
        return path


class _Served:
    """A device as its keeper sees it."""

    def __init__(
        self, reactor: Reactor, seat: Seat, attach: Attacher, kill: Callable[[WorkerProcess], None]
    ) -> None:
        self._reactor = reactor
        self._seat = seat
        self._attach = attach
        self._kill = kill
        self.name = seat.name

    def offer(self) -> VirtioOffer | None:
        return self._seat.offer

    def attach(self, attach: Attach, descriptors: tuple[object, ...]) -> bool:
        if not self._seat.ready:
            return False
        self._attach(self._seat, attach, descriptors)
        return True

    def replace(self) -> None:
        if not self._seat.stop_wanted:  # or an operator's stop would become a restart
            self._reactor.post(RestartChild(self.name))

    def kill(self) -> None:
        if self._seat.worker is not None:
            self._kill(self._seat.worker)
