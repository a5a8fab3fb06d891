"""What ``tubevisor run`` and ``tubevisor prove`` do: a board in the foreground, with signals, chaos, reports.

A signal is only noted by its handler and acted upon where the reactor takes in events, so an interrupt never
lands in the middle of a hand-over: it comes out of ``dispatch`` (or of a request that waits), the ``with``
block stops the devices in order, and nothing is left behind. A second signal while they are being stopped
ends them at once. A machine that has not come by for a while, because it computes or sleeps, is interrupted
where it stands by the second signal.

When the devices have ended, by give-up or auto_shutdown, so has the machine: it is told by the next
``dispatch``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, TextIO

from supervisor.chaos import ChaosRule, DeviceToll, Monkey, Outages
from supervisor.config import Config, MachineConfig
from supervisor.errors import DeviceGone, LocalError, StartFailed, TubevisorError
from supervisor.exit_codes import ExitCode
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

PATIENCE_S = 1.0  # a machine that dispatches at all does so every few ms
DESCRIPTORS = 128  # of our own, of the machine's, and of packets on their way
DESCRIPTORS_PER_DEVICE = (
    12  # journal and its mapping, two bells, Tube, log, pidfd; twice while it is replaced
)

_log = logging.getLogger("tubevisor")


class Interrupted(BaseException):
    """A signal asked the command to end. Not an ``Exception``: no device or machine may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _DevicesEnded(BaseException):
    """The devices have ended under a running machine. Not an ``Exception`` for the same reason."""


class _MachineFailed(TubevisorError):
    """The machine's class is not there, or the machine raised something of its own: the cause."""


@dataclass(frozen=True, slots=True)
class _Ran:
    """How a run ended, and what chaos cost."""

    code: int
    toll: list[DeviceToll]


def run_board(config: Config, *, rules: Sequence[str] = (), as_json: bool = False) -> int:
    """Runs a board until its machine ends, it gives up, or a signal comes; returns the exit code."""
    if not config.devices and config.machine is None:
        _say(f"{config.source} has neither devices nor a machine: there is nothing to run", as_json=as_json)
        return ExitCode.USAGE
    try:
        chaos = _parse(rules, config)
    except LocalError as error:
        _say(str(error), as_json=as_json)
        return ExitCode.USAGE
    ran = _run_once(config, chaos, as_json=as_json, machine_options={})
    if chaos:
        _print_toll(ran.toll, as_json=as_json)
    return ran.code


def prove_board(config: Config, *, typed: str, rules: Sequence[str], as_json: bool = False) -> int:
    """Runs a board's machine twice with the same input, undisturbed and under chaos; 0 if all is the same.

    As JSON the verdict is alone on stdout, and what the guest prints is on stderr.
    """
    if config.machine is None:
        _say(f"{config.source} has no machine, so there is no guest to compare", as_json=as_json)
        return ExitCode.USAGE
    try:
        chaos = _parse(rules, config)
    except LocalError as error:
        _say(str(error), as_json=as_json)
        return ExitCode.USAGE
    transcripts: list[str] = []
    toll: list[DeviceToll] = []
    for title, kills in (("undisturbed", []), (f"under chaos: {' '.join(rules)}", chaos)):
        _say(f"--- {title} ---", as_json=as_json)
        output = _Tee(sys.stderr if as_json else sys.stdout)
        options = {"stdin": io.StringIO(typed), "stdout": output}
        ran = _run_once(config, kills, as_json=as_json, machine_options=options)
        if ran.code:
            return ran.code
        transcripts.append(output.text)
        toll = ran.toll
    _print_toll(toll, as_json=as_json)
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
    config: Config, chaos: list[ChaosRule], *, as_json: bool, machine_options: dict[str, Any]
) -> _Ran:
    outages = Outages()
    kills: Mapping[str, int] = {}

    def tell(record: Record) -> None:
        outages.record(record)
        _report(record, as_json=as_json)

    _allow_descriptors(config)
    with _ReportedErrors(as_json) as errors, _Signals() as signals:
        with _Foreground(config, signals) as sup:
            for record in sup.events():
                tell(record)
            sup.on_event(tell)
            with _chaos(sup, chaos, as_json=as_json) as monkey:
                kills = monkey.kills
                errors.code = _run_machine(config, sup, machine_options)
        late = sup.interrupted or signals.take()
        if late is not None:
            raise Interrupted(late)
    return _Ran(errors.code, outages.toll([device.name for device in config.devices], kills))


