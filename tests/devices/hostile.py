"""A worker that turns against its supervisor: each CALL is one attack through what a worker holds."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
import struct
import threading
import time
from typing import Any

import msgspec

from supervisor.datasheet import Access, RegisterEntry, RegisterMap
from supervisor.messages_pb2 import WorkerMessage
from supervisor.tube import ProtoTube
from supervisor.tube.memfd import SEALS
from supervisor.tube.packet import MAX_FDS_KERNEL, Header, Kind, pack_head
from supervisor.worker import layout
from supervisor.worker.records import Output, OutputKind
from tests.devices.counting import Counting

TUBE_FD = 3
ASLEEP = 1 << 40  # a heart beats as often when nobody answers any more


class _Deaf(list):  # type: ignore[type-arg]
    """Takes nothing more."""

    def append(self, item: object) -> None: ...


class Hostile(Counting):
    """``call(b"name")`` attacks; the reply, where there is one, is the count as in Counting."""

    def call(self, request: bytes) -> bytes:
        getattr(self, f"_attack_{request.decode()}")()
        return super().call(request)

    # -- on the Tube -----------------------------------------------------------------------------

    def _raw(self) -> socket.socket:
        return socket.socket(fileno=os.dup(TUBE_FD))

    def _send_raw(self, data: bytes, fds: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self._raw().sendmsg([data], rights)

    def _stopped(self, generation: int = 0) -> WorkerMessage:
        """A message that means nothing, from this generation unless another is given."""
        message = WorkerMessage(generation=generation or self.ctx.restarts + 1)
        message.stopped.SetInParent()
        return message

    def _tell(self, **body: Any) -> None:
        message = WorkerMessage(generation=self.ctx.restarts + 1, **body)
        ProtoTube.from_fd(os.dup(TUBE_FD)).send_proto(message, timeout=1)

    def _attack_garbage(self) -> None:
        for size in (1, 2, 100, 60_000):
            self._raw().send(os.urandom(size))

    def _attack_empty_packet(self) -> None:
        self._raw().send(b"")

    def _attack_huge_message(self) -> None:
        """100 MB behind a sealed memfd that says truthfully how large it is."""
        fd = os.memfd_create("huge", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 100_000_000)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        header = Header(Kind.PROTO, 100_000_000, out_of_line=True)
        self._send_raw(pack_head(header), [fd])

    def _attack_many_descriptors(self) -> None:
        """300: as many as one packet takes, and the rest."""
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
        body = self._stopped().SerializeToString()
        for some in (fds[:MAX_FDS_KERNEL], fds[MAX_FDS_KERNEL:]):
            self._send_raw(pack_head(Header(Kind.PROTO, len(body), fds=len(some))) + body, some)

    def _attack_other_generation(self) -> None:
        ProtoTube.from_fd(os.dup(TUBE_FD)).send_proto(self._stopped(999))

    def _attack_second_hello(self) -> None:
        self._tell(hello={"protocol_version": 1, "ticket": 1, "pid": 1})

    def _attack_unknown_message(self) -> None:
        self._tell()

    def _attack_keeps_too_much(self) -> None:
        for number in range(100):
            self.ctx.keep(f"{number}", 0)

    def _attack_keeps_under_an_endless_name(self) -> None:
        self.ctx.keep("x" * 300, 0)

    def _attack_unasked_ready(self) -> None:
        self._tell(ready={"register_map_msgpack": b"\xc1\xc1\xc1"})

    def _attack_endless_registers(self) -> None:
        self._tell(journal_full={"register_words": 2**26})

    def _attack_needless_growth(self) -> None:
        self._tell(journal_full={"state_bytes": 1})

    def _attack_endless_journal(self) -> None:
        self._tell(journal_full={"state_bytes": 2**62, "output_bytes": 2**62})

    def _attack_flood(self) -> None:
        """As many messages as the supervisor takes, for a while."""
        message = self._stopped()
        tube = ProtoTube.from_fd(os.dup(TUBE_FD))
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            tube.send_proto(message, timeout=5)

    def _attack_other_pid(self) -> None:
        """A child speaks in the worker's place: what it says is right, but the kernel knows who says it."""
        if os.fork() == 0:
            ProtoTube.from_fd(os.dup(TUBE_FD)).send_proto(self._stopped())
        signal.pause()

    def _attack_forged_credentials(self) -> None:
        """Root may tell the kernel that somebody else speaks: the supervisor itself."""
        body = self._stopped().SerializeToString()
        claim = struct.pack("=iII", os.getppid(), os.getuid(), os.getgid())
        self._raw().sendmsg(
            [pack_head(Header(Kind.PROTO, len(body))) + body],
            [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, claim)],
        )

    def _attack_unasked_answers(self) -> None:
        """Replies to requests that nobody has made."""
        for number in range(10**6, 10**6 + 100):
            self.ctx.outputs.append(Output(OutputKind.REPLY, 0, number, b"lie"))  # type: ignore[attr-defined]

    def _attack_answers_twice(self) -> None:
        """Replies, again and again, to a request that has its answer."""
        for _ in range(3000):
            self.ctx.outputs.append(Output(OutputKind.REPLY, 0, 0, b"lie"))  # type: ignore[attr-defined]

    def _attack_half_a_value(self) -> None:
        """A read is answered with what is no value."""
        self.read = self._half_a_value  # type: ignore[method-assign]

    def _half_a_value(self, offset: int, size: int) -> int:
        session: Any = self.ctx
        session.outputs.append(Output(OutputKind.REPLY, 0, session._number, b""))
        session.outputs = _Deaf(session.outputs)
        return 0

    def _attack_never_answers_its_door(self) -> None:
        """The next read has it sleep for good, with a bell that blocks as far as that is up to it."""
        self.read = self._deaf  # type: ignore[method-assign]

    def _deaf(self, offset: int, size: int) -> int:
        runtime: Any = self.ctx._loop  # type: ignore[attr-defined]
        door: int = runtime._door_fd
        os.set_blocking(door, True)
        with contextlib.suppress(BrokenPipeError):
            os.write(door, bytes(8))
        self._words[layout.WORKER_SLEEPS] = 1
        self._words[layout.HEARTBEAT] = ASLEEP
        signal.pause()
        return 0

    def _attack_output_of_no_kind(self) -> None:
        self.ctx.outputs.append(Output(99, 0, 0, b""))  # type: ignore[attr-defined]

    def _attack_irq_of_no_line(self) -> None:
        self.ctx.outputs.append(Output(OutputKind.IRQ, 60_000, 0, b""))  # type: ignore[attr-defined]

    def _attack_asks_and_does_not_read(self) -> None:
        """Each question has an answer; they pile up in a queue that nobody empties."""
        message = WorkerMessage(generation=self.ctx.restarts + 1)
        message.connect.peer = "nobody of that name"
        tube = ProtoTube.from_fd(os.dup(TUBE_FD))
        for _ in range(3000):
            tube.send_proto(message, timeout=5)
        signal.pause()

    def _attack_asks_for_itself(self) -> None:
        """Its last words lead back to itself."""
        self._tell(connect={"peer": self.ctx.name})
        os.kill(os.getpid(), signal.SIGKILL)

    def _attack_asks_for_each_other(self) -> None:
        """With two of them, whose last words lead to one another."""
        self._tell(connect={"peer": "other" if self.ctx.name == "hostile" else "hostile"})
        os.kill(os.getpid(), signal.SIGKILL)

    def _attack_has_many_last_words(self) -> None:
        """More than are heard at once, before those that lead back to itself."""
        for _ in range(100):
            self._tell(stopped={})
        for _ in range(40):
            self._tell(connect={"peer": self.ctx.name})
        os.kill(os.getpid(), signal.SIGKILL)

    def _attack_answers_nothing(self) -> None:
        """Awake, and its heart beats; but nothing ever comes of it."""
        while True:
            self._words[layout.HEARTBEAT] += 1
            time.sleep(0.001)

    def _attack_tube_held_by_a_grandchild(self) -> None:
        if os.fork() == 0:
            os.setsid()
            signal.pause()
        os._exit(0)

    def _attack_forks_away_for_good(self) -> None:
        """As below, but out of the worker's session and group."""
        if os.fork():
            os._exit(0)
        os.setsid()

    def _attack_flood_of_logs(self) -> None:
        line = b"x" * 1023 + b"\n"
        for _ in range(2_000):
            os.write(2, line)
        os.write(1, b"y" * 100_000)

    def _attack_strange_logs(self) -> None:
        """Marks of a level that are none."""
        os.write(2, "<²>two\n<>none\n".encode() + b"<" + b"9" * 5000 + b">many\n<99999999999999999999>x\n")

    def _attack_reads_nothing(self) -> None:
        """Alive, and deaf: nothing is ever answered again."""
        signal.pause()

    def _attack_closes_tube(self) -> None:
        os.close(TUBE_FD)
        signal.pause()

    def _attack_leaves(self) -> None:
        os._exit(0)

    def _attack_copy_that_writes(self) -> None:
        """A child that is out of reach writes into the journal for as long as it lives."""
        if os.fork():
            os._exit(0)
        os.setsid()
        runtime: Any = self.ctx._loop  # type: ignore[attr-defined]
        view = runtime._committer.journal.bytes
        while True:
            view[:] = b"\xff" * len(view)

    def _attack_forks_away(self) -> None:
        """A child takes over everything and goes on as if it were the worker."""
        if os.fork():
            os._exit(0)

    # -- in the journal --------------------------------------------------------------------------

    @property
    def _words(self) -> Any:
        runtime: Any = self.ctx._loop  # type: ignore[attr-defined]
        return runtime._committer.words

    def _attack_output_end_far_away(self) -> None:
        self._words[layout.OUTPUT_END] = 2**63
        signal.pause()

    def _attack_published_further_and_further(self) -> None:
        """Once it has answered, with nobody waiting."""
        threading.Thread(target=self._publish_more_and_more, daemon=True).start()

    def _publish_more_and_more(self) -> None:
        words, runtime = self._words, self.ctx._loop  # type: ignore[attr-defined]
        while words[layout.PUBLISHED] == 0:
            os.sched_yield()
        while True:
            words[layout.PUBLISHED] += 1
            os.eventfd_write(runtime._answer_fd, 1)

    def _attack_forgets_its_inputs(self) -> None:
        runtime: Any = self.ctx._loop  # type: ignore[attr-defined]
        inputs = runtime._committer.journal.inputs
        for index in range(len(inputs)):
            inputs[index] = 0
        os._exit(1)

    def _attack_shuts_its_door(self) -> None:
        """For itself and for all that come after."""
        runtime: Any = self.ctx._loop  # type: ignore[attr-defined]
        socket.socket(fileno=os.dup(runtime._door_fd)).shutdown(socket.SHUT_RD)

    def _attack_published_far_away(self) -> None:
        self._words[layout.PUBLISHED] = 2**63
        os._exit(1)

    def _attack_whole_journal(self) -> None:
        runtime: Any = self.ctx._loop  # type: ignore[attr-defined]
        view = runtime._committer.journal.bytes
        view[: len(view)] = b"\xff" * len(view)
        os._exit(1)


class LiesWhenItReturns(Hostile):
    """Its second process claims a map of registers without end, each of which may be."""

    def start(self, ctx: Any) -> None:
        if ctx.restarts:
            entry = RegisterEntry("R", 0, 512, 4, 4, 0, Access.PLAIN, Access.REQUEST)
            lie = RegisterMap((entry,) * 200, 512)
            self._tell(ready={"register_map_msgpack": msgspec.msgpack.encode(lie)})
