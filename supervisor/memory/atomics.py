"""True atomic accesses to 32-bit words that other processes and virtual CPUs share.

Python has none: ``view[i] = x`` is a plain store, ``view[i] += 1`` a load and a store with a gap between, and
the interpreter's lock ends at the process. Two processes that count so lose every other increment. So the
access has to be one machine instruction, and something outside Python has to execute it:

- **libatomic** (GCC's, through ctypes) exports the C11 operations as functions. Used wherever it is installed
  *and* says that 4 bytes are lock-free: where they are not, it would take a lock that only this process
  knows.
- **Machine code of our own**, a few bytes for x86-64 in one page of memory, for images without libatomic. Off
  unless ``allow_machine_code()`` was called, because it asks for something that hardened systems forbid and
  that a library must not do behind its host's back: memory that was written becomes executable. The page is
  never both at once, but SELinux (``execmem``), PaX and seccomp filters may refuse even that; then it is an
  error, as without the call.
- Otherwise ``NoTrueAtomics``. There is no third way. No system call swaps or compares and swaps a word and
  returns the old value (FUTEX_WAKE_OP comes closest, and returns only how many it woke). A lock in shared
  memory needs the other side to take it too, and a guest does not. A plain store in an atomic one's place
  loses updates in silence.

Addresses are host addresses of words that are mapped, aligned to 4, and writable (``load_uint32``: readable).
Who calls this has checked that; anything else is a crash. All operations are sequentially consistent. Swap,
and compare and swap, are full fences too; a load is not (a plain store before it may still be on its way).

The functions keep the interpreter lock: they take nanoseconds, and letting go of it costs more.
"""

from __future__ import annotations

import functools
import mmap
import platform
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from supervisor.errors import LocalError
from supervisor.memory.errors import NoTrueAtomics

if TYPE_CHECKING:
    import ctypes

__all__ = ["WORD_BYTES", "Atomics", "address_of", "allow_machine_code", "check_word", "true_atomics"]

WORD_BYTES = 4
_MAX_WORD = 2**32 - 1
_SEQ_CST = 5  # C11 memory_order_seq_cst
_LIBATOMIC = "libatomic.so.1"
_X86_64 = ("x86_64", "AMD64")

# System V calls: arguments in edi/rdi, esi, edx; the result in eax. Intel SDM vol. 2; vol. 3, 9.2.3 for the
# order: a locked instruction and xchg with memory are full fences, and a load is not reordered with those
# before it.
_ENDBR = bytes.fromhex("f30f1efa")  # endbr64: a landing place where indirect branches are tracked
_X86_CODE = {
    "swap": bytes.fromhex("89f0 8707 c3"),  # mov eax, esi; xchg [rdi], eax; ret
    "cas": bytes.fromhex("89f0 f00fb117 c3"),  # mov eax, esi; lock cmpxchg [rdi], edx; ret
    "load": bytes.fromhex("8b07 c3"),  # mov eax, [rdi]; ret
    "fence": bytes.fromhex("0faef0 c3"),  # mfence; ret
}
_ENTRY_BYTES = 16


class Atomics(Protocol):
    """The operations. Addresses are of this process; see the rules above."""

    name: str

    def swap_uint32(self, address: int, new: int) -> int:
        """Store ``new``; return what was there before."""

    def compare_and_swap_uint32(self, address: int, old: int, new: int) -> int:
        """Store ``new`` if ``old`` is there; return what was there before."""

    def load_uint32(self, address: int) -> int:
        """Return what is there."""

    def fence(self) -> None:
        """Let no access before this be overtaken by one behind it, in either direction."""


class Libatomic:
    """GCC's libatomic. Raises NoTrueAtomics if it is not there, or would lock."""

    name = "libatomic"

    def __init__(self, library: str = _LIBATOMIC) -> None:
        import ctypes  # only where it is needed: 10 ms

        word, order, address = ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p
        try:
            functions = ctypes.PyDLL(library)
            is_lock_free = _typed(functions["__atomic_is_lock_free"], ctypes.c_bool, ctypes.c_size_t, address)
            self._swap = _typed(functions["__atomic_exchange_4"], word, address, word, order)
            self._load = _typed(functions["__atomic_load_4"], word, address, order)
            self._fence = _typed(functions["atomic_thread_fence"], None, order)
            self._cas = _typed(
                functions["__atomic_compare_exchange_4"],
                ctypes.c_bool,
                *(address, ctypes.POINTER(word), word, order, order),
            )
        except (OSError, AttributeError) as error:
            raise NoTrueAtomics(f"{library} cannot be used") from error
        if not is_lock_free(WORD_BYTES, None):
            raise NoTrueAtomics(f"{library} locks for {WORD_BYTES} bytes, and other processes do not see it")
        self._word = word

    def swap_uint32(self, address: int, new: int) -> int:
        return self._swap(address, new, _SEQ_CST)

    def compare_and_swap_uint32(self, address: int, old: int, new: int) -> int:
        # A new one each time: another thread may come in between, and this is where the old value is
        # returned.
        expected = self._word(old)
        if self._cas(address, expected, new, _SEQ_CST, _SEQ_CST):
            return old
        return expected.value

    def load_uint32(self, address: int) -> int:
        return self._load(address, _SEQ_CST)

    def fence(self) -> None:
        self._fence(_SEQ_CST)


