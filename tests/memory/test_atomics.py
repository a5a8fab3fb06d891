"""Atomics: true across processes, found or refused by name, and never something weaker in their place."""

from __future__ import annotations

import ctypes
import mmap
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from supervisor.errors import EnvironmentFault, LocalError
from supervisor.memory import BytesMemory, GuestMemory, MemoryFault, NoTrueAtomics, Region, atomics
from supervisor.memory.atomics import Atomics, Libatomic, MachineCode, address_of
from tests.memory.conftest import DEADLINE_S, PAGE, file_of

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 30_000
THREADS = 4
THREAD_ROUNDS = 3_000
KINDS = ["libatomic", *(["machine code"] if platform.machine() == "x86_64" else [])]


def made(kind: str) -> Atomics:
    return Libatomic() if kind == "libatomic" else MachineCode()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("way", ["cas", "swap"])
def test_given_one_page_two_processes_count_and_lose_nothing(kind: str, way: str) -> None:
    """Exactly as many as there were; and they did get into each other's way."""
    with file_of(PAGE) as fd:
        command = [sys.executable, "-m", "tests.memory.counting", kind, way, str(fd), str(ROUNDS)]
        two = [
            subprocess.Popen(command, cwd=ROOT, pass_fds=[fd], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        try:
            told = [process.communicate(timeout=DEADLINE_S)[0].split() for process in two]
        finally:
            for process in two:
                process.kill()
                process.wait()
        print(f"{kind}, {way}: rounds, and how often the other one came in between: {told}")
        with mmap.mmap(fd, PAGE) as page, memoryview(page) as view, view.cast("I") as words:
            assert [process.returncode for process in two] == [0, 0]
            assert words[0] + words[2] == sum(int(rounds) for rounds, _ in told) >= 2 * ROUNDS
    assert any(int(met) for _, met in told)


def test_given_one_word_threads_count_and_lose_nothing(kind: str) -> None:
    """Threads of one process share the functions and mix nothing up."""
    found = made(kind)
    buffer = bytearray(8)
    with memoryview(buffer) as view:
        address = address_of(view)

        def count() -> None:
            for _ in range(THREAD_ROUNDS):
                old = found.load_uint32(address)
                while (seen := found.compare_and_swap_uint32(address, old, old + 1)) != old:
                    old = seen

        threads = [threading.Thread(target=count) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert int.from_bytes(buffer[:4], sys.byteorder) == THREADS * THREAD_ROUNDS
    assert not any(buffer[4:])


def test_given_any_word_each_operation_returns_what_was_there(kind: str) -> None:
    """Extreme values come and go whole, and the neighbours stay."""
    found = made(kind)
    buffer = bytearray(b"\xaa" * 12)
    with memoryview(buffer) as view:
        address = address_of(view) + 4
        assert found.swap_uint32(address, 0xFFFFFFFF) == 0xAAAAAAAA
        assert found.load_uint32(address) == 0xFFFFFFFF
        assert found.compare_and_swap_uint32(address, 0, 1) == 0xFFFFFFFF
        assert found.compare_and_swap_uint32(address, 0xFFFFFFFF, 0x80000000) == 0xFFFFFFFF
        assert found.swap_uint32(address, 0) == 0x80000000
        found.fence()
    assert bytes(buffer) == b"\xaa" * 4 + bytes(4) + b"\xaa" * 4


@pytest.fixture
def unfound(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing has been looked for, and machine code is not allowed."""
    monkeypatch.setattr(atomics, "_found", None)
    monkeypatch.setattr(atomics, "_machine_code_allowed", False)
    return monkeypatch


def no_libatomic(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Libatomic.__init__, "__defaults__", ("libatomic-that-is-nowhere.so",))


def test_given_libatomic_it_is_found_once(unfound: pytest.MonkeyPatch) -> None:
    """The first choice, also where machine code is allowed; the same one each time."""
    atomics.allow_machine_code()
    first = atomics.true_atomics()
    assert first.name == "libatomic"
    assert atomics.true_atomics() is first


def test_given_nothing_every_atomic_is_refused_and_memory_stays(unfound: pytest.MonkeyPatch) -> None:
    """An error that says what to do, each time; no plain store in its place. It names the cause."""
    no_libatomic(unfound)
    buffer = bytearray(b"\x05\0\0\0")
    with file_of(PAGE, bytes(buffer)) as fd, GuestMemory() as guest:
        guest.map(Region(guest_addr=0, size_bytes=PAGE), fd)
        for memory in (BytesMemory(buffer), guest):
            for _ in range(2):
                with pytest.raises(NoTrueAtomics, match="libatomic1") as caught:
                    memory.swap_uint32(0, 9)
                assert isinstance(caught.value.__cause__, NoTrueAtomics)
                assert isinstance(caught.value.__cause__.__cause__, OSError)
                assert isinstance(caught.value, EnvironmentFault)
            with pytest.raises(NoTrueAtomics):
                memory.compare_and_swap_uint32(0, 5, 9)
            with pytest.raises(NoTrueAtomics):
                memory.load_uint32(0)
            word = bytearray(4)
            memory.copy_in(0, word)
            assert word == b"\x05\0\0\0"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code is for x86-64")
def test_given_no_libatomic_machine_code_is_taken_only_if_allowed(unfound: pytest.MonkeyPatch) -> None:
    """Refused first; then, with the host's word for it, found."""
    no_libatomic(unfound)
    with pytest.raises(NoTrueAtomics):
        atomics.true_atomics()
    atomics.allow_machine_code()
    assert atomics.true_atomics().name == "machine code"


def test_given_another_machine_there_is_no_machine_code(unfound: pytest.MonkeyPatch) -> None:
    """Bytes of one machine are not run on another."""
    unfound.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(NoTrueAtomics, match="riscv64"):
        MachineCode()


def test_given_a_library_that_locks_it_is_refused(unfound: pytest.MonkeyPatch) -> None:
    """A lock of this process alone is no atomic across processes."""
    real = atomics._typed

    def locking(function: ctypes._NamedFuncPointer, *types: type) -> object:
        typed = real(function, *types)
        return (lambda size, address: False) if function.__name__ == "__atomic_is_lock_free" else typed

    unfound.setattr(atomics, "_typed", locking)
    with pytest.raises(NoTrueAtomics, match="locks"):
        Libatomic()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code is for x86-64")
def test_given_machine_code_its_page_is_not_writable() -> None:
    """Executable and readable, never writable at the same time."""
    found = MachineCode()
    base = address_of(found._page)
    with open("/proc/self/maps") as maps:
        modes = {
            line.split()[1]
            for line in maps
            for low, high in [[int(part, 16) for part in line.split()[0].split("-")]]
            if low <= base < high
        }
    assert modes == {"r-xp"}


def test_given_a_number_of_more_than_32_bits_it_is_refused() -> None:
    """ctypes would cut it to size in silence."""
    memory = BytesMemory(bytearray(4))
    for value in (-1, 1 << 32):
        with pytest.raises(LocalError):
            memory.swap_uint32(0, value)
        with pytest.raises(LocalError):
            memory.compare_and_swap_uint32(0, value, 0)
        with pytest.raises(LocalError):
            memory.compare_and_swap_uint32(0, 0, value)


def test_given_a_buffer_or_region_that_is_not_aligned_a_word_faults() -> None:
    """The address is a multiple of 4, the host's is not: across two cache lines there is no atomic."""
    buffer = bytearray(16)
    with pytest.raises(MemoryFault, match="aligned"):
        BytesMemory(memoryview(buffer)[1:]).load_uint32(0)
    with file_of(PAGE) as fd, GuestMemory() as memory:
        memory.map(Region(guest_addr=0, size_bytes=64, offset_bytes=2), fd)
        with pytest.raises(MemoryFault, match="aligned"):
            memory.load_uint32(0)


def test_given_read_only_memory_a_load_works_and_a_swap_faults() -> None:
    """Loading needs no right to write, swapping does; so does an exchange that would not happen."""
    with file_of(PAGE, b"\x07") as fd, GuestMemory() as memory:
        memory.map(Region(guest_addr=0, size_bytes=PAGE, writable=False), fd)
        for io in (memory, BytesMemory(b"\x07\0\0\0")):
            assert io.load_uint32(0) == 7
            with pytest.raises(MemoryFault):
                io.swap_uint32(0, 1, ignore_permissions=True)
            with pytest.raises(MemoryFault):
                io.compare_and_swap_uint32(0, 0, 1)
