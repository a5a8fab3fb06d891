"""What the command says: on stderr, in words or as one JSON object a line. Stdout is the guest's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from supervisor.chaos import DeviceToll
from supervisor.events import (
    DeviceCrashed,
    DeviceDied,
    DeviceFailed,
    DeviceKilled,
    GaveUp,
    GroupEnded,
    GroupFailed,
    GroupKilled,
    InputGivenUp,
    Record,
)

__all__ = ["Reporter"]


@dataclass(frozen=True, slots=True)
class Reporter:
    """Says things to the user of the command."""

    as_json: bool = False

    def say(self, text: str) -> None:
        """A message."""
        self._print({"message": text} if self.as_json else text)

    def tell(self, record: Record) -> None:
        """What a user must see of a lifecycle record; all of them as JSON."""
        if self.as_json:
            self._print({"event": type(record).__name__, **asdict(record)})
            return
        for line in _in_words(record):
            self._print(line)

    def tell_toll(self, toll: Sequence[DeviceToll]) -> None:
        """What chaos cost each device, as a table."""
        if self.as_json:
            for line in toll:
                self._print(asdict(line))
            return
        width = max((len(line.device) for line in toll), default=6)
        self._print(f"{'device':{width}}  kills  restarts  median ms  worst ms")
        for line in toll:
            median = "-" if line.median_ms is None else f"{line.median_ms:.1f}"
            worst = "-" if line.worst_ms is None else f"{line.worst_ms:.1f}"
            self._print(f"{line.device:{width}}  {line.kills:5}  {line.restarts:8}  {median:>9}  {worst:>8}")

    def _print(self, what: str | dict[str, Any]) -> None:
        text = what if isinstance(what, str) else json.dumps(what, default=_shown)
        print(text, file=sys.stderr)


def _shown(value: object) -> object:
    return value.value if isinstance(value, Enum) else str(value)


def _in_words(record: Record) -> list[str]:
    match record:
        case DeviceCrashed():
            crashed = f"{record.name} crashed: {record.exception}"
            return [crashed, record.traceback.rstrip()] if record.traceback else [crashed]
        case DeviceDied() if record.charged:
            return [f"{record.name} died: {record.exit}"]
        case DeviceFailed():
            return [f"{record.name} failed: {record.why}"]
        case DeviceKilled():
            return [f"{record.name} was killed: {record.why}"]
        case GroupEnded():
            return [f"group {record.name} {record.exit}"]
        case GroupFailed():
            return [f"group {record.name} failed: {record.why}"]
        case GroupKilled():
            return [f"group {record.name} was killed: {record.why}"]
        case InputGivenUp():
            return [record.why]  # it begins with the device's name
        case GaveUp():
            allowed, seconds = record.restarts - 1, record.period_ns / 1e9
            used = f"the {allowed} restarts in {seconds:g} s are used up"
            return [f"gave up: {record.culprit} died, and {used}"]
    return []
