"""Who is affected by whom: the part of the tree that changes only when children are added or removed.

``depends_on`` decides in which order children start and stop; the strategy alone decides which siblings are
restarted together with a child that died. Both are worked out beforehand, in a ``Plan``. A child that is
added is the last in start order; the others keep their places.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TypeVar

from supervisor.policy.order import levels, start_order
from supervisor.policy.spec import ChildSpec, Strategy, SupervisorSpec

__all__ = [
    "Plan",
    "affected",
    "make_plan",
    "stop_levels",
    "with_child",
    "with_supervisor",
    "without_child",
]


_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Plan:
    """A specification with everything looked up that steps need. Its dictionaries are never changed."""

    spec: SupervisorSpec
    """As it was given: the children of the moment are in ``specs``."""
    specs: dict[str, ChildSpec]
    order: tuple[str, ...]
    """All names in start order."""
    position: dict[str, int]
    """Rises along ``order``; a name keeps it while others are removed, so there may be gaps."""
    level: dict[str, int]
    dependents: dict[str, tuple[str, ...]]
    """Who depends on a name directly, in start order."""
    significant: tuple[str, ...]

    def index(self, position: int) -> int:
        """The index in ``order`` of who has this position."""
        return bisect_left(self.order, position, key=self.position.__getitem__)


def make_plan(spec: SupervisorSpec, children: tuple[ChildSpec, ...] | None = None) -> Plan:
    """Works out order, levels and dependents of a specification, or of its rules for other ``children``."""
    children = spec.children if children is None else children
    specs = {child.name: child for child in children}
    depends_on = {child.name: child.depends_on for child in children}
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
        case Strategy.ONE_FOR_ONE | Strategy.SIMPLE_ONE_FOR_ONE:
            return (culprit,)
        case Strategy.ONE_FOR_ALL:
            return plan.order
        case Strategy.REST_FOR_ONE:
            return plan.order[plan.index(plan.position[culprit]) :]


def with_child(plan: Plan, child: ChildSpec) -> Plan:
    """The plan with one child more, the last in start order. What it depends on must be there."""
    name = child.name
    position = plan.position[plan.order[-1]] + 1 if plan.order else 0
    targets = dict.fromkeys(child.depends_on)
    return replace(
        plan,
        specs=plan.specs | {name: child},
        order=(*plan.order, name),
        position=plan.position | {name: position},
        level=plan.level | {name: max((plan.level[target] + 1 for target in targets), default=0)},
        dependents=plan.dependents
        | {name: ()}
        | {target: (*plan.dependents[target], name) for target in targets},
        significant=(*plan.significant, name) if child.significant else plan.significant,
    )


def without_child(plan: Plan, name: str) -> Plan:
    """The plan without a child on which no other depends."""
    index = plan.index(plan.position[name])
    targets = dict.fromkeys(plan.specs[name].depends_on)
    dependents = _without(plan.dependents, name)
    dependents |= {
        target: tuple(other for other in plan.dependents[target] if other != name) for target in targets
    }
    given = tuple(child for child in plan.spec.children if child.name != name)
    return replace(
        plan,
        spec=plan.spec if len(given) == len(plan.spec.children) else replace(plan.spec, children=given),
        specs=_without(plan.specs, name),
        order=plan.order[:index] + plan.order[index + 1 :],
        position=_without(plan.position, name),
        level=_without(plan.level, name),
        dependents=dependents,
        significant=tuple(other for other in plan.significant if other != name),
    )


def with_supervisor(plan: Plan, name: str, supervisor: SupervisorSpec) -> Plan:
    """The plan with another specification behind the group ``name``: what it starts from the next time."""
    group = replace(plan.specs[name], supervisor=supervisor)
    given = tuple(group if child.name == name else child for child in plan.spec.children)
    return replace(plan, spec=replace(plan.spec, children=given), specs=plan.specs | {name: group})


def _without(mapping: dict[str, _Value], name: str) -> dict[str, _Value]:
    rest = dict(mapping)
    del rest[name]
    return rest


def stop_levels(plan: Plan, names: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """``names`` in the order of stopping: the deepest level first, each level in reverse start order."""
    by_level: dict[int, list[str]] = {}
    for name in sorted(names, key=plan.position.__getitem__, reverse=True):
        by_level.setdefault(plan.level[name], []).append(name)
    return tuple(tuple(by_level[level]) for level in sorted(by_level, reverse=True))
