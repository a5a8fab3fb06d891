"""Who is affected by whom: the part of the tree that never changes while it runs.

``depends_on`` decides in which order children start and stop; the strategy alone decides which siblings are
restarted together with a child that died. Both are worked out once, in a ``Plan``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from supervisor.policy.order import levels, start_order
from supervisor.policy.spec import ChildSpec, Strategy, SupervisorSpec

__all__ = ["Plan", "affected", "make_plan", "stop_levels"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A specification with everything looked up that steps need. Its dictionaries are never changed."""

    spec: SupervisorSpec
    specs: dict[str, ChildSpec]
    order: tuple[str, ...]
    """All names in start order."""
    position: dict[str, int]
    """A name's place in ``order``."""
    level: dict[str, int]
    dependents: dict[str, tuple[str, ...]]
    """Who depends on a name directly, in start order."""
    significant: tuple[str, ...]


def make_plan(spec: SupervisorSpec) -> Plan:
    """Works out order, levels and dependents of a specification."""
    specs = {child.name: child for child in spec.children}
    depends_on = {child.name: child.depends_on for child in spec.children}
    order = start_order(depends_on)
    dependents: dict[str, list[str]] = {name: [] for name in order}
    for name in order:
        for target in dict.fromkeys(depends_on[name]):
            dependents[target].append(name)
    return Plan(
        spec=spec,
        specs=specs,
        order=order,
        position={name: index for index, name in enumerate(order)},
        level=levels(depends_on),
        dependents={name: tuple(names) for name, names in dependents.items()},
        significant=tuple(name for name in order if specs[name].significant),
    )


def affected(plan: Plan, culprit: str) -> tuple[str, ...]:
    """The culprit and the siblings that restart together with it, in start order."""
    match plan.spec.strategy:
        case Strategy.ONE_FOR_ONE:
            return (culprit,)
        case Strategy.ONE_FOR_ALL:
            return plan.order
        case Strategy.REST_FOR_ONE:
            return plan.order[plan.position[culprit] :]


def stop_levels(plan: Plan, names: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """``names`` in the order of stopping: the deepest level first, each level in reverse start order."""
    by_level: dict[int, list[str]] = {}
    for name in sorted(names, key=plan.position.__getitem__, reverse=True):
        by_level.setdefault(plan.level[name], []).append(name)
    return tuple(tuple(by_level[level]) for level in sorted(by_level, reverse=True))
