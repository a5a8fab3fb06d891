"""How a process ended, in words. Pure."""

from __future__ import annotations

__all__ = ["describe_exit"]


def describe_exit(code: int | None) -> str:
    """``code`` is the exit code, or the number of the signal made negative; ``None``: nobody knows."""
    if code is None:
        return "ended for a reason unknown"
    return f"exited with code {code}" if code >= 0 else f"was killed by signal {-code}"
