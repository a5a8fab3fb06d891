"""Tubes as arguments of a new process, in a bundle, in asyncio; and what importing the room costs."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from supervisor.tube import Eventfd, NotSendable, ProtoTube, SendTube, Tube
from tests.tube.conftest import DEADLINE_S


def _child(tube: Tube, half: SendTube, event: Eventfd) -> None:
    event.signal(5)
    tube.send([os.getpid(), os.get_inheritable(tube.fileno())])
    half.send(tube.recv(timeout=DEADLINE_S))
    tube.send(tube.target_pid)


def _start(package: Any, method: str) -> None:
    context = package.get_context(method)
    ours, theirs = Tube.pair()
    sender, receiver = Tube.directional_pair()
    with ours, receiver, Eventfd() as event:
        process = context.Process(target=_child, args=(theirs, sender, event), daemon=True)
        process.start()
        theirs.close()
        sender.close()
        assert ours.recv(timeout=30) == [process.pid, False]
        assert ours.target_pid == process.pid
        ours.send("through")
        assert receiver.recv(timeout=30) == "through"
        assert receiver.target_pid == process.pid
        assert ours.recv(timeout=30) == os.getpid()
        assert event.wait(30) == 5
        process.join(30)
        assert process.exitcode == 0
        process.close()


@pytest.mark.parametrize("package", ["multiprocess", "multiprocessing"])
def test_given_a_tube_as_an_argument_when_a_process_is_spawned_then_both_know_each_other(
    package: str,
) -> None:
    """Both packages can pass ends at the start of a process; they arrive close-on-exec."""
    code = (
        f"import {package} as package\n"
        "from tests.tube.test_spawning import _start\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'forkserver'):\n"
        "        _start(package, method)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_given_no_process_being_started_when_pickled_then_refused() -> None:
    """Pickling an end at any other time would start a thread and a listener; it is an error instead."""
    assert multiprocessing.get_context("spawn")  # loaded, and not spawning
    one, two = ProtoTube.pair()
    with one, two, Eventfd() as event:
        for owner in (one, event):
            with pytest.raises(NotSendable):
                pickle.dumps(owner)


class Bundle(msgspec.Struct):
    """What a parent gives a child: Tubes by token."""

    tubes: list[tuple[str, Tube]]


def test_send_tubes_through_tube_transporter() -> None:
    """Two Tubes with tokens keep order and tokens, talk after the originals are dropped, carry an event."""
    carrier, far = Tube.pair()
    control, control_far = Tube.pair()
    ipc, ipc_far = Tube.pair()
    with carrier, far, control_far, ipc_far:
        carrier.send(Bundle([("Control", control), ("Ipc", ipc)]))
        control.close()
        ipc.close()
        got = far.recv(Bundle, timeout=DEADLINE_S)
        assert [token for token, _ in got.tubes] == ["Control", "Ipc"]
        (_, control_got), (_, ipc_got) = got.tubes
        with control_got, ipc_got, Eventfd() as event:
            control_got.send("hi")
            assert control_far.recv(timeout=DEADLINE_S) == "hi"
            ipc_far.send(event)
            with ipc_got.recv(Eventfd, timeout=DEADLINE_S) as event_got:
                event_got.signal()
                assert event.wait(2) == 1


def test_pack_unpack() -> None:
    """A Tube gets through an interface that takes one descriptor: in a message that waits in another Tube."""
    inside, inside_far = Tube.pair()
    packed, packed_far = Tube.pair()
    packed_far.send(inside)
    inside.close()
    packed_far.close()
    with Tube.from_fd(os.dup(packed.fileno())) as only, inside_far:
        packed.close()
        with only.recv(Tube, timeout=DEADLINE_S) as unpacked:
            unpacked.send("out")
            assert inside_far.recv(timeout=DEADLINE_S) == "out"


def test_recv_send() -> None:
    """An asyncio loop watches the read notifier: async one way, blocking the other."""
    ours, theirs = Tube.pair()

    async def work() -> int:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(theirs.read_notifier, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), DEADLINE_S)
            number = theirs.recv(int, timeout=0)
        finally:
            loop.remove_reader(theirs.read_notifier)
        theirs.send(16, timeout=0)
        return number

    with ours, theirs:
        ours.send(5)
        assert asyncio.run(work()) == 5
        assert ours.recv(int, timeout=DEADLINE_S) == 16


def test_given_a_fresh_interpreter_when_the_room_is_imported_then_nothing_heavy_comes_along() -> None:
    """Neither asyncio, multiprocess, msgspec, protobuf nor logging: a worker must start in milliseconds."""
    code = (
        "import sys; before = set(sys.modules); import supervisor.tube; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"asyncio", "multiprocess", "multiprocessing", "msgspec", "google", "logging", "dill"}
