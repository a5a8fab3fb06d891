"""From an assignment to a serving device, in two steps: what can be made ready ahead, and the rest.

A worker that is needed takes both at once. A standby takes the first one ahead (surroundings, journal, class,
options, a virtio device's guest memory and rings), and waits: until its predecessor is dead none of the
device's methods runs, and nothing is written to what both of them share.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import logging
import os
import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from supervisor.device import Device, Ignore
from supervisor.errors import LocalError, TubevisorError
from supervisor.memory.errors import NoTrueAtomics
from supervisor.messages_pb2 import Assign, Begin, Failed, Ready, WorkerMessage
from supervisor.tube import Disconnected
from supervisor.worker.conversation import ControlTube
from supervisor.worker.heir import Heir
from supervisor.worker.journal import Journal
from supervisor.worker.runtime import DeviceCrashed, Runtime
from supervisor.worker.session import Launch, Session, build_options

if TYPE_CHECKING:
    from supervisor.worker.virtio import Attachment

__all__ = ["PR_SET_NAME", "Prepared", "begin", "name_process", "prepare", "rehearse"]

PR_SET_NAME = 15

_descriptions: dict[type[Device], Ready] = {}  # filled in the zygote, by ``rehearse``
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Prepared:
    """What a worker has of its device before that lives; ``heard_ns``: since when (host monotonic)."""

    assign: Assign
    journal: Journal
    runtime: Runtime
    passed: dict[str, int]
    device_class: type[Device]
    options: dict[str, Any]
    queues: Attachment | None
    heir: Heir | None
    heard_ns: int


def prepare(tube: ControlTube, generation: int, assign: Assign, descriptors: list[Any]) -> Prepared:
    """Makes ready what ``assign`` says, of which ``descriptors`` are the ones that came along.

    Raises :class:`DeviceCrashed` with the phase that failed.
    """
    heard_ns = time.monotonic_ns()
    with _phase(Failed.PHASE_ASSIGN):
        _apply_surroundings(assign)
        journal = Journal.attach(descriptors[0].fileno())
        descriptors[0].close()
        door_fd, answer_fd = descriptors[1].detach(), descriptors[2].detach()
        queues_at = 3 + len(assign.passed_names)
        named = zip(assign.passed_names, descriptors[3:queues_at], strict=True)
        passed = {name: held.detach() for name, held in named}
        runtime = Runtime(
            tube,
            generation,
            journal,
            door_fd=door_fd,
            answer_fd=answer_fd,
            heartbeat_every_ns=assign.heartbeat_every_ns,
        )
    with _phase(Failed.PHASE_IMPORT):
        device_class = _find_class(assign.device_class)
    with _phase(Failed.PHASE_OPTIONS):
        options = msgspec.msgpack.decode(assign.options_msgpack)
        if not assign.HasField("begin"):
            _rehearse_session(device_class, Launch(name=assign.name, options=options), runtime)
    queues = heir = None
    if assign.HasField("succession"):
        with contextlib.suppress(NoTrueAtomics, OSError):  # then the supervisor has to say when
            heir = Heir(assign.succession.pid, descriptors[-3:], machine_time=assign.machine_time)
            heir.rehearse(journal)
        descriptors = descriptors[:-3]
    if assign.HasField("attach"):
        from supervisor.worker.virtio import Attachment  # only where a device has queues

        with _phase(Failed.PHASE_START):
            queues = Attachment(assign.attach, descriptors[queues_at:])
    return Prepared(assign, journal, runtime, passed, device_class, options, queues, heir, heard_ns)


def begin(tube: ControlTube, generation: int, prepared: Prepared, begin: Begin) -> Runtime:
    """Brings the device to life and says Ready. Raises what :meth:`Runtime.adopt` does."""
    begun_ns = time.monotonic_ns()
    assign, device_class, runtime = prepared.assign, prepared.device_class, prepared.runtime
    launch = Launch(
        name=assign.name,
        options=prepared.options,
        restarts=begin.restart_count,
        last_exit=begin.last_exit,
        passed=prepared.passed,
    )
    heir = prepared.heir
    with _phase(Failed.PHASE_OPTIONS):
        free_before = _lowest_free_descriptor()
        try:
            session = Session(device_class, launch, runtime)
        except LocalError:
            raise
        except Exception as error:
            raise DeviceCrashed(Failed.PHASE_START) from error
    queues = prepared.queues
    if queues is not None and heir is None:
        runtime.attach_when_ready(queues, assign.attach)
    started_ns = time.monotonic_ns()
    runtime.adopt(session, now_ns=begin.now_ns, fresh=begin.start_fresh)
    restored_ns = time.monotonic_ns()
    opened = set(range(free_before, _lowest_free_descriptor())) - runtime.kept
    if heir is not None:  # nobody needs to hear of it before those who wait have what they wait for
        if queues is not None:
            runtime.attach_now(queues, assign.attach, heir.succession.note_requests)
        runtime.handle_what_waits()
    message = WorkerMessage(generation=generation)
    ready = message.ready
    ready.CopyFrom(_describe(device_class))
    ready.assigned_ns, ready.started_ns = prepared.heard_ns, started_ns
    ready.begun_ns, ready.restored_ns = begun_ns, restored_ns
    device: Any = session.device
    if hasattr(device, "offer"):  # a virtio device: what it offers is known once it has started
        device.offer(ready.virtio)
    exclusive = bool(opened) if device.exclusive is None else device.exclusive
    ready.lifeline = not exclusive and runtime.hold_lifeline()
    tube.tell(message)
    if heir is not None:
        heir.close()
    return runtime


def _rehearse_session(device_class: type[Device], launch: Launch, loop: Runtime) -> None:
    """What will be done when the time has come, as far as none of the device's own code is in it."""
    if device_class.__init__ is object.__init__:
        Session(device_class, launch, loop)
    else:
        build_options(device_class, launch.options)


