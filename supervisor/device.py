"""``Device``, the class that device authors subclass, and ``Context``, what a device may ask for.

A device is an actor: it owns its state, sees one input at a time, and never blocks. Its inputs are the
methods below; its outputs are what it asks of ``self.ctx``. The runtime commits state, reply and outputs
of an input in one atomic step, so a device need not fear being killed in the middle of a method: the
input is then handled again, by its successor, from the state before it.

What has to survive is (1) the declared registers, always; (2) the attributes named in ``state``; or, for
a device that wants its own format, (3) what ``snapshot`` returns. Everything else is made anew by
``__init__`` and ``start``. Do not read clocks or random numbers of the host in a method, unless the value
goes into the state: guest time is ``self.ctx.now_ns``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import copy
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar, Protocol

import msgspec

from supervisor.registers import Register, Sheet

__all__ = ["Context", "Device", "Ignore"]

NO_ALARM = 2**64 - 1


class Context(Protocol):
    """What a device may ask of its surroundings. Times are guest time in integer ns."""

    @property
    def name(self) -> str:
        """The device's name in the configuration."""

    @property
    def options(self) -> Any:
        """The device's options: an instance of its ``Options``, or ``None`` where it declares none."""

    @property
    def now_ns(self) -> int:
        """Guest time of the input being handled, in ns. A replay sees the same value."""

    @property
    def restarts(self) -> int:
        """How often this device has been restarted; 0 in its first process."""

    @property
    def last_exit(self) -> str:
        """Why the process before this one ended; empty in the first."""

    @property
    def logger(self) -> logging.Logger:
        """Logs to the supervisor, which keeps the last lines for its report."""

    @property
    def passed(self) -> Mapping[str, int]:
        """Descriptors that the processes before this one have had kept, by name; the device's to close."""

    def set_alarm(self, at_ns: int, token: int = 0) -> None:
        """Asks for ``alarm(token)`` at guest time ``at_ns``; replaces the one set before with ``token``."""

    def cancel_alarm(self, token: int = 0) -> None:
        """Takes an alarm back; one that is not set is no error."""

    def raise_irq(self, line: int = 0) -> None:
        """Raises interrupt line ``line`` (the device's own numbering, 0 to 63)."""

    def lower_irq(self, line: int = 0) -> None:
        """Lowers interrupt line ``line``."""

    def emit(self, data: bytes) -> None:
        """Hands bytes to whoever listens to this device (a console, a trace). Never dropped."""

    def connect(self, name: str) -> Any:
        """A Tube to the device called ``name``, which gets the other end from its own ``connect``.

        Waits while that is being restarted, but not in ``start``. Raises
        :class:`~supervisor.errors.LocalError` where it is not there and will not be.
        """

    def hand_over(self, target_pid: int, fd: int) -> None:
        """Has the supervisor hand a descriptor to the device in process ``target_pid`` (its ``handed``).

        Raises :class:`supervisor.tube.UnknownProcess` where no device runs in such a process.
        """

    def keep(self, name: str, fd: int | None) -> None:
        """Has the supervisor keep a descriptor for the processes after this one: see ``passed``.

        It replaces the one that was kept under ``name``; ``None`` gives that up. The next process has the
        same open file, with its locks, and what is connected stays connected. A device that is stopped,
        given up or removed loses what was kept. At most 32, with names of up to 255 bytes.
        """

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Calls ``handler`` whenever ``fd`` is readable."""

    def unwatch(self, fd: int) -> None:
        """Stops watching ``fd``."""


class Ignore(Exception):
    """Raised from :meth:`Device.start`: there is nothing here for this device to do, and that is no fault.

    As OTP's ``ignore``: its process ends, nothing is restarted, the others run, and its specification stays
    known; an operator may start it later.
    """


class Device:
    """Base class of all devices: override what the device needs, nothing is mandatory.

    Class attributes: ``state`` names the attributes that survive a restart (ints, strings, bytes, lists,
    dicts and the like); ``state_version`` changes when their meaning does; ``Options``, a dataclass or
    ``msgspec.Struct``, declares the options of the YAML.

    ``exclusive`` says that it holds something which only one process at a time can have: a port, a lock. Then
    its successor starts when it has been taken apart, and not as soon as it executes nothing any more, which
    is milliseconds earlier. By default (``None``) it does if ``start`` opens a descriptor that is not kept.
    """

    state: ClassVar[tuple[str, ...]] = ()
    state_version: ClassVar[int] = 1
    exclusive: ClassVar[bool | None] = None
    Options: ClassVar[type | None] = None
    sheet: ClassVar[Sheet] = Sheet("Device", [])

    ctx: Context
    words: memoryview

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found: dict[str, Register] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                if isinstance(value, Register):
                    found[name] = value
                else:
                    found.pop(name, None)
        cls.sheet = Sheet(cls.__qualname__, _own_registers(cls, found))

    def start(self, ctx: Context) -> None:
        """The device comes to life in this process; ``self.ctx`` is ``ctx``. Runs in every new process.

        Set reset values, start counters, open files; raise :class:`Ignore` where there is nothing to do. In
        a restarted device the committed state (registers, alarms, interrupt levels, ``restore``) is put back
        afterwards and wins; what ``start`` emits counts the first time only.
        """

    def read(self, offset: int, size: int) -> int:
        """A guest reads ``size`` bytes at ``offset``. By default the data sheet answers."""
        entry = self.sheet.by_offset.get(offset)
        shift = 0
        if entry is None:  # perhaps a byte or a half inside a word
            shift = 8 * (offset & 3)
            entry = self.sheet.by_offset.get(offset & ~3)
            if entry is None:
                return self.read_unknown(offset, size)
        return entry[0].load(self, entry[1]) >> shift & ((1 << (8 * size)) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest writes ``value``, ``size`` bytes, at ``offset``. By default the data sheet takes it."""
        entry = self.sheet.by_offset.get(offset)
        if entry is None:
            self.write_unknown(offset, size, value)
        else:
            entry[0].store(self, entry[1], value)

    def read_unknown(self, offset: int, size: int) -> int:
        """A read that the data sheet does not list: zero, like a reserved word, and a line in the log."""
        self.ctx.logger.debug("read of %d bytes at %#x, which the data sheet does not list", size, offset)
        return 0

    def write_unknown(self, offset: int, size: int, value: int) -> None:
        """A write that the data sheet does not list: ignored, and a line in the log."""
        self.ctx.logger.debug("write of %#x at %#x, which the data sheet does not list", value, offset)

    def call(self, request: bytes) -> bytes:
        """A request of the device's own protocol: serialized protobuf in, serialized protobuf out."""
        raise TypeError(f"{type(self).__qualname__} takes no calls")

    def alarm(self, token: int) -> None:
        """Guest time has reached an alarm."""

    def receive(self, data: bytes) -> None:
        """Bytes from outside: console input and the like."""

    def handed(self, descriptor: Any, from_pid: int) -> None:
        """Another device has handed over a descriptor (an object that owns it). By default it is closed."""
        descriptor.close()

    def stop(self) -> None:
        """The device is asked to end. Its state is committed already."""

    def snapshot(self) -> bytes:
        """The state as bytes; by default the attributes named in ``state``."""
        if not self.state:
            return b""
        if len(self.state) == 1:
            return _encode((getattr(self, self.state[0]),))
        return _encode(_getter(self.state)(self))

    def restore(self, data: bytes, version: int) -> None:
        """Takes a state back. Raise ``ValueError`` to refuse it."""
        if version != self.state_version:
            raise ValueError(
                f"state of version {version}; {type(self).__qualname__} has {self.state_version}"
            )
        if not self.state:
            return
        values = msgspec.msgpack.decode(data)
        if len(values) != len(self.state):
            raise ValueError(f"state of {len(values)} values; {type(self).__qualname__} has {self.state}")
        for name, value in zip(self.state, values, strict=True):
            setattr(self, name, value)


def _own_registers(cls: type, found: dict[str, Register]) -> list[Register]:
    """Gives ``cls`` registers of its own: slots differ between subclasses, and methods may be overridden."""
    own = {id(register): copy(register) for register in found.values()}
    for name, inherited in found.items():
        register = own[id(inherited)]
        register.adopt(cls, own)
        setattr(cls, name, register)
    return list(own.values())


@cache
def _getter(names: tuple[str, ...]) -> attrgetter[tuple[Any, ...]]:
    """What reads so many attributes at once; names of two or more."""
    return attrgetter(*names)


_encode = msgspec.msgpack.Encoder().encode
