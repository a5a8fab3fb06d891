"""How the command ends: one number for each answer. Pure.

``INTERRUPTED`` and ``TERMINATED`` are what a shell says of a process that the signal has killed.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """What the command's end means."""

    DONE = 0
    FAILED = 1
    """The devices gave up, the start failed, the machine failed, or the reader of our output has gone."""
    USAGE = 2
    CONFIG = 3
    UNREACHABLE = 4
    """There is no supervisor to talk to."""
    INTERRUPTED = 130
    """SIGINT: Ctrl-C."""
    TERMINATED = 143
    """SIGTERM."""
