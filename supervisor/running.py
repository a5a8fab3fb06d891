"""What ``tubevisor run`` and ``tubevisor prove`` do: a board in the foreground, with signals, chaos, reports.

A signal is only noted by its handler and acted upon where the reactor takes in events, so an interrupt never
lands in the middle of a hand-over: it comes out of ``dispatch`` (or of a request that waits), the ``with``
block stops the devices in order, and nothing is left behind. While stopping, further signals are ignored.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from supervisor.chaos import ChaosRule, DeviceToll, Monkey, Outages
from supervisor.config import Config
from supervisor.errors import LocalError, StartFailed, TubevisorError
from supervisor.host import Supervisor
from supervisor.policy.actions import (
    DeviceDied,
    DeviceFailed,
    DeviceKilled,
    GaveUp,
    OutcomeKind,
    Record,
)
from supervisor.seat import DeviceCrashed, InputGivenUp

__all__ = ["prove_board", "run_board"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Interrupted(BaseException):
    """A signal asked the command to end. Not an ``Exception``: no device or machine may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_board(config: Config, *, rules: Sequence[str] = (), as_json: bool = False) -> int:
    """Runs a board until its machine ends, it gives up, or a signal comes; returns the exit code."""
    try:
        chaos = [ChaosRule.parse(rule) for rule in rules]
        with _ReportedErrors(as_json) as errors:
            errors.code, toll = _run_once(config, chaos, as_json=as_json, machine_options={})
            if chaos:
                _print_toll(toll, as_json=as_json)
    except LocalError as error:
        _say(str(error), as_json=as_json)
        return EXIT_USAGE
    return errors.code


def prove_board(config: Config, *, typed: str, rules: Sequence[str], as_json: bool = False) -> int:
    """Runs a board's machine twice with the same input, undisturbed and under chaos; 0 if all is the same."""
    if config.machine is None:
        _say(f"{config.source} has no machine, so there is no guest to compare", as_json=as_json)
        return EXIT_USAGE
    transcripts: list[str] = []
    tolls: list[list[DeviceToll]] = []
    try:
        chaos = [ChaosRule.parse(rule) for rule in rules]
        for title, kills in (("undisturbed", []), (f"under chaos: {' '.join(rules)}", chaos)):
            _say(f"--- {title} ---", as_json=as_json)
            output = _Tee(sys.stdout)
            options = {"stdin": io.StringIO(typed), "stdout": output}
            with _ReportedErrors(as_json) as errors:
                errors.code, toll = _run_once(config, kills, as_json=as_json, machine_options=options)
            if errors.code:
                return errors.code
            transcripts.append(output.text)
            tolls.append(toll)
    except LocalError as error:
        _say(str(error), as_json=as_json)
        return EXIT_USAGE
    _print_toll(tolls[1], as_json=as_json)
    return _judge(transcripts, sum(line.kills for line in tolls[1]), as_json=as_json)


def _judge(transcripts: list[str], kills: int, *, as_json: bool) -> int:
    same = transcripts[0] == transcripts[1]
    if as_json:
        print(json.dumps({"same": same, "kills": kills, "characters": len(transcripts[0])}))
    elif same:
        size = len(transcripts[0].encode())
        print(f"the transcripts are the same: {size} bytes, {kills} kills, and the guest noticed none")
    else:
        at = len(os.path.commonprefix(transcripts))  # noqa: RUF071 - character by character is what is meant
        print(f"THE TRANSCRIPTS DIFFER at character {at}:")
        for title, text in zip(("undisturbed", "under chaos"), transcripts, strict=True):
            print(f"  {title:11} ...{text[max(0, at - 30) : at + 30]!r}")
    return 0 if same and transcripts[0] else EXIT_FAILED


def _run_once(
    config: Config, chaos: list[ChaosRule], *, as_json: bool, machine_options: dict[str, Any]
) -> tuple[int, list[DeviceToll]]:
    outages = Outages()
    monkey: Monkey | None = None
    with _signals() as wakeup, _Interruptible(config, wakeup) as sup:
        sup.on_event(outages.record)
        sup.on_event(lambda record: _report(record, as_json=as_json))
        if chaos:
            monkey = Monkey(sup, chaos)
            _say(f"chaos seeds: {monkey.seeds}", as_json=as_json)
            monkey.start()
        code = _run_machine(config, sup, machine_options)
        if monkey is not None:
            monkey.stop()
        for record in sup.events():
            if isinstance(record, GaveUp):
                code = code or EXIT_FAILED
    kills = monkey.kills if monkey is not None else {}
    return code, outages.toll(sup.devices, kills)


