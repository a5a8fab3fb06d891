"""One VMM's connection, as its keeper has it: what it has sent and set up, and is still to be told."""

from __future__ import annotations

import select
from collections import deque
from typing import Protocol

from supervisor.vhost_user.assembler import Assembler, Message, Outbox
from supervisor.vhost_user.setup import Setup
from supervisor.vhost_user.wire import SocketWire

__all__ = ["MAX_WAITING", "Connection"]

MAX_WAITING = 16  # messages taken at a time: with 32 descriptors each, they leave room in a table of 1,024


class Deadline(Protocol):
    """What happens at some time, unless it is taken back."""

    def cancel(self) -> None: ...


class Connection:
    """Owns the socket, and every descriptor that has come over it."""

    def __init__(self, wire: SocketWire, setup: Setup) -> None:
        self.wire = wire
        self.setup = setup
        self.assembler = Assembler(unknown_pass=True)
        self.outbox = Outbox()
        self.waiting: deque[Message] = deque()
        self.wanted = int(select.EPOLLIN)  # what its socket is watched for
        self.deadline: Deadline | None = None  # of a message that has begun

    @property
    def has_enough(self) -> bool:
        """True while no more is taken from the VMM than it has asked already."""
        return len(self.waiting) >= MAX_WAITING

    def is_deserted(self) -> bool:
        """True if the VMM has gone, whatever it has left to be read."""
        poll = select.poll()
        poll.register(self.wire.fileno(), 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Gives everything back."""
        if self.deadline is not None:
            self.deadline.cancel()
        self.setup.release()
        self.close_discarded()
        for message in self.waiting:
            message.close()
        self.waiting.clear()
        self.outbox.close()
        self.assembler.close()
        self.wire.close()

    def close_discarded(self) -> None:
        """Closes what the set-up has no use for any more; it only lets go."""
        for descriptor in self.setup.discarded:
            if descriptor is not None:
                descriptor.close()
        self.setup.discarded.clear()