def _lowest_free_descriptor() -> int:
    """The number that the next one to be opened will have: what was opened since fills those below it."""
    lowest = os.dup(0)
    os.close(lowest)
    return lowest


def _find_class(name: str) -> type[Device]:
    module_name, _, attribute = name.partition(":")
    module = sys.modules.get(module_name) or importlib.import_module(module_name)
    found = getattr(module, attribute, None)
    if found is None:
        raise LocalError(f"module {module_name} has no {attribute}")
    if not (isinstance(found, type) and issubclass(found, Device)):
        raise LocalError(f"{name} is not a subclass of supervisor.Device but {found!r}")
    return found


def rehearse(device_class: type[Device]) -> None:
    """Does, in the zygote, what every worker of this class would do again: its description, its options.

    msgspec keeps what it has learnt about a class, so a forked worker finds both done: a third of the time
    from Assign to Ready.
    """
    _describe(device_class)
    with contextlib.suppress(LocalError):  # options that have no default
        build_options(device_class, {})


def _describe(device_class: type[Device]) -> Ready:
    """What Ready says of every device of a class."""
    known = _descriptions.get(device_class)
    if known is not None:
        return known
    schema = {} if device_class.Options is None else msgspec.json.schema(device_class.Options)
    _descriptions[device_class] = known = Ready(
        register_map_msgpack=msgspec.msgpack.encode(device_class.sheet.map()),
        option_schema_json=json.dumps(schema).encode(),
        state_version=device_class.state_version,
    )
    return known


def _apply_surroundings(assign: Assign) -> None:
    name_process(assign.name)
    if assign.environment:
        os.environ.update(assign.environment)
    os.umask(assign.umask)
    if assign.working_directory:
        os.chdir(assign.working_directory)
    for limit, field in ((resource.RLIMIT_NOFILE, "open_files"), (resource.RLIMIT_DATA, "data_bytes")):
        if assign.limits.HasField(field):  # type: ignore[arg-type]  # the names above
            value = getattr(assign.limits, field)
            resource.setrlimit(limit, (value, value))
    root, handlers = logging.getLogger(), [_log_handler()]
    if root.handlers != handlers:
        root.handlers[:] = handlers
    if root.level != assign.log_level:
        root.setLevel(assign.log_level)


@functools.cache
def _log_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PriorityFormatter("%(message)s"))
    return handler


def name_process(name: str) -> None:
    """What ps(1) and others show of this process."""
    _libc.prctl(PR_SET_NAME, f"tv:{name}".encode()[:15], 0, 0, 0)


class _PriorityFormatter(logging.Formatter):
    """Marks each line with its level as ``<n>``, as sd-daemon(3) does, so that the supervisor can sort it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        mark = f"<{record.levelno}>"
        return "\n".join(mark + line for line in text.splitlines() or [""])


@contextlib.contextmanager
def _phase(phase: Failed.Phase.ValueType) -> Any:
    try:
        yield
    except (Disconnected, DeviceCrashed, Ignore):
        raise
    except (Exception, TubevisorError) as error:
        raise DeviceCrashed(phase) from error
