"""The page of states in the documentation, written from the tables that decide. Pure.

``docs/states.md`` holds exactly what ``states_page`` returns; a test compares them. Its picture is drawn by
``supervisor.policy.picture``. To write it anew::

    python -c "from supervisor.policy.diagram import states_page as p; print(p(), end='')" > docs/states.md
"""

from __future__ import annotations

from supervisor.policy.node import EVENTS, PHASES
from supervisor.policy.states import ChildState, Phase
from supervisor.policy.table import CHILD_EVENTS, TABLE, Do

__all__ = ["states_page"]

_INTRODUCTION = """\
# States

Written from the tables in `supervisor/policy/table.py` and `supervisor/policy/node.py`; do not edit.

## One device

Every event in every state. `Tick` means that the device's own deadline has passed. `Gone` is the only proof
that a process has ended (`SpawnFailed`: that it never began); no new generation is spawned before it.

![The states of a device, and the events that lead from one to the next](states.svg)
"""

_AFTER_DIAGRAM = """\
What a device becomes after `Gone` is decided in this order: what it was asked for (stop, restart, refusal,
its siblings' restart); a failure in the very first start, which ends the start; its restart type; a death
that is charged to nobody, which restarts it at once; the budget; the backoff. A device that was added while
running is forgotten when it ends before it was ready, and also, if it is temporary, whenever it ends.
"""

_PHASES_INTRODUCTION = """\
## The whole supervisor

A device's events go to its own table above while the phase says so.
"""


def states_page() -> str:
    """The text of ``docs/states.md``."""
    parts = [_INTRODUCTION, _AFTER_DIAGRAM]
    parts += [_state_section(state) for state in ChildState]
    parts += [_PHASES_INTRODUCTION, _phase_table()]
    return "\n".join(parts)


def _state_section(state: ChildState) -> str:
    lines = [f"### {state.name}", "", "| event | what happens | leads to |", "| --- | --- | --- |"]
    for event in CHILD_EVENTS:
        cell = TABLE[state][event]
        stays = cell.to == {state} and cell.do is not Do.LOST
        targets = "" if stays else ", ".join(one.name for one in ChildState if one in cell.to)
        lines.append(f"| {event.__name__} | {cell.do.value} | {targets} |")
    return "\n".join([*lines, ""])


def _phase_table() -> str:
    lines = [
        f"| event | {' | '.join(phase.name for phase in Phase)} |",
        f"| --- {'| --- ' * len(Phase)}|",
    ]
    for event in EVENTS:
        cells = [PHASES[phase][event].value for phase in Phase]
        lines.append(f"| {event.__name__} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
