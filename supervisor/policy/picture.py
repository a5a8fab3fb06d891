"""The picture of a device's states in the documentation, drawn from the table that decides. Pure.

``docs/states.svg`` holds exactly what ``states_picture`` returns; a test compares them. To draw it anew::

    python -m supervisor.policy.picture > docs/states.svg

Which arrows there are, and what stands at them, comes from the table alone. States that share arrows are
drawn in one frame, and an arrow from a frame holds for each state in it, but for what is marked with names of
states. Only where things lie on the paper is written here; an arrow without a place is a ``KeyError``.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.policy.states import ChildState
from supervisor.policy.table import CHILD_EVENTS, TABLE, Do

__all__ = ["FORGOTTEN", "FRAMES", "GONE", "START", "Arrow", "arrows", "states_picture"]

START, GONE, FORGOTTEN = "start", "gone", "forgotten"

_S = ChildState
FRAMES = {
    "wanted, a process works on it": (_S.SPAWNING, _S.BUILDING, _S.READY),
    "on its way down": (_S.STOPPING, _S.KILLING),
    "no process, and none is wanted": (_S.DOWN, _S.FAILED, _S.FINISHED),
}
_UP, _LEAVING, _RESTING = FRAMES
_NOTHING_HAPPENS = frozenset({Do.IGNORE, Do.IMPOSSIBLE})

_WIDTH, _HEIGHT = 1060, 540
_BOX_WIDTH, _BOX_HEIGHT = 116, 36
_LINE_HEIGHT = 14

_Point = tuple[int, int]
_BOXES: dict[ChildState, _Point] = {  # centres
    _S.WAITING: (250, 88),
    _S.SPAWNING: (520, 88),
    _S.BUILDING: (730, 88),
    _S.READY: (940, 88),
    _S.STOPPING: (760, 320),
    _S.KILLING: (950, 320),
    _S.DOWN: (175, 470),
    _S.FAILED: (385, 470),
    _S.FINISHED: (595, 470),
}
_FRAMES: dict[str, tuple[int, int, int, int]] = {  # left, top, right, bottom
    _UP: (440, 30, 1030, 130),
    _LEAVING: (680, 270, 1030, 360),
    _RESTING: (100, 420, 670, 510),
}
_GONE_AT: _Point = (500, 320)
_ROUTES: dict[tuple[str, str], tuple[list[_Point], _Point, str]] = {  # corners, the label, its anchor
    (START, "WAITING"): ([(130, 78), (192, 78)], (161, 70), "middle"),
    ("WAITING", "SPAWNING"): ([(308, 78), (462, 78)], (374, 56), "middle"),
    ("WAITING", "DOWN"): ([(210, 106), (210, 452)], (203, 250), "end"),
    ("WAITING", "FAILED"): ([(285, 106), (285, 390), (370, 390), (370, 452)], (292, 345), "start"),
    ("SPAWNING", "BUILDING"): ([(578, 88), (672, 88)], (625, 80), "middle"),
    ("BUILDING", "READY"): ([(788, 88), (882, 88)], (835, 80), "middle"),
    (_UP, "STOPPING"): ([(730, 130), (730, 302)], (723, 165), "end"),
    (_UP, "KILLING"): ([(930, 130), (930, 302)], (923, 165), "end"),
    (_UP, GONE): ([(485, 130), (485, 305)], (478, 165), "end"),
    ("STOPPING", "KILLING"): ([(818, 320), (892, 320)], (855, 312), "middle"),
    (_LEAVING, GONE): ([(680, 320), (530, 320)], (626, 298), "middle"),
    (_RESTING, "WAITING"): ([(125, 420), (125, 98), (192, 98)], (118, 250), "end"),
    (_RESTING, "SPAWNING"): ([(560, 420), (560, 106)], (567, 392), "start"),
    (_RESTING, FORGOTTEN): ([(670, 465), (770, 465)], (720, 457), "middle"),
    ("DOWN", "FAILED"): ([(233, 470), (327, 470)], (280, 448), "middle"),
    ("FINISHED", "FAILED"): ([(537, 470), (443, 470)], (490, 448), "middle"),
    (GONE, "WAITING"): ([(470, 320), (316, 320), (316, 98), (308, 98)], (0, 0), "start"),
    (GONE, "SPAWNING"): ([(515, 305), (515, 106)], (0, 0), "start"),
    (GONE, _RESTING): ([(500, 350), (500, 420)], (0, 0), "start"),
}


@dataclass(frozen=True, slots=True)
class Arrow:
    """From a state or a frame to a state, a frame or one of the signs; ``labels`` are lines of text."""

    source: str
    target: str
    labels: tuple[str, ...] = ()


def arrows() -> list[Arrow]:
    """What there is to draw, as the table has it."""
    senders: dict[tuple[str, str], dict[str, list[ChildState]]] = {}
    ended: set[ChildState] = set()
    for state, row in TABLE.items():
        for event in CHILD_EVENTS:
            cell = row[event]
            if cell.do in _NOTHING_HAPPENS:
                continue
            if (
                cell.do is Do.LOST
            ):  # all ends meet in one sign: five arrows from each state would hide the rest
                ended |= cell.to
                targets = [GONE]
            else:
                targets = [to.name for to in ChildState if to in cell.to and to is not state] or [FORGOTTEN]
                if cell.to == {state}:
                    continue
            for target in targets:
                source = _frame_of(state, unless_holds=target) or state.name
                senders.setdefault((source, target), {}).setdefault(event.__name__, []).append(state)
    found = [Arrow(START, "WAITING", ("Start",))]
    for (source, target), events in senders.items():
        found.append(Arrow(source, target, tuple(_label(source, *event) for event in events.items())))
    return found + [Arrow(GONE, target) for target in _framed(ended)]


def _frame_of(state: ChildState, *, unless_holds: str) -> str | None:
    for title, inside in FRAMES.items():
        if state in inside and unless_holds not in [one.name for one in inside]:
            return title
    return None


def _label(source: str, event: str, states: list[ChildState]) -> str:
    if source not in FRAMES or set(states) == set(FRAMES[source]):
        return event
    return f"{event} ({', '.join(state.name for state in states)})"


def _framed(states: set[ChildState]) -> list[str]:
    """Names of states; a frame in place of all that are in it."""
    whole = {title: set(inside) for title, inside in FRAMES.items() if states >= set(inside)}
    rest = states.difference(*whole.values())
    return [state.name for state in ChildState if state in rest] + list(whole)


def states_picture() -> str:
    """The text of ``docs/states.svg``."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        "<title>The states of a device</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 10 5 0 10z"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    parts += [_frame(title, *edges) for title, edges in _FRAMES.items()]
    parts += [_line(arrow) for arrow in arrows()]
    parts += [_box(state.name, _BOXES[state]) for state in ChildState]
    parts += [_signs(), "</svg>", ""]
    return "\n".join(parts)


