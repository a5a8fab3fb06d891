"""A supervisor in the foreground: a signal comes out of it as an exception, in a safe place.

A signal is only noted by its handler and acted upon where the reactor takes in events, so an interrupt never
lands in the middle of a hand-over: it comes out of ``dispatch`` (or of a request that waits), the ``with``
block stops the devices in order, and nothing is left behind. A second signal while they are being stopped
ends them at once. A machine that has not come by for a while, because it computes or sleeps, is interrupted
where it stands by the second signal.

When the devices have ended, by give-up or auto_shutdown, so has the machine: it is told by the next
``dispatch``.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from supervisor.config import Config
from supervisor.host import Supervisor

__all__ = ["DevicesEnded", "Foreground", "Interrupted", "Signals"]

PATIENCE_S = 1.0  # a machine that dispatches at all does so every few ms


class Interrupted(BaseException):
    """A signal asked the command to end. Not an ``Exception``: no device or machine may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class DevicesEnded(BaseException):
    """The devices have ended under a running machine. Not an ``Exception`` for the same reason."""


class Signals:
    """SIGINT and SIGTERM become bytes in a pipe; what was set before is put back."""

    def __init__(self) -> None:
        self._noted_s: float | None = None
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> Signals:
        # In this order, and leaving in the reverse one, there is no moment at which a signal is lost.
        self._fd_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in _ENDING}
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._read_end)
        os.close(self._write_end)

    def fileno(self) -> int:
        """Readable when there is something to :meth:`take`."""
        return self._read_end

    def take(self) -> int | None:
        """The first signal since the last call that asks for an end; ``None`` if there is none."""
        self._noted_s = None
        try:
            numbers = os.read(self._read_end, 4096)
        except BlockingIOError:
            return None
        return next((number for number in numbers if number in _ENDING), None)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        """The byte in the pipe is enough, unless nobody has looked for it since the signal before."""
        now_s = time.monotonic()
        if self._noted_s is None:
            self._noted_s = now_s
        elif now_s - self._noted_s > PATIENCE_S:
            self.take()
            raise Interrupted(number)


_ENDING = (signal.SIGINT, signal.SIGTERM)


class Foreground(Supervisor):
    """A supervisor out of which a signal comes as :class:`Interrupted`, wherever it looks for events."""

    def __init__(self, config: Config, signals: Signals) -> None:
        super().__init__(config)
        self.machine_runs = False
        self.interrupted: int | None = None
        self._signals = signals
        self._stopping = False
        self.watch(signals.fileno(), self._on_signal)

    def start(self) -> None:
        try:
            super().start()
        except Interrupted:
            self.stop()
            raise

    def stop(self) -> None:
        self._stopping = True
        super().stop()

    def dispatch(self, timeout: float | None = 0.0) -> None:
        super().dispatch(timeout)
        if self.machine_runs and self.outcome is not None:
            raise DevicesEnded

    def _on_signal(self, _mask: int) -> None:
        number = self._signals.take()
        if number is None:
            return
        first, self.interrupted = self.interrupted is None, self.interrupted or number
        if not (
            first and self._stopping
        ):  # it is on its way out already: the first one changes the code only
            raise Interrupted(self.interrupted)
