"""The supervisor under asyncio: the loop watches one descriptor and one deadline, nothing else changes.

Requests have awaitable variants, which let other tasks run while a worker answers or is replaced.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from supervisor.errors import DeviceFault, LocalError
from supervisor.remote import RemoteHandle
from supervisor.worker.records import InputKind

if TYPE_CHECKING:
    from supervisor.handle import DeviceHandle
    from supervisor.host import Supervisor
    from supervisor.policy.records import Outcome

__all__ = ["AsyncDevice", "run_under_asyncio"]


async def run_under_asyncio(supervisor: Supervisor) -> Outcome:
    """Dispatches until the supervisor has ended; cancelling it leaves the devices running."""
    loop = asyncio.get_running_loop()
    awake = asyncio.Event()
    fd = supervisor.fileno()  # the supervisor may be closed before this task learns of its end
    loop.add_reader(fd, awake.set)
    supervisor._on_change(awake.set)  # other tasks run while this one sleeps
    try:
        while supervisor.outcome is None:
            supervisor.dispatch(0)
            timeout = supervisor.next_timeout()
            awake.clear()
            try:
                async with asyncio.timeout(timeout):
                    await awake.wait()
            except TimeoutError:
                pass
    finally:
        supervisor._on_change(None)
        loop.remove_reader(fd)
    return supervisor.outcome


class AsyncDevice:
    """Awaitable requests to a device. They are answered while ``await sup.run()`` goes on in some task."""

    def __init__(self, handle: DeviceHandle) -> None:
        self._handle = handle

    async def read(self, offset: int, size: int) -> int:
        """Reads ``size`` bytes at ``offset``; see ``DeviceHandle.read``."""
        if not isinstance(self._handle, RemoteHandle):
            return self._handle.read(offset, size)
        reply = await self._submit(InputKind.READ, offset=offset, size=size)
        return int.from_bytes(reply, "little")

    async def write(self, offset: int, size: int, value: int) -> None:
        """Writes ``value``, ``size`` bytes, at ``offset``; returns when the device has taken it."""
        if isinstance(self._handle, RemoteHandle):
            await self._submit(InputKind.WRITE, offset=offset, size=size, value=value)
        else:
            self._handle.write(offset, size, value)

    async def call_bytes(self, request: bytes) -> bytes:
        """A request of the device's own protocol."""
        if not isinstance(self._handle, RemoteHandle):
            return self._handle.call_bytes(request)
        return await self._submit(InputKind.CALL, payload=request)

    async def call(self, request: Any, reply_type: Any = None) -> Any:
        """A protobuf request; the reply is parsed as ``reply_type`` (default: the request's own type)."""
        reply = (reply_type or type(request))()
        reply.ParseFromString(await self.call_bytes(request.SerializeToString()))
        return reply

    async def _submit(self, kind: InputKind, **what: Any) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def done(answer: bytes | DeviceFault) -> None:
            if future.cancelled():
                return
            if isinstance(answer, DeviceFault):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        if not isinstance(self._handle, RemoteHandle):
            raise LocalError(f"{self._handle.name} is in this process and answers at once")
        self._handle.submit(kind, done, **what)
        return await future
