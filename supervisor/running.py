"""What ``tubevisor run`` and ``tubevisor prove`` do: a board in the foreground, with chaos and reports."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import resource
import select
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from supervisor.chaos import ChaosRule, DeviceToll, Monkey, Outages
from supervisor.config import Config, MachineConfig
from supervisor.errors import DeviceGone, LocalError, StartFailed, TubevisorError
from supervisor.exit_codes import ExitCode
from supervisor.foreground import DevicesEnded, Foreground, Interrupted, Signals
from supervisor.host import Supervisor
from supervisor.policy.records import OutcomeKind, Record
from supervisor.reporting import Reporter

__all__ = ["prove_board", "run_board"]

DESCRIPTORS = 128  # of our own, of the machine's, and of packets on their way
DESCRIPTORS_PER_DEVICE = 13  # journal and mapping, two bells, Tube, log, pidfd; twice while it is replaced

_log = logging.getLogger("tubevisor")


class _MachineFailed(TubevisorError):
    """The machine's class is not there, or the machine raised something of its own: the cause."""


@dataclass(frozen=True, slots=True)
class _Ran:
    """How a run ended, and what chaos cost."""

    code: int
    toll: list[DeviceToll]


def run_board(config: Config, *, rules: Sequence[str] = (), as_json: bool = False) -> int:
    """Runs a board until its machine ends, it gives up, or a signal comes; returns the exit code."""
    reporter = Reporter(as_json)
    if not config.devices and config.machine is None:
        reporter.say(f"{config.source} has neither devices nor a machine: there is nothing to run")
        return ExitCode.USAGE
    try:
        chaos = _parse(rules, config)
    except LocalError as error:
        reporter.say(str(error))
        return ExitCode.USAGE
    ran = _run_once(config, chaos, reporter=reporter, machine_options={})
    if chaos:
        reporter.tell_toll(ran.toll)
    return ran.code


def prove_board(config: Config, *, typed: str, rules: Sequence[str], as_json: bool = False) -> int:
    """Runs a board's machine twice with the same input, undisturbed and under chaos; 0 if all is the same.

    As JSON the verdict is alone on stdout, and what the guest prints is on stderr.
    """
    reporter = Reporter(as_json)
    if config.machine is None:
        reporter.say(f"{config.source} has no machine, so there is no guest to compare")
        return ExitCode.USAGE
    try:
        chaos = _parse(rules, config)
    except LocalError as error:
        reporter.say(str(error))
        return ExitCode.USAGE
    transcripts: list[str] = []
    toll: list[DeviceToll] = []
    for title, kills in (("undisturbed", []), (f"under chaos: {' '.join(rules)}", chaos)):
        reporter.say(f"--- {title} ---")
        output = _Tee(sys.stderr if as_json else sys.stdout)
        options = {"stdin": io.StringIO(typed), "stdout": output}
        ran = _run_once(config, kills, reporter=reporter, machine_options=options)
        if ran.code:
            return ran.code
        transcripts.append(output.text)
        toll = ran.toll
    reporter.tell_toll(toll)
    return _judge(transcripts, sum(line.kills for line in toll), as_json=as_json)


def _parse(rules: Sequence[str], config: Config) -> list[ChaosRule]:
    """The rules, held against the configuration before anything is started."""
    chaos = [ChaosRule.parse(rule) for rule in rules]
    for rule in chaos:
        rule.check([device.name for device in config.devices])
    if chaos and config.supervisor.in_process:
        raise LocalError("chaos needs devices in processes of their own: supervisor.in_process is set")
    return chaos


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
    return ExitCode.DONE if same and transcripts[0] else ExitCode.FAILED


