"""A board in the foreground of this very process: what it opens and installs is taken back."""

from __future__ import annotations

import signal

import pytest

from supervisor.exit_codes import ExitCode
from supervisor.running import run_board
from tests.chaos import COUNTING, board, census


@pytest.mark.parametrize("moment", ["constructor", "request", "event", "end"])
def test_given_interrupt_at_a_chosen_moment_everything_is_given_back(moment: str) -> None:
    """130, and no descriptor, process, journal or signal handler is left of the run."""
    machine = f'machine: {{class: "tests.command.machines:Interrupts", options: {{moment: {moment}}}}}'
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with census():
        assert run_board(board(COUNTING, extra=machine)) == ExitCode.INTERRUPTED
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    assert wakeup == -1
