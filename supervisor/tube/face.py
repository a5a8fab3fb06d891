"""What Tube, SendTube, RecvTube and ProtoTube have in common: an end, its life, its notifiers, its far side.

A face holds one use of an End; the socket closes with the last face of this process. Passing a face to a new
process through a pickler that spawns is ``spawning.py``'s business; passing it in a message is codec.py's and
proto.py's.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from supervisor.tube.end import End
from supervisor.tube.errors import Closed
from supervisor.tube.flush import flush
from supervisor.tube.parcel import EndDescriptor
from supervisor.tube.spawning import reduce_face

if TYPE_CHECKING:
    from typing import Self

    from supervisor.tube.descriptor import Descriptor
    from supervisor.tube.notifiers import CloseNotifier, ReadNotifier
    from supervisor.tube.packet import Shape
    from supervisor.tube.peer import PeerView, Process

__all__ = ["FACES", "Face"]

# Which class makes an end of each shape again at its receiver; filled by the classes themselves.
FACES: dict[Shape, type[Face]] = {}


class Face:
    """One process's handle of an end. Not created directly."""

    shape: ClassVar[Shape]

    def __init_subclass__(cls) -> None:
        if "shape" in cls.__dict__:
            FACES[cls.shape] = cls

    def __init__(self, source: End | Descriptor | socket.socket | int) -> None:
        """Take over a connected SOCK_SEQPACKET socket: a received Descriptor, a socket, or a number.

        Raises BadDescriptor when it is none; then it stays the caller's.
        """
        self._end: End | None = None
        end = source if isinstance(source, End) else End.adopt(source)
        self._end = end.attach()

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Take over a connected SOCK_SEQPACKET socket by its number. Raises BadDescriptor if it is none."""
        return cls(fd)

    @classmethod
    def with_view(cls, fd: int, view: PeerView) -> Self:
        """Take over an end together with what is known of its far side.

        Raises BadDescriptor if it is none.
        """
        return cls(EndDescriptor(fd, cls.shape, view))

    @property
    def end(self) -> End:
        """The end behind this face, for the rooms of the Tube. Raises Closed."""
        if self._end is None:
            raise Closed(f"this {type(self).__name__} was closed")
        return self._end

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._end is None

    def fileno(self) -> int:
        """Return the socket's number; still owned by this object. Raises Closed."""
        return self.end.sock.fileno()

    def close(self) -> None:
        """Close this face.

        Nothing happens the second time. The peer sees the end when every copy is closed.
        """
        end, self._end = self._end, None
        if end is not None:
            end.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The attribute is not there when __init__ was never reached.
        if getattr(self, "_end", None) is not None:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._end is None else f"fd={self.fileno()} target_pid={self._seen_pid()}"
        return f"<{type(self).__name__} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        return reduce_face(self)

    @property
    def read_notifier(self) -> ReadNotifier:
        """Readable (poll, select, epoll) while there is something to receive. Raises Closed."""
        return self.end.read_notifier()

    @property
    def close_notifier(self) -> CloseNotifier:
        """Readable (poll, select, epoll) when the peer is gone, and only then. Raises Closed."""
        return self.end.close_notifier()

    # -- the far side ----------------------------------------------------------------------------

    def _far_process(self) -> Process | None:
        return self.end.speaker()

    def _seen_pid(self) -> int | None:
        speaker = self.end.view.present_speaker()
        return None if speaker is None else speaker.pid

    @property
    def target_pid(self) -> int | None:
        """The process at the far side, numbered as in this process's pid namespace (0: it has no number
        there).

        None until it is known. Setting it means: from now on only packets of that process are accepted; None:
        of whoever speaks first. Follows hand-overs by itself, see peer.py. Raises Closed, WrongPeer.
        """
        far = self._far_process()
        return None if far is None else far.pid

    @target_pid.setter
    def target_pid(self, pid: int | None) -> None:
        self.end.expect(pid)

    def expect(self, pid: int | None) -> None:
        """Same as setting ``target_pid``, for the spawner of the peer."""
        self.end.expect(pid)

    def announce(self, pid: int | None) -> None:
        """Tell the far side that process ``pid`` holds *this* end from now on (None: whoever speaks first).

        Needed only when an end leaves without being sent in a message: before a fork, or as a bare number.
        Never waits. Raises QueueFull, UnknownProcess, Closed.
        """
        self.end.announce(self.shape, pid)

    @property
    def relays(self) -> bool:
        """Whether the process at the far side hands ends on by forking (a zygote).

        Ends sent through such a Tube are announced as "whoever speaks first" instead of as the far side's
        own.
        """
        return self.end.relays

    @relays.setter
    def relays(self, value: bool) -> None:
        self.end.relays = value

    # -- delivery --------------------------------------------------------------------------------

    def flush(self, timeout: float | None) -> None:
        """Wait, at most ``timeout`` seconds (None: for ever), until the peer has taken everything that was
        sent.

        Raises TubeTimeout (not everything is taken), Undelivered (the peer is gone and had not taken
        everything), Closed.
        """
        flush(self.end, timeout)
