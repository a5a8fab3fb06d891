"""Running a board's machine in a test: a typed session in, a transcript out, with or without kills."""

from __future__ import annotations

import importlib
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.chaos import ChaosRule, Monkey
from supervisor.config import load_config
from supervisor.host import Supervisor

CONFIG = Path(__file__).parent.parent.parent / "config"
CHAOS = "kill=*,every=20ms,jitter=0.5"  # a test shares the machine with others


@dataclass
class Session:
    """What came of it."""

    transcript: str
    code: int
    seconds: float
    guest_seconds: float
    kills: int


def run_session(board: str, typed: str, *, in_process: bool = False, chaos: str = "") -> Session:
    """Types ``typed`` at the console of ``config/<board>.yaml``."""
    flag = "true" if in_process else "false"
    config = load_config(CONFIG / f"{board}.yaml", overrides=[f"supervisor.in_process={flag}"])
    assert config.machine is not None
    module, _, name = config.machine.machine_class.partition(":")
    machine_class: Any = getattr(importlib.import_module(module), name)
    out = io.StringIO()
    begun = time.monotonic()
    with Supervisor(config) as sup:
        machine = machine_class(sup, **config.machine.options, stdin=io.StringIO(typed), stdout=out)
        monkey = Monkey(sup, [ChaosRule.parse(chaos)] if chaos else [])
        print(f"seeds={monkey.seeds}")
        monkey.start()
        code = machine.run()
        monkey.stop()
        seconds = time.monotonic() - begun
    return Session(
        out.getvalue(), code, seconds, machine.clock.now_ns / 1e9, sum(monkey.kills.values(), start=0)
    )
