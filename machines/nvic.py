"""The exception logic of a Cortex-M0: NVIC, SCB and SysTick as registers and decisions.

ARMv6-M Architecture Reference Manual, sections B1.5 (exceptions), B3.2 (SCB), B3.3 (SysTick), B3.4 (NVIC).
These belong to the CPU, so they stay in the machine and are no devices. Nothing here touches a CPU: ``take``
says which exception is to be entered, the core does it and tells with ``enter`` and ``leave``. Pure.

External lines are levels: a line that is raised makes its interrupt pending as long as it is not active.
"""

from __future__ import annotations

from supervisor.device import NO_ALARM

__all__ = ["HARD_FAULT", "IRQ_BASE", "PEND_SV", "SVC", "SYS_TICK", "Nvic"]

HARD_FAULT, SVC, PEND_SV, SYS_TICK, IRQ_BASE = 3, 11, 14, 15, 16
LINES = 32
CPUID_CORTEX_M0 = 0x410C_C200
ALL_LINES = (1 << LINES) - 1
PRIORITY_BITS = 0xC0  # of each byte: a Cortex-M0 has four levels
THREAD_PRIORITY = 256  # lower than any exception's

SYST_CSR, SYST_RVR, SYST_CVR, SYST_CALIB = 0x010, 0x014, 0x018, 0x01C
ISER, ICER, ISPR, ICPR, IPR, IPR_END = 0x100, 0x180, 0x200, 0x280, 0x400, 0x420
CPUID, ICSR, AIRCR, SCR, CCR, SHPR2, SHPR3 = 0xD00, 0xD04, 0xD0C, 0xD10, 0xD14, 0xD1C, 0xD20
ICSR_PENDSVSET, ICSR_PENDSVCLR, ICSR_PENDSTSET, ICSR_PENDSTCLR = 1 << 28, 1 << 27, 1 << 26, 1 << 25
AIRCR_KEY, AIRCR_SYSRESETREQ = 0x05FA_0000, 1 << 2
CCR_STKALIGN_AND_TRAP = 0x208
COUNTFLAG, TICKINT, ENABLE = 1 << 16, 1 << 1, 1
TICK_BITS = (1 << 24) - 1
NANOSECONDS = 1_000_000_000


class SysTick:
    """The 24-bit down counter; a function of guest time and of when it was set."""

    def __init__(self, hertz: int) -> None:
        self._hertz = hertz
        self.control = 0
        self.reload = 0
        self._zero_ns = 0  # when the counter was last set to zero by a write, or has wrapped
        self._wrapped = False

    def _period_ns(self) -> int:
        return (self.reload + 1) * NANOSECONDS // self._hertz

    def next_ns(self) -> int:
        """Guest time of the next wrap, or ``NO_ALARM``."""
        running = self.control & ENABLE and self.reload
        return self._zero_ns + self._period_ns() if running else NO_ALARM

    def advance(self, now_ns: int) -> bool:
        """Lets time pass; true if the exception is to become pending."""
        if self.next_ns() > now_ns:
            return False
        self._zero_ns += (now_ns - self._zero_ns) // self._period_ns() * self._period_ns()
        self._wrapped = True
        return bool(self.control & TICKINT)

    def read(self, offset: int, now_ns: int) -> int:
        """A guest reads one of the four registers."""
        if offset == SYST_CSR:
            value = self.control | (COUNTFLAG if self._wrapped else 0)
            self._wrapped = False
            return value
        if offset == SYST_RVR:
            return self.reload
        if offset == SYST_CVR and self.control & ENABLE and self.reload:
            passed = (now_ns - self._zero_ns) * self._hertz // NANOSECONDS
            return (self.reload - passed) % (self.reload + 1)
        return 0

    def write(self, offset: int, value: int, now_ns: int) -> None:
        """A guest writes one of the four registers."""
        if offset == SYST_CSR:
            if value & ENABLE and not self.control & ENABLE:
                self._zero_ns = now_ns
            self.control = value & 0x7
        elif offset == SYST_RVR:
            self.reload = value & TICK_BITS
        elif offset == SYST_CVR:  # any write clears
            self._zero_ns = now_ns
            self._wrapped = False


