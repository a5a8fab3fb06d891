"""The bus: addresses to devices, as they stand in the configuration or were added. Pure lookup, no copying.

Errors: an address that belongs to nobody raises :class:`~supervisor.errors.LocalError`; what a real bus does
then (zeros, an abort) is the machine's to decide.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING

from supervisor.errors import LocalError

if TYPE_CHECKING:
    from supervisor.handle import DeviceHandle

__all__ = ["Bus"]


class Bus:
    """Routes reads and writes by absolute address (bytes) to device handles."""

    def __init__(self, handles: Iterable[DeviceHandle]) -> None:
        mapped = sorted(
            ((handle.mmio.base, handle) for handle in handles if handle.mmio is not None),
            key=lambda pair: pair[0],
        )
        self._bases = [base for base, _handle in mapped]
        self._handles = [handle for _base, handle in mapped]

    def add(self, handle: DeviceHandle) -> None:
        """A device more. One without addresses is not on the bus."""
        if handle.mmio is not None:
            index = bisect_left(self._bases, handle.mmio.base)
            self._bases.insert(index, handle.mmio.base)
            self._handles.insert(index, handle)

    def remove(self, handle: DeviceHandle) -> None:
        """Takes a device off the bus; one that is not on it is no error."""
        if handle in self._handles:
            index = self._handles.index(handle)
            del self._bases[index], self._handles[index]

    def taken(self, base: int, size: int) -> DeviceHandle | None:
        """A device that has an address within ``size`` bytes from ``base``, if there is one."""
        index = bisect_left(self._bases, base + size) - 1
        if index >= 0:
            handle = self._handles[index]
            if handle.mmio is not None and base < self._bases[index] + handle.mmio.size:
                return handle
        return None

    def find(self, address: int) -> tuple[DeviceHandle, int]:
        """The device at ``address`` and the offset inside it. Raises ``LocalError`` where there is none."""
        index = bisect_right(self._bases, address) - 1
        if index >= 0:
            handle = self._handles[index]
            offset = address - self._bases[index]
            if handle.mmio is not None and offset < handle.mmio.size:
                return handle, offset
        raise LocalError(f"no device at {address:#x}")

    def read(self, address: int, size: int) -> int:
        """Reads ``size`` bytes at ``address``."""
        handle, offset = self.find(address)
        return handle.read(offset, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Writes ``value``, ``size`` bytes, at ``address``."""
        handle, offset = self.find(address)
        handle.write(offset, size, value)
