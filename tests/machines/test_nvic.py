"""The exception logic of the Cortex-M0."""

from __future__ import annotations

from machines.nvic import IRQ_BASE, PEND_SV, SYS_TICK, Nvic

ISER, ICER, ISPR, ICPR, IPR, ICSR, SHPR3, AIRCR = 0x100, 0x180, 0x200, 0x280, 0x400, 0xD04, 0xD20, 0xD0C


def test_given_raised_line_only_an_enabled_interrupt_is_taken() -> None:
    """ISER enables, ICER disables; what is pending stays so."""
    nvic = Nvic()
    nvic.sample(1 << 5)
    assert nvic.take(masked=False) is None
    nvic.write(ISER, 1 << 5, 0)
    assert nvic.take(masked=False) == IRQ_BASE + 5
    assert nvic.take(masked=True) is None
    nvic.write(ICER, 1 << 5, 0)
    assert nvic.take(masked=False) is None
    assert nvic.read(ISPR, 0) == 1 << 5
    nvic.write(ICPR, 1 << 5, 0)
    assert nvic.read(ISPR, 0) == 0


def test_given_level_an_active_interrupt_is_not_pending_again_until_it_returns() -> None:
    """A line that stays high makes its interrupt come back after the return."""
    nvic = Nvic()
    nvic.write(ISER, 1, 0)
    nvic.sample(1)
    nvic.enter(IRQ_BASE)
    nvic.sample(1)
    assert nvic.take(masked=False) is None
    nvic.leave()
    nvic.sample(1)
    assert nvic.take(masked=False) == IRQ_BASE


def test_given_priorities_the_more_urgent_preempts_and_ties_go_to_the_lower_number() -> None:
    """Two bits of priority; equal ones do not preempt each other."""
    nvic = Nvic()
    nvic.write(ISER, 0b111, 0)
    nvic.write(IPR, 0x00_40_C0_40, 0)  # line 0: 0x40, 1: 0xC0, 2: 0x40
    nvic.sample(0b111)
    assert nvic.take(masked=False) == IRQ_BASE
    nvic.enter(IRQ_BASE + 1)
    assert nvic.take(masked=False) == IRQ_BASE
    nvic.enter(IRQ_BASE)
    assert nvic.take(masked=False) is None
    assert nvic.read(IPR, 0) == 0x00_40_C0_40
    assert nvic.read(ICSR, 0) & 0x3F == IRQ_BASE


def test_given_pendsv_it_comes_at_its_own_priority_and_can_be_taken_back() -> None:
    """PENDSVSET and PENDSVCLR; SHPR3 holds the priority."""
    nvic = Nvic()
    nvic.write(SHPR3, 0x00C0_0000, 0)
    nvic.write(ICSR, 1 << 28, 0)
    assert nvic.priority(PEND_SV) == 0xC0
    assert nvic.take(masked=False) == PEND_SV
    nvic.write(ICSR, 1 << 27, 0)
    assert nvic.take(masked=False) is None


def test_given_systick_it_counts_down_and_asks_for_its_exception() -> None:
    """16,000 ticks at 16 MHz are a millisecond."""
    nvic = Nvic()
    nvic.write(0x14, 15_999, 0)
    nvic.write(0x18, 0, 0)
    nvic.write(0x10, 0x7, 0)
    assert nvic.systick.next_ns() == 1_000_000
    assert nvic.read(0x18, 250_000) == 15_999 - 4_000
    assert not nvic.systick.advance(999_999)
    assert nvic.systick.advance(1_000_000)
    nvic.pend_systick()
    assert nvic.take(masked=False) == SYS_TICK
    assert nvic.read(0x10, 1_000_000) == 0x1_0007
    assert nvic.read(0x10, 1_000_000) == 0x7


def test_given_reset_request_it_needs_the_key() -> None:
    """AIRCR without 0x05FA is ignored."""
    nvic = Nvic()
    nvic.write(AIRCR, 0x4, 0)
    assert not nvic.reset_requested
    nvic.write(AIRCR, 0x05FA_0004, 0)
    assert nvic.reset_requested