def _run_machine(config: Config, sup: Supervisor, options: dict[str, Any]) -> int:
    if config.machine is None:
        outcome = sup.run()
        return 0 if outcome.kind in (OutcomeKind.STOPPED, OutcomeKind.AUTO_SHUTDOWN) else EXIT_FAILED
    module_name, _, attribute = config.machine.machine_class.partition(":")
    machine_class = getattr(importlib.import_module(module_name), attribute)
    machine = machine_class(sup, **config.machine.options, **options)
    return int(machine.run())


class _Interruptible(Supervisor):
    """A supervisor out of whose ``dispatch`` a signal comes as :class:`Interrupted`, once."""

    def __init__(self, config: Config, wakeup: int) -> None:
        super().__init__(config)
        self._wakeup = wakeup
        self.watch(wakeup, self._on_signal)

    def _on_signal(self, _mask: int) -> None:
        number = os.read(self._wakeup, 64)[0]
        self.unwatch(self._wakeup)  # from here on the devices are being stopped
        raise Interrupted(number)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """SIGINT and SIGTERM become bytes in a pipe; what was set before is put back."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.signal(number, _noted) for number in (signal.SIGINT, signal.SIGTERM)}
    before_fd = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)


def _noted(_number: int, _frame: Any) -> None:
    """The byte in the wake-up pipe is all that a signal does by itself."""


class _ReportedErrors:
    """Turns what ends a board into a message and an exit code."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.code = EXIT_FAILED

    def __enter__(self) -> _ReportedErrors:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        match error:
            case None:
                return True
            case Interrupted():
                self.code = EXIT_INTERRUPTED if error.number == signal.SIGINT else EXIT_TERMINATED
            case LocalError():
                return False
            case StartFailed() | TubevisorError():
                _say(str(error), as_json=self._as_json)
                self.code = EXIT_FAILED
            case _:
                return False
        return True


class _Tee(io.TextIOBase):
    """Shows text as it comes, and keeps it."""

    def __init__(self, shown: TextIO) -> None:
        self._shown = shown
        self._parts: list[str] = []

    def write(self, text: str) -> int:
        self._parts.append(text)
        self._shown.write(text)
        self._shown.flush()
        return len(text)

    @property
    def text(self) -> str:
        """Everything so far."""
        return "".join(self._parts)


def _report(record: Record, *, as_json: bool) -> None:
    """What a user must see of a lifecycle record; all of them with ``--json``."""
    if as_json:
        line = {"event": type(record).__name__, **_plain(record)}
        print(json.dumps(line), file=sys.stderr)
        return
    match record:
        case DeviceCrashed():
            print(f"{record.name} crashed: {record.exception}", file=sys.stderr)
            if record.traceback:
                print(record.traceback.rstrip(), file=sys.stderr)
        case DeviceDied() if record.charged:
            print(f"{record.name} died: {record.exit}", file=sys.stderr)
        case DeviceFailed():
            print(f"{record.name} failed: {record.why}", file=sys.stderr)
        case DeviceKilled():
            print(f"{record.name} was killed: {record.why}", file=sys.stderr)
        case InputGivenUp():
            print(f"{record.name}: {record.why}", file=sys.stderr)
        case GaveUp():
            seconds = record.period_ns / 1e9
            print(
                f"gave up: {record.culprit} made it {record.restarts} restarts in {seconds:g} s",
                file=sys.stderr,
            )


def _plain(record: Record) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(record), default=str))  # type: ignore[no-any-return]


def _print_toll(toll: list[DeviceToll], *, as_json: bool) -> None:
    if as_json:
        for line in toll:
            print(json.dumps(asdict(line)), file=sys.stderr)
        return
    width = max((len(line.device) for line in toll), default=6)
    print(f"{'device':{width}}  kills  restarts  median ms  worst ms", file=sys.stderr)
    for line in toll:
        median = "-" if line.median_ms is None else f"{line.median_ms:.1f}"
        worst = "-" if line.worst_ms is None else f"{line.worst_ms:.1f}"
        print(
            f"{line.device:{width}}  {line.kills:5}  {line.restarts:8}  {median:>9}  {worst:>8}",
            file=sys.stderr,
        )


def _say(text: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"message": text}), file=sys.stderr)
    else:
        print(text, file=sys.stderr)
