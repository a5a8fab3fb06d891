"""The data sheet: how a device class declares its registers.

A register declared here has its value in an array of 64-bit words that the runtime owns. After every
committed input the words are published in memory that the machine reads directly, so

- a ``Register`` without ``on_read`` is *plain*: reading it costs no round trip;
- a ``Counter`` is a few words (value = base + rate x guest time) that the machine evaluates itself;
- a ``Capture`` latches a counter into a register, which the machine can do as well;
- a write marked ``POSTED`` is queued and acknowledged in bulk; the rest are requests.

All of it is the same for a device inside the emulator's process and for one in a worker. The rules are
those of a hardware manual: an offset belongs to one register, arrays have a stride, reserved bits read as
the mask says.

Invariant: a register's words never move while the class lives. What a supervisor learns of all this is a
pure value (``supervisor.datasheet``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from supervisor.datasheet import Access, RegisterEntry, RegisterMap, evaluate_counter
from supervisor.errors import LocalError

__all__ = [
    "POSTED",
    "REQUEST",
    "Capture",
    "Counter",
    "CounterView",
    "Register",
    "Sheet",
    "Task",
]

NANOSECONDS = 1_000_000_000


REQUEST = Access.REQUEST
POSTED = Access.POSTED

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Register:
    """One register, or an array of ``count`` registers that lie ``stride`` bytes apart.

    ``offset``, ``stride`` and ``width`` are bytes, ``mask`` the bits that exist. ``write`` is ``REQUEST``
    (the writer waits until it is done) or ``POSTED`` (queued; a later read of this device waits for it).

    Without a handler a write stores the masked value and a read returns it. ``on_write`` replaces the
    storing; ``on_read`` makes every read a round trip::

        TXD = Register(0x51C, write=POSTED)

        @TXD.on_write
        def _send(self, value: int) -> None: ...

    A handler of an array takes the index first: ``(self, index, value)``.
    """

    words = 1

    def __init__(
        self,
        offset: int,
        *,
        reset: int = 0,
        count: int = 1,
        stride: int = 4,
        width: int = 4,
        mask: int | None = None,
        write: Access = REQUEST,
    ) -> None:
        if width not in (1, 2, 4, 8):
            raise LocalError(f"register at {offset:#x}: width is 1, 2, 4 or 8 bytes, not {width}")
        if count < 1 or (count > 1 and stride < width):
            raise LocalError(f"register at {offset:#x}: {count} registers of {width} bytes, {stride} apart")
        if write not in (REQUEST, POSTED):
            raise LocalError(f"register at {offset:#x}: write is REQUEST or POSTED, not {write!r}")
        self.offset = offset
        self.reset = reset
        self.count = count
        self.stride = stride
        self.width = width
        self.mask = (1 << (8 * width)) - 1 if mask is None else mask
        self.write = write
        self.name = f"{offset:#x}"
        self.slot = -1
        self.read_handler: Callable[..., int] | None = None
        self.write_handler: Callable[..., None] | None = None

    @property
    def read(self) -> Access:
        """How a read travels."""
        return Access.PLAIN if self.read_handler is None else Access.REQUEST

    def on_read(self, handler: Handler) -> Handler:
        """Decorator: ``handler`` answers every read; such a register is not plain."""
        self.read_handler = handler
        return handler

    def on_write(self, handler: Handler) -> Handler:
        """Decorator: ``handler`` takes every write instead of its being stored."""
        self.write_handler = handler
        return handler

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def adopt(self, owner: type, own: dict[int, Register]) -> None:
        """Makes this copy the register of class ``owner``: handlers are looked up there by name.

        ``own`` maps the ``id`` of each inherited register to its copy.
        """
        if self.read_handler is not None:
            self.read_handler = getattr(owner, self.read_handler.__name__, self.read_handler)
        if self.write_handler is not None:
            self.write_handler = getattr(owner, self.write_handler.__name__, self.write_handler)

    @overload
    def __get__(self, device: None, owner: type) -> Register: ...
    @overload
    def __get__(self, device: object, owner: type) -> Any: ...
    def __get__(self, device: Any, owner: type) -> Any:
        if device is None:
            return self
        if self.count == 1:
            return device.words[self.slot]
        return device.words[self.slot : self.slot + self.count]

    def __set__(self, device: Any, value: int) -> None:
        if self.count != 1:
            raise LocalError(f"{self.name} is an array of {self.count}: assign to {self.name}[i]")
        device.words[self.slot] = value & self.mask

    def store(self, device: Any, index: int, value: int) -> None:
        """Takes a guest's write: the handler, or the plain storing."""
        handler = self.write_handler
        if handler is None:
            device.words[self.slot + index] = value & self.mask
        elif self.count == 1:
            handler(device, value & self.mask)
        else:
            handler(device, index, value & self.mask)

    def load(self, device: Any, index: int) -> int:
        """Answers a guest's read: the handler, or the stored value."""
        handler = self.read_handler
        if handler is None:
            return int(device.words[self.slot + index])
        value = handler(device) if self.count == 1 else handler(device, index)
        return int(value) & self.mask

    def entry(self) -> RegisterEntry:
        """The data sheet line as a value."""
        return RegisterEntry(
            name=self.name,
            offset=self.offset,
            count=self.count,
            stride=self.stride,
            width=self.width,
            slot=self.slot,
            read=self.read,
            write=self.write,
        )


