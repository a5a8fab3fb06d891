"""The core on Unicorn: slices, sleep, exceptions entered and left by hand, and what callbacks raise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from machines.thumb import assemble
from supervisor.errors import DeviceGone

pytest.importorskip("unicorn")

from machines.cortex_m import CortexM, GuestCrashed, Stop

RAM, DEVICE = 0x2000_0000, 0x4000_0000
VECTORS = """
    .word 0x20001000, reset, 0, 0, 0, 0, 0, 0
    .word 0, 0, 0, svc, 0, 0, pendsv, 0
    .word first, second
"""


class _Registers:
    """A device of words, in which a test sees what the guest does."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        self.log: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return self.words.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        self.words[offset] = value
        self.log.append(value)


def _core(source: str) -> tuple[CortexM, _Registers]:
    core = CortexM(lambda: 0)
    core.map_memory(0, 0x1_0000)
    core.map_memory(RAM, 0x4000)
    registers = _Registers()
    core.map_device(DEVICE, 0x1000, registers.read, registers.write)
    used = [name for name in ("svc", "pendsv", "first", "second") if f"{name}:" not in source]
    stubs = "\n.thumb_func\n".join(["", *(f"{name}: b {name}" for name in used)])
    core.load(0, assemble(f"{VECTORS}\n.thumb_func\n{source}\n.pool\n{stubs}", "test.s"))
    core.reset()
    return core, registers


LOG = "ldr r0, =0x40000000\n"


def test_given_program_a_slice_ends_when_its_instructions_are_spent() -> None:
    """Slices add up."""
    core, registers = _core(f"reset: {LOG} movs r1, #0\nagain: adds r1, #1\nstr r1, [r0]\nb again")
    assert core.run_slice(302) is Stop.SPENT
    assert core.run_slice(300) is Stop.SPENT
    assert registers.words[0] == 200


def test_given_wfi_the_core_sleeps_and_goes_on_behind_it() -> None:
    """The end of a slice says so."""
    core, registers = _core(f"reset: {LOG} wfi\nmovs r1, #7\nstr r1, [r0]\nwfi")
    assert core.run_slice(1000) is Stop.SLEEPS
    assert registers.log == []
    assert core.run_slice(1000) is Stop.SLEEPS
    assert registers.log == [7]


def test_given_interrupt_registers_and_flags_are_as_before_it() -> None:
    """Entry pushes what the handler may change; the return takes it back, with the stack where it was."""
    core, registers = _core(
        f"""reset: {LOG} movs r1, #1
        movs r2, #2
        movs r3, #3
        cmp r1, r1
        wfi
        beq equal
        str r3, [r0, #8]
        equal: str r1, [r0]
        str r2, [r0]
        str r3, [r0]
        wfi
        .pool
        .thumb_func
        first: movs r1, #0x11
        movs r2, #0x22
        movs r3, #0
        subs r3, #1
        bx lr"""
    )
    core.nvic.enabled = 1
    assert core.run_slice(1000) is Stop.SLEEPS
    core.nvic.sample(1)
    assert core.take_exception()
    assert core.nvic.active == [16]
    assert core.run_slice(1000) is Stop.RETURNED
    assert core.nvic.active == []
    assert core.run_slice(1000) is Stop.SLEEPS
    assert registers.log == [1, 2, 3]


def test_given_more_urgent_interrupt_it_nests_inside_the_other() -> None:
    """The inner one returns to the outer one, that to the thread."""
    core, registers = _core(
        f"""reset: {LOG} wfi
        movs r1, #9
        str r1, [r0]
        wfi
        .pool
        .thumb_func
        first: movs r1, #1
        str r1, [r0]
        wfi
        movs r1, #3
        str r1, [r0]
        bx lr
        .thumb_func
        second: push {{r4, lr}}
        movs r1, #2
        str r1, [r0]
        pop {{r4, pc}}"""
    )
    core.nvic.enabled = 0b11
    core.nvic.write(0x400, 0x0000_0040, 0)  # the second line is the more urgent one
    core.run_slice(100)
    core.nvic.sample(0b01)
    core.take_exception()
    assert core.run_slice(100) is Stop.SLEEPS
    core.nvic.sample(0b10)
    assert core.take_exception()
    assert core.nvic.active == [16, 17]
    assert core.run_slice(100) is Stop.RETURNED
    assert core.run_slice(100) is Stop.RETURNED
    assert core.run_slice(100) is Stop.SLEEPS
    assert registers.log == [1, 2, 3, 9]


def test_given_primask_interrupts_wait_for_cpsie() -> None:
    """CPSID I holds them back."""
    core, _registers = _core("reset: cpsid i\nwfi\ncpsie i\nwfi")
    core.nvic.enabled = 1
    core.nvic.sample(1)
    core.run_slice(100)
    assert not core.take_exception()
    core.run_slice(100)
    assert core.take_exception()


def test_given_svc_its_handler_runs_and_returns_behind_it() -> None:
    """SVC is entered by the core itself, as no line is involved. (Encoded by hand: 0xDF00.)"""
    core, registers = _core(
        f"""reset: {LOG} ldr r1, =0x20000000
        adds r1, #1
        blx r1
        wfi
        .pool
        .thumb_func
        svc: movs r2, #5
        str r2, [r0]
        bx lr"""
    )
    core.load(RAM, bytes.fromhex("00df7047"))  # svc 0; bx lr
    assert core.run_slice(100) is Stop.RETURNED
    assert core.run_slice(100) is Stop.RETURNED
    assert registers.log == [5]
    assert core.run_slice(100) is Stop.SLEEPS


def test_given_pended_pendsv_it_is_entered_through_its_vector() -> None:
    """A store to ICSR makes it pending; the next look takes it."""
    core, registers = _core(
        f"""reset: ldr r0, =0xE000ED04
        ldr r1, =0x10000000
        str r1, [r0]
        wfi
        .pool
        .thumb_func
        pendsv: {LOG} movs r1, #14
        str r1, [r0]
        bx lr
        .pool"""
    )
    core.run_slice(100)
    assert core.take_exception()
    assert core.run_slice(100) is Stop.RETURNED
    assert registers.log == [14]


def test_given_callback_that_raises_it_comes_out_of_the_slice_unchanged() -> None:
    """An exception's way leads through C code; not even a BaseException is lost there."""

    class Interrupted(BaseException):
        pass

    def failing(error: BaseException) -> Callable[[int, int], int]:
        def read(_offset: int, _size: int) -> int:
            raise error

        return read

    for error in (DeviceGone("uart0: given up"), Interrupted()):
        core, _registers = _core("reset: ldr r0, =0x40001000\nldr r1, [r0]\nstr r1, [r0]\nb reset")
        core.map_device(DEVICE + 0x1000, 0x1000, failing(error), lambda _offset, _size, _value: None)
        with pytest.raises(type(error)) as caught:
            core.run_slice(100)
        assert caught.value is error


@pytest.mark.parametrize(
    "source", ["reset: ldr r0, =0x60000000\nldr r1, [r0]", "reset: b bad\n.align\nbad: .word 0xDEDEDEDE"]
)
def test_given_guest_that_goes_astray_the_report_shows_its_registers(source: str) -> None:
    """Reading where nothing is, and running what is no code."""
    core, _registers = _core(source)
    with pytest.raises(GuestCrashed, match="r0="):
        core.run_slice(100)
