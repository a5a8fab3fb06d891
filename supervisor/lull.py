"""Work that is put off until nobody is in a hurry.

What prepares for the next death (spares, standbys) takes a core for some ms, and whoever is being restarted
needs it more. So it is done when restarts have come to an end for a moment, and after a while at last even if
they have not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from supervisor.reactor import Reactor

__all__ = ["Lull"]

QUIET_NS = 3_000_000  # since the last restart: as long as a new process takes a core, and others may be dying
AT_LAST_NS = 250_000_000  # while one restart follows the other


class Lull:
    """Has ``work`` called some time after :meth:`ask`, once for all that have asked.

    It does a little at a time, and returns true as long as there is more. It is not quiet while
    ``is_busy``.
    """

    def __init__(
        self, reactor: Reactor, work: Callable[[], bool | None], is_busy: Callable[[], bool]
    ) -> None:
        self._reactor = reactor
        self._work = work
        self._is_busy = is_busy
        self._asked = False
        self._due_ns = self._at_last_ns = 0

    def ask(self) -> None:
        """There will be work; somebody has been restarted just now."""
        now_ns = time.monotonic_ns()
        self._due_ns = now_ns + QUIET_NS
        if not self._asked:
            self._asked = True
            self._at_last_ns = now_ns + AT_LAST_NS
            self._reactor.call_at(self._due_ns, self._look)

    def _look(self) -> None:
        now_ns = time.monotonic_ns()
        if self._is_busy():
            self._due_ns = now_ns + QUIET_NS
        due_ns = min(self._due_ns, self._at_last_ns)
        if now_ns < due_ns:  # another one was restarted meanwhile
            self._reactor.call_at(due_ns, self._look)
        else:
            self._asked = bool(self._work())
            if self._asked:
                self._at_last_ns = 0  # quiet or not
                self._reactor.call_at(time.monotonic_ns(), self._look)