class Nvic:
    """Which exception is enabled, pending, active; the registers at 0xE000E000."""

    def __init__(self, *, systick_hz: int = 16_000_000) -> None:
        self.systick = SysTick(systick_hz)
        self.enabled = 0  # of the external lines
        self.pending = 0  # bit n: exception n
        self.active: list[int] = []  # the innermost last
        self.reset_requested = False
        self._priorities = bytearray(LINES)
        self._system_priorities = {SVC: 0, PEND_SV: 0, SYS_TICK: 0}
        self._scr = 0

    def priority(self, number: int) -> int:
        """The priority of exception ``number``; lower is more urgent."""
        if number >= IRQ_BASE:
            return self._priorities[number - IRQ_BASE]
        return self._system_priorities.get(number, -1)

    def sample(self, levels: int) -> None:
        """Takes the levels of the external lines (bit n: line n)."""
        for number in self.active:
            if number >= IRQ_BASE:
                levels &= ~(1 << number - IRQ_BASE)
        self.pending |= levels << IRQ_BASE

    def _ready(self) -> int:
        return self.pending & (self.enabled << IRQ_BASE | (1 << IRQ_BASE) - 1)

    def take(self, *, masked: bool) -> int | None:
        """The exception to enter now, if any; ``masked``: PRIMASK is set."""
        ready = self._ready()
        if not ready:
            return None
        current = min((self.priority(number) for number in self.active), default=THREAD_PRIORITY)
        if masked:
            current = min(current, 0)
        best = None
        while ready:
            number = (ready & -ready).bit_length() - 1
            ready &= ready - 1
            priority = self.priority(number)
            if priority < current:
                best, current = number, priority
        return best

    def enter(self, number: int) -> None:
        """Exception ``number`` has been entered."""
        self.pending &= ~(1 << number)
        self.active.append(number)

    def leave(self) -> None:
        """The innermost exception has returned."""
        if self.active:
            self.active.pop()

    def pend_systick(self) -> None:
        """SysTick has wrapped, and asks for its exception."""
        self.pending |= 1 << SYS_TICK

    # -- registers -------------------------------------------------------------------------------

    def read(self, offset: int, now_ns: int) -> int:
        """A guest reads the word at 0xE000E000 + ``offset``."""
        if SYST_CSR <= offset <= SYST_CALIB:
            return self.systick.read(offset, now_ns)
        if offset in (ISER, ICER):
            return self.enabled
        if offset in (ISPR, ICPR):
            return self.pending >> IRQ_BASE
        if IPR <= offset < IPR_END:
            at = offset - IPR & ~3
            return int.from_bytes(self._priorities[at : at + 4], "little")
        if offset == ICSR:
            top = self.take(masked=False) or 0
            value = self.active[-1] if self.active else 0
            value |= top << 12 | (1 << 22 if self.pending >> IRQ_BASE else 0)
            value |= ICSR_PENDSVSET if self.pending >> PEND_SV & 1 else 0
            return value | (ICSR_PENDSTSET if self.pending >> SYS_TICK & 1 else 0)
        if offset == SHPR2:
            return self._system_priorities[SVC] << 24
        if offset == SHPR3:
            return self._system_priorities[SYS_TICK] << 24 | self._system_priorities[PEND_SV] << 16
        fixed = {CPUID: CPUID_CORTEX_M0, AIRCR: 0xFA05_0000, SCR: self._scr, CCR: CCR_STKALIGN_AND_TRAP}
        return fixed.get(offset, 0)

    def write(self, offset: int, value: int, now_ns: int) -> None:
        """A guest writes the word at 0xE000E000 + ``offset``."""
        if SYST_CSR <= offset <= SYST_CALIB:
            self.systick.write(offset, value, now_ns)
        elif offset == ISER:
            self.enabled |= value
        elif offset == ICER:
            self.enabled &= ~value & ALL_LINES
        elif offset == ISPR:
            self.pending |= (value & ALL_LINES) << IRQ_BASE
        elif offset == ICPR:
            self.pending &= ~(value << IRQ_BASE)
        elif IPR <= offset < IPR_END:
            at = offset - IPR & ~3
            self._priorities[at : at + 4] = (value & PRIORITY_BITS * 0x0101_0101).to_bytes(4, "little")
        elif offset == ICSR:
            self._set_pending(value)
        elif offset == AIRCR:
            self.reset_requested = value & 0xFFFF_0000 == AIRCR_KEY and bool(value & AIRCR_SYSRESETREQ)
        elif offset == SCR:
            self._scr = value & 0x16
        elif offset == SHPR2:
            self._system_priorities[SVC] = value >> 24 & PRIORITY_BITS
        elif offset == SHPR3:
            self._system_priorities[PEND_SV] = value >> 16 & PRIORITY_BITS
            self._system_priorities[SYS_TICK] = value >> 24 & PRIORITY_BITS

    def _set_pending(self, icsr: int) -> None:
        if icsr & ICSR_PENDSVSET:
            self.pending |= 1 << PEND_SV
        if icsr & ICSR_PENDSVCLR:
            self.pending &= ~(1 << PEND_SV)
        if icsr & ICSR_PENDSTSET:
            self.pending |= 1 << SYS_TICK
        if icsr & ICSR_PENDSTCLR:
            self.pending &= ~(1 << SYS_TICK)
