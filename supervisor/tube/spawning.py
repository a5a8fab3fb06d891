"""Passing a Tube's end at the start of a process, through the pickler of ``multiprocess`` or
``multiprocessing``.

``Face.__reduce__`` and ``Descriptor.__reduce__`` come here. This room never imports either package: it asks
those that are already loaded whether one is starting a process right now. Outside of that, pickling is
refused: the packages would answer it by starting a thread and a listening socket, and a plain pickle would
copy a bare number.

A started process has no pid yet when its arguments are pickled, so an end is handed over to "whoever speaks
first" (peer.py, 7); the spawner may set ``target_pid`` afterwards. Received descriptors arrive inheritable
from these packages and become close-on-exec when they are wrapped; otherwise anything the child executes
would hold the Tube open.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from supervisor.tube.errors import NotSendable

if TYPE_CHECKING:
    from supervisor.tube.descriptor import Descriptor
    from supervisor.tube.face import Face
    from supervisor.tube.peer import PeerView

__all__ = ["rebuild_descriptor", "rebuild_face", "reduce_descriptor", "reduce_face"]

_PACKAGES = ("multiprocess", "multiprocessing")


def _dup_for_child(fd: int) -> Any:
    """Return what a child turns into a descriptor again.

    Raises NotSendable unless a process is being started.
    """
    for package in _PACKAGES:
        context = sys.modules.get(f"{package}.context")
        if context is not None and context.get_spawning_popen() is not None:
            reduction: Any = sys.modules[f"{package}.reduction"]
            return reduction.DupFd(fd)
    raise NotSendable("a descriptor travels in a message or at the start of a process; it cannot be pickled")


def reduce_descriptor(descriptor: Descriptor) -> tuple[object, ...]:
    """Return how the child makes the descriptor again. Raises NotSendable, Closed."""
    return rebuild_descriptor, (type(descriptor), _dup_for_child(descriptor.fileno()))


def rebuild_descriptor(cls: type[Descriptor], fd: Any) -> Descriptor:
    """Make the descriptor again, in the child."""
    return cls(fd.detach())


def reduce_face(face: Face) -> tuple[object, ...]:
    """Return how the child makes the face again, and hand the end over.

    Raises NotSendable, Closed, QueueFull.
    """
    fd = _dup_for_child(face.fileno())
    view = face.end.view.travelling()
    face.end.hand_over(face.shape, None)
    return rebuild_face, (type(face), fd, view)


def rebuild_face(cls: type[Face], fd: Any, view: PeerView) -> Face:
    """Make the face again, in the child."""
    return cls.with_view(fd.detach(), view)
