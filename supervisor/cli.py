"""The command ``tubevisor`` as a process: the only owner of signals and exit codes.

A signal must never show as a traceback, so the handlers are the first thing the process does; whatever takes
time to import is imported under them. As long as there is nothing to tidy up a signal ends the process on the
spot. While devices run, ``supervisor.running`` puts handlers of its own in place, and these back afterwards.
Once the exit code is known no signal changes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from supervisor.exit_codes import ExitCode

__all__ = ["main"]

_ENDING = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Entry point of the command."""
    for number in _ENDING:
        signal.signal(number, _leave_at_once)
    _fill_standard_descriptors()
    try:
        from supervisor.commands import cli

        cli(prog_name="tubevisor")
    except SystemExit as leaving:
        code = leaving.code
    except OSError as error:  # such as a full disk behind stdout
        code = ExitCode.FAILED
        _complain(error)
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code if _flush() else code or ExitCode.FAILED)


def _leave_at_once(number: int, _frame: object) -> None:
    os._exit(128 + number)


def _fill_standard_descriptors() -> None:
    """Where 0, 1 or 2 is closed, the next file to be opened would be taken for it: /dev/null is better."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is ``fd``
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _flush() -> bool:
    """Writes out what is left; false if it cannot be. A reader that has gone is not worth a message."""
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            done = False
            if not isinstance(error, BrokenPipeError):
                _complain(error)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())  # or the interpreter would try again, and complain
            os.close(null)
    return done


def _complain(error: OSError) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"tubevisor: {error}\n")
