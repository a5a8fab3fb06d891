"""A board of so many lamps, with the defaults for everything but what would forbid to kill so often.

As a program, ``python -m benchmarks.board COUNT`` runs it, says in one line of JSON who its processes are,
and dispatches until it is killed.
"""

from __future__ import annotations

import json
import sys

from supervisor import Supervisor
from supervisor.config import parse_config

__all__ = ["board"]


def board(count: int, *, spares: int = 1, standby: bool = False, in_process: bool = False) -> Supervisor:
    """``lamp0`` and so on, not started yet; ``standby``: each with a process ready to take its place."""
    lines = [
        "name: benchmark",
        f"supervisor: {{intensity: 1000000, spares: {spares}, in_process: {str(in_process).lower()}, "
        "preload: [benchmarks.lamp]}",
        "devices:",
        *(
            f"  - {{name: lamp{number}, device: 'benchmarks.lamp:Lamp', standby: {str(standby).lower()}, "
            "backoff: {max: 0s}}"
            for number in range(count)
        ),
    ]
    return Supervisor(parse_config("\n".join(lines) + "\n"))


def main() -> None:
    """Runs until it is killed."""
    with board(int(sys.argv[1])) as sup:
        workers = [device.pid for device in sup.devices.values()]
        print(json.dumps({"zygote": sup.zygote_pid, "workers": workers}), flush=True)
        sup.run()


if __name__ == "__main__":
    main()
