"""A spare's dress rehearsal: it lives the life of a device of no consequence before it is needed.

A fork shares its pages with the zygote, and each is looked up, and most are copied, when the fork first
touches it. From Assign to a device that serves these are some thousand, of interpreter and of objects, which
is nearly all of the time that this takes. A spare has that time: it sends itself what a supervisor would send
it, and lives by it. The words are real, only the device is ours: no code of a user's runs before there is a
device to run it for. The zygote rehearses as well, once for all of its workers.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec

from supervisor.device import Context, Device
from supervisor.messages_pb2 import Assign, Begin, SupervisorMessage
from supervisor.tube import ProtoTube
from supervisor.worker import layout
from supervisor.worker.doorbell import make_doorbell
from supervisor.worker.journal import create_journal
from supervisor.worker.records import Input, InputKind

__all__ = ["STAGE", "Understudy", "rehearse_life"]

STAGE = "supervisor.worker.virtio_rehearsal"
"""The module that has a virtio device to rehearse with: where the zygote has imported it, it is used."""

NAME = "rehearsal"


class Understudy(Device):
    """Has a bit of everything that devices have: options, state, an alarm, an interrupt, bytes."""

    state = ("heard",)

    @dataclass
    class Options:
        word: str = ""

    def start(self, ctx: Context) -> None:
        self.heard = ctx.options.word
        ctx.set_alarm(1 << 62)

    def call(self, request: bytes) -> bytes:
        self.heard = request.decode()
        self.ctx.raise_irq()
        self.ctx.lower_irq()
        self.ctx.emit(request)
        return request


def rehearse_life(live: Callable[[ProtoTube], object], lives: int = 1) -> None:
    """Has ``live``, a worker's life after its Hello, go through all of it, with a Tube that says what to do.

    As often as there are ``lives``, each after the first with the state of the one before.
    Raises what the system refuses; nothing is left behind.
    """
    stage = sys.modules.get(STAGE)
    with ExitStack() as held:
        fd, journal = create_journal(NAME)
        held.callback(journal.close)
        held.callback(os.close, fd)
        door, bell = make_doorbell()
        answer = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for fd_held in (door, bell, answer):
            held.callback(os.close, fd_held)
        for generation in range(1, lives + 1):
            number = journal.words[layout.SUBMITTED]
            for kind in (InputKind.CALL, InputKind.POSTED, InputKind.READ):
                payload = b"word" if kind == InputKind.CALL else b""
                number = journal.put_input(Input(number, kind, 0, 0, 4, 0, payload))
            journal.words[layout.SUBMITTED] = number
            director, actor = ProtoTube.pair()
            held.callback(director.close)
            play = f"{STAGE}:Understudy" if stage else f"{__name__}:Understudy"
            message = SupervisorMessage(generation=generation, assign=_assignment(play, generation))
            queues = []
            if stage is not None:
                attach, queues = stage.set_up()
                message.assign.attach.CopyFrom(attach)
                for descriptor in queues:
                    held.callback(os.close, descriptor)
            director.send_proto(message, (fd, door, answer, *queues))
            message = SupervisorMessage(generation=generation)
            message.stop.SetInParent()
            director.send_proto(message)
            with actor:
                live(actor)


def _assignment(device_class: str, generation: int) -> Assign:
    mask = os.umask(0)
    os.umask(mask)
    return Assign(
        name=NAME,
        device_class=device_class,
        options_msgpack=msgspec.msgpack.encode({"word": "word"}),
        begin=Begin(restart_count=generation - 1, last_exit="was killed by SIGKILL"),
        log_level=logging.WARNING,
        umask=mask,
    )