class MachineCode:
    """Our own few instructions. Raises NoTrueAtomics off x86-64, or where memory cannot become executable."""

    name = "machine code"

    def __init__(self) -> None:
        if platform.machine() not in _X86_64:
            raise NoTrueAtomics(f"there is no machine code of ours for {platform.machine()}")
        import ctypes  # only where it is needed: 10 ms

        word, address = ctypes.c_uint32, ctypes.c_void_p
        # Held for as long as this object lives: the functions are in it.
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        entries = {}
        for index, (name, code) in enumerate(_X86_CODE.items()):
            start = index * _ENTRY_BYTES
            self._page[start : start + len(_ENDBR + code)] = _ENDBR + code
            entries[name] = start
        base = address_of(self._page)
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        mprotect.argtypes = [address, ctypes.c_size_t, ctypes.c_int]
        if mprotect(base, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
            number = ctypes.get_errno()
            self._page.close()
            raise NoTrueAtomics("memory cannot be made executable here") from OSError(number, "mprotect")
        self._swap: Callable[..., int] = ctypes.PYFUNCTYPE(word, address, word)(base + entries["swap"])
        self._cas: Callable[..., int] = ctypes.PYFUNCTYPE(word, address, word, word)(base + entries["cas"])
        self._load: Callable[..., int] = ctypes.PYFUNCTYPE(word, address)(base + entries["load"])
        self._fence = ctypes.PYFUNCTYPE(None)(base + entries["fence"])

    def swap_uint32(self, address: int, new: int) -> int:
        return self._swap(address, new)

    def compare_and_swap_uint32(self, address: int, old: int, new: int) -> int:
        return self._cas(address, old, new)

    def load_uint32(self, address: int) -> int:
        return self._load(address)

    def fence(self) -> None:
        self._fence()


_finding = threading.Lock()
_machine_code_allowed = False
_found: Atomics | None = None


def true_atomics() -> Atomics:
    """Return the operations of this machine, found at the first call. Raises NoTrueAtomics."""
    global _found  # one for the process: what there is does not depend on who asks
    if _found is None:
        with _finding:
            if _found is None:
                _found = _find(machine_code=_machine_code_allowed)
    return _found


def allow_machine_code() -> None:
    """Let ``true_atomics`` fall back to machine code where libatomic is missing. What was found stays."""
    global _machine_code_allowed
    _machine_code_allowed = True


def _find(*, machine_code: bool) -> Atomics:
    try:
        return Libatomic()
    except NoTrueAtomics as error:
        if not machine_code:
            raise NoTrueAtomics(
                "no true atomics here: install libatomic1, or call allow_machine_code() (x86-64)"
            ) from error
    return MachineCode()


def check_word(value: int) -> None:
    """Raise LocalError unless ``value`` fits into 32 bits: ctypes would cut it to size in silence."""
    if not 0 <= value <= _MAX_WORD:
        raise LocalError(f"{value} is no unsigned 32-bit number")


def address_of(buffer: bytes | bytearray | memoryview | mmap.mmap) -> int:
    """Return where the bytes of a buffer are. It must stay exported for as long as the address is used.

    Through the buffer protocol itself, since ctypes' ``from_buffer`` refuses what is read-only.
    """
    import ctypes

    taken = _py_buffer()()
    reference = ctypes.byref(taken)
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), reference, 0)
    try:
        return int(taken.buf or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(reference)


@functools.cache
def _py_buffer() -> type[ctypes.Structure]:
    """Py_buffer, part of CPython's stable ABI since 3.11 (PEP 688's C side: pybuffer.h)."""
    import ctypes

    class PyBuffer(ctypes.Structure):
        _fields_ = [
            ("buf", ctypes.c_void_p),
            ("obj", ctypes.c_void_p),
            ("len", ctypes.c_ssize_t),
            ("itemsize", ctypes.c_ssize_t),
            ("readonly", ctypes.c_int),
            ("ndim", ctypes.c_int),
            ("format", ctypes.c_char_p),
            ("shape", ctypes.c_void_p),
            ("strides", ctypes.c_void_p),
            ("suboffsets", ctypes.c_void_p),
            ("internal", ctypes.c_void_p),
        ]

    return PyBuffer


def _typed(function: ctypes._NamedFuncPointer, result: type | None, *arguments: type) -> Callable[..., int]:
    function.restype = result
    function.argtypes = arguments
    return function
