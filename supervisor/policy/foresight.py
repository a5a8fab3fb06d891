"""What a death would be followed by, were it to happen now. Pure."""

from __future__ import annotations

from supervisor.policy.actions import Report, Spawn
from supervisor.policy.events import ExitReason, Gone
from supervisor.policy.survey import Tree, child
from supervisor.policy.tree import step

__all__ = ["comes_back_at_once"]

LONGEST_DELAY = 0.0  # the chance with which a backoff's jitter takes nothing away


def comes_back_at_once(
    tree: Tree, name: str, ended: ExitReason, now_ns: int, *, charged: bool = True
) -> bool:
    """True if ``name``'s end would be followed by its next generation, without delay, and by nothing else."""
    generation = child(tree, name).generation
    _after, actions = step(tree, Gone(name, generation, ended, charged), now_ns, LONGEST_DELAY)
    done = [action for action in actions if not isinstance(action, Report)]
    return done == [Spawn(name, generation + 1)]
