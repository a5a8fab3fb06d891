"""What a device costs on a large board, beside one on a board of a tenth of the size: nothing may grow faster
than the board does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from benchmarks.board import board
from benchmarks.idle import pss_bytes, run_ns
from benchmarks.lamp import ASK
from benchmarks.measure import Plan, Row, Subject, Table
from benchmarks.peers import Peers
from supervisor import Supervisor

__all__ = ["tables"]

SPARES = 2
SETTLE_S = 2.0
HOW = """\
Boards of {0[0]} and of {0[1]} devices, one after the other, each with {1} spares. Start and stop are divided
by the number of devices; stop asks each of them to. {2} kills are spread over {3:g} s, each of a device drawn
at random, which is asked at once; the figure is the time until the answer. A dispatch looks for news where
there are none."""


def tables(plan: Plan, _peers: Peers) -> Iterator[Table]:
    """A table for each cost, with a row for each size."""
    sizes = plan.effort.scale
    load_before = os.getloadavg()[0]
    costs: dict[str, dict[str, list[int]]] = {}
    for size in sizes:
        plan.say(f"a board of {size} devices")
        for name, samples in _live(plan, size).items():
            costs.setdefault(name, {})[_called(size)] = samples
    load = round(load_before, 2), round(os.getloadavg()[0], 2)
    how = HOW.format(sizes, SPARES, plan.effort.scale_kills, plan.effort.scale_s)
    for name, rows in costs.items():
        subject = Subject(
            key=f"scale.{name.split(',')[0].replace(' ', '-')}",
            title=name,
            ours=(_called(sizes[-1]),),
            floor=_called(sizes[0]),
            unit="bytes" if "memory" in name else "ns",
            how=how,
        )
        made = [Row(label, samples) for label, samples in rows.items()]
        yield Table(subject=subject, rounds=1, load=load, rows=made)


def _called(size: int) -> str:
    return f"board of {size}"


def _live(plan: Plan, size: int) -> dict[str, list[int]]:
    """The life of one board; ns of each cost."""
    began_ns = time.monotonic_ns()
    with board(size, spares=SPARES) as sup:
        started_ns = time.monotonic_ns() - began_ns
        _rest(sup, SETTLE_S if plan.effort.scale_s > 1 else 0)
        before_ns = run_ns([os.getpid()])
        _rest(sup, plan.effort.window_s)
        idle_ns = run_ns([os.getpid()]) - before_ns
        kills = _kills(plan, sup)
        looks = [_dispatch_ns(sup) for _ in range(plan.effort.trips)]
        workers = [device.pid for device in list(sup.devices.values())[: plan.effort.idle_devices]]
        memory = [pss_bytes(pid) for pid in workers if pid]
        began_ns = time.monotonic_ns()
        sup.stop()
        stopped_ns = time.monotonic_ns() - began_ns
    return {
        "start, for each device": [started_ns // size],
        "kill → answer on a board": kills,
        "dispatch with nothing to do": looks,
        f"processor time of an idle supervisor in {plan.effort.window_s:g} s": [idle_ns],
        "memory of a worker on a board (PSS)": memory,
        "stop, for each device": [stopped_ns // size],
    }


def _kills(plan: Plan, sup: Supervisor) -> list[int]:
    asked = dict.fromkeys(sup.devices, 0)
    took_ns = []
    for _ in range(plan.effort.scale_kills):
        _rest(sup, plan.effort.scale_s / plan.effort.scale_kills)
        name = plan.chooser.choice(list(asked))
        began_ns = time.monotonic_ns()
        sup.kill(name)
        answer = sup[name].read(ASK, 4)
        took_ns.append(time.monotonic_ns() - began_ns)
        asked[name] += 1
        assert answer == asked[name], f"{name} answers {answer}, not {asked[name]}"
    return took_ns


def _dispatch_ns(sup: Supervisor) -> int:
    began_ns = time.monotonic_ns()
    sup.dispatch(0)
    return time.monotonic_ns() - began_ns


def _rest(sup: Supervisor, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        sup.dispatch(left)
