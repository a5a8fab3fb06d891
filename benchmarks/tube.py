"""A round trip through a ProtoTube, beside a bare socket, ``multiprocessing.Pipe`` and pyzmq."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure import Contender, Plan, Subject, Table, measure
from benchmarks.peers import Peers, wait_readable

__all__ = ["Echo", "tables"]

ROOT = Path(__file__).parent.parent
ECHO = str(Path(__file__).with_name("echo.py"))
ANSWER_TIMEOUT_S = 30.0
HOW = """\
One process sends 64 bytes, another sends them back; {}. Each round trip is timed alone, after a few that
are not. ProtoTube serialises and parses a protobuf message at both sides and knows the sender of every
packet; the bare pair of SOCK_SEQPACKET and `multiprocessing.Pipe` (`send_bytes`) do neither. pyzmq is two
PAIR sockets over ipc."""


def tables(plan: Plan, peers: Peers) -> Iterator[Table]:
    """A table for two cores, where there are two, and one for a single core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        yield _table(plan, peers, cores[:2], "two-cores", "each pinned to a core of its own")
    yield _table(plan, peers, [cores[0]] * 2, "one-core", "both pinned to the same core")


def _table(plan: Plan, peers: Peers, cores: Sequence[int], key: str, placed: str) -> Table:
    where = f"{cores[0]},{cores[1]}"
    with contextlib.ExitStack() as stack:

        def contender(name: str, way: str, *python: str) -> Contender:
            echo = stack.enter_context(Echo([*python, way, where], plan.effort.trips))
            return Contender(name, echo.take)

        ours = (sys.executable, "-m", "benchmarks.echo")
        contenders = [
            contender("ProtoTube", "tube", *ours),
            contender("bare SEQPACKET", "packets", *ours),
            contender("multiprocessing.Pipe", "pipe", *ours),
        ]
        if peers.has("pyzmq"):
            contenders.append(contender("pyzmq", "zmq", str(peers.python), "-P", ECHO))
        subject = Subject(
            key=f"tube.{key}",
            title=f"round trip of a message, {key.replace('-', ' ')}",
            ours=("ProtoTube",),
            floor="bare SEQPACKET",
            how=HOW.format(placed),
        )
        return measure(subject, contenders, plan.effort.rounds, plan)


class Echo:
    """A program that measures round trips when it is asked to."""

    def __init__(self, command: Sequence[str], trips: int) -> None:
        self._trips = trips
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, bufsize=0)

    def __enter__(self) -> Echo:
        return self

    def take(self) -> list[int]:
        """A turn: ns of each round trip."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"%d\n" % self._trips)
        if not wait_readable(self._process.stdout.fileno(), ANSWER_TIMEOUT_S):
            raise TimeoutError(f"no round trip in {ANSWER_TIMEOUT_S:g} s: {self._process.args!r}")
        return [int(took_ns) for took_ns in json.loads(self._process.stdout.readline())]

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._process.kill()  # and with it, by PR_SET_PDEATHSIG, the one that answers
        self._process.communicate()
