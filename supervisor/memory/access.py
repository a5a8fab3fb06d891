"""Kinds of access to memory: read, write, execute. Pure values.

A page that may be written or executed may be read as well, as on the machines this stands for: ``effective``
says so, and every check of a permission asks the effective one.
"""

from __future__ import annotations

from enum import Flag

__all__ = ["READ_BIT", "WRITE_BIT", "AccessType"]


class AccessType(Flag):
    """A set of permissions, written ``rwx`` with ``-`` for what is missing."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4
    READ_WRITE = 3
    ANY = 7

    @classmethod
    def parse(cls, letters: str) -> AccessType:
        """Return what the letters r, w, x say; ``-`` says nothing. Raises ValueError for any other one."""
        access = cls.NONE
        for letter in letters:
            access |= _LETTERS[letter] if letter in _LETTERS else cls(_refuse(letter))
        return access

    def effective(self) -> AccessType:
        """Return this with READ added if it can write or execute."""
        return self | AccessType.READ if self & (AccessType.WRITE | AccessType.EXECUTE) else self

    def superset_of(self, other: AccessType) -> bool:
        """Return whether everything in ``other`` is in this."""
        return self & other == other

    def intersect(self, other: AccessType) -> AccessType:
        return self & other

    def union(self, other: AccessType) -> AccessType:
        return self | other

    def __str__(self) -> str:
        return "".join(letter if self & _LETTERS[letter] else "-" for letter in "rwx")


def _refuse(letter: str) -> int:
    raise ValueError(f"{letter!r} is no permission: r, w, x or -")


_LETTERS = {
    "r": AccessType.READ,
    "w": AccessType.WRITE,
    "x": AccessType.EXECUTE,
    "-": AccessType.NONE,
}

# The same as plain numbers: an operation on a Flag costs more than the copy that it guards.
READ_BIT = AccessType.READ.value
WRITE_BIT = AccessType.WRITE.value
