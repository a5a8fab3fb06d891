"""The tables are total and true, the room is pure, and the documentation shows what the tables say."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from supervisor.policy import (
    ChildSpec,
    ChildState,
    Phase,
    Restart,
    Strategy,
    child,
    initial,
    next_deadline_ns,
    phase,
    step,
)
from supervisor.policy.actions import Forget, Report
from supervisor.policy.diagram import states_page
from supervisor.policy.events import (
    Abort,
    AddChild,
    Event,
    ExitKind,
    ExitReason,
    Forked,
    Gone,
    Hello,
    Ignored,
    Ready,
    Refused,
    Reload,
    RemoveChild,
    RestartChild,
    Silent,
    SpawnFailed,
    Start,
    StartChild,
    Stop,
    StopChild,
    Tick,
)
from supervisor.policy.node import EVENTS, PHASES, PhaseDo
from supervisor.policy.picture import FORGOTTEN, FRAMES, GONE, START, arrows, states_picture
from supervisor.policy.records import Impossible
from supervisor.policy.table import CHILD_EVENTS, TABLE, Do
from tests.policy.fake import CLEAN, CRASH, MS, Rig, S, spec_of

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "supervisor" / "policy"

PURE = {
    "__future__",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "supervisor.errors",
    "supervisor.exits",
    "typing",
}


def _rig(state: ChildState) -> Rig:
    """A rig whose child ``a`` is in ``state``, in a supervisor that is running."""
    rig = Rig(spec_of(ChildSpec("a", restart=Restart.TRANSIENT), "b"))
    rig.start()
    rig.send(RestartChild("a"))  # so that there is an older generation
    rig.gone("a", CLEAN)
    rig.settle()
    match state:
        case ChildState.DOWN:
            rig.send(StopChild("a"))
            rig.gone("a", CLEAN)
        case ChildState.WAITING:
            rig.gone("a")
            rig.gone("a")
        case ChildState.SPAWNING:
            rig.gone("a")
        case ChildState.BUILDING:
            rig.gone("a")
            rig.hello("a")
        case ChildState.READY:
            pass
        case ChildState.STOPPING:
            rig.send(StopChild("a"))
        case ChildState.KILLING:
            rig.silent("a")
        case ChildState.FAILED:
            rig.refused("a")
            rig.gone("a", CLEAN)
        case ChildState.FINISHED:
            rig.gone("a", CLEAN)
    assert rig.state_of("a") is state
    return rig


def _event(kind: type, generation: int) -> Event:
    made: dict[type, Event] = {
        Start: Start(),
        Stop: Stop(),
        Tick: Tick(),
        StartChild: StartChild("a"),
        StopChild: StopChild("a"),
        AddChild: AddChild(ChildSpec("c")),
        Abort: Abort(),
        Reload: Reload(spec_of("a", "b")),
        Ignored: Ignored("a", generation),
        RestartChild: RestartChild("a"),
        RemoveChild: RemoveChild("a"),
        Forked: Forked("a", generation),
        Hello: Hello("a", generation),
        Ready: Ready("a", generation),
        Gone: Gone("a", generation, CRASH),
        SpawnFailed: SpawnFailed("a", generation, "no room"),
        Refused: Refused("a", generation, "unknown option"),
        Silent: Silent("a", generation),
    }
    return made[kind]


def test_the_childs_table_is_total() -> None:
    """Every state has a cell for every event, and no other."""
    assert list(TABLE) == list(ChildState)
    for row in TABLE.values():
        assert list(row) == list(CHILD_EVENTS)


def test_the_phases_table_is_total() -> None:
    """Every phase has a cell for every event, and every event that reaches a child is in its table."""
    assert list(PHASES) == list(Phase)
    for row in PHASES.values():
        assert set(row) == set(EVENTS)
        assert {event for event, do in row.items() if do is PhaseDo.CHILD} <= set(CHILD_EVENTS)


@pytest.mark.parametrize("kind", CHILD_EVENTS)
@pytest.mark.parametrize("state", ChildState)
def test_every_cell_taken_does_what_the_table_says(state: ChildState, kind: type) -> None:
    """The full product, each through ``step``: where it leads, and whether it is recorded as impossible."""
    rig = _rig(state)
    cell = TABLE[state][kind]
    before = rig.state
    if kind is Tick:
        rig.now_ns = max(rig.now_ns, before.children["a"].deadline_ns or 0)
    actions = rig.send(_event(kind, rig.generation("a")))
    if not cell.to:
        assert "a" not in rig.state.children
        assert [one.name for one in actions if isinstance(one, Forget)] == ["a"]
        return
    assert rig.state_of("a") in cell.to
    impossible = [one for one in actions if isinstance(one, Report) and isinstance(one.record, Impossible)]
    assert len(impossible) == (cell.do is Do.IMPOSSIBLE)
    if cell.do in (Do.IGNORE, Do.IMPOSSIBLE):
        assert rig.state == before
        assert len(actions) == len(impossible)


@pytest.mark.parametrize("kind", [Forked, Hello, Ready, Gone, SpawnFailed, Refused, Ignored, Silent])
@pytest.mark.parametrize("state", ChildState)
def test_every_state_told_by_an_older_generation_ignores_it(state: ChildState, kind: type) -> None:
    """What a former process said is over, in every state."""
    rig = _rig(state)
    before = rig.state
    assert rig.send(_event(kind, rig.generation("a") - 1)) == []
    assert rig.state == before


@pytest.mark.parametrize("kind", [Forked, Hello, Ready, Gone, SpawnFailed, Refused, Ignored, Silent])
@pytest.mark.parametrize("state", ChildState)
def test_every_state_told_by_a_generation_to_come_records_it(state: ChildState, kind: type) -> None:
    """A process that was never ordered is impossible; nothing changes."""
    rig = _rig(state)
    before = rig.state
    event = _event(kind, rig.generation("a") + 1)
    assert rig.send(event) == [Report(Impossible(event, state, at_ns=rig.now_ns))]
    assert rig.state == before


def test_an_unknown_child_named_is_recorded() -> None:
    """Nobody of that name: impossible, and survived."""
    rig = _rig(ChildState.READY)
    event = Ready("nobody", 1)
    assert rig.send(event) == [Report(Impossible(event, None, at_ns=rig.now_ns))]


@pytest.mark.parametrize("kind", EVENTS)
def test_idle_told_anything_but_start_and_stop_does_nothing(kind: type) -> None:
    """Before Start there is nothing that could happen."""
    state = initial(spec_of("a"))
    after, actions = step(state, _event(kind, 1), 0, 0.0)
    if kind in (Start, Stop, Abort):
        assert phase(after) is (Phase.STARTING if kind is Start else Phase.ENDED)
    else:
        assert phase(after) is Phase.IDLE
        assert all(isinstance(one, Report) for one in actions)
        assert child(after, "a").state is ChildState.DOWN


def test_the_page_of_states_is_the_one_written_from_the_tables() -> None:
    """docs/states.md is up to date; the head of diagram.py says how to write it anew."""
    assert (ROOT / "docs" / "states.md").read_text() == states_page()


def test_the_picture_of_states_is_the_one_drawn_from_the_table() -> None:
    """docs/states.svg is up to date; the head of picture.py says how to draw it anew."""
    assert (ROOT / "docs" / "states.svg").read_text() == states_picture()


def test_the_arrows_of_the_picture_are_those_of_the_table() -> None:
    """Taken apart again into one arrow for each state and event, none is missing and none is invented."""
    drawn = set()
    for arrow in arrows():
        inside = [state.name for state in FRAMES.get(arrow.source, ())] or [arrow.source]
        for label in arrow.labels:
            event, _, only = label.partition(" (")
            sources = only.rstrip(")").split(", ") if only else inside
            drawn |= {(source, event, arrow.target) for source in sources}
    tabled = {(START, "Start", "WAITING")}
    for state, row in TABLE.items():
        for kind, cell in row.items():
            ends = {GONE} if cell.do is Do.LOST else {to.name for to in cell.to - {state}}
            tabled |= {(state.name, kind.__name__, to) for to in ends or {FORGOTTEN} if ends or not cell.to}
    assert drawn == tabled
    after_gone = {arrow.target for arrow in arrows() if arrow.source == GONE}
    expected = frozenset().union(*(c.to for row in TABLE.values() for c in row.values() if c.do is Do.LOST))
    assert {s.name for to in after_gone for s in FRAMES.get(to, ())} | after_gone - FRAMES.keys() == {
        state.name for state in expected
    }


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.stem)
def test_the_room_imports_only_what_is_pure(path: Path) -> None:
    """No clock, no dice, no system: an allow-list, read from the source."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name in PURE or name.startswith("supervisor.policy"), f"{path.name} imports {name}"


def _dead(rig: Rig, names: list[str]) -> None:
    for name in names:
        rig.send(Gone(name, 1, ExitReason(ExitKind.SIGNALED, 9)))


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
def test_a_thousand_children_dying_at_once_all_come_back(strategy: str) -> None:
    """Everybody is back, and each one once, whatever the strategy."""
    names = [f"c{index}" for index in range(1000)]
    rig = Rig(spec_of(*names, strategy=Strategy(strategy), intensity=2000))
    rig.start()
    rig.now_ns += S
    _dead(rig, names)
    rig.now_ns += MS
    rig.settle()
    assert set(rig.generations().values()) == {2}
    assert set(rig.states().values()) == {"ready"}
    assert next_deadline_ns(rig.tree) is None