class Task(Register):
    """A write-only trigger: reads as zero, stores nothing. ``on_write`` says what it does."""

    def store(self, device: Any, index: int, value: int) -> None:
        if self.write_handler is not None:
            super().store(device, index, value)


class CounterView:
    """A device's own counter, as its methods see it. Times are guest time in ns."""

    __slots__ = ("_device", "_slot", "_width_mask")

    def __init__(self, device: Any, slot: int, width_mask: int) -> None:
        self._device = device
        self._slot = slot
        self._width_mask = width_mask

    @property
    def _mask(self) -> int:
        return int(self._device.words[self._slot + 4])

    def narrow(self, bits: int) -> None:
        """From now on the counter has ``bits`` bits (at most as many as declared), and its value too."""
        value = self.value
        self._device.words[self._slot + 4] = ((1 << bits) - 1) & self._width_mask
        self.set(value)

    @property
    def running(self) -> bool:
        """True while the counter counts."""
        return bool(self._device.words[self._slot + 2])

    @property
    def value(self) -> int:
        """The value at the guest time of the input being handled."""
        return self.at(self._device.ctx.now_ns)

    def at(self, now_ns: int) -> int:
        """The value at guest time ``now_ns``."""
        base, since_ns, ticks, per_ns, mask = self._device.words[self._slot : self._slot + 5]
        return evaluate_counter(base, since_ns, ticks, per_ns or 1, now_ns, mask)

    def run(self, ticks: int, per_ns: int = NANOSECONDS) -> None:
        """Counts on from the present value, ``ticks`` per ``per_ns`` (default: Hz)."""
        self._set(self.value, ticks, per_ns)

    def stop(self) -> None:
        """Holds the present value."""
        self._set(self.value, 0, 1)

    def set(self, value: int) -> None:
        """Jumps to ``value``; goes on counting if it was."""
        words = self._device.words
        self._set(value, words[self._slot + 2], words[self._slot + 3] or 1)

    def reaches(self, target: int) -> int | None:
        """The guest time in ns at which the counter next becomes ``target``; ``None`` if never, as it is.

        Strictly in the future: a counter that equals ``target`` now reaches it again after a whole turn.
        """
        base, since_ns, ticks, per_ns, mask = self._device.words[self._slot : self._slot + 5]
        if not ticks or target > mask:
            return None
        passed = (self._device.ctx.now_ns - since_ns) * ticks // per_ns
        ahead = (target - base - passed) & mask or mask + 1
        return int(since_ns - (-(passed + ahead) * per_ns // ticks))

    def _set(self, value: int, ticks: int, per_ns: int) -> None:
        words = self._device.words
        slot = self._slot
        words[slot] = value & self._mask
        words[slot + 1] = self._device.ctx.now_ns
        words[slot + 2] = ticks
        words[slot + 3] = per_ns


class Counter(Register):
    """A counter of ``bits`` bits (or fewer: ``narrow``) that runs with guest time; read-only to the guest.

    The machine evaluates reads. Use it in the device through :class:`CounterView`. A counter at
    ``offset=None`` cannot be read by the guest, only captured.
    """

    words = 5  # base, since (guest ns), ticks, per (ns), mask

    def __init__(self, offset: int | None, *, bits: int = 32) -> None:
        super().__init__(offset if offset is not None else 0, width=8 if bits > 32 else 4)
        self.readable = offset is not None
        self.mask = (1 << bits) - 1

    @property
    def read(self) -> Access:
        return Access.COUNTER

    def on_read(self, handler: Handler) -> Handler:
        raise LocalError(f"{self.name} is a Counter: the machine evaluates its reads")

    @overload
    def __get__(self, device: None, owner: type) -> Counter: ...
    @overload
    def __get__(self, device: object, owner: type) -> CounterView: ...
    def __get__(self, device: Any, owner: type) -> Any:
        return self if device is None else CounterView(device, self.slot, self.mask)

    def __set__(self, device: Any, value: int) -> None:
        self.__get__(device, type(device)).set(value)

    def store(self, device: Any, index: int, value: int) -> None:
        """A guest's write is ignored, unless a handler takes it."""
        if self.write_handler is not None:
            super().store(device, index, value)

    def load(self, device: Any, index: int) -> int:
        return int(self.__get__(device, type(device)).value)

    def entry(self) -> RegisterEntry:
        return RegisterEntry(
            name=self.name,
            offset=self.offset if self.readable else -1,
            count=1,
            stride=4,
            width=self.width,
            slot=self.slot,
            read=Access.COUNTER,
            write=self.write,
            mask=self.mask,
        )


class Capture(Task):
    """A task that latches ``counter`` into ``into`` (element by element where both are arrays).

    Always posted: the machine latches the value itself and goes on; the device does the same when it
    gets there, then calls ``on_write``. A capture repeated at the same guest time, with nothing but captures
    in between, latches the same value again and need not reach the device: a handler must not count them.
    """

    def __init__(self, offset: int, counter: Counter, into: Register, *, stride: int = 4) -> None:
        super().__init__(offset, count=into.count, stride=stride, write=POSTED)
        self.counter = counter
        self.into = into

    def adopt(self, owner: type, own: dict[int, Register]) -> None:
        super().adopt(owner, own)
        counter = own[id(self.counter)]
        assert isinstance(counter, Counter)  # noqa: S101 - a copy has its original's type
        self.counter = counter
        self.into = own[id(self.into)]

    def store(self, device: Any, index: int, value: int) -> None:
        counter = self.counter.__get__(device, type(device)).value
        device.words[self.into.slot + index] = counter & self.into.mask
        super().store(device, index, value)

    def entry(self) -> RegisterEntry:
        return RegisterEntry(
            name=self.name,
            offset=self.offset,
            count=self.count,
            stride=self.stride,
            width=self.width,
            slot=self.slot,
            read=Access.PLAIN,
            write=Access.CAPTURE,
            counter_slot=self.counter.slot,
            into_slot=self.into.slot,
            mask=self.counter.mask & self.into.mask,
        )


class Sheet:
    """The compiled data sheet of a device class: offsets to registers, slots, reset values."""

    __slots__ = ("by_offset", "registers", "reset_words", "words")

    def __init__(self, owner: str, registers: list[Register]) -> None:
        self.registers = registers
        self.by_offset: dict[int, tuple[Register, int]] = {}
        self.words = 0
        reset_words: list[int] = []
        for register in registers:
            register.slot = self.words
            if isinstance(register, Counter):
                reset_words += [0, 0, 0, 1, register.mask]
            else:
                reset_words += [register.reset] * register.count
            self.words += register.words * register.count
            if isinstance(register, Counter) and not register.readable:
                continue
            for index in range(register.count):
                offset = register.offset + index * register.stride
                if offset in self.by_offset:
                    other = self.by_offset[offset][0].name
                    raise LocalError(f"{owner}: {register.name} and {other} both lie at {offset:#x}")
                self.by_offset[offset] = (register, index)
        self.reset_words = reset_words

    def map(self) -> RegisterMap:
        """The sheet as a value that can travel."""
        return RegisterMap(tuple(register.entry() for register in self.registers), self.words)
