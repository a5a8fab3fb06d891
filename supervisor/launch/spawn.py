"""How the zygote is spawned: through ``multiprocess``, without the user's ``__main__``, bound to its parent.

``multiprocess`` is used through private parts of one pinned version (see ``_ZygotePopen``): its own way of
spawning would import the user's ``__main__`` a second time and start a resource tracker of no use to us.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from multiprocess import context, popen_spawn_posix, spawn, util

from supervisor.worker.entry import PR_SET_PDEATHSIG

__all__ = ["Inherited", "ZygoteProcess"]

# Before anything else is imported: a supervisor may die while its zygote has not come to ``zygote_main`` yet.
_DIE_WITH_PARENT = (
    f"import ctypes, os; ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGKILL)}, 0, 0, 0); "
    "os.getppid() == {parent} or os._exit(0); "
)


@dataclass(slots=True)
class Inherited:
    """A descriptor that the new process gets under a number of its own choice."""

    fd: int
    _kept: list[int] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return int, (context.get_spawning_popen().duplicate_for_child(self.fd),)


class _ZygotePopen(popen_spawn_posix.Popen):  # type: ignore[misc]
    """Spawns without the user's ``__main__`` and without a resource tracker."""

    def _launch(self, process: Any) -> None:
        preparation = spawn.get_preparation_data(process._name)
        for key in ("init_main_from_name", "init_main_from_path"):
            preparation.pop(key, None)
        pickled = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            context.reduction.dump(preparation, pickled)
            context.reduction.dump(process, pickled)
        finally:
            context.set_spawning_popen(None)
        sentinel, child_writes = os.pipe()
        try:
            child_reads, we_write = os.pipe()
        except OSError:
            os.close(sentinel)
            os.close(child_writes)
            raise
        self.finalizer = util.Finalize(self, util.close_fds, (sentinel, we_write))
        try:
            command = spawn.get_command_line(tracker_fd=None, pipe_handle=child_reads)
            program = command.index("-c") + 1
            command[program] = _DIE_WITH_PARENT.format(parent=os.getpid()) + command[program]
            self._fds += [child_reads, child_writes]
            with _signals_of_the_terminal_blocked():
                self.pid = util.spawnv_passfds(spawn.get_executable(), command, self._fds)
            self.sentinel = sentinel
            with open(we_write, "wb", closefd=False) as stream:
                stream.write(pickled.getbuffer())
        except BaseException:
            self.finalizer()
            raise
        finally:
            os.close(child_reads)
            os.close(child_writes)


@contextlib.contextmanager
def _signals_of_the_terminal_blocked() -> Iterator[None]:
    """Who is born in here keeps them blocked: a Ctrl-C hits it too until it has a session."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ZygoteProcess(context.SpawnProcess):  # type: ignore[misc]
    @staticmethod
    def _Popen(process: Any) -> _ZygotePopen:
        return _ZygotePopen(process)
