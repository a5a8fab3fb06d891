"""What a death would lead to is what it leads to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.policy import (
    BackoffSpec,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
    Tree,
    comes_back_at_once,
    initial,
    step,
)
from supervisor.policy.actions import Report, Spawn
from supervisor.policy.events import ExitKind, ExitReason, Forked, Gone, Hello, Ready, Start, Stop

KILLED = ExitReason(ExitKind.SIGNALED, 9)
AT_ONCE = BackoffSpec(first_ns=0, next_ns=0, max_ns=0)
LAMP, FAN = ChildSpec("lamp", backoff=AT_ONCE), ChildSpec("fan", backoff=AT_ONCE)
SECOND = 10**9


def _running(*children: ChildSpec, strategy: Strategy = Strategy.ONE_FOR_ONE, intensity: int = 1) -> Tree:
    tree = initial(
        SupervisorSpec(children=children, strategy=strategy, intensity=intensity, period_ns=SECOND)
    )
    tree, _actions = step(tree, Start(), 0, 0.0)
    for child in children:
        for event in (Forked(child.name, 1), Hello(child.name, 1), Ready(child.name, 1)):
            tree, _actions = step(tree, event, 0, 0.0)
    return tree


def _is_right(tree: Tree, name: str, generation: int, now_ns: int, ended: ExitReason = KILLED) -> bool:
    """What is foreseen, if it is what then happens, whatever luck says."""
    foreseen = comes_back_at_once(tree, name, ended, now_ns)
    for chance in (0.0, 0.5, 0.999):
        _tree, actions = step(tree, Gone(name, generation, ended, True), now_ns, chance)
        others = [action for action in actions if not isinstance(action, Report)]
        if foreseen:
            assert others == [Spawn(name, generation + 1)]
    return foreseen


def test_given_budget_left_it_comes_back_at_once_and_without_it_does_not() -> None:
    """Another device's restarts are of the same budget, and time gives it back."""
    tree = _running(LAMP, FAN)
    assert _is_right(tree, "lamp", 1, SECOND)
    tree, _actions = step(tree, Gone("fan", 1, KILLED, True), SECOND, 0.0)
    assert not _is_right(tree, "lamp", 1, SECOND + 1)
    assert _is_right(tree, "lamp", 1, 3 * SECOND)


@pytest.mark.parametrize(
    ("child", "ended", "foreseen"),
    [
        (LAMP, KILLED, True),
        (replace(LAMP, restart=Restart.TEMPORARY), KILLED, False),
        (replace(LAMP, restart=Restart.TRANSIENT), KILLED, True),
        (replace(LAMP, restart=Restart.TRANSIENT), ExitReason(ExitKind.EXITED, 0), False),
        (replace(LAMP, prevent_restart=frozenset({-9})), KILLED, False),
        (replace(LAMP, backoff=BackoffSpec(first_ns=SECOND, max_ns=SECOND)), KILLED, False),
    ],
)
def test_given_rules_of_the_child_they_are_what_counts(
    child: ChildSpec, ended: ExitReason, foreseen: bool
) -> None:
    """Restart type, exit codes and delay."""
    assert _is_right(_running(child), "lamp", 1, SECOND, ended) is foreseen


def test_given_siblings_that_would_go_with_it_it_is_more_than_a_restart() -> None:
    """Under one_for_all the others are stopped first."""
    assert not _is_right(_running(LAMP, FAN, strategy=Strategy.ONE_FOR_ALL), "lamp", 1, SECOND)
    assert _is_right(_running(LAMP, strategy=Strategy.ONE_FOR_ALL), "lamp", 1, SECOND)


def test_given_stop_under_way_nobody_comes_back() -> None:
    """Neither who is being stopped, nor in a supervisor that is."""
    tree, _actions = step(_running(LAMP), Stop(), SECOND, 0.0)
    assert not comes_back_at_once(tree, "lamp", KILLED, SECOND)
