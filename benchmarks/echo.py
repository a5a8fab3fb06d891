"""Round trips of one transport: this process asks, and times; one that it has forked answers.

    python echo.py tube|packets|pipe|zmq CORES

CORES is two numbers, of the core that asks and of the one that answers. Each line of stdin is a number of
round trips; the answer is a line of JSON, ns of each. Runs in the peers' virtualenv too, so it imports next
to nothing.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PAYLOAD = bytes(range(64))
WARM_UP = 32  # round trips before those that count, in each turn
PR_SET_PDEATHSIG = 1

Trip = Callable[[], object]  # asks and waits for the answer, or waits and answers


def tube() -> tuple[Callable[[], Trip], Callable[[], Trip]]:
    """ProtoTube, with a message of one bytes field, serialised and parsed at both sides."""
    from google.protobuf.wrappers_pb2 import BytesValue

    from supervisor.tube import ProtoTube

    ours, theirs = ProtoTube.pair()

    def ask() -> None:
        ours.send_proto(BytesValue(value=PAYLOAD))
        assert ours.recv_proto(BytesValue).value == PAYLOAD

    def answer() -> None:
        theirs.send_proto(theirs.recv_proto(BytesValue))

    return lambda: ask, lambda: answer


def packets() -> tuple[Callable[[], Trip], Callable[[], Trip]]:
    """A bare pair of SOCK_SEQPACKET."""
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def ask() -> None:
        ours.send(PAYLOAD)
        assert ours.recv(65536) == PAYLOAD

    return lambda: ask, lambda: lambda: theirs.send(theirs.recv(65536))


def pipe() -> tuple[Callable[[], Trip], Callable[[], Trip]]:
    """multiprocessing.Pipe with bytes, so without pickle."""
    import multiprocessing

    ours, theirs = multiprocessing.Pipe()

    def ask() -> None:
        ours.send_bytes(PAYLOAD)
        assert ours.recv_bytes() == PAYLOAD

    return lambda: ask, lambda: lambda: theirs.send_bytes(theirs.recv_bytes())


def zmq() -> tuple[Callable[[], Trip], Callable[[], Trip]]:
    """A pair of PAIR sockets of pyzmq over ipc, each with its thread for input and output."""
    library: Any = importlib.import_module("zmq")
    address = f"ipc://@benchmark-{os.getpid()}"

    def asking() -> Trip:
        ours = library.Context().socket(library.PAIR)
        ours.bind(address)

        def ask() -> None:
            ours.send(PAYLOAD)
            assert ours.recv() == PAYLOAD

        return ask

    def answering() -> Trip:
        theirs = library.Context().socket(library.PAIR)
        theirs.connect(address)
        return lambda: theirs.send(theirs.recv())

    return asking, answering


WAYS = {"tube": tube, "packets": packets, "pipe": pipe, "zmq": zmq}


def main() -> None:
    """Measures whenever it is asked to, until stdin ends."""
    asking, answering = WAYS[sys.argv[1]]()
    ask_core, answer_core = (int(core) for core in sys.argv[2].split(","))
    own_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != own_pid:
            os._exit(0)
        os.sched_setaffinity(0, {answer_core})
        answer = answering()
        while True:
            answer()
    os.sched_setaffinity(0, {ask_core})
    ask = asking()
    for line in sys.stdin:
        for _ in range(WARM_UP):
            ask()
        print(json.dumps([_time(ask) for _ in range(int(line))]), flush=True)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os._exit(0)  # what zmq still holds is nobody's business


def _time(ask: Trip) -> int:
    began_ns = time.perf_counter_ns()
    ask()
    return time.perf_counter_ns() - began_ns


if __name__ == "__main__":
    main()
