"""A message on its way, between the codecs above and the end below.

``Outgoing``, ``Arrived``, ``EndDescriptor``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisor.tube.descriptor import Descriptor, close_all

if TYPE_CHECKING:
    from supervisor.tube.end import End
    from supervisor.tube.packet import Kind, Shape
    from supervisor.tube.peer import PeerView, Process

__all__ = ["Arrived", "EndDescriptor", "Outgoing"]


class EndDescriptor(Descriptor):
    """A received descriptor that is an end of a Tube.

    ``Tube(d)``, ``ProtoTube(d)``, ... make it one again.
    """

    __slots__ = ("shape", "view")

    def __init__(self, fd: int, shape: Shape, view: PeerView) -> None:
        super().__init__(fd)
        self.shape = shape
        self.view = view


@dataclass(slots=True)
class Outgoing:
    """A message's bytes, its descriptors (still the sender's), and which of them are ends of Tubes."""

    kind: Kind
    body: bytes | memoryview
    fds: list[int] = field(default_factory=list)
    ends: list[tuple[int, Shape, End]] = field(default_factory=list)  # (index in fds, shape, end)


@dataclass(slots=True)
class Arrived:
    """An accepted packet; ``descriptors`` are the message's own, those of the packet itself are closed."""

    kind: Kind
    body: bytes | memoryview
    descriptors: list[Descriptor]
    sender: Process | None
    pidfd: Descriptor | None

    def close(self) -> None:
        """Close every descriptor that is still owned here."""
        close_all(self.descriptors)
        if self.pidfd is not None:
            self.pidfd.close()
