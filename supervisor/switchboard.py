"""Devices among themselves: Tubes between two of them, and descriptors that one hands to another.

Workers know nobody but the supervisor, so it introduces them: ``ctx.connect(name)`` makes a pair and hands
an end to each (``target_pid`` follows by itself), ``ctx.hand_over(pid, fd)`` sends a descriptor on. The
supervisor keeps no copy of either, since a copy would keep a Tube from ever reaching its end.

A pair that is on its way to a device that has not asked yet answers that device's own request as well, so
two devices that connect to each other meet on one pair. After a restart of either, connecting again makes a
new one. Who asks for one that is being restarted is answered when that is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from supervisor.messages_pb2 import SupervisorMessage
from supervisor.tube import Descriptor, Tube, TubeError
from supervisor.tube.broker import DescriptorBroker, DuplicateRequest, HandedDescriptor

__all__ = ["Line", "Switchboard"]


class Line(Protocol):
    """How a device is reached: raises ``TubeError`` where it cannot be, and never waits."""

    def __call__(self, message: SupervisorMessage, fds: tuple[object, ...]) -> None: ...


Answer = Callable[[str, tuple[object, ...]], None]
"""Called with an error's text, or with none and the end of a Tube."""


class Switchboard:
    """Knows how to reach each device that serves."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[int, int, Line]] = {}  # name -> (pid, generation, line)
        self._offered: set[tuple[str, str]] = set()  # (to, from): an end is with ``to``, who has not asked
        self._waiting: dict[tuple[str, str], Answer] = {}  # (from, to), who will be there
        self._broker = DescriptorBroker()

    def plug_in(self, name: str, pid: int, generation: int, line: Line) -> None:
        """The device serves: it can be reached from now on."""
        self._lines[name] = (pid, generation, line)
        self._broker.register(pid, lambda handed: self._deliver(name, handed))
        for sender, answer in self._waiting_for(name):
            self.connect(sender, name, answer)

    def stays_away(self, name: str, why: str) -> None:
        """The device will not be there by itself: whoever waits for it is told."""
        for _sender, answer in self._waiting_for(name):
            answer(f"device {name!r} is gone: {why}", ())

    def waits_no_longer(self, name: str, why: str) -> None:
        """The device has something else to do than to wait for others."""
        for way in [way for way in self._waiting if way[0] == name]:
            self._waiting.pop(way)(f"device {way[1]!r} is not there, and {why}", ())

    def unplug(self, name: str) -> None:
        """The device is gone; nothing happens when it is not known."""
        known = self._lines.pop(name, None)
        if known is not None:
            self._broker.unregister(known[0])
        self._offered = {(to, sender) for to, sender in self._offered if name not in (to, sender)}
        self._waiting = {way: answer for way, answer in self._waiting.items() if way[0] != name}

    def connect(self, name: str, peer: str, answer: Answer, *, waits: bool = False) -> None:
        """``name`` wants a Tube to ``peer``; ``waits`` for it if that is not there."""
        if (name, peer) in self._offered:
            self._offered.discard((name, peer))
            return  # the end is in its queue already
        known = self._lines.get(peer)
        if known is None and waits:
            self._waiting[name, peer] = answer
            return
        if known is None:
            there = ", ".join(sorted(self._lines)) or "none"
            answer(f"no device {peer!r} is ready; ready are {there}", ())
            return
        _pid, generation, line = known
        ours, theirs = Tube.pair()
        try:
            message = SupervisorMessage(generation=generation)
            message.connected.peer = name
            try:
                line(message, (theirs,))
            except TubeError as error:  # its own trouble: it is dead, perhaps, and that will be heard of
                if waits:
                    self._waiting[name, peer] = answer
                    return
                answer(f"device {peer!r} cannot be reached just now: {error}", ())
                return
            if self._waiting.pop((peer, name), None) is None:
                self._offered.add((peer, name))
            answer("", (ours,))
        finally:
            ours.close()
            theirs.close()

    def _waiting_for(self, name: str) -> list[tuple[str, Answer]]:
        """Takes out who waits for ``name``."""
        return [
            (sender, self._waiting.pop((sender, peer)))
            for sender, peer in list(self._waiting)
            if peer == name
        ]

    def hand_over(self, request: int, from_pid: int, target_pid: int, descriptor: Descriptor) -> str:
        """Hands a descriptor on, which is closed here; returns the error's text, empty when it was done."""
        reply = self._broker.handle(DuplicateRequest(request, target_pid, descriptor), from_pid)
        return "" if reply.outcome == 0 else f"process {target_pid}: {reply.outcome.name.lower()}"

    def _deliver(self, name: str, handed: HandedDescriptor) -> None:
        _pid, generation, line = self._lines[name]
        message = SupervisorMessage(generation=generation)
        message.handed.from_pid = handed.from_pid
        line(message, (handed.descriptor,))
