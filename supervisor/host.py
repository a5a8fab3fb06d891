"""The public ``Supervisor``: devices by name, in the host's own loop.

A polite guest: no threads, no signal handlers, no ``waitpid(-1)``, nothing global. The host calls
``dispatch`` when ``fileno()`` is readable or ``next_timeout()`` has passed, or simply blocks in requests,
which run the same reactor. Outputs reach their sinks, and alarms the devices, only from ``dispatch``.
"""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from supervisor import policy
from supervisor.agenda import Agenda
from supervisor.bus import Bus
from supervisor.config import Config, DeviceConfig, policy_spec
from supervisor.device import NO_ALARM
from supervisor.errors import LocalError, StartFailed
from supervisor.handle import Clock, DeviceHandle, LocalHandle
from supervisor.policy import Counts
from supervisor.policy.events import RestartChild, Start, StartChild, Stop, StopChild
from supervisor.policy.records import Outcome, Record
from supervisor.reactor import Reactor
from supervisor.reload import Reloaded
from supervisor.roster import DeviceStatus, Roster, start_report
from supervisor.worker.session import Launch
from supervisor.workers import Workers

__all__ = ["Supervisor"]


class Supervisor:
    """Runs the devices of a configuration, each in a process of its own (or all in this one).

    ``with Supervisor(config) as sup`` starts them and waits until every one is ready; leaving stops them in
    order. ``clock`` is guest time in ns: assign a callable of the machine's own; default: host monotonic.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._clock: Clock = time.monotonic_ns
        self._reactor = Reactor(policy_spec(config))
        self._workers: Workers | None = None
        self._observers: list[Callable[[Record], None]] = []
        self._local: dict[str, LocalHandle] = {}
        self._agenda = Agenda()
        if config.supervisor.in_process:
            self._reactor.executor = _Idle()
        else:
            self._workers = Workers(config, self._reactor, self._clock, self._agenda)
            self._reactor.executor = self._workers
        self._started = False
        self._closed = False

    @property
    def clock(self) -> Clock:
        """Guest time in ns."""
        return self._clock

    @clock.setter
    def clock(self, clock: Clock) -> None:
        self._clock = clock
        if self._workers is not None:
            self._workers.use_clock(clock)
        for handle in self._handles.values():
            handle.clock = clock

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts every device in order and returns when all are ready.

        Raises :class:`~supervisor.errors.StartFailed` with a report when one is not; nothing runs then.
        """
        if self._workers is None:
            for device in self.config.devices:
                self._local[device.name] = self._build_here(device)
                self._agenda.stir(self._local[device.name])
            self._bus = Bus(self._local.values())
            self._started = True
            return
        self._bus = Bus(self._handles.values())
        self._roster = Roster(self.config, self._reactor, self._workers, self._bus, time.monotonic_ns)
        self._workers.processes.start()
        self._reactor.post(Start())
        self._reactor.step()
        self._started = True
        while self._reactor.outcome is None:
            if policy.phase(self._reactor.state) is policy.Phase.RUNNING:
                break
            self._reactor.poll(None)
        if self._reactor.outcome is not None:
            report = start_report(f"the start failed: {self._reactor.outcome.why}", self.events())
            self.close()
            raise StartFailed(report)
        self._workers.processes.keep_spares(self.config.supervisor.spares)
        self._reactor.fresh = False  # that this returns tells it all

    def stop(self) -> None:
        """Stops every device in reverse order, each with its deadline, and returns when all are gone."""
        if self._workers is not None and self._started:
            self._reactor.post(Stop())
            while self._reactor.outcome is None:
                self._reactor.poll(None)
                self._deliver_outputs()
            self._deliver_outputs()
            self._deliver_news()
        self.close()

    def close(self) -> None:
        """Ends whatever is left at once and gives everything back. ``stop`` is the polite way."""
        if self._closed:
            return
        self._closed = True
        if self._workers is not None:
            self._workers.close()
        else:
            for handle in self._local.values():
                handle.close()
        self._reactor.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self.close()

    # -- devices ---------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> DeviceHandle:
        try:
            return self._handles[name]
        except KeyError:
            raise KeyError(f"no device {name!r}; there are {', '.join(self._handles)}") from None

    @property
    def devices(self) -> Mapping[str, DeviceHandle]:
        """All devices by name, in the configuration's order, then those that were added."""
        return self._handles

    @property
    def bus(self) -> Bus:
        """Addresses to devices."""
        return self._bus

    @property
    def zygote_pid(self) -> int | None:
        """The process that forks the workers; ``None`` where there is none."""
        return None if self._workers is None else self._workers.processes.zygote_pid

    @property
    def outcome(self) -> Outcome | None:
        """Why the supervisor has ended, once it has."""
        return self._reactor.outcome

    def start_device(self, name: str) -> None:
        """Brings a stopped, failed or finished device, or a group, back."""
        self._order(StartChild(name))

    def stop_device(self, name: str) -> None:
        """Takes a device, or a group, down until told otherwise; requests then raise ``DeviceGone``."""
        self._order(StopChild(name))

    def restart_device(self, name: str) -> None:
        """Replaces a device's process, or all of a group's; charged to nothing."""
        self._order(RestartChild(name))

    # -- devices that come and go ----------------------------------------------------------------

    def add_device(
        self, device: DeviceConfig | str | Mapping[str, Any], *, group: str = policy.ROOT
    ) -> DeviceHandle:
        """Starts a device more, the last in start order of ``group``; returns when it is ready.

        ``device`` is what stands under ``devices`` in a configuration: YAML text, or the same as a mapping.
        In a ``simple_one_for_one`` group it says only what the template does not; its name is numbered if
        it gives none.
        Raises ``LocalError`` where it cannot be added (``already_started``, ``already_present``: the name
        is taken), and :class:`~supervisor.errors.StartFailed` when it does not start; nothing is left then.
        """
        return self._dynamic().add(device, group)

    def remove_device(self, name: str) -> None:
        """Forgets a device or group that is down, failed or finished; names and addresses are free again.

        Raises ``LocalError`` while it is ``running`` or ``restarting``, or is ``not_found``.
        """
        self._dynamic().remove(name)

    def which_devices(self, *, group: str = policy.ROOT) -> tuple[DeviceStatus, ...]:
        """The devices and groups in ``group`` (outermost: those in no group), the newest first."""
        return self._dynamic().which(group)

    def count_devices(self, *, group: str = policy.ROOT) -> Counts:
        """How many children ``group`` has: ``specs``, of which ``active`` live; ``workers`` are devices."""
        return self._dynamic().count(group)

    def device_spec(self, name: str) -> DeviceConfig:
        """What a device was started with. Raises ``LocalError`` where it is ``not_found``."""
        return self._dynamic().spec(name)

    def reload(self, config: Config) -> Reloaded:
        """Goes on by another configuration, as OTP's code_change; returns what it means to the devices.

        Nothing is started, stopped or replaced: see :class:`~supervisor.reload.Reloaded` for what
        becomes of each device. ``machine``, ``preload`` and ``in_process`` stay as they were. Raises
        ``LocalError`` where the board cannot go on by it, and nothing has changed then.
        """
        reloaded = self._dynamic().reload(config)
        self.config = config
        if self._workers is not None:
            self._workers.processes.keep_spares(config.supervisor.spares)
        return reloaded

    def _dynamic(self) -> Roster:
        if not self._started or self._workers is None:
            raise LocalError("devices come and go in a started supervisor, in processes of their own")
        return self._roster

    def kill(self, name: str, *, send_signal: int = signal.SIGKILL, charged: bool = True) -> int | None:
        """Sends a signal to a device's process, as a chaos monkey does; returns the pid that was hit.

        ``None`` where nothing serves just now. ``charged=False``: the death costs neither budget nor backoff.
        """
        self[name]
        if self._workers is None:
            return None
        return self._workers.send_signal(name, send_signal, charged=charged)

    # -- somebody else's loop --------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when :meth:`dispatch` has something to do."""
        return self._reactor.fileno()

    def next_timeout(self) -> float | None:
        """Seconds until :meth:`dispatch` has something to do even if ``fileno()`` stays quiet.

        With a clock of the machine's own, alarms are not in it: guest time is the machine's to know.
        """
        timeouts = []
        if self._reactor.fresh:
            return 0.0
        for handle in self._agenda.stirring():
            if handle.has_outputs or not handle.may_be_waited_for():
                return 0.0  # something has happened, during a request perhaps
        own = self._reactor.timeout_ns()
        if own is not None:
            timeouts.append(own)
        if self.clock is time.monotonic_ns:
            alarm = self._agenda.earliest_alarm()
            if alarm is not None:
                timeouts.append(max(0, alarm[0] - time.monotonic_ns()))
        return min(timeouts) / 1e9 if timeouts else None

    def next_alarm_ns(self) -> int:
        """Guest time of the earliest alarm of all devices, or ``NO_ALARM``; waits for what is outstanding.

        For a machine that has to know before it lets guest time pass. ``dispatch`` itself never waits for a
        device: what it does not know yet it does when the device's bell has rung.
        """
        for handle in self._agenda.stirring():
            handle.next_alarm_ns  # noqa: B018 - which waits for what is outstanding
        alarm = self._agenda.earliest_alarm()
        return NO_ALARM if alarm is None else alarm[0]

    def dispatch(self, timeout: float | None = 0.0) -> None:
        """Does what there is to do: processes, alarms that guest time has reached, outputs to their sinks.

        Waits at most ``timeout`` seconds for something to happen (0: not at all, ``None``: until it does).
        """
        timeout_ns = None if timeout is None else int(timeout * 1e9)
        if timeout_ns != 0:
            limit = self.next_timeout()
            if limit is not None and (timeout_ns is None or limit * 1e9 < timeout_ns):
                timeout_ns = int(limit * 1e9) + 1
        self._reactor.poll(timeout_ns)
        self._deliver_alarms()
        self._deliver_outputs()
        self._deliver_news()
        self._reactor.fresh = False

    def events(self) -> Iterator[Record]:
        """Lifecycle records since the last call; never blocks. Old ones are dropped if nobody reads."""
        self._reactor.fresh = False
        records = self._reactor.records
        while records:
            yield records.popleft()

    def on_event(self, observer: Callable[[Record], None]) -> None:
        """Has every lifecycle record from now on given to ``observer``, from ``dispatch``."""
        if not self._observers:
            self._reactor.news.clear()
        self._observers.append(observer)

    def run(self) -> Any:
        """Dispatches until the supervisor has ended: blocks, or, under asyncio, is awaited."""
        asyncio = sys.modules.get("asyncio")  # whoever runs under it has imported it
        if asyncio is not None and asyncio._get_running_loop() is not None:
            from supervisor.aio import run_under_asyncio

            return run_under_asyncio(self)
        while self._reactor.outcome is None:
            self.dispatch(None)
        return self._reactor.outcome

    def watch(self, fd: int, callback: Callable[[int], None]) -> None:
        """Calls ``callback(mask)`` while ``fd`` is readable, from ``dispatch`` or a request that waits."""
        self._reactor.watch(fd, callback)

    def unwatch(self, fd: int) -> None:
        """Stops watching ``fd``."""
        self._reactor.unwatch(fd)

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Any:
        """Calls ``callback`` in ``delay_ns`` of host time, from ``dispatch`` or a request that waits.

        The result's ``cancel()`` takes it back.
        """
        return self._reactor.call_at(time.monotonic_ns() + delay_ns, callback)

    # -- inside ----------------------------------------------------------------------------------

    def _on_change(self, callback: Callable[[], None] | None) -> None:
        """Has ``callback`` called where :meth:`next_timeout` may be another by now."""
        self._reactor.on_change = self._agenda.on_change = callback

    @property
    def _handles(self) -> Mapping[str, DeviceHandle]:
        return self._local if self._workers is None else self._workers.handles

    def _order(self, event: StartChild | StopChild | RestartChild) -> None:
        if self._workers is None:
            raise LocalError("devices in this process cannot be started, stopped or restarted one by one")
        if event.name not in self._reactor.state.nodes:
            self[event.name]
        self._reactor.step()
        why_not = policy.why_not_order(self._reactor.state, event.name)
        if why_not:
            raise LocalError(why_not)
        self._reactor.post(event)
        self._reactor.step()

    def _deliver_alarms(self) -> None:
        now_ns = self.clock()
        while (alarm := self._agenda.earliest_alarm()) is not None and alarm[0] <= now_ns:
            at_ns, handle = alarm
            handle.deliver_alarm(at_ns)

    def _deliver_outputs(self) -> None:
        for handle in self._agenda.stirring():
            handle.deliver_outputs()
        self._agenda.settle()
        if self._workers is not None:
            self._workers.see_off()

    def _deliver_news(self) -> None:
        news = self._reactor.news
        if not self._observers:
            return
        while news:
            record = news.popleft()
            for observer in self._observers:
                observer(record)

    def _build_here(self, device: Any) -> LocalHandle:
        module, _, attribute = device.device_class.partition(":")
        launch = Launch(name=device.name, options=device.options)
        try:
            device_class = getattr(importlib.import_module(module), attribute)
            return LocalHandle(device_class, launch, self._clock, device.mmio)
        except Exception as error:
            what = f"{device.name}: {type(error).__name__}: {error}"
            raise StartFailed(f"the start failed: {what}") from error


class _Idle:
    """The executor of a supervisor that has no processes."""

    def spawn(self, name: str, generation: int) -> None: ...

    def ask_stop(self, name: str, generation: int) -> None: ...

    def kill(self, name: str, generation: int, why: str) -> None: ...

    def forget(self, name: str, restarts: int, why: str) -> None: ...

    def published(self, record: Record) -> None: ...

    def about_to_decide(self) -> None: ...
