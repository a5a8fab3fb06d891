"""The VMM's side of a connection: every request as a method, each with its reply.

For tests, and for programs that use somebody else's back-end. Blocking: each call ends within ``timeout``
seconds. With ``need_reply`` every request that has no answer of its own asks for one, and a "no" is raised;
without it such a request is only sent. What the methods send is what a well-behaved front-end sends; to send
anything else, use ``endpoint``.

Besides what stands with a method, each raises BackEndRefused, Disconnected, PartialMessage, InvalidMessage
and its kin, WireTimeout. A reply that came too late would be taken for that of the next request, so after any
of these but BackEndRefused the connection is closed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from supervisor.tube.descriptor import Descriptor
from supervisor.vhost_user.areas import Inflight, Log, MemoryTable, Region, SingleRegion
from supervisor.vhost_user.assembler import Message
from supervisor.vhost_user.endpoint import Endpoint
from supervisor.vhost_user.errors import BackEndRefused, InvalidMessage, Unsendable
from supervisor.vhost_user.messages import U64, Config, Empty, Header, Payload, VringAddr, VringFd, VringState
from supervisor.vhost_user.requests import MAX_CONFIG_BYTES, FrontEndRequest
from supervisor.vhost_user.rules import FRONT_END_RULES, Answer
from supervisor.vhost_user.stream import Fd

if TYPE_CHECKING:
    from typing import Self

__all__ = ["FrontEnd"]

_F = FrontEndRequest


class FrontEnd:
    """Speaks to the back-end at ``target``: a path, or a connected stream socket (taken over)."""

    def __init__(
        self,
        target: str | os.PathLike[str] | socket.socket,
        *,
        timeout: float | None = 5.0,
        need_reply: bool = False,
    ) -> None:
        if isinstance(target, socket.socket):
            self.endpoint = Endpoint(target, timeout=timeout)
        else:
            self.endpoint = Endpoint.connect(os.fspath(target), timeout=timeout)
        self.need_reply = need_reply

    def close(self) -> None:
        self.endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(
        self,
        request: FrontEndRequest,
        payload: Payload | None = None,
        fds: Sequence[Fd] = (),
        *,
        need_reply: bool | None = None,
    ) -> tuple[Any, list[Descriptor]]:
        """Send a request; return its reply's payload and descriptors, (None, []) when none is due.

        ``need_reply`` overrides the front-end's own for this request. Raises Unsendable.
        """
        body = Empty() if payload is None else payload
        rule = FRONT_END_RULES[request]
        wants = self.need_reply if need_reply is None else need_reply
        header = Header(request, len(body.pack()), need_reply=wants and rule.answer is not Answer.ALWAYS)
        try:
            self.endpoint.send_message(header, body, fds)
            if not rule.is_answered(header, len(fds)):
                return None, []
            return self._reply(header, self.endpoint.recv_reply(header))
        except (BackEndRefused, Unsendable):
            raise
        except BaseException:
            self.close()
            raise

    def _reply(self, header: Header, message: Message) -> tuple[Any, list[Descriptor]]:
        value = message.decode_reply(header)
        is_ack = FRONT_END_RULES[header.request].answer is Answer.IF_ASKED
        if is_ack and value.value:
            raise BackEndRefused(FrontEndRequest(header.request).name, value.value)
        return value, message.take()

    def _number(self, request: FrontEndRequest) -> int:
        value, _none = self.request(request)
        return int(value.value)

    # -- negotiation -------------------------------------------------------------------------------

    def get_features(self) -> int:
        return self._number(_F.GET_FEATURES)

    def set_features(self, features: int) -> None:
        self.request(_F.SET_FEATURES, U64(features))

    def get_protocol_features(self) -> int:
        return self._number(_F.GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, features: int) -> None:
        self.request(_F.SET_PROTOCOL_FEATURES, U64(features))

    def set_owner(self) -> None:
        self.request(_F.SET_OWNER)

    def reset_owner(self) -> None:
        self.request(_F.RESET_OWNER)

    def reset_device(self) -> None:
        self.request(_F.RESET_DEVICE)

    def get_status(self) -> int:
        return self._number(_F.GET_STATUS)

    def set_status(self, status: int) -> None:
        self.request(_F.SET_STATUS, U64(status))

    def get_queue_num(self) -> int:
        return self._number(_F.GET_QUEUE_NUM)

    def set_backend_req_fd(self, channel: Fd) -> None:
        """Give the back-end a channel for requests of its own: a socket, or a pipe to write to."""
        self.request(_F.SET_BACKEND_REQ_FD, None, [channel])

    # -- memory ------------------------------------------------------------------------------------

    def set_mem_table(self, regions: Sequence[Region], fds: Sequence[Fd]) -> None:
        """Replace the memory table; one descriptor a region."""
        self.request(_F.SET_MEM_TABLE, MemoryTable(tuple(regions)), fds)

    def get_max_mem_slots(self) -> int:
        return self._number(_F.GET_MAX_MEM_SLOTS)

    def add_mem_reg(self, region: Region, fd: Fd) -> None:
        self.request(_F.ADD_MEM_REG, SingleRegion(region), [fd])

    def rem_mem_reg(self, region: Region) -> None:
        self.request(_F.REM_MEM_REG, SingleRegion(region))

    def set_log_base(self, mmap_size: int, mmap_offset: int, fd: Fd | None = None) -> None:
        """Say where the dirty log is; with a descriptor (LOG_SHMFD) the back-end answers."""
        self.request(_F.SET_LOG_BASE, Log(mmap_size, mmap_offset), _as_list(fd))

    def set_log_fd(self, fd: Fd) -> None:
        self.request(_F.SET_LOG_FD, None, [fd])

    # -- rings -------------------------------------------------------------------------------------

    def set_vring_num(self, index: int, entries: int) -> None:
        self.request(_F.SET_VRING_NUM, VringState(index, entries))

    def set_vring_addr(self, addresses: VringAddr) -> None:
        self.request(_F.SET_VRING_ADDR, addresses)

    def set_vring_base(self, index: int, base: int) -> None:
        self.request(_F.SET_VRING_BASE, VringState(index, base))

    def get_vring_base(self, index: int) -> int:
        """Stop a ring; return the place of the entry that it would have taken next."""
        state, _none = self.request(_F.GET_VRING_BASE, VringState(index, 0))
        if state.index != index:
            self._refuse(_F.GET_VRING_BASE, f"ring {state.index} where {index} was asked for")
        return int(state.num)

    def set_vring_kick(self, index: int, fd: Fd | None) -> None:
        """Say where the driver's kicks come from; None: the device has to look by itself."""
        self.request(_F.SET_VRING_KICK, VringFd(index, fd is not None), _as_list(fd))

    def set_vring_call(self, index: int, fd: Fd | None) -> None:
        """Say where interrupts go; None for none."""
        self.request(_F.SET_VRING_CALL, VringFd(index, fd is not None), _as_list(fd))

    def set_vring_err(self, index: int, fd: Fd | None) -> None:
        """Say where errors go; None for none."""
        self.request(_F.SET_VRING_ERR, VringFd(index, fd is not None), _as_list(fd))

    def set_vring_enable(self, index: int, enabled: bool) -> None:
        self.request(_F.SET_VRING_ENABLE, VringState(index, int(enabled)))

    def set_vring_endian(self, index: int, is_big: bool) -> None:
        self.request(_F.SET_VRING_ENDIAN, VringState(index, int(is_big)))

    def vring_kick(self, index: int) -> None:
        """Kick a ring in-band (INBAND_NOTIFICATIONS)."""
        self.request(_F.VRING_KICK, VringState(index, 0))

    # -- configuration space -----------------------------------------------------------------------

    def get_config(self, offset: int, size: int, flags: int = 0) -> bytes:
        """Return ``size`` bytes of the configuration space. Raises BackEndRefused, Unsendable."""
        if not 0 < size <= MAX_CONFIG_BYTES:
            raise Unsendable(f"{size} bytes of configuration, the limit is {MAX_CONFIG_BYTES}")
        config, _none = self.request(_F.GET_CONFIG, Config(offset, bytes(size), flags))
        if config.offset != offset or len(config.data) != size:
            self._refuse(
                _F.GET_CONFIG, f"({config.offset}, {len(config.data)}) where ({offset}, {size}) was asked for"
            )
        return bytes(config.data)

    def set_config(self, offset: int, data: bytes, flags: int = 0) -> None:
        self.request(_F.SET_CONFIG, Config(offset, data, flags))

    # -- in-flight log -----------------------------------------------------------------------------

    def get_inflight_fd(self, queue_count: int, queue_size: int) -> tuple[Inflight, Descriptor | None]:
        """Ask the back-end for an in-flight log; None when it keeps none. The caller owns the descriptor."""
        log, descriptors = self.request(_F.GET_INFLIGHT_FD, Inflight(0, 0, queue_count, queue_size))
        return log, descriptors[0] if descriptors else None

    def set_inflight_fd(self, log: Inflight, fd: Fd) -> None:
        """Give a log back to a back-end that has taken over."""
        self.request(_F.SET_INFLIGHT_FD, log, [fd])

    # -- network devices ---------------------------------------------------------------------------

    def send_rarp(self, mac: int) -> None:
        self.request(_F.SEND_RARP, U64(mac))

    def net_set_mtu(self, mtu_bytes: int) -> None:
        self.request(_F.NET_SET_MTU, U64(mtu_bytes))

    def _refuse(self, request: FrontEndRequest, what: str) -> None:
        self.close()
        raise InvalidMessage(what, request.name)


def _as_list(fd: Fd | None) -> list[Fd]:
    return [] if fd is None else [fd]
