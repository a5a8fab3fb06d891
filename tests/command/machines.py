"""A machine that is interrupted at a moment of its choice."""

from __future__ import annotations

import os
import signal
from typing import Any


class Interrupts:
    """Sends its own process a SIGINT: in the constructor, before a request, from an event, at the end."""

    def __init__(self, supervisor: Any, *, moment: str) -> None:
        self._sup = supervisor
        self._moment = moment
        if moment == "event":
            supervisor.on_event(lambda _record: self._now("event"))
        self._now("constructor")

    def run(self) -> int:
        """Goes on for ever, or to the end if that is the moment."""
        counter = self._sup["counter"]
        self._now("request")
        while self._moment != "end":
            counter.read(0x04, 4)
            self._sup.kill("counter", charged=False)
            self._sup.dispatch(0)
        self._now("end")
        return 0

    def _now(self, moment: str) -> None:
        if moment == self._moment:
            os.kill(os.getpid(), signal.SIGINT)
