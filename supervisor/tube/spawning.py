"""Passing a Tube's end at the start of a process, through the pickler of ``multiprocess`` or
``multiprocessing``.

``Face.__reduce__`` comes here. This room never imports either package: it asks those that are already loaded
whether one is starting a process right now. Outside of that, pickling an end is refused: the packages would
answer it by starting a thread and a listening socket.

A started process has no pid yet when its arguments are pickled, so the end is handed over to "whoever speaks
first" (peer.py, 6); the spawner may set ``target_pid`` afterwards. Received descriptors arrive inheritable
from these packages and are made close-on-exec here; otherwise anything the child executes would hold the Tube
open.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from supervisor.tube.errors import NotSendable
from supervisor.tube.parcel import EndDescriptor
from supervisor.tube.peer import PeerView

if TYPE_CHECKING:
    from supervisor.tube.face import Face

__all__ = ["rebuild_face", "reduce_face"]

_PACKAGES = ("multiprocess", "multiprocessing")


def reduce_face(face: Face) -> tuple[object, ...]:
    """Return how the child rebuilds the face.

    Raises NotSendable unless a process is being started, Closed.
    """
    for package in _PACKAGES:
        context = sys.modules.get(f"{package}.context")
        if context is None or context.get_spawning_popen() is None:
            continue
        reduction: Any = sys.modules[f"{package}.reduction"]
        end = face.end
        view = end.view.travelling()
        end.hand_over(face.shape, None)
        return rebuild_face, (type(face), reduction.DupFd(face.fileno()), view)
    raise NotSendable("a Tube travels in a message or at the start of a process; it cannot be pickled")


def rebuild_face(cls: type[Face], fd: Any, view: PeerView) -> Face:
    """Make the face again, in the child."""
    return cls(EndDescriptor(fd.detach(), cls.shape, view))
