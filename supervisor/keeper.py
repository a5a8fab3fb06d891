"""The keeper: the supervisor's side of a device's vhost-user socket.

It owns the socket for the life of the VMM, and every descriptor that the VMM has passed. A worker serves what
has been set up and may die at any time: the VMM sees neither a disconnect nor a reset, only requests that
take a little longer. So devices survive whose VMM cannot reconnect at all.

It decides nothing by itself: ``supervisor.vhost_user.setup`` says what a request changes and whether a worker
must be out of the way first. It maps no guest memory (a process that does takes long to die, and would end by
a signal when a guest's memory is cut short), and it never waits: a request that has to wait for a worker
waits in a queue, and a worker that does not get out of the way within ``DRAIN_NS`` is killed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from supervisor.messages_pb2 import Attach, VirtioOffer
from supervisor.reactor import Reactor, Timer
from supervisor.tube import Descriptor
from supervisor.vhost_user.assembler import Message
from supervisor.vhost_user.channel import tell_config_change
from supervisor.vhost_user.connection import Connection
from supervisor.vhost_user.door import DialingDoor, Door, ListeningDoor
from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import Disconnected, InvalidMessage, PartialMessage, VhostUserError
from supervisor.vhost_user.granting import grant
from supervisor.vhost_user.messages import U64
from supervisor.vhost_user.requests import FrontEndRequest
from supervisor.vhost_user.rules import FRONT_END_RULES, Answer, request_name
from supervisor.vhost_user.setup import Refused, Setup
from supervisor.vhost_user.wire import SocketWire, receive_message

__all__ = ["Keeper", "Served", "Suspects"]

DRAIN_NS = 200_000_000  # until a worker has come to the end of a batch: the VMM's main loop waits meanwhile
SETTLE_NS = 2_000_000_000  # workers may die until then; the VMM is told the last that is known of its rings
HALF_MESSAGE_NS = 5_000_000_000  # a VMM sends its messages whole; who does not is broken, or stalls us
Suspects = Sequence[tuple[int, int, int]]
"""Requests: (ring, head, place in the order of fetching)."""
_log = logging.getLogger("tubevisor")


class Served(Protocol):
    """The device whose socket it is, as far as the keeper needs it."""

    @property
    def name(self) -> str:
        """The device's name."""

    def offer(self) -> VirtioOffer | None:
        """What the device offers its driver; ``None`` before its first worker has said it."""

    def attach(self, attach: Attach, descriptors: tuple[Any, ...]) -> bool:
        """Hands the queues to the worker that serves; false if none does."""

    def replace(self) -> None:
        """Has the worker end, in order, and another one start."""

    def kill(self) -> None:
        """Has the worker killed, and another one start."""


