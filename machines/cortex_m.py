"""A Cortex-M0 on Unicorn: memory, slices of instructions, and exceptions entered and left by hand.

Unicorn runs Thumb code but has no interrupt controller: it delivers no exception on a Cortex-M, and gives up
where the guest branches to the magic address that means "return from exception". So the machine runs the CPU
in slices and between two of them does what the hardware would (ARMv6-M Architecture Reference Manual, B1.5.6
and B1.5.8): push eight words, load LR with EXC_RETURN, go through the vector table; and back.

What an MMIO callback raises (a device that is gone, the command being interrupted) ends the slice and comes
out of ``run_slice`` unchanged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from machines._unicorn import arm, unicorn
from machines.nvic import HARD_FAULT, SVC, Nvic
from supervisor.errors import TubevisorError

__all__ = ["CortexM", "GuestCrashed", "Stop"]

SCS_BASE, SCS_BYTES = 0xE000_E000, 0x1000  # the system control space: NVIC, SCB, SysTick
EXC_RETURN_AT = 0xFFFF_FFF0
EXC_RETURN_HANDLER, EXC_RETURN_MAIN, EXC_RETURN_PROCESS = 0xFFFF_FFF1, 0xFFFF_FFF9, 0xFFFF_FFFD
NEVER_REACHED = 0xFFFF_FFFF  # Unicorn's "until": the guest ends for other reasons
FRAME = struct.Struct("<8I")  # R0-R3, R12, LR, return address, xPSR
ALIGNED_FRAME = 1 << 9  # in the stacked xPSR: four bytes of padding lie above the frame
XPSR_THUMB, IPSR_BITS, CONTROL_SPSEL = 1 << 24, 0x3F, 2
WFI, WFE, YIELD = 0xBF30, 0xBF20, 0xBF10
SVC_OPCODE = 0xDF

_FRAME_REGISTERS = [
    getattr(arm, f"UC_ARM_REG_{name}") for name in ("R0", "R1", "R2", "R3", "R12", "LR", "PC", "XPSR")
]


class GuestCrashed(TubevisorError):
    """The guest did something that no CPU can go on after."""


class Stop(Enum):
    """Why a slice has ended."""

    SPENT = auto()  # the instructions are used up
    SLEEPS = auto()  # WFI or WFE
    RETURNED = auto()  # an exception has returned, or has been entered by SVC


class CortexM:
    """The core; ``nvic`` is its exception logic, ``uc`` the emulator."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.nvic = Nvic()
        self._clock = clock
        self._raised: BaseException | None = None  # in a callback
        self.uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self.uc.ctl_set_cpu_model(arm.UC_CPU_ARM_CORTEX_M0)
        self.map_device(SCS_BASE, SCS_BYTES, self._read_scs, self._write_scs)

    # -- the address space -----------------------------------------------------------------------

    def map_memory(self, base: int, size: int, fill: bytes = b"\0") -> None:
        """Guest memory of the machine's own."""
        self.uc.mem_map(base, size)
        self.uc.mem_write(base, fill * (size // len(fill)))

    def map_device(
        self, base: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Registers: ``read(offset, size)`` and ``write(offset, size, value)`` are called within a slice."""

        def on_read(_uc: Any, offset: int, width: int, _data: Any) -> int:
            try:
                return read(offset, width)
            except BaseException as error:  # noqa: BLE001 - there is C between here and run_slice
                self.abort(error)
                return 0  # into a register of a CPU that runs no further instruction

        def on_write(_uc: Any, offset: int, width: int, value: int, _data: Any) -> None:
            try:
                write(offset, width, value)
            except BaseException as error:  # noqa: BLE001 - as above
                self.abort(error)

        self.uc.mmio_map(base, size, on_read, None, on_write, None)

    def abort(self, error: BaseException) -> None:
        """For callbacks of Unicorn's: ends the slice, which then raises ``error``."""
        self._raised = self._raised or error
        self.uc.emu_stop()

    def load(self, address: int, data: bytes) -> None:
        """Writes guest memory from outside; code that was there is forgotten."""
        self.uc.mem_write(address, data)
        self.uc.ctl_remove_cache(address, address + len(data))

    def _read_scs(self, offset: int, size: int) -> int:
        shift = 8 * (offset & 3)
        return self.nvic.read(offset & ~3, self._clock()) >> shift & ((1 << 8 * size) - 1)

    def _write_scs(self, offset: int, _size: int, value: int) -> None:
        # What becomes pending waits for the end of the slice: stopped inside a store, Unicorn repeats it.
        self.nvic.write(offset, value, self._clock())

    # -- running ---------------------------------------------------------------------------------

    def reset(self) -> None:
        """Begins at the reset vector."""
        self.nvic = Nvic()
        stack, entry = struct.unpack("<II", self.uc.mem_read(0, 8))
        self.uc.reg_write(arm.UC_ARM_REG_XPSR, XPSR_THUMB)
        self.uc.reg_write(arm.UC_ARM_REG_CONTROL, 0)
        self.uc.reg_write(arm.UC_ARM_REG_PRIMASK, 0)
        self.uc.reg_write(arm.UC_ARM_REG_SP, stack)
        self.uc.reg_write(arm.UC_ARM_REG_LR, 0xFFFF_FFFF)
        self.uc.reg_write(arm.UC_ARM_REG_PC, entry & ~1)

    def run_slice(self, instructions: int) -> Stop:
        """Runs up to so many instructions. Raises :class:`GuestCrashed`, or what a callback has raised."""
        uc = self.uc
        fault = None
        try:
            uc.emu_start(uc.reg_read(arm.UC_ARM_REG_PC) | 1, NEVER_REACHED, count=instructions)
        except unicorn.UcError as error:
            fault = error
        if self._raised is not None:  # it wins over what it led Unicorn to say
            raised, self._raised = self._raised, None
            raise raised
        return self._after(fault)

    def _after(self, error: Any) -> Stop:
        """Tells an ordinary end of a slice from the ends that Unicorn leaves to us."""
        pc = self.uc.reg_read(arm.UC_ARM_REG_PC)
        if error is None:
            return Stop.SLEEPS if self._opcode(pc - 2) == WFI else Stop.SPENT
        if error.errno == unicorn.UC_ERR_EXCEPTION and pc >= EXC_RETURN_AT:
            self._leave_exception(pc)
            return Stop.RETURNED
        if error.errno == unicorn.UC_ERR_EXCEPTION and self._opcode(pc - 2) >> 8 == SVC_OPCODE:
            self._enter_exception(SVC)
            return Stop.RETURNED
        if error.errno == unicorn.UC_ERR_INSN_INVALID and self._opcode(pc - 2) in (WFE, YIELD):
            return Stop.SLEEPS if self._opcode(pc - 2) == WFE else Stop.SPENT
        if HARD_FAULT in self.nvic.active:
            raise GuestCrashed(f"{error} at {pc:#010x}, inside the hard fault handler") from error
        raise GuestCrashed(f"{error} at {pc:#010x}; {self._registers()}") from error

    def _opcode(self, address: int) -> int:
        try:
            return int.from_bytes(self.uc.mem_read(address & ~1, 2), "little")
        except unicorn.UcError:
            return 0  # before the first byte of memory, or in a device

    def _registers(self) -> str:
        names = [f"r{number}" for number in range(13)] + ["sp", "lr"]
        ids = [getattr(arm, f"UC_ARM_REG_{name.upper()}") for name in names]
        return " ".join(f"{name}={self.uc.reg_read(id_):#x}" for name, id_ in zip(names, ids, strict=True))

    # -- exceptions ------------------------------------------------------------------------------

    def take_exception(self) -> bool:
        """Enters the most urgent pending exception, if it may be entered now."""
        masked = bool(self.uc.reg_read(arm.UC_ARM_REG_PRIMASK) & 1)
        number = self.nvic.take(masked=masked)
        if number is None:
            return False
        self._enter_exception(number)
        return True

    def _enter_exception(self, number: int) -> None:
        uc = self.uc
        frame = list(uc.reg_read_batch(_FRAME_REGISTERS))
        in_thread = not self.nvic.active
        on_process_stack = in_thread and uc.reg_read(arm.UC_ARM_REG_CONTROL) & CONTROL_SPSEL
        stack = uc.reg_read(arm.UC_ARM_REG_SP)
        padding = stack & 4
        frame[7] = frame[7] & ~ALIGNED_FRAME | (ALIGNED_FRAME if padding else 0) | XPSR_THUMB
        stack -= FRAME.size + padding
        uc.mem_write(stack, FRAME.pack(*frame))
        uc.reg_write(arm.UC_ARM_REG_SP, stack)
        if on_process_stack:
            uc.reg_write(arm.UC_ARM_REG_CONTROL, uc.reg_read(arm.UC_ARM_REG_CONTROL) & ~CONTROL_SPSEL)
        link = EXC_RETURN_PROCESS if on_process_stack else EXC_RETURN_MAIN
        uc.reg_write(arm.UC_ARM_REG_LR, link if in_thread else EXC_RETURN_HANDLER)
        self.nvic.enter(number)
        self._jump(int.from_bytes(uc.mem_read(4 * number, 4), "little"), number)

    def _leave_exception(self, magic: int) -> None:
        uc = self.uc
        self.nvic.leave()
        if (magic | 1) == EXC_RETURN_PROCESS:
            uc.reg_write(arm.UC_ARM_REG_XPSR, XPSR_THUMB)  # only thread mode may choose its stack
            uc.reg_write(arm.UC_ARM_REG_CONTROL, uc.reg_read(arm.UC_ARM_REG_CONTROL) | CONTROL_SPSEL)
        stack = uc.reg_read(arm.UC_ARM_REG_SP)
        frame = FRAME.unpack(uc.mem_read(stack, FRAME.size))
        uc.reg_write(arm.UC_ARM_REG_SP, stack + FRAME.size + (4 if frame[7] & ALIGNED_FRAME else 0))
        values = [*frame[:6], frame[6] & ~1, frame[7] & ~ALIGNED_FRAME]
        for register, value in zip(_FRAME_REGISTERS, values, strict=True):
            uc.reg_write(register, value)

    def _jump(self, vector: int, number: int) -> None:
        if not vector & 1:
            raise GuestCrashed(f"exception {number}: its vector is {vector:#x}, which is no Thumb code")
        xpsr = self.uc.reg_read(arm.UC_ARM_REG_XPSR)
        self.uc.reg_write(arm.UC_ARM_REG_XPSR, xpsr & ~IPSR_BITS | number | XPSR_THUMB)
        self.uc.reg_write(arm.UC_ARM_REG_PC, vector & ~1)
