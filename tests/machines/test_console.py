"""The console: when it types what, and what it does to a terminal. The guest is played by the test."""

from __future__ import annotations

import io
import os
import pty
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from machines.console import QUIET_NS, Console


class _Supervisor:
    """The part that watches descriptors."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, callback: Callable[[int], None]) -> None:
        if os.path.isfile(f"/proc/self/fd/{fd}"):
            raise PermissionError
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]


class _Serial:
    """The part of a handle that a console uses."""

    def __init__(self) -> None:
        self.typed: list[bytes] = []
        self.sink: Callable[[bytes], None] | None = None

    def send(self, data: bytes) -> None:
        self.typed.append(data)

    def on_output(self, sink: Callable[[bytes], None] | None) -> None:
        self.sink = sink


class _Guest:
    def __init__(self, stdin: Any) -> None:
        self.sup, self.serial, self.stdout = _Supervisor(), _Serial(), io.StringIO()
        sup: Any = self.sup
        serial: Any = self.serial
        self.console = Console(sup, serial, stdin=stdin, stdout=self.stdout)

    def say(self, text: str, *, idle: bool = True, now_ns: int = 0) -> list[bytes]:
        """The guest prints, and then waits; returns what is typed upon it."""
        before = len(self.serial.typed)
        assert self.serial.sink is not None
        self.serial.sink(text.encode())
        self.console.type_ahead(now_ns, idle=idle)
        return self.serial.typed[before:]

    def has_ended(self) -> bool:
        return self.console.ended


@contextmanager
def _guest(stdin: Any) -> Iterator[_Guest]:
    guest = _Guest(stdin)
    with guest.console:
        yield guest


def test_given_lines_each_is_typed_at_a_prompt_and_the_end_is_the_prompt_after_the_last() -> None:
    """Nothing is typed before the guest asks; carriage returns end the lines."""
    with _guest(io.StringIO("one\ntwo\n")) as guest:
        assert guest.say("booting\r\n") == []
        assert guest.say(">>> ") == [b"one\r"]
        assert guest.say("one\r\nresult\r\n") == []
        assert guest.say("tail>>> ") == [b"two\r"]
        assert not guest.has_ended()
        assert guest.say("two\r\n>>> ") == []
        assert guest.has_ended()
    assert guest.stdout.getvalue() == "booting\n>>> one\nresult\ntail>>> two\n>>> \n"


def test_given_prompt_inside_the_echo_it_is_none() -> None:
    """A line that contains a prompt does not fool the console."""
    with _guest(io.StringIO('print(">>> ")\nnext\n')) as guest:
        assert guest.say(">>> ") == [b'print(">>> ")\r']
        assert guest.say('print(">>> ') == []
        assert guest.say('")\r\n') == []
        assert guest.say(">>> ") == [b"next\r"]


def test_given_busy_guest_the_console_waits_for_the_rest_of_what_it_says() -> None:
    """A prompt may go on; a guest that never sleeps has to be quiet for a while."""
    with _guest(io.StringIO("a\n")) as guest:
        assert guest.say(">>> ", idle=False) == []
        guest.console.type_ahead(QUIET_NS - 1, idle=False)
        assert guest.serial.typed == []
        guest.console.type_ahead(QUIET_NS, idle=False)
        assert guest.serial.typed == [b"a\r"]


def test_given_indenting_repl_lines_bring_only_what_is_missing() -> None:
    """Indentation that is there is left out, what is too much is rubbed out, an empty line closes."""
    with _guest(io.StringIO("if x:\n    if y:\n        f()\n    g()\n\nh()\n")) as guest:
        assert guest.say(">>> ") == [b"if x:\r"]
        assert guest.say("if x:\r\n...     ") == [b"if y:\r"]
        assert guest.say("if y:\r\n...         ") == [b"f()\r"]
        assert guest.say("f()\r\n...         ") == [b"\x7fg()\r"]
        assert guest.say("\b\b\b\bg()\r\n...     ") == [b"\x7f\r"]
        assert guest.say("\r\n>>> ") == [b"h()\r"]


def test_given_block_left_open_at_the_end_it_is_closed_as_a_person_would() -> None:
    """The last line opened a block: an empty line ends it, then the session ends."""
    with _guest(io.StringIO("def f(): pass")) as guest:
        assert guest.say(">>> ") == [b"def f(): pass\r"]
        assert guest.say("def f(): pass\r\n... ") == [b"\r"]
        assert guest.say("\r\n>>> ") == []
        assert guest.has_ended()


def test_given_pipe_lines_are_typed_as_they_come_and_its_end_is_the_end() -> None:
    """A pipe is watched, never waited for; a last line without an end counts."""
    read_end, write_end = os.pipe()
    with open(read_end) as stdin, _guest(stdin) as guest:
        assert guest.say(">>> ") == []
        os.write(write_end, b"on")
        guest.sup.watched[read_end](1)
        guest.console.type_ahead(0, idle=True)
        assert guest.serial.typed == []
        os.write(write_end, b"e\r\nlast")
        guest.sup.watched[read_end](1)
        guest.console.type_ahead(0, idle=True)
        assert guest.serial.typed == [b"one\r"]
        os.close(write_end)
        guest.sup.watched[read_end](1)
        assert guest.sup.watched == {}
        assert guest.say("one\r\n>>> ") == [b"last\r"]
        guest.say("last\r\n>>> ")
        assert guest.has_ended()


def test_given_output_split_inside_a_character_it_is_decoded_whole() -> None:
    """Bytes come one by one from a serial port."""
    with _guest(io.StringIO("")) as guest:
        assert guest.serial.sink is not None
        for byte in "°C\r\n".encode():
            guest.serial.sink(bytes((byte,)))
        guest.serial.sink(b"\xff")
    assert guest.stdout.getvalue() == "°C\n\ufffd\n"


def test_given_terminal_it_is_raw_inside_and_restored_after_ctrl_bracket() -> None:
    """Ctrl-C goes to the guest, Ctrl-] leaves, what was typed before it still arrives."""
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        with open(theirs, closefd=False) as stdin, _guest(stdin) as guest:
            during = termios.tcgetattr(theirs)
            assert not during[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
            os.write(ours, b"a\x03")
            guest.sup.watched[theirs](1)
            assert guest.serial.typed == [b"a\x03"]
            assert guest.say(">>> \r\n") == []
            os.write(ours, b"z\x1dlost")
            guest.sup.watched[theirs](1)
            assert guest.serial.typed == [b"a\x03", b"z"]
            assert guest.has_ended()
        assert termios.tcgetattr(theirs) == before
        assert guest.stdout.getvalue() == ">>> \r\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_given_terminal_and_an_error_it_is_restored_all_the_same() -> None:
    """Whatever ends the machine."""
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        with open(theirs, closefd=False) as stdin:
            try:
                with _guest(stdin):
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                pass
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)
