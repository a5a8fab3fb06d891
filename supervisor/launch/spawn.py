"""How the zygote is spawned: through ``multiprocess``, but without it inside.

What is in the zygote is in every worker, and costs each of them time at its fork and at its end. So the
new process imports no ``multiprocess``, whose pickling brings 60 modules along, nor the user's ``__main__``:
it is told in JSON what ``multiprocess`` would have told it in a pickle. It gets no resource tracker either.
``multiprocess`` is used through private parts of one pinned version (see ``_ZygotePopen``).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from supervisor.launch.blocking import signals_blocked
from supervisor.worker.entry import PR_SET_PDEATHSIG

# Its import makes a file, to see where temporary ones can be: who was ended in between left that behind.
with signals_blocked(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    from multiprocess import context, popen_spawn_posix, spawn, util
    from multiprocess.process import ORIGINAL_DIR

__all__ = ["ZygoteProcess"]

# The first line before anything is imported: a supervisor may die while its zygote has not come any further.
_PROGRAM = f"""\
import ctypes, os; ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {int(signal.SIGKILL)}, 0, 0, 0)
os.getppid() == {{parent}} or os._exit(0)
import json, sys; told = json.load(open({{told_fd}})); sys.path[:] = told["path"]; sys.argv[:] = told["argv"]
from supervisor.launch.zygote import zygote_main
zygote_main({{tube_fd}}, {{parent}}, told["preload"])
"""


class _ZygotePopen(popen_spawn_posix.Popen):  # type: ignore[misc]
    """Spawns a :class:`ZygoteProcess`."""

    def _launch(self, process: ZygoteProcess) -> None:
        told = {
            "path": [str(entry) or ORIGINAL_DIR for entry in sys.path],
            "argv": sys.argv,
            "preload": list(process.preload),
        }
        sentinel, child_writes = os.pipe()
        try:
            child_reads, we_write = os.pipe()
        except OSError:
            os.close(sentinel)
            os.close(child_writes)
            raise
        self.finalizer = util.Finalize(self, util.close_fds, (sentinel,))
        try:
            command = [spawn.get_executable(), *util._args_from_interpreter_flags(), "-c"]
            command.append(_PROGRAM.format(parent=os.getpid(), told_fd=child_reads, tube_fd=process.tube_fd))
            inherited = [process.tube_fd, child_reads, child_writes]
            # It is born with them blocked: a Ctrl-C would hit it too until it has a session.
            with signals_blocked(signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
                self.pid = util.spawnv_passfds(spawn.get_executable(), command, inherited)
            self.sentinel = sentinel
            os.close(child_reads)
            child_reads = -1
            with open(we_write, "w", closefd=False) as stream:
                json.dump(told, stream)
        except BaseException:
            self.finalizer()
            raise
        finally:
            for fd in (child_reads, child_writes, we_write):
                if fd >= 0:
                    os.close(fd)


class ZygoteProcess(context.SpawnProcess):  # type: ignore[misc]
    """The zygote as a process of ``multiprocess``; ``tube_fd`` is its end of the Tube."""

    def __init__(self, tube_fd: int, preload: Sequence[str]) -> None:
        super().__init__(name="tubevisor-zygote", daemon=True)
        self.tube_fd = tube_fd
        self.preload = preload

    @staticmethod
    def _Popen(process: Any) -> _ZygotePopen:
        return _ZygotePopen(process)
