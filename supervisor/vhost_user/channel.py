"""What a device asks of its VMM, over the channel of SET_BACKEND_REQ_FD: a socket, or a pipe to write to.

Nothing here waits, and nothing is answered. What a VMM has handed over may be anything.
"""

from __future__ import annotations

import os
import socket

from supervisor.tube.descriptor import Descriptor
from supervisor.vhost_user.errors import VhostUserError
from supervisor.vhost_user.messages import Header
from supervisor.vhost_user.requests import BackEndRequest
from supervisor.vhost_user.wire import PipeWire, SocketWire, is_pipe

__all__ = ["tell_config_change"]


def tell_config_change(channel: Descriptor) -> str:
    """Says that the configuration space is another one; returns what hinders it, or nothing.

    Where there is no room the VMM has not read that of a change before: it is to read the space once it does.
    """
    try:
        wire = _wire(Descriptor(os.dup(channel.fileno())))
    except (VhostUserError, OSError) as error:
        return str(error)
    try:
        wire.send_some([Header(BackEndRequest.CONFIG_CHANGE_MSG).pack()], ())
    except (VhostUserError, OSError) as error:
        return str(error)
    finally:
        wire.close()
    return ""


def _wire(owned: Descriptor) -> PipeWire | SocketWire:
    if is_pipe(owned.fileno()):
        return PipeWire(owned)
    sock = socket.socket(fileno=owned.detach())
    try:
        return SocketWire(sock)
    except VhostUserError:
        sock.close()
        raise
