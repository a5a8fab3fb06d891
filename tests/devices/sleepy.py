"""A module that takes its time to be imported, as large libraries do on a busy machine."""

from __future__ import annotations

import signal

signal.sigtimedwait([], 1.5)
