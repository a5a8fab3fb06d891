"""What a step costs does not grow with the number of children; counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

from supervisor.policy import ChildSpec, Restart, Strategy
from supervisor.policy.events import AddChild, Gone
from tests.policy.fake import KILLED, Rig, S, spec_of

POLICY = "/supervisor/policy/"


def _calls(work: Callable[[], None]) -> int:
    """How many functions of the policy ``work`` calls."""
    count = 0

    def note(frame: FrameType, event: str, _what: object) -> None:
        nonlocal count
        caller = frame.f_back  # what a test asks is not the policy's doing
        here = [one.f_code.co_filename for one in (frame, caller) if one is not None]
        count += event == "call" and all(POLICY in file for file in here)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def _life(children: int) -> int:
    """Calls per child to start, kill and stop all of them."""
    names = [f"c{index}" for index in range(children)]
    rig = Rig(spec_of(*names, intensity=2 * children))

    def live() -> None:
        rig.start()
        rig.now_ns += S
        for name in names:
            rig.send(Gone(name, 1, KILLED))
        rig.now_ns += S
        rig.until_deadline() if rig.state.deadlines else None
        rig.settle()
        rig.stop()
        rig.obey()

    calls = _calls(live)
    assert rig.outcome is not None
    return calls // children


def _temporary(children: int) -> int:
    """Calls per child to add temporary children to a group of a template, and to lose them all."""
    group = ChildSpec("g", supervisor=spec_of(strategy=Strategy.SIMPLE_ONE_FOR_ONE))
    rig = Rig(spec_of(group))
    rig.start()

    def live() -> None:
        for index in range(children):
            rig.send(AddChild(ChildSpec(f"c{index}", Restart.TEMPORARY), "g"))
            rig.settle_only(f"c{index}")
        for index in range(children):
            rig.gone(f"c{index}", KILLED)

    calls = _calls(live)
    assert list(rig.tree.group_of) == ["g"]
    return calls // children


def test_given_ten_times_more_children_each_step_costs_the_same() -> None:
    """Start, death and stop of 1,000 children take per child what they take of 100: nothing is quadratic."""
    for live in (_life, _temporary):
        few, many = live(100), live(1000)
        assert many < 1.5 * few, f"{live.__name__}: {few} calls per child became {many}"
