"""Tubes: typed messages and descriptors between processes that do not trust each other.

The one door of this room. It owns: the packet format, everything that happens on a Tube's socket, and the
knowledge of which process is at the other side. It knows nothing of devices, workers or policies.

Layers, each importing only what stands before it: errors, packet, peer (pure); spawning, descriptor, process,
scm, memfd, waiting, notifiers (system calls); parcel, handover, intake, end (the shell under all Tubes);
flush, face; codec_fds, proto, tube, codec; pipe, broker. The theory of ``target_pid`` is in ``peer``. Pages:
unix(7), cmsg(3), epoll(7), memfd_create(2), pidfd_open(2).

Of what this imports, the standard library's dataclasses and typing cost the most. msgspec comes with the
first typed message, protobuf with the first message type; asyncio, multiprocess and logging do not come at
all.
"""

from __future__ import annotations

from supervisor.tube.broker import (
    DescriptorBroker,
    DuplicateHandleTube,
    DuplicateReply,
    DuplicateRequest,
    HandedDescriptor,
)
from supervisor.tube.descriptor import Descriptor, Eventfd
from supervisor.tube.errors import (
    BadDescriptor,
    Closed,
    DescriptorsLost,
    Disconnected,
    MalformedMessage,
    MessageTooLarge,
    NotHandedOn,
    NotSendable,
    QueueFull,
    TooManyFds,
    TruncatedMessage,
    TubeError,
    TubeSystemError,
    TubeTimeout,
    Undelivered,
    UnexpectedFds,
    UnknownProcess,
    WouldBlock,
    WrongPeer,
)
from supervisor.tube.flush import FlushOnDropTube
from supervisor.tube.packet import MAX_FDS_DEFAULT, MAX_FDS_KERNEL, MAX_MESSAGE_BYTES, MAX_PACKET_BYTES
from supervisor.tube.pipe import PipeTube
from supervisor.tube.proto import ProtoTube, Received
from supervisor.tube.tube import RecvTube, SendTube, Tube

__all__ = [
    "BadDescriptor",
    "Closed",
    "Descriptor",
    "DescriptorBroker",
    "DescriptorsLost",
    "Disconnected",
    "DuplicateHandleTube",
    "DuplicateReply",
    "DuplicateRequest",
    "Eventfd",
    "FlushOnDropTube",
    "HandedDescriptor",
    "MAX_FDS_DEFAULT",
    "MAX_FDS_KERNEL",
    "MAX_MESSAGE_BYTES",
    "MAX_PACKET_BYTES",
    "MalformedMessage",
    "MessageTooLarge",
    "NotHandedOn",
    "NotSendable",
    "PipeTube",
    "ProtoTube",
    "QueueFull",
    "Received",
    "RecvTube",
    "SendTube",
    "TooManyFds",
    "TruncatedMessage",
    "Tube",
    "TubeError",
    "TubeSystemError",
    "TubeTimeout",
    "Undelivered",
    "UnexpectedFds",
    "UnknownProcess",
    "WouldBlock",
    "WrongPeer",
]
