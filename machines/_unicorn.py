"""The door to Unicorn, the CPU emulator: an extra of the installation, and untyped, hence ``Any``.

Raises :class:`LocalError` that says what to install where it is missing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from supervisor.errors import LocalError

__all__ = ["arm", "unicorn"]

try:
    unicorn: Any = import_module("unicorn")
    arm: Any = import_module("unicorn.arm_const")
except ImportError as error:
    raise LocalError(
        "this machine's CPU runs on Unicorn, which is not installed: pip install 'tubevisor[unicorn]'"
    ) from error
