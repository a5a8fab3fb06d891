"""Signals kept waiting while something must not be cut in two."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["signals_blocked"]


@contextlib.contextmanager
def signals_blocked(*numbers: int) -> Iterator[None]:
    """Those of ``numbers`` that come meanwhile reach this thread afterwards; a child inherits the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
