"""The micro:bit session beside itself: all devices in the emulator's process, and each in one of its own.

Runs in turn, so that a drift of the machine's speed hits both, and prints medians and their ratio. Only the
guest's run is measured, not the start of the processes. Usage: python benchmarks/session.py [RUNS]
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from pathlib import Path

from machines.microbit import Microbit
from supervisor import Supervisor, load_config

CONFIG = Path(__file__).parent.parent / "config"


def run_session(*, in_process: bool) -> tuple[float, str]:
    """(Seconds that the session took, what the guest printed)."""
    override = f"supervisor.in_process={'true' if in_process else 'false'}"
    config = load_config(CONFIG / "microbit.yaml", overrides=[override])
    assert config.machine is not None
    output = io.StringIO()
    with Supervisor(config) as sup, open(CONFIG / "session.txt") as typed:
        machine = Microbit(sup, **config.machine.options, stdin=typed, stdout=output)
        began = time.perf_counter()
        machine.run()
        return time.perf_counter() - began, output.getvalue()


def main() -> None:
    """Prints the table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    took: dict[bool, list[float]] = {True: [], False: []}
    printed = set()
    for _ in range(runs):
        for in_process in (True, False):
            seconds, text = run_session(in_process=in_process)
            took[in_process].append(seconds)
            printed.add(text)
    here, there = statistics.median(took[True]), statistics.median(took[False])
    print(f"in the emulator's process   {here:.2f} s (median of {runs})")
    print(f"a process for each device   {there:.2f} s, ratio {there / here:.2f}")
    print("the guest printed the same" if len(printed) == 1 else "THE GUEST PRINTED DIFFERENT THINGS")


if __name__ == "__main__":
    main()
