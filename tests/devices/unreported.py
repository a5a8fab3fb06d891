"""Has its zygote report a fork only when a test lets it: by then the child has said all it has to say."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.devices.counting import Counting

__all__ = ["HOLD", "Counting"]

HOLD = (
    "TUBEVISOR_TEST_HOLD"  # where a FIFO may be: while it is, each report waits until somebody writes to it
)


def _wait() -> None:
    with contextlib.suppress(FileNotFoundError):
        Path(os.environ.get(HOLD, "/dev/null")).read_bytes()


os.register_at_fork(after_in_parent=_wait)
