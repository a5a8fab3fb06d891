"""The micro:bit session: all devices in the emulator's process, each in one of its own, and under chaos.

Only the guest's run is measured, not the start of the processes. Where the firmware is not there, the
built-in demo guest runs instead, and the table says so.
"""

from __future__ import annotations

import importlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import Contender, Plan, Row, Subject, Table, measure
from benchmarks.peers import Peers
from supervisor import Supervisor, load_config
from supervisor.chaos import ChaosRule, Monkey

__all__ = ["tables"]

ROOT = Path(__file__).parent.parent
FIRMWARE = ROOT / ".cache" / "firmware" / "firmware.hex"
CHAOS = "kill=*,every=10ms,jitter=0.5"
HERE, THERE = "in the emulator's process", "a process for each device"
UNDER_CHAOS = "the same under chaos"
HOW = """\
A session is typed at the console of {}, from its first instruction to its last; the start of the devices'
processes is not in it. Under chaos, `{}` kills devices all the while. {} The guest sleeps for a part of it,
and each sleep is rounded up to whole milliseconds (epoll_wait) unless something ends it: the bells of devices
in processes of their own do, so the guest may take less time with them. Processor time tells what
the emulator itself has to do more."""
CPU = """\
Of all threads of the emulator's process, in the same runs; what the devices' processes use is not in it."""


@dataclass
class _Board:
    """The board whose session is run, and what has come of it."""

    name: str
    plan: Plan
    printed: set[str] = field(default_factory=set)
    kills: list[int] = field(default_factory=list)
    cpu_ns: dict[str, list[int]] = field(default_factory=dict)

    def contender(self, name: str, *, in_process: bool, chaos: bool = False) -> Contender:
        """One way to run it; its processor time is collected on the side."""
        self.cpu_ns[name] = []
        return Contender(name, lambda: self._run(name, in_process=in_process, chaos=chaos))

    def _run(self, way: str, *, in_process: bool, chaos: bool) -> list[int]:
        """A turn: ns that the guest took."""
        override = f"supervisor.in_process={str(in_process).lower()}"
        config = load_config(ROOT / "config" / f"{self.name}.yaml", overrides=[override])
        assert config.machine is not None
        module, _, name = config.machine.machine_class.partition(":")
        machine_class: Any = getattr(importlib.import_module(module), name)
        lines = (ROOT / "config" / f"{self.name}.session.txt").read_text().splitlines(keepends=True)
        typed = "".join(lines[: self.plan.effort.session_lines])
        output = io.StringIO()
        with Supervisor(config) as sup:
            machine = machine_class(sup, **config.machine.options, stdin=io.StringIO(typed), stdout=output)
            rule = f"{CHAOS},seed={self.plan.chooser.randrange(2**32)}"
            monkey = Monkey(sup, [ChaosRule.parse(rule)] if chaos else [])
            monkey.start()
            began_ns, cpu_began_ns = time.perf_counter_ns(), time.process_time_ns()
            machine.run()
            took_ns = time.perf_counter_ns() - began_ns
            self.cpu_ns[way].append(time.process_time_ns() - cpu_began_ns)
            monkey.stop()
        self.printed.add(output.getvalue())
        if chaos:
            self.kills.append(sum(monkey.kills.values()))
        return [took_ns]


def tables(plan: Plan, _peers: Peers) -> Iterator[Table]:
    """Time and processor time; the text tells of the kills, and whether the guest printed the same."""
    has_firmware = FIRMWARE.exists() and plan.effort.session_lines is None
    board = _Board("microbit" if has_firmware else "demo", plan)
    who = "unmodified MicroPython for the BBC micro:bit" if has_firmware else "the built-in demo guest"
    contenders = [
        board.contender(HERE, in_process=True),
        board.contender(THERE, in_process=False),
        board.contender(UNDER_CHAOS, in_process=False, chaos=True),
    ]
    title = f"the {board.name} session"
    subject = Subject(key="session", title=title, ours=(THERE, UNDER_CHAOS), floor=HERE)
    table = measure(subject, contenders, plan.effort.sessions, plan)
    yield _retold(table, how=HOW.format(who, CHAOS, _verdict(board)))
    rows = [Row(name, samples) for name, samples in board.cpu_ns.items()]
    title = f"processor time of the emulator in {title}"
    yield _retold(replace(table, rows=rows), key="session.cpu", title=title, how=CPU)


def _verdict(board: _Board) -> str:
    same = "the same in every run" if len(board.printed) == 1 else "DIFFERENT THINGS"
    return f"The guest printed {same}; there were {min(board.kills)} to {max(board.kills)} kills a session."


def _retold(table: Table, **texts: str) -> Table:
    return replace(table, subject=replace(table.subject, **texts))  # type: ignore[arg-type]
