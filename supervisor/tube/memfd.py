"""Bodies that do not fit into a packet: a sealed memfd.

The sender writes the body, then seals it against shrinking, growing, writing and further sealing. The
receiver checks the seals *before* it looks at the size or reads a byte: without them the sender could change
the content while it is parsed, or truncate it and kill a receiver that maps it. The size is bounded before
memory is allocated. Page: memfd_create(2), fcntl(2) F_ADD_SEALS.
"""

from __future__ import annotations

import fcntl
import os

from supervisor.tube.descriptor import Descriptor
from supervisor.tube.errors import MalformedMessage, TubeSystemError
from supervisor.tube.packet import MAX_MESSAGE_BYTES

__all__ = ["SEALS", "read_sealed", "write_sealed"]

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def write_sealed(body: bytes | memoryview) -> Descriptor:
    """Return a sealed memfd with this content. Raises TubeSystemError."""
    try:
        memfd = Descriptor(os.memfd_create("tube-body", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        raise TubeSystemError("memfd_create failed") from error
    try:
        rest = memoryview(body)
        while rest:
            rest = rest[os.write(memfd.fileno(), rest) :]
        fcntl.fcntl(memfd.fileno(), fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        memfd.close()
        raise TubeSystemError("a memfd could not be filled and sealed") from error
    return memfd


def read_sealed(memfd: Descriptor, body_bytes: int) -> bytes:
    """Return the content of a peer's memfd, which must be ``body_bytes`` long and sealed. Does not close it.

    Raises MalformedMessage, TubeSystemError.
    """
    fd = memfd.fileno()
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise MalformedMessage("the body's descriptor is not a memfd") from error
    if seals & SEALS != SEALS:
        raise MalformedMessage("the body's memfd is not sealed")
    size = os.fstat(fd).st_size
    if size != body_bytes or size > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"the body's memfd holds {size} bytes, its packet says {body_bytes}")
    try:
        # Sealed against shrinking and far below the 2 GiB of one read(2): it comes whole.
        body = os.pread(fd, size, 0)
    except OSError as error:
        raise TubeSystemError("the body's memfd could not be read") from error
    if len(body) != size:
        raise MalformedMessage(f"the body's memfd gave {len(body)} bytes of {size}")
    return body
