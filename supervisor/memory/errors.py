"""What can go wrong with guest memory, sorted by blame (the tree in ``supervisor.errors``).

    who addresses memory that is not there, or not so
    └── MemoryFault     (also an OSError) an access fell short; ``done`` bytes of it had been copied
    our caller (also LocalError, a ValueError)
    ├── BadRegion       a region that cannot be mapped as it was described
    ├── MemoryClosed    the memory was closed by us
    └── ViewsAlive      a region cannot be unmapped: somebody holds views of it
    the end of something finite
    ├── EndOfData       (also an EOFError) a reader has no more
    └── EndOfSpace      a writer has no more room
    the system (also EnvironmentFault)
    ├── MappingFailed   mmap(2) or fstat(2) refused; the OSError is the cause
    └── NoTrueAtomics   this machine offers no way to a true atomic access

Counts travel with the error. A copy that ends early has still copied something, and who continues it must
know how much: every exception that leaves a copy carries ``done``, those of a caller's own reader or writer
too. Those are passed through as they are and are never turned into EFAULT; ``done_of`` reads the count of any
of them.
"""

from __future__ import annotations

import errno

from supervisor.errors import EnvironmentFault, LocalError, TubevisorError

__all__ = [
    "BadRegion",
    "EndOfData",
    "EndOfSpace",
    "MappingFailed",
    "MemoryClosed",
    "MemoryFault",
    "NoTrueAtomics",
    "ViewsAlive",
    "done_of",
    "set_done",
]


_WORDS = {
    errno.EFAULT: "memory that is not there, or not permitted",
    errno.EINVAL: "an impossible argument",
    errno.ENAMETOOLONG: "a string that is too long",
}


class MemoryFault(TubevisorError, OSError):
    """An access fell short after ``done`` bytes. ``errno`` is EFAULT, EINVAL or ENAMETOOLONG.

    ``data`` holds what was read of a string that did not end (``copy_string_in``), and is empty otherwise.
    """

    def __init__(self, number: int, done: int = 0, why: str = "", data: bytes = b"") -> None:
        super().__init__(number, why or _WORDS.get(number, ""))
        self.done = done
        self.data = data


class EndOfData(TubevisorError, EOFError):
    """A reader has no more. It may come together with the last bytes: ``done`` of them were read."""

    def __init__(self, done: int = 0) -> None:
        super().__init__(f"the end of the data, after {done} bytes of this read")
        self.done = done


class EndOfSpace(TubevisorError):
    """More was written than there is room for: ``done`` bytes were written, the rest was not."""

    def __init__(self, done: int = 0) -> None:
        super().__init__(f"no more room, after {done} bytes of this write")
        self.done = done


class BadRegion(LocalError):
    """A region is empty, leaves the address space, lies upon another one, or is longer than its file."""


class MemoryClosed(LocalError):
    """This memory was closed."""


class ViewsAlive(LocalError):
    """Memory cannot be unmapped while views of it are alive: their next use would be a crash."""


class MappingFailed(EnvironmentFault):
    """The system refused to map a region. The ``OSError`` is the cause."""


class NoTrueAtomics(EnvironmentFault):
    """Nothing here gives a true atomic access to memory that other processes share."""


def done_of(error: BaseException) -> int:
    """Return how many bytes had been copied when ``error`` ended a copy; 0 for one that does not say."""
    done = getattr(error, "done", 0)
    return done if isinstance(done, int) else 0


def set_done(error: BaseException, done: int) -> None:
    """Note on an exception how many bytes had been copied."""
    error.done = done  # type: ignore[attr-defined]  # an exception of somebody else's is passed on with it
