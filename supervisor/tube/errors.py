"""What can go wrong with a Tube, sorted by blame (the tree in ``supervisor.errors``).

    TubeError
    ├── our caller (also LocalError, a ValueError)
    │   ├── Closed             this end was closed by us
    │   ├── MessageTooLarge    more bytes than MAX_MESSAGE_BYTES
    │   ├── TooManyFds         more descriptors than a packet may carry
    │   ├── BadDescriptor      a descriptor to be sent is not open
    │   ├── NotSendable        an object in the message is neither data nor the owner of a descriptor
    │   └── UnknownProcess     the process that was named does not exist, or nobody serves it
    ├── the peer (also PeerError)
    │   ├── Disconnected       it is gone, and everything it sent has been received
    │   │   └── Undelivered    it is gone and had not taken everything that we sent
    │   ├── TruncatedMessage   bytes or descriptors of its message were lost
    │   │   └── DescriptorsLost    ... because our own table is full (also EnvironmentFault)
    │   ├── MalformedMessage   its bytes are not a message of the expected kind
    │   ├── UnexpectedFds      it sent descriptors where none, or fewer, are allowed
    │   ├── WrongPeer          the packet comes from another process than ``target_pid``
    │   └── NotHandedOn        a descriptor was not delivered to the process it was meant for
    ├── nobody
    │   └── TubeTimeout        the time is up (also a TimeoutError)
    │       └── WouldBlock     ... and no waiting was asked for (also a BlockingIOError)
    │           └── QueueFull      the peer does not take what it is sent
    └── the system (also EnvironmentFault)
        └── TubeSystemError    an OSError that is none of the above; it is the ``__cause__``

After any of these, except Closed, Disconnected and TruncatedMessage on a PipeTube, the Tube can be used
further: a refused packet is consumed, and its descriptors are closed.
"""

from __future__ import annotations

import errno

from supervisor.errors import EnvironmentFault, LocalError, PeerError, TubevisorError

__all__ = [
    "BadDescriptor",
    "Closed",
    "DescriptorsLost",
    "Disconnected",
    "MalformedMessage",
    "MessageTooLarge",
    "NotHandedOn",
    "NotSendable",
    "QueueFull",
    "TooManyFds",
    "TruncatedMessage",
    "TubeError",
    "TubeSystemError",
    "TubeTimeout",
    "Undelivered",
    "UnexpectedFds",
    "UnknownProcess",
    "WouldBlock",
    "WrongPeer",
]


class TubeError(TubevisorError):
    """Root of everything a Tube raises on purpose."""


class Closed(TubeError, LocalError):
    """This end was closed on our side, or has been given away as a whole."""


class MessageTooLarge(TubeError, LocalError):
    """The message is larger than MAX_MESSAGE_BYTES. Nothing was sent."""


class TooManyFds(TubeError, LocalError):
    """More descriptors than allowed were to be sent or asked for. No system call was made."""


class BadDescriptor(TubeError, LocalError):
    """A descriptor to be sent is not open, or one to be used as an end of a Tube is no such socket."""


class NotSendable(TubeError, LocalError):
    """An object in a message is neither plain data nor the owner of a descriptor. Nothing was sent."""


class UnknownProcess(TubeError, LocalError):
    """The named process does not exist or is not one that we serve."""


class Disconnected(TubeError, PeerError):
    """The peer is gone. What it sent before has been received."""


class Undelivered(Disconnected):
    """The peer is gone and left unread what we had sent."""


class TruncatedMessage(TubeError, PeerError):
    """Part of a message was lost: bytes (MSG_TRUNC), descriptors (MSG_CTRUNC), or the rest of a stream."""


class DescriptorsLost(TruncatedMessage, EnvironmentFault):
    """Descriptors of a message were lost (MSG_CTRUNC) because our own table of them is full."""


class MalformedMessage(TubeError, PeerError):
    """What arrived is not a message that was expected here. It was consumed, its descriptors are closed."""


class UnexpectedFds(TubeError, PeerError):
    """A message carried more descriptors than the receiver allows. It was consumed, they are closed."""


class WrongPeer(TubeError, PeerError):
    """A packet was sent by another process than ``target_pid``.

    It was consumed, its descriptors are closed.
    """


class NotHandedOn(TubeError, PeerError):
    """The supervisor could not deliver a descriptor.

    The process it was meant for is gone, or takes nothing.
    """


class TubeTimeout(TubeError, TimeoutError):
    """The timeout passed."""

    def __init__(self, what: str, number: int = errno.ETIMEDOUT) -> None:
        super().__init__(number, what)


class WouldBlock(TubeTimeout, BlockingIOError):
    """``timeout=0`` was asked for and the call would have had to wait."""

    def __init__(self, what: str) -> None:
        super().__init__(what, errno.EAGAIN)


class QueueFull(WouldBlock):
    """The peer did not take its packets in time, so there is no room for one more. Nothing was sent."""


class TubeSystemError(TubeError, EnvironmentFault):
    """The kernel refused; the ``OSError`` is the cause."""