def _run_once(
    config: Config, chaos: list[ChaosRule], *, reporter: Reporter, machine_options: dict[str, Any]
) -> _Ran:
    outages = Outages()
    kills: Mapping[str, int] = {}

    def tell(record: Record) -> None:
        outages.record(record)
        reporter.tell(record)

    _allow_descriptors(config)
    with _ReportedErrors(reporter) as errors, Signals() as signals:
        with Foreground(config, signals) as sup:
            for record in sup.events():
                tell(record)
            sup.on_event(tell)
            with _chaos(sup, chaos, reporter) as monkey:
                kills = monkey.kills
                errors.code = _run_machine(config, sup, machine_options, reporter)
        late = sup.interrupted or signals.take()
        if late is not None:
            raise Interrupted(late)
    return _Ran(errors.code, outages.toll([device.name for device in config.devices], kills))


def _allow_descriptors(config: Config) -> None:
    """Raises this process's soft limit, which is low for the sake of select(2), to what the devices need."""
    standbys = sum(device.standby for device in config.devices)
    processes = len(config.devices) + standbys + config.supervisor.spares
    wanted = DESCRIPTORS + DESCRIPTORS_PER_DEVICE * processes
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


@contextlib.contextmanager
def _chaos(sup: Supervisor, chaos: list[ChaosRule], reporter: Reporter) -> Iterator[Monkey]:
    monkey = Monkey(sup, chaos)
    if chaos:
        reporter.say(f"chaos seeds: {' '.join(map(str, monkey.seeds))}")
    monkey.start()
    try:
        yield monkey
    finally:
        monkey.stop()


def _run_machine(config: Config, sup: Foreground, options: dict[str, Any], reporter: Reporter) -> int:
    if config.machine is None:
        count = len(config.devices)
        reporter.say(f"{count} device{'s' if count != 1 else ''} running, no machine; Ctrl-C stops")
        sup.run()
        return _code_of_outcome(sup)
    name = config.machine.machine_class
    try:
        machine = _build_machine(config.machine, sup, options)
        sup.machine_runs = True
        return int(machine.run() or 0)
    except DevicesEnded:
        return _code_of_outcome(sup)
    except DeviceGone:
        if sup.outcome is None or _code_of_outcome(sup):
            raise
        return ExitCode.DONE
    except (TubevisorError, BrokenPipeError):
        raise
    except Exception as error:
        raise _MachineFailed(f"machine {name}: {type(error).__name__}: {error}") from error
    finally:
        sup.machine_runs = False


def _build_machine(machine: MachineConfig, sup: Supervisor, options: dict[str, Any]) -> Any:
    module_name, _, attribute = machine.machine_class.partition(":")
    machine_class = getattr(importlib.import_module(module_name), attribute)
    return machine_class(sup, **machine.options, **options)


def _code_of_outcome(sup: Supervisor) -> int:
    """How it is called that the devices have ended."""
    good = (OutcomeKind.STOPPED, OutcomeKind.AUTO_SHUTDOWN)
    return ExitCode.DONE if sup.outcome is None or sup.outcome.kind in good else ExitCode.FAILED


class _ReportedErrors:
    """Turns what ends a board into a message and an exit code."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.code: int = ExitCode.FAILED

    def __enter__(self) -> _ReportedErrors:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        match error:
            case None:
                return True
            case Interrupted():
                self.code = 128 + error.number
                return True
            case BrokenPipeError() if _nobody_reads(sys.stdout):
                pass  # as in ``| head -1``: what was wanted has been read
            case _MachineFailed() | StartFailed() if error.__cause__ is not None:
                self._reporter.say(f"{error}\n{_traceback_of(error.__cause__)}")
            case TubevisorError() | OSError():
                _log.info("the command failed", exc_info=error)
                cause = f": {error.__cause__}" if isinstance(error.__cause__, OSError) else ""
                self._reporter.say(f"{error}{cause}")
            case _:
                return False
        self.code = ExitCode.FAILED
        return True


def _traceback_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _nobody_reads(stream: TextIO) -> bool:
    """True if ``stream`` is a pipe or socket whose reader has gone."""
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLOUT)
    return any(mask & (select.POLLERR | select.POLLHUP) for _fd, mask in poller.poll(0))


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
