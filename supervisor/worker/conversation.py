"""What a worker says to its supervisor, and hears from it, while its device serves.

A worker that asks for something (a Tube to another device, a payload, a larger journal) waits for the answer.
What comes without having been asked for may come at any time, in the middle of that too: it is passed on, to
be seen to when nothing else is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from supervisor.errors import LocalError
from supervisor.messages_pb2 import SupervisorMessage, WorkerMessage
from supervisor.tube import Descriptor, Tube, UnknownProcess

__all__ = ["ControlTube", "Conversation"]


class ControlTube(Protocol):
    """What a conversation needs of its ProtoTube."""

    def fileno(self) -> int: ...

    def tell(self, message: WorkerMessage, fds: tuple[int, ...] = ()) -> None:
        """Sends; waits while the supervisor is slow. Raises once it is gone."""

    def hear(self, timeout: float | None) -> tuple[SupervisorMessage, list[Any]] | None:
        """The next message and its descriptors, or ``None`` when ``timeout`` (seconds) has passed."""


class Conversation:
    """One worker's, as one generation of its device. ``unasked`` gets what nobody has asked for."""

    def __init__(
        self, tube: ControlTube, generation: int, unasked: Callable[[SupervisorMessage, list[Any]], None]
    ) -> None:
        self._tube = tube
        self._generation = generation
        self._unasked = unasked
        self._requests = 0
        self._payloads: dict[int, bytes] = {}
        self._connected: dict[str, tuple[Any, str]] = {}
        self._duplicated: dict[int, str] = {}
        self._grown: list[Descriptor] = []

    def fileno(self) -> int:
        """Readable when there is something to :meth:`hear`."""
        return self._tube.fileno()

    # -- asking ----------------------------------------------------------------------------------

    def connect(self, name: str) -> Any:
        """A Tube to the device called ``name``. Raises :class:`LocalError` where there is none."""
        message = self._message()
        message.connect.peer = name
        self._tube.tell(message)
        while name not in self._connected:
            self.hear(None)
        end, error = self._connected.pop(name)
        if end is None:
            raise LocalError(f"connect({name!r}): {error}")
        return end

    def hand_over(self, target_pid: int, fd: int) -> None:
        """Has ``fd`` handed to the device in process ``target_pid``. Raises :class:`UnknownProcess`."""
        self._requests += 1
        request = self._requests
        message = self._message()
        message.duplicate.request = request
        message.duplicate.target_pid = target_pid
        self._tube.tell(message, (fd,))
        while request not in self._duplicated:
            self.hear(None)
        error = self._duplicated.pop(request)
        if error:
            raise UnknownProcess(error)

    def keep(self, name: str, fd: int | None) -> None:
        """Has ``fd`` kept for the next processes, or what is kept under ``name`` given up."""
        message = self._message()
        message.keep.name = name
        self._tube.tell(message, () if fd is None else (fd,))

    def payload(self, number: int) -> bytes:
        """What input ``number`` carries, where the journal had no room for it."""
        message = self._message()
        message.want_payload.number = number
        self._tube.tell(message)
        while number not in self._payloads:
            self.hear(None)
        return self._payloads.pop(number)

    def larger_journal(self, *, output_bytes: int, state_bytes: int, register_words: int) -> Descriptor:
        """A journal that has room for so much, with all that is in the present one."""
        message = self._message()
        message.journal_full.output_bytes = output_bytes
        message.journal_full.state_bytes = state_bytes
        message.journal_full.register_words = register_words
        self._tube.tell(message)
        while not self._grown:
            self.hear(None)
        return self._grown.pop()

    # -- hearing ---------------------------------------------------------------------------------

    def hear(self, timeout: float | None) -> None:
        """Takes in one message, if there is one within ``timeout`` seconds."""
        heard = self._tube.hear(timeout)
        if heard is None:
            return
        message, descriptors = heard
        if message.generation != self._generation:
            return  # meant for a predecessor; closing the descriptors is their owners' business
        match message.WhichOneof("body"):
            case "payload":
                self._payloads[message.payload.number] = message.payload.data
            case "journal_grown":
                self._grown.append(descriptors[0])
            case "connected":
                end = Tube(descriptors[0]) if descriptors else None
                self._connected[message.connected.peer] = (end, message.connected.error)
            case "duplicated":
                self._duplicated[message.duplicated.request] = message.duplicated.error
            case _:
                self._unasked(message, descriptors)

    def _message(self) -> WorkerMessage:
        return WorkerMessage(generation=self._generation)