def _allow_descriptors(config: Config) -> None:
    """Raises this process's soft limit, which is low for the sake of select(2), to what the devices need."""
    wanted = DESCRIPTORS + DESCRIPTORS_PER_DEVICE * (len(config.devices) + config.supervisor.spares)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


@contextlib.contextmanager
def _chaos(sup: Supervisor, chaos: list[ChaosRule], *, as_json: bool) -> Iterator[Monkey]:
    monkey = Monkey(sup, chaos)
    if chaos:
        _say(f"chaos seeds: {' '.join(map(str, monkey.seeds))}", as_json=as_json)
    monkey.start()
    try:
        yield monkey
    finally:
        monkey.stop()


def _run_machine(config: Config, sup: _Foreground, options: dict[str, Any]) -> int:
    if config.machine is None:
        sup.run()
        return _code_of_outcome(sup)
    name = config.machine.machine_class
    try:
        machine = _build_machine(config.machine, sup, options)
        sup.machine_runs = True
        return int(machine.run() or 0)
    except _DevicesEnded:
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


class _Signals:
    """SIGINT and SIGTERM become bytes in a pipe; what was set before is put back."""

    def __init__(self) -> None:
        self._noted_s: float | None = None
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> _Signals:
        # In this order, and leaving in the reverse one, there is no moment at which a signal is lost.
        self._fd_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in _ENDING}
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._read_end)
        os.close(self._write_end)

    def fileno(self) -> int:
        """Readable when there is something to :meth:`take`."""
        return self._read_end

    def take(self) -> int | None:
        """The first signal since the last call that asks for an end; ``None`` if there is none."""
        self._noted_s = None
        try:
            numbers = os.read(self._read_end, 4096)
        except BlockingIOError:
            return None
        return next((number for number in numbers if number in _ENDING), None)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        """The byte in the pipe is enough, unless nobody has looked for it since the signal before."""
        now_s = time.monotonic()
        if self._noted_s is None:
            self._noted_s = now_s
        elif now_s - self._noted_s > PATIENCE_S:
            self.take()
            raise Interrupted(number)


_ENDING = (signal.SIGINT, signal.SIGTERM)


class _Foreground(Supervisor):
    """A supervisor out of which a signal comes as :class:`Interrupted`, wherever it looks for events."""

    def __init__(self, config: Config, signals: _Signals) -> None:
        super().__init__(config)
        self.machine_runs = False
        self.interrupted: int | None = None
        self._signals = signals
        self._stopping = False
        self.watch(signals.fileno(), self._on_signal)

    def start(self) -> None:
        try:
            super().start()
        except Interrupted:
            self.stop()
            raise

    def stop(self) -> None:
        self._stopping = True
        super().stop()

    def dispatch(self, timeout: float | None = 0.0) -> None:
        super().dispatch(timeout)
        if self.machine_runs and self.outcome is not None:
            raise _DevicesEnded

    def _on_signal(self, _mask: int) -> None:
        number = self._signals.take()
        if number is None:
            return
        first, self.interrupted = self.interrupted is None, self.interrupted or number
        if not (
            first and self._stopping
        ):  # it is on its way out already: the first one changes the code only
            raise Interrupted(self.interrupted)


class _ReportedErrors:
    """Turns what ends a board into a message and an exit code."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
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
                _say(f"{error}\n{_traceback_of(error.__cause__)}", as_json=self._as_json)
            case TubevisorError() | OSError():
                _log.info("the command failed", exc_info=error)
                cause = f": {error.__cause__}" if isinstance(error.__cause__, OSError) else ""
                _say(f"{error}{cause}", as_json=self._as_json)
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
