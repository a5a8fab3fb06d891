"""Order among names that depend on each other: circles, start order, levels.

Start order is list order, except that what is depended on comes first. Stop order is its reverse.
A *level* is the length of the longest chain of dependencies below a name; names of one level do not
depend on each other, so they may stop side by side.

Every function is iterative: a chain of a thousand devices must not meet the recursion limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

__all__ = ["find_circle", "levels", "start_order"]


def find_circle(depends_on: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """One circle of dependencies as ``(a, b, a)``, or None. Targets that are no keys are passed over."""
    finished: set[str] = set()
    for root in depends_on:
        if root in finished:
            continue
        path = [root]
        on_path = {root}
        ahead = [iter(depends_on[root])]
        while ahead:
            target = next(ahead[-1], None)
            if target is None:
                ahead.pop()
                name = path.pop()
                on_path.discard(name)
                finished.add(name)
            elif target in on_path:
                return (*path[path.index(target) :], target)
            elif target in depends_on and target not in finished:
                path.append(target)
                on_path.add(target)
                ahead.append(iter(depends_on[target]))
    return None


def start_order(depends_on: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The keys in list order, moved back only as far as their dependencies ask.

    The mapping must be free of circles and must hold every target.
    """
    position = {name: index for index, name in enumerate(depends_on)}
    missing = {name: len(set(targets)) for name, targets in depends_on.items()}
    dependents: dict[str, list[str]] = {name: [] for name in depends_on}
    for name, targets in depends_on.items():
        for target in set(targets):
            dependents[target].append(name)
    startable: list[tuple[int, str]] = []
    for name, count in missing.items():
        if count == 0:
            heappush(startable, (position[name], name))
    order: list[str] = []
    while startable:
        _, name = heappop(startable)
        order.append(name)
        for dependent in dependents[name]:
            missing[dependent] -= 1
            if missing[dependent] == 0:
                heappush(startable, (position[dependent], dependent))
    return tuple(order)


def levels(depends_on: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The level of every key; 0 depends on nothing."""
    level: dict[str, int] = {}
    for name in start_order(depends_on):
        level[name] = max((level[target] + 1 for target in depends_on[name]), default=0)
    return level
