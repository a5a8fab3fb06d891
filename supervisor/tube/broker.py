"""Handing a descriptor to another device: the worker asks, the supervisor decides and delivers.

Workers have no Tubes to each other unless they asked for one, and a process cannot be reached by its number
alone. So a worker sends the descriptor to the supervisor with the number of the process it is for (as the
supervisor numbers processes: the worker may live in a pid namespace of its own), and the supervisor sends it
on as a message of its own. An unknown number is an answer, not a crash; so is a target that is gone or takes
nothing.

``DuplicateHandleTube`` is the worker's half. ``DescriptorBroker`` is the supervisor's: ``decide`` is pure,
``handle`` delivers through functions that whoever serves a process has registered, so it does not matter
whether the request came through a Tube (``serve``) or inside a protobuf of the supervisor's own. It runs in
the supervisor's loop and never waits: the registered functions must not either.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from supervisor.tube.descriptor import Descriptor
from supervisor.tube.errors import Disconnected, NotHandedOn, TubeError, UnknownProcess, WouldBlock
from supervisor.tube.waiting import deadline_after, seconds_left

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from supervisor.tube.tube import Tube

    T = TypeVar("T")

__all__ = [
    "DescriptorBroker",
    "DuplicateHandleTube",
    "DuplicateReply",
    "DuplicateRequest",
    "HandedDescriptor",
    "Outcome",
]


class Outcome(IntEnum):
    """What became of a request."""

    DONE = 0
    UNKNOWN_PROCESS = 1  # nobody serves a process of this number
    GONE = 2  # somebody does, and it has gone away
    BUSY = 3  # it does not take its messages


@dataclass(slots=True)
class DuplicateRequest:
    """Worker to supervisor: hand ``descriptor`` to process ``target_pid``."""

    number: int
    target_pid: int
    descriptor: Descriptor


@dataclass(slots=True)
class DuplicateReply:
    """Supervisor to worker."""

    number: int
    outcome: Outcome


@dataclass(slots=True)
class HandedDescriptor:
    """Supervisor to the other worker: a descriptor that process ``from_pid`` handed on."""

    from_pid: int
    descriptor: Descriptor


class DuplicateHandleTube:
    """A worker's line to the broker. One request at a time, from one thread."""

    def __init__(self, tube: Tube) -> None:
        self._tube = tube
        self._numbers = itertools.count(1)

    def request_duplicate(
        self, target_pid: int, fd: int | Descriptor, *, timeout: float | None = None
    ) -> None:
        """Have the supervisor hand a descriptor (which stays ours) to another device by the number of its
        process.

        Waits at most ``timeout`` seconds for the answer (None: for ever). Raises UnknownProcess, NotHandedOn
        (gone or takes nothing), TubeTimeout (it may still be handed on), and what ``Tube.send`` and
        ``Tube.recv`` raise.
        """
        deadline = deadline_after(timeout)
        number = next(self._numbers)
        with Descriptor.duplicate(fd) as copy:
            self._tube.send(DuplicateRequest(number, target_pid, copy), timeout=timeout)
        while True:
            reply = self._tube.recv(DuplicateReply, timeout=seconds_left(deadline))
            if reply.number == number:
                break
            # The answer to a request that timed out earlier.
        if reply.outcome == Outcome.UNKNOWN_PROCESS:
            raise UnknownProcess(f"the supervisor serves no process {target_pid}")
        if reply.outcome != Outcome.DONE:
            raise NotHandedOn(f"process {target_pid} is {reply.outcome.name.lower()}")

    def fileno(self) -> int:
        return self._tube.fileno()

    def close(self) -> None:
        self._tube.close()


class DescriptorBroker:
    """The supervisor's half: knows how to reach each process it serves."""

    def __init__(self) -> None:
        self._deliver: dict[int, Callable[[HandedDescriptor], None]] = {}

    def register(self, pid: int, deliver: Callable[[HandedDescriptor], None]) -> None:
        """From now on reach process ``pid`` by calling ``deliver``, which must not wait.

        It may raise TubeError: Disconnected and QueueFull become answers. It must not keep the descriptor,
        which is closed after the call.
        """
        self._deliver[pid] = deliver

    def unregister(self, pid: int) -> None:
        """Forget a process; nothing happens when it is not known."""
        self._deliver.pop(pid, None)

    def handle(self, request: DuplicateRequest, from_pid: int) -> DuplicateReply:
        """Carry a request out and return the answer. Takes over the request's descriptor. Raises nothing."""
        with request.descriptor:
            deliver = decide(self._deliver, request.target_pid)
            if isinstance(deliver, Outcome):
                return DuplicateReply(request.number, deliver)
            try:
                deliver(HandedDescriptor(from_pid, request.descriptor))
            except WouldBlock:
                return DuplicateReply(request.number, Outcome.BUSY)
            except TubeError:
                return DuplicateReply(request.number, Outcome.GONE)
            return DuplicateReply(request.number, Outcome.DONE)

    def serve(self, tube: Tube) -> bool:
        """Take one request from a worker's Tube, if one waits, and answer it; tells whether there was one.

        Never waits. Raises what ``Tube.recv`` raises, Disconnected and WrongPeer among it.
        """
        try:
            request = tube.recv(DuplicateRequest, timeout=0, max_fds=1)
        except WouldBlock:
            return False
        reply = self.handle(request, tube.target_pid or 0)
        try:
            tube.send(reply, timeout=0)
        except (WouldBlock, Disconnected):
            pass  # A worker that does not take its answers has to live without them.
        return True


def decide(known: Mapping[int, T], target_pid: int) -> T | Outcome:
    """Return who serves a process, or why nobody does. Pure."""
    return known.get(target_pid, Outcome.UNKNOWN_PROCESS)