def _frame(title: str, left: int, top: int, right: int, bottom: int) -> str:
    words = _text(title, right - 8, bottom - 7, "end", 'fill="#52606d" font-size="11"')
    size = f'width="{right - left}" height="{bottom - top}"'
    return f'<rect x="{left}" y="{top}" {size} rx="8" fill="#f4f6f8" stroke="#9aa5b1"/>\n{words}'


def _box(name: str, centre: _Point) -> str:
    x, y = centre
    corner = f'x="{x - _BOX_WIDTH // 2}" y="{y - _BOX_HEIGHT // 2}"'
    size = f'width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}"'
    words = _text(name, x, y + 4, "middle", 'font-weight="bold"')
    return f'<rect {corner} {size} rx="6" fill="white" stroke="black"/>\n{words}'


def _line(arrow: Arrow) -> str:
    corners, (x, y), anchor = _ROUTES[arrow.source, arrow.target]
    points = " ".join(f"{across},{down}" for across, down in corners)
    lines = [f'<polyline points="{points}" fill="none" stroke="black" marker-end="url(#tip)"/>']
    lines += [_text(label, x, y + number * _LINE_HEIGHT, anchor) for number, label in enumerate(arrow.labels)]
    return "\n".join(lines)


def _signs() -> str:
    x, y = _GONE_AT
    return "\n".join(
        [
            '<circle cx="124" cy="78" r="6"/>',
            f'<path d="M{x - 30} {y} {x} {y - 30} {x + 30} {y} {x} {y + 30}z" fill="white" stroke="black"/>',
            _text(GONE, x, y + 4, "middle"),
            '<circle cx="780" cy="465" r="8" fill="white" stroke="black"/><circle cx="780" cy="465" r="4"/>',
            _text(FORGOTTEN, 795, 469, "start"),
        ]
    )


def _text(text: str, x: int, y: int, anchor: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {more}>{text}</text>'


if __name__ == "__main__":
    print(states_picture(), end="")  # noqa: T201 - the picture is what was asked for