class Keeper:
    """Waits at ``path`` for the VMM of ``served``, or dials it where that listens (``dials``).

    Raises what ``Listener`` does.
    """

    def __init__(
        self,
        path: str,
        reactor: Reactor,
        served: Served,
        now_ns: Callable[[], int],
        *,
        poison: int,
        dials: bool = False,
    ) -> None:
        self._reactor = reactor
        self._served = served
        self._now_ns = now_ns
        self._connection: Connection | None = None
        self._poison = poison
        self._blame: dict[tuple[int, int, int], int] = {}  # deaths by (ring, head, place in the order)
        self._attached = False  # the worker has the queues, or finds them when it is ready
        self._ready = False  # the worker serves
        self._draining = False  # it is to end before anything goes on
        self._unsettled = False  # the last worker has died without saying where it left its rings
        self._deadline: Timer | None = None  # of a drain
        self._patience: Timer | None = None  # of a VMM that is to be told where its rings stand
        self._overdue: Message | None = None  # it has waited for that long enough
        self._door: Door
        if dials:
            self._door = DialingDoor(path, reactor, now_ns, self._welcome)
        else:
            self._door = ListeningDoor(path, reactor, self._welcome)

    # -- the VMM ---------------------------------------------------------------------------------

    def _welcome(self, end: Endpoint) -> None:
        if self._connection is not None and self._connection.is_deserted():
            self._go_on_without(Disconnected("another one has come"))
        offer = self._served.offer()
        if self._connection is not None or offer is None:
            _log.warning("%s: a second VMM was turned away", self._served.name)
            end.close()
            return
        wire = end.wire
        if not isinstance(wire, SocketWire):
            end.close()
            return
        self._connection = Connection(wire, Setup(offer, _shared_memory, _read))
        self._reactor.watch(wire.fileno(), self._on_traffic)
        _log.info("%s: a VMM has connected", self._served.name)

    def _on_traffic(self, mask: int) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if mask & ~select.EPOLLOUT:
                self._receive(connection, mask)
        except VhostUserError as error:
            self._go_on_without(error)
        self._pump()

    def _receive(self, connection: Connection, mask: int) -> None:
        """Takes what is there, in portions: the rest is the VMM's to keep, and other devices' turn comes."""
        if connection.has_enough and mask & select.EPOLLHUP:
            raise Disconnected("it has gone without waiting for what it had asked")
        while not connection.has_enough:
            message = receive_message(connection.wire, connection.assembler)
            if message is None:
                break
            connection.waiting.append(message)
        self._watch_half_messages(connection)

    def _watch_half_messages(self, connection: Connection) -> None:
        """A message that has begun has to end some time."""
        if not connection.assembler.is_inside:
            if connection.deadline is not None:
                connection.deadline.cancel()
                connection.deadline = None
        elif connection.deadline is None:
            late = PartialMessage("a message that has begun has no end")
            at_ns = self._now_ns() + HALF_MESSAGE_NS
            connection.deadline = self._reactor.call_at(at_ns, lambda: self._go_on_without(late))

    def _send(self, connection: Connection) -> None:
        """Sends what goes; what does not, when the VMM reads again. Listens if more can be taken."""
        is_full = not connection.outbox.send(connection.wire)
        wanted = (select.EPOLLOUT if is_full else 0) | (0 if connection.has_enough else select.EPOLLIN)
        if wanted != connection.wanted:
            connection.wanted = wanted
            fd = connection.wire.fileno()
            self._reactor.unwatch(fd)
            self._reactor.watch(fd, self._on_traffic, wanted)

    def _go_on_without(self, error: VhostUserError) -> None:
        """The connection is over: the worker lets go of the guest's memory, and the next VMM may come."""
        connection = self._connection
        if connection is None:
            return
        _log.info("%s: the VMM is gone: %s", self._served.name, error)
        self._reactor.unwatch(connection.wire.fileno())
        self._connection = self._overdue = None
        connection.close()
        self._settled()
        self._door.left()
        if self._attached and not self._draining:
            self._drain()

    def _go_on(self) -> None:
        """Works off what the VMM has asked, up to the first request that has to wait for the worker."""
        connection = self._connection
        while connection is not None and connection.waiting and not self._draining:
            message = connection.waiting[0]
            if not self._may_happen(connection, message):
                return
            connection.waiting.popleft()
            self._answer(connection, message)
        if connection is not None and not self._draining:
            self._serve()

    def _may_happen(self, connection: Connection, message: Message) -> bool:
        request = message.header.request
        if request not in FRONT_END_RULES:
            return True
        payload = message.decode()
        if self._unsettled and connection.setup.stops(request, payload) and not self._settles(message):
            return False
        if self._attached and connection.setup.pauses(request, payload):
            self._drain()
            return False
        return True

    def _settles(self, stop: Message) -> bool:
        """Has one more worker complete what is under way and say where the rings stand, before ``stop``.

        False: not yet.
        """
        connection = self._connection
        if connection is None or stop is self._overdue or not connection.setup.running():
            return True
        if self._patience is None:
            at_ns = self._now_ns() + SETTLE_NS
            self._patience = self._reactor.call_at(at_ns, lambda: self._lose_patience(stop))
        self._serve()
        return self._attached

    def _lose_patience(self, stop: Message) -> None:
        _log.warning("%s: no worker could say where its rings stand", self._served.name)
        self._settled()
        self._overdue = stop
        self._pump()

    def _settled(self) -> None:
        self._unsettled = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _answer(self, connection: Connection, message: Message) -> None:
        setup, header = connection.setup, message.header
        rule = FRONT_END_RULES.get(header.request)
        with message:
            if rule is None:
                if not header.need_reply:  # it may be one that has an answer of its own, and is waited for
                    raise InvalidMessage("nobody knows it", f"request {header.request}")
                self._reply(connection, message, U64(1).pack(), ())
                return
            payload = message.decode()
            fds = len(message.descriptors)
            descriptors: list[Any] = list(message.take())
            status = 0
            try:
                answer = grant(setup, header.request, payload, descriptors)
            except Refused as refused:
                name = request_name(header.request)
                if rule.answer is Answer.ALWAYS and header.request != FrontEndRequest.GET_CONFIG:
                    raise InvalidMessage(str(refused), name) from refused  # a status would pass for a value
                _log.warning("%s: %s: %s", self._served.name, name, refused)
                answer, status = None, 1
            connection.close_discarded()
            if answer is not None:
                copies = tuple(Descriptor(os.dup(one.fileno())) for one in answer.descriptors)
                self._reply(connection, message, answer.payload.pack(), copies)
            elif header.request == FrontEndRequest.GET_CONFIG:
                self._reply(connection, message, b"", ())  # an error, by the specification
            elif rule.is_answered(header, fds):
                self._reply(connection, message, U64(status).pack(), ())

    def _reply(
        self, connection: Connection, message: Message, payload: bytes, descriptors: tuple[Descriptor, ...]
    ) -> None:
        connection.outbox.push(message.header.reply(len(payload)), payload, descriptors)

    # -- the worker ------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Hands the worker what is to be served, once everything that was said has been heard."""
        connection = self._connection
        if connection is None or self._attached or not connection.setup.running():
            return
        attach, descriptors = connection.setup.attach(self._poisoned())
        connection.close_discarded()
        self._attached = self._served.attach(attach, descriptors)

    def _drain(self) -> None:
        """The worker is to end before anything goes on; one that is not ready yet, as soon as it is."""
        self._draining = True
        if self._ready:
            self._end_worker()

    def _end_worker(self) -> None:
        self._served.replace()
        self._deadline = self._reactor.call_at(self._now_ns() + DRAIN_NS, self._served.kill)

    def queues_ahead(self, most_descriptors: int) -> tuple[Attach, tuple[Any, ...]] | None:
        """What a worker that is about to start is to serve as soon as it is ready, with its descriptors.

        ``None`` if there is nothing, if something else is to be done first, or if it is too much.
        """
        connection = self._connection
        if connection is None or connection.waiting or self._draining or not connection.setup.running():
            return None
        attach, descriptors = connection.setup.attach(self._poisoned())
        connection.close_discarded()
        return None if len(descriptors) > most_descriptors else (attach, descriptors)

    def given_ahead(self) -> None:
        """A worker that is about to start has :meth:`queues_ahead`."""
        self._attached = True

    def worker_ready(self) -> None:
        """A worker serves: it gets what is to be served."""
        self._ready = True
        if self._draining and self._attached:
            self._end_worker()
            return
        self._draining = False
        self._look_at_the_offer()
        self._pump()

    def _look_at_the_offer(self) -> None:
        """The worker may have found another configuration than the last one, a larger disk: the VMM asks."""
        connection, offer = self._connection, self._served.offer()
        if connection is None or offer is None or not connection.setup.reconfigure(offer.config):
            return
        channel = connection.setup.backend_channel
        hindrance = "it has no channel for that" if channel is None else tell_config_change(channel)
        if hindrance:
            _log.warning("%s: its VMM is not told of its new size: %s", self._served.name, hindrance)

    def worker_stays_away(self) -> None:
        """No worker comes until an operator wants one: the VMM is answered with what is known."""
        self._draining = False
        self._settled()
        self._pump()

    def _poisoned(self) -> dict[int, list[int]]:
        """The requests that are failed instead of executed once more, by ring."""
        self._forget_old_blame()
        found: dict[int, list[int]] = {}
        for (index, head, _counter), deaths in self._blame.items():
            if deaths >= self._poison:
                found.setdefault(index, []).append(head)
        return found

    def _blame_the_oldest(self, suspects: Suspects) -> None:
        """A worker died by itself: of each ring, the request that it had fetched first is under suspicion."""
        self._blame = {one: self._blame.get(one, 0) + 1 for one in suspects}

    @property
    def is_blameless(self) -> bool:
        """True if no request that is under way could be failed for the next death."""
        if self._draining or self._poison < 2:
            return False
        self._forget_old_blame()
        return not self._blame

    def _forget_old_blame(self) -> None:
        """Who is not under way any more has come through; a request of its number is another one."""
        if self._blame:
            oldest = self._connection.setup.oldest_in_flight() if self._connection is not None else []
            self._blame = {one: self._blame[one] for one in oldest if one in self._blame}

    def worker_gone(
        self,
        positions: dict[int, int],
        *,
        charged: bool,
        looked: bool,
        suspects: Callable[[], Suspects | None],
    ) -> None:
        """The worker is gone; ``positions`` is where it left its rings, empty if it died.

        ``charged`` says that nobody has killed it on purpose, ``looked`` that it has served although it has
        not said that it was ready. ``suspects`` tells which requests had been fetched first, if somebody has
        gone on with them already.
        """
        was_attached = self._attached and (self._ready or looked)  # or it has not looked at the queues
        self._attached = self._ready = False
        if was_attached and charged and not positions and self._connection is not None:
            oldest = self._connection.setup.oldest_in_flight()
            noted = suspects()  # asked last: what was not touched by then is as it has been read
            self._blame_the_oldest(oldest if noted is None else noted)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if was_attached and positions:
            self._settled()
        elif was_attached:
            self._unsettled = True
        if self._connection is not None and was_attached:
            self._connection.setup.stopped_at(positions)

    def _pump(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            self._go_on()
            self._send(connection)
        except VhostUserError as error:
            self._go_on_without(error)

    def close(self) -> None:
        """Gives the socket and every descriptor back."""
        self._settled()
        if self._connection is not None:
            self._reactor.unwatch(self._connection.wire.fileno())
            self._connection.close()
            self._connection = None
        self._door.close()


def _read(descriptor: Descriptor, offset: int, size: int) -> bytes:
    try:
        return os.pread(descriptor.fileno(), size, offset)
    except (OSError, OverflowError):  # no file, or no such place in any: the VMM has set it up
        return b""


def _shared_memory(size: int) -> Descriptor:
    """Zeroed memory that cannot be made shorter or longer."""
    fd = os.memfd_create("tubevisor in-flight log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    descriptor = Descriptor(fd)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor
