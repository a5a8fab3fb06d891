"""A test bench: one device, guest time in hand, its bytes and its interrupt line.

The same bench drives a device in this process and one in a worker, so one test speaks for both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from supervisor.device import NO_ALARM
from supervisor.handle import DeviceHandle, LocalHandle
from supervisor.host import Supervisor
from supervisor.worker.session import Launch
from tests.chaos import board

MODES = ["here", "worker"]


class Bench:
    """``read`` and ``write`` are 32-bit accesses; ``advance`` lets guest time pass, alarm by alarm."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.emitted = b""
        self.device: DeviceHandle

    def read(self, offset: int) -> int:
        return self.device.read(offset, 4)

    def write(self, offset: int, value: int = 1) -> None:
        self.device.write(offset, 4, value)

    def irq(self) -> bool:
        return bool(self.device.irq_levels)

    @property
    def output(self) -> bytes:
        """Everything emitted so far."""
        self.device.flush()
        self.device.deliver_outputs()
        return self.emitted

    def advance(self, nanoseconds: int) -> int:
        """Lets so much time pass; returns how many alarms there were."""
        end_ns = self.now_ns + nanoseconds
        alarms = 0
        while self.device.next_alarm_ns <= end_ns:
            self.now_ns = self.device.next_alarm_ns
            self.device.deliver_alarm(self.now_ns)
            alarms += 1
        self.now_ns = end_ns
        return alarms

    @property
    def waits(self) -> bool:
        """True if an alarm is set."""
        return self.device.next_alarm_ns != NO_ALARM

    def _take(self, data: bytes) -> None:
        self.emitted += data


def local(device_class: Any, **options: Any) -> Bench:
    """A bench for a device in this process."""
    bench = Bench()
    bench.device = LocalHandle(device_class, Launch(name="dut", options=options), lambda: bench.now_ns)
    bench.device.on_output(bench._take)
    return bench


@contextlib.contextmanager
def in_mode(mode: str, device: str, options: str = "{}") -> Iterator[tuple[Supervisor, Bench]]:
    """A bench for the device called ``device``, in this process or in a worker."""
    in_process = "true" if mode == "here" else "false"
    config = board(
        f"name: dut, device: {device}, options: {options}, backoff: {{max: 0s}}",
        supervisor=f"in_process: {in_process}, intensity: 100000, period: 1s",
    )
    bench = Bench()
    supervisor = Supervisor(config)
    supervisor.clock = lambda: bench.now_ns
    with supervisor as sup:
        bench.device = sup["dut"]
        bench.device.on_output(bench._take)
        yield sup, bench
