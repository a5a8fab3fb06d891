"""The guest's console: its serial port on this side is our standard input and output.

The serial port is a device of the board, or whatever else takes bytes and gives bytes.

Output is text as it comes: decoded, written, flushed. Input depends on what it is:

- a *terminal* goes into raw mode and every key to the guest, Ctrl-C included. Ctrl-] leaves, so does the end
  of input. The terminal is put back in every case.
- *anything else* (a pipe, a file, a text stream) is typed line by line, each line when the guest shows its
  prompt and waits (it sleeps, or has been quiet for a while): a prompt may be only half of what it says. The
  console has ended when the prompt is back after the last line. If that has opened a block, an empty line
  closes it, as a person would do.

A REPL that indents the continuation of a block by itself has typed part of the next line already; what the
line brings of its own is left out, and what is too much is taken back.

The machine calls ``type_ahead`` from its loop, after ``dispatch``; nothing here blocks.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys
import termios
import tty
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TextIO

from supervisor import Supervisor

__all__ = ["Console", "Serial"]

LEAVE = b"\x1d"  # Ctrl-]
PROMPT = re.compile(rb"(?:>>> |\.\.\. ( *))$")
"""A guest waits; the group, if it is there, is the indentation of a block that is open."""
TAIL_BYTES = 128  # of the output, kept to see a prompt in: as much as a terminal's line
READ_BYTES = 65536
BACKSPACE = "\x7f"
QUIET_NS = 50_000_000  # of guest time without output: a guest that never sleeps has said what it had to say
INDENT_COLUMNS = 4  # what one backspace takes back at the beginning of a line


class Serial(Protocol):
    """A serial port: a device's handle is one."""

    def on_output(self, sink: Callable[[bytes], None] | None) -> None:
        """Registers who takes what the guest sends."""

    def send(self, data: bytes) -> None:
        """Hands bytes to the guest."""


class Console:
    """Connects the port ``serial`` with ``stdin`` and ``stdout``, inside a ``with`` block.

    ``stdin`` and ``stdout`` are text streams; by default those of the process. ``ended`` says that there is
    nothing more to type and the guest has answered. ``prompt`` is what a guest shows that waits for a line.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        serial: Serial,
        *,
        stdin: Any = None,
        stdout: TextIO | None = None,
        prompt: re.Pattern[bytes] = PROMPT,
    ) -> None:
        self._sup = supervisor
        self._serial = serial
        self._prompt = prompt
        self._stdin = sys.stdin if stdin is None else stdin
        self._stdout = sys.stdout if stdout is None else stdout
        self._fd = _descriptor(self._stdin)
        self._interactive = self._fd is not None and os.isatty(self._fd)
        self._watched = False
        self._mode: list[Any] | None = None
        self._lines: deque[str] = deque()
        self._partial = b""
        self._no_more_input = False
        self._tail = b""
        self._in_echo = False  # of the line typed last
        self._at_line_start = True
        self._quiet_since_ns: int | None = None  # guest time when the last output had come
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder: Any
        if self._interactive:
            self._decoder = decoder  # a raw terminal needs its carriage returns
        else:
            self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self.ended = False

    def __enter__(self) -> Console:
        self._serial.on_output(self._show)
        if self._interactive:
            assert self._fd is not None  # noqa: S101 - only a descriptor can be a terminal
            self._mode = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSADRAIN)
        if self._fd is None:
            self._lines.extend(self._stdin.read().splitlines())
            self._no_more_input = True
        else:
            self._watch(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unwatch()
        if self._mode is not None:
            assert self._fd is not None  # noqa: S101 - it had a mode
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._mode)
            self._mode = None
        self._serial.on_output(None)
        with contextlib.suppress(OSError):
            rest = self._decoder.decode(b"", True)
            self._write(rest if self._interactive or self._at_line_start else rest + "\n")

    # -- output ----------------------------------------------------------------------------------

    def _show(self, data: bytes) -> None:
        self._quiet_since_ns = None
        self._write(self._decoder.decode(data))
        if self._in_echo:  # a prompt inside the line that is being echoed is none
            _echo, newline, data = data.partition(b"\n")
            self._in_echo = not newline
        if not self._in_echo:
            self._tail = (self._tail + data)[-TAIL_BYTES:]

    def _write(self, text: str) -> None:
        if text:
            self._at_line_start = text.endswith("\n")
            self._stdout.write(text)
            self._stdout.flush()

    # -- input -----------------------------------------------------------------------------------

    def type_ahead(self, now_ns: int, *, idle: bool) -> None:
        """Types the next line if the guest waits for one; notices the end.

        ``now_ns`` is guest time; ``idle`` says that the guest sleeps.
        """
        if self._interactive or not self._tail:
            return
        if self._quiet_since_ns is None:
            self._quiet_since_ns = now_ns
        if not idle and now_ns - self._quiet_since_ns < QUIET_NS:
            return
        prompt = self._prompt.search(self._tail)
        if prompt is None:
            return
        indent = prompt[1] if prompt.re.groups else None
        if self._lines:
            self._type(self._lines.popleft(), indent or b"")
        elif self._no_more_input:
            if indent is None:
                self.ended = True
            else:
                self._type("", indent)

    def _type(self, line: str, indent: bytes) -> None:
        given = len(indent)
        own = len(line) - len(line.lstrip(" "))
        if given > own:
            line = BACKSPACE * -(-(given - own) // INDENT_COLUMNS) + line.lstrip(" ")
        else:
            line = line[given:]
        self._tail = b""
        self._in_echo = True
        self._serial.send(line.encode() + b"\r")

    def _watch(self, fd: int) -> None:
        try:
            self._sup.watch(fd, self._on_input)
        except PermissionError:  # a regular file is always readable, so the kernel does not watch it
            self._take(self._stdin.read().encode())
            self._take(b"")
            return
        self._watched = True

    def _unwatch(self) -> None:
        if self._watched:
            assert self._fd is not None  # noqa: S101 - it is watched
            self._sup.unwatch(self._fd)
            self._watched = False

    def _on_input(self, _mask: int) -> None:
        assert self._fd is not None  # noqa: S101 - it is watched
        try:
            data = os.read(self._fd, READ_BYTES)
        except OSError:
            data = b""  # a terminal that has been hung up
        if self._interactive:
            keys, left, _rest = data.partition(LEAVE)
            if keys:
                self._serial.send(keys)
            self.ended = bool(left) or not data
        else:
            self._take(data)
        if not data:
            self._unwatch()

    def _take(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        if not data:
            self._no_more_input = True
            if self._partial:
                lines.append(self._partial)
        self._lines.extend(line.decode(errors="replace").rstrip("\r") for line in lines)


def _descriptor(stream: Any) -> int | None:
    """The descriptor behind a stream, or ``None`` for a stream that has none (a string, say)."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, io.UnsupportedOperation):
        return None
