"""The loop: descriptors become events, events become actions, actions become system calls.

    epoll → callbacks → queue of events → policy.step → actions → executor

One thread, one queue, no recursion: a callback or an executor that causes an event appends it. In each round
the descriptors are drained before a deadline is judged, so that a worker whose answer is already here is not
killed for being late. Nothing here waits except ``poll``.

A stale readiness report for a descriptor number that has been closed and used again within one round is not
delivered: registrations carry a serial, and a round delivers only to those that are older than itself.
"""

from __future__ import annotations

import heapq
import random
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from supervisor import policy
from supervisor.errors import EnvironmentFault
from supervisor.policy.actions import Action, AskStop, Finished, Forget, Kill, Report, Spawn
from supervisor.policy.events import Event, Tick
from supervisor.policy.records import Outcome, Record

__all__ = ["Executor", "Reactor", "Timer"]

MAX_RECORDS = 4096  # lifecycle news that nobody has read: the oldest are dropped
MAX_EVENTS_PER_ROUND = 256  # descriptors served per poll: the rest is served in the next one
MAX_STEPS_PER_ROUND = 10_000  # of the policy: spawning that fails at once could go on for ever


class Executor(Protocol):
    """Who carries actions out. None of these blocks or raises."""

    def spawn(self, name: str, generation: int) -> None: ...

    def ask_stop(self, name: str, generation: int) -> None: ...

    def kill(self, name: str, generation: int, why: str) -> None: ...

    def forget(self, name: str, restarts: int, why: str) -> None:
        """The device is removed; it has no process. ``why`` is set if it had failed."""

    def published(self, record: Record) -> None:
        """A lifecycle record has been made: bookkeeping of the executor's own."""

    def about_to_decide(self) -> None:
        """The policy is about to be stepped: what was promised on the strength of its last state is not."""


class Timer:
    """A callback at a host time; ``cancel`` takes it back."""

    __slots__ = ("at_ns", "callback")

    def __init__(self, at_ns: int, callback: Callable[[], None]) -> None:
        self.at_ns = at_ns
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Takes the timer back; twice is no error."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.at_ns < other.at_ns


class Reactor:
    """Watches descriptors, runs the policy, keeps the records. ``fileno()`` is for somebody else's loop.

    ``on_change`` is called where the deadline may be another: for a loop in which something else runs between
    the question for it and the sleep.
    """

    def __init__(self, spec: policy.SupervisorSpec) -> None:
        try:
            self._epoll = select.epoll()
        except OSError as error:
            raise EnvironmentFault("there is no descriptor for the loop") from error
        self._callbacks: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._unserved: list[tuple[int, int, int]] = []  # when a round ended early: descriptor, mask, limit
        self._serial = 0
        self._timers: list[Timer] = []
        self._events: deque[Event] = deque()
        self._running = False
        self.state = policy.initial(spec)
        self.records: deque[Record] = deque(maxlen=MAX_RECORDS)
        self.news: deque[Record] = deque(maxlen=MAX_RECORDS)  # the same, for observers
        self.outcome: Outcome | None = None
        self.on_change: Callable[[], None] | None = None
        self.fresh = False  # records have been made since the host was last told
        self.executor: Executor

    def fileno(self) -> int:
        """Readable when :meth:`poll` has something to do (deadlines apart: see :meth:`timeout_ns`)."""
        return self._epoll.fileno()

    # -- descriptors and timers ------------------------------------------------------------------

    def watch(self, fd: int, callback: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Calls ``callback(mask)`` whenever ``fd`` is ready."""
        self._serial += 1
        self._epoll.register(fd, events)
        self._callbacks[fd] = (self._serial, callback)

    def unwatch(self, fd: int) -> None:
        """Stops watching. Before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """True while ``fd`` is watched."""
        return fd in self._callbacks

    def call_at(self, at_ns: int, callback: Callable[[], None]) -> Timer:
        """Calls ``callback`` once host time (monotonic ns) has reached ``at_ns``."""
        timer = Timer(at_ns, callback)
        heapq.heappush(self._timers, timer)
        self._changed()
        return timer

    # -- the loop --------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Queues an event for the policy; it is stepped in this or the next :meth:`poll`."""
        self._events.append(event)
        self._changed()

    def publish(self, record: Record) -> None:
        """Adds a lifecycle record."""
        self.fresh = True
        self.records.append(record)
        self.news.append(record)
        self._changed()
        self.executor.published(record)

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def timeout_ns(self) -> int | None:
        """How long (ns) until :meth:`poll` has something to do even if no descriptor becomes ready."""
        if self._events or self._unserved:
            return 0
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        deadline = policy.next_deadline_ns(self.state)
        if self._timers and (deadline is None or self._timers[0].at_ns < deadline):
            deadline = self._timers[0].at_ns
        return None if deadline is None else max(0, deadline - time.monotonic_ns())

    def poll(self, timeout_ns: int | None, enough: Callable[[], bool] = bool) -> None:
        """One round: waits at most ``timeout_ns`` (``None``: until something happens), then works it off.

        As soon as it is ``enough`` the rest is left for the next round: whoever waits for an answer goes
        first, and bookkeeping later.
        """
        if self.step():
            timeout_ns = 0  # something has happened, which is what the caller waits for
            if enough():
                return
        own = self.timeout_ns()
        if own is not None and (timeout_ns is None or own < timeout_ns):
            timeout_ns = own
        ready, self._unserved = self._unserved, []
        if not ready:
            limit, seconds = self._serial, None if timeout_ns is None else timeout_ns / 1e9
            ready = [(*one, limit) for one in self._epoll.poll(seconds, MAX_EVENTS_PER_ROUND)]
        for index, (fd, mask, limit) in enumerate(ready):
            serial, callback = self._callbacks.get(fd, (limit + 1, None))
            if serial <= limit and callback is not None:
                callback(mask)
                if enough():
                    self._unserved += ready[index + 1 :]  # a bell rings but once
                    return
        self.step()
        self._judge_deadlines()

    @property
    def is_deciding(self) -> bool:
        """True while the policy is being stepped: what is posted now is decided in the same go."""
        return self._running

    def step(self) -> bool:
        """Works off queued events without looking at any descriptor; true if there were any.

        What is left after very many is for the next call, so that nobody else waits for ever.
        """
        if self._running or not self._events:
            return False  # an executor's doing: the loop below goes on with what it queued
        self._running = True
        try:
            self.executor.about_to_decide()
            now_ns = time.monotonic_ns()  # one instant for all that is queued: who died together is seen to
            for _ in range(MAX_STEPS_PER_ROUND):
                if not self._events:
                    break
                event = self._events.popleft()
                self.state, actions = policy.step(self.state, event, now_ns, random.random())
                for action in actions:
                    self._act(action)
        finally:
            self._running = False
        return True

    def _judge_deadlines(self) -> None:
        now_ns = time.monotonic_ns()
        while self._timers and self._timers[0].at_ns <= now_ns:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()
        deadline = policy.next_deadline_ns(self.state)
        if deadline is not None and deadline <= now_ns:
            self._events.append(Tick())
        self.step()

    def _act(self, action: Action) -> None:
        match action:
            case Spawn(name, generation):
                self.executor.spawn(name, generation)
            case AskStop(name, generation):
                self.executor.ask_stop(name, generation)
            case Kill(name, generation, why):
                self.executor.kill(name, generation, why)
            case Forget(name, restarts, why):
                self.executor.forget(name, restarts, why)
            case Report(record):
                self.publish(record)
            case Finished(outcome):
                self.outcome = outcome

    def close(self) -> None:
        """Closes the epoll descriptor."""
        self._epoll.close()
