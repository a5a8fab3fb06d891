"""Devices that die by themselves, at places and in states that no monkey would find. For workers to import.

``Mortal`` kills its process before a line of the queue's, the log's or its own code that is chosen at random,
so at each boundary between two stores sooner or later. It completes requests in no order, and leaves some
under way while others are published: only then does the in-flight log say what used.idx does not.

``Forgetful`` does the same, but ignores the log: the control, which has to fail.

``MortalConsole`` is a console whose runtime dies with it: before any line of a commit, too.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar

from devices.virtio import blk, console
from supervisor.vhost_user import SplitQueue, VirtioDevice, device, inflight, virtqueue
from supervisor.worker import committer, journal, runtime, virtio

__all__ = ["Forgetful", "Mortal", "MortalConsole"]

WATCHED = {module.__file__ for module in (blk, console, device, inflight, virtqueue)} | {__file__}
HELD = 16  # requests under way at once, at most


class _Dying(VirtioDevice):
    """Dies before one of the first ``lines`` lines, an option, of the watched files in each life."""

    watched: ClassVar[set[str | None]] = WATCHED

    def attached(self, features: int, queues: dict[int, SplitQueue]) -> None:
        self._left = random.randint(1, self.ctx.options.lines)
        sys.settrace(self._on_call)
        super().attached(features, queues)

    def _on_call(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._on_line if frame.f_code.co_filename in self.watched else None

    def _on_line(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._on_line


class MortalConsole(_Dying, console.Console):
    """``lines``: it dies before one of the first so many lines of each life, the runtime's among them."""

    watched = WATCHED | {module.__file__ for module in (committer, journal, runtime, virtio)}

    @dataclass
    class Options(console.Console.Options):
        lines: int = 400


class Mortal(_Dying, blk.Blk):
    """``lines``: it dies before one of the first so many lines of each life."""

    in_order = False

    @dataclass
    class Options(blk.Blk.Options):
        lines: int = 3000
        shuffled: bool = True

    def process(self, queue: SplitQueue, index: int) -> bool:
        if not self.ctx.options.shuffled:
            return super().process(queue, index)
        under_way: list[int] = []
        queue.ignore_kicks()
        while True:
            under_way += queue.fetch(HELD - len(under_way))
            if not under_way:
                if queue.wait_for_kick():
                    return False
                queue.ignore_kicks()
                continue
            random.shuffle(under_way)
            some = random.randint(1, len(under_way))
            for head in under_way[:some]:
                self._execute(queue, index, head)
            del under_way[:some]
            queue.flush()


class Forgetful(Mortal):
    """Takes the log for empty, and goes on where used.idx stands."""

    def attached(self, features: int, queues: dict[int, SplitQueue]) -> None:
        for queue in queues.values():
            queue.log = None
        super().attached(features, queues)
