"""A microcontroller board: a Cortex-M0 whose peripherals are the supervisor's devices.

The loop, which is what a machine owes its devices:

1. guest time catches up with the host, at most up to the next alarm (:mod:`machines.guest_time`);
2. ``dispatch`` delivers that alarm, carries outputs to their sinks, and lets the supervisor see to its
   processes;
3. the CPU runs a slice: interrupt levels are polled, the most urgent exception is entered, and so on until
   the instructions are spent;
4. if the CPU sleeps, the board waits in ``dispatch`` for the next alarm or input.

Guest time stands still during a slice. Register accesses go straight to the devices' handles; the board
knows no device by its kind, only its ``mmio`` window and interrupt line from the configuration.
"""

from __future__ import annotations

import time

from machines.console import Console
from machines.cortex_m import CortexM, Stop
from machines.guest_time import GuestClock
from supervisor import Supervisor
from supervisor.handle import DeviceHandle

__all__ = ["Board"]

EXIT_FAILED = 1
SLICE_INSTRUCTIONS = 20_000  # 85 µs of plain code, but 6 ms where every third one is a register access
SLICE_INSTRUCTIONS_MIN = 1_000
SLICE_NS = 1_000_000  # a slice that takes longer is too long: guest time and interrupts wait for its end
EXCEPTIONS_MAX = 64  # in one slice; more is a line that nobody lowers
SLEEP_MAX_NS = 1_000_000_000  # so a slice that happens to end behind a WFI that was jumped over does no harm


class Board:
    """Wires devices and core together; ``run`` returns the exit code once the console has ended."""

    def __init__(self, supervisor: Supervisor, console: Console) -> None:
        self._sup = supervisor
        self._console = console
        self._instructions = SLICE_INSTRUCTIONS
        self.clock = GuestClock(time.monotonic_ns)
        supervisor.clock = self.clock.now
        self.core = CortexM(self.clock.now)
        self._lines: list[tuple[int, DeviceHandle]] = []
        for handle in supervisor.devices.values():
            if handle.mmio is None:
                continue
            self.core.map_device(handle.mmio.base, handle.mmio.size, handle.read, handle.write)
            if handle.mmio.irq is not None:
                self._lines.append((1 << handle.mmio.irq, handle))

    def run(self) -> int:
        """Runs the guest from its reset vector. Raises what a device or a signal makes it raise."""
        with self._console:
            self.core.reset()
            asleep = False
            while not self._console.ended:
                if self._sup.outcome is not None:
                    return EXIT_FAILED  # a guest that sleeps would never learn that its devices are gone
                if asleep:
                    self._sleep()
                self._let_time_pass(asleep=asleep)
                asleep = self._run_slice() is Stop.SLEEPS
                if self.core.nvic.reset_requested:
                    self.core.reset()
                self.after_slice()
        return 0

    def after_slice(self) -> None:
        """For boards that have to tidy up after the guest's stores."""

    def _run_slice(self) -> Stop:
        """Runs a slice, and fits the length of the next one to the time that this one took.

        A return from an exception does not end it: the interrupted code gets its turn before time goes on,
        or interrupts that come fast (bytes at a serial port) would starve it.
        """
        core = self.core
        for _ in range(EXCEPTIONS_MAX):
            core.nvic.sample(self._levels())
            if core.nvic.pending:
                core.take_exception()
            begun_ns = time.monotonic_ns()
            stop = core.run_slice(self._instructions)
            if stop is not Stop.RETURNED:
                break
        if stop is Stop.SPENT:
            if time.monotonic_ns() - begun_ns > SLICE_NS:
                self._instructions = max(SLICE_INSTRUCTIONS_MIN, self._instructions // 2)
            elif self._instructions < SLICE_INSTRUCTIONS:
                self._instructions += SLICE_INSTRUCTIONS_MIN
        return stop

    def _let_time_pass(self, *, asleep: bool) -> None:
        nvic = self.core.nvic
        systick_ns = nvic.systick.next_ns()
        self.clock.advance(min(self._sup.next_alarm_ns(), systick_ns), asleep=asleep)
        if nvic.systick.advance(self.clock.now_ns):
            nvic.pend_systick()
        self._sup.dispatch(0)
        self._console.type_ahead(self.clock.now_ns, idle=asleep)

    def _levels(self) -> int:
        levels = 0
        for mask, handle in self._lines:
            if handle.irq_levels:
                levels |= mask
        return levels

    def _sleep(self) -> None:
        """The guest waits for an interrupt: so does the board, unless one is there already.

        It may wake the guest for no reason, as the architecture allows: the guest then waits again.
        """
        alarm_ns = min(self._sup.next_alarm_ns(), self.core.nvic.systick.next_ns())
        wait_ns = min(alarm_ns - self.clock.now_ns, SLEEP_MAX_NS)
        if wait_ns > 0 and not self._levels():
            self._sup.dispatch(wait_ns / 1e9)
