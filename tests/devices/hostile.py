"""A worker that turns against its supervisor: each CALL is one attack through what a worker holds."""

from __future__ import annotations

import array
import os
import signal
import socket
import time
from typing import Any

from supervisor.messages_pb2 import WorkerMessage
from supervisor.tube import ProtoTube
from supervisor.worker import journal as layout
from tests.devices.counting import Counting

TUBE_FD = 3


class Hostile(Counting):
    """``call(b"name")`` attacks; the reply, where there is one, is the count as in Counting."""

    def call(self, request: bytes) -> bytes:
        getattr(self, f"_attack_{request.decode()}")()
        return super().call(request)

    # -- on the Tube -----------------------------------------------------------------------------

    def _raw(self) -> socket.socket:
        return socket.socket(fileno=os.dup(TUBE_FD))

    def _tell(self, **body: Any) -> None:
        message = WorkerMessage(generation=self.ctx.restarts + 1, **body)
        ProtoTube.from_fd(os.dup(TUBE_FD)).send_proto(message, timeout=1)

    def _attack_garbage(self) -> None:
        for size in (1, 2, 100, 60_000):
            self._raw().send(os.urandom(size))

    def _attack_empty_packet(self) -> None:
        self._raw().send(b"")

    def _attack_huge_message(self) -> None:
        """100 MB behind a memfd that claims to be a message."""
        fd = os.memfd_create("huge", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 100_000_000)
        raw = self._raw()
        for kind in range(8):
            for flags in range(4):
                raw.sendmsg(
                    [bytes([kind, flags, 1, 0])],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))],
                )

    def _attack_many_descriptors(self) -> None:
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(253)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self._raw().sendmsg([b"x" * 64], rights)

    def _attack_other_generation(self) -> None:
        message = WorkerMessage(generation=999)
        message.stopped.SetInParent()
        ProtoTube.from_fd(os.dup(TUBE_FD)).send_proto(message)

    def _attack_second_hello(self) -> None:
        self._tell(hello={"protocol_version": 1, "ticket": 1, "pid": 1})

    def _attack_unknown_message(self) -> None:
        self._tell()

    def _attack_unasked_ready(self) -> None:
        self._tell(ready={"register_map_msgpack": b"\xc1\xc1\xc1"})

    def _attack_endless_journal(self) -> None:
        self._tell(journal_full={"state_bytes": 2**62, "output_bytes": 2**62})

    def _attack_flood(self) -> None:
        """As many messages as the supervisor takes, for a while."""
        message = WorkerMessage(generation=self.ctx.restarts + 1)
        message.stopped.SetInParent()
        tube = ProtoTube.from_fd(os.dup(TUBE_FD))
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            tube.send_proto(message, timeout=5)

    def _attack_flood_of_logs(self) -> None:
        line = b"x" * 1023 + b"\n"
        for _ in range(2_000):
            os.write(2, line)
        os.write(1, b"y" * 100_000)

    def _attack_reads_nothing(self) -> None:
        """Alive, and deaf: nothing is ever answered again."""
        signal.pause()

    def _attack_closes_tube(self) -> None:
        os.close(TUBE_FD)
        signal.pause()

    def _attack_leaves(self) -> None:
        os._exit(0)

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

    def _attack_published_far_away(self) -> None:
        self._words[layout.PUBLISHED] = 2**63
        os._exit(1)

    def _attack_whole_journal(self) -> None:
        runtime: Any = self.ctx._loop  # type: ignore[attr-defined]
        view = runtime._committer.journal.bytes
        view[: len(view)] = b"\xff" * len(view)
        os._exit(1)
