"""How long one side looks at the other's word before it lets others have the core."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["LONGEST_NS", "Glance"]

LONGEST_NS = 5_000  # a request and its answer, where each side has a core of its own
SHORTEST_NS = 50  # below it, one look


class Glance:
    """A look, as long as it has paid to look before: ``ns``.

    Where the two sides share a core, what is waited for can only come once the core was let go; looking any
    longer delays it by as much. So what is there right after that makes the next look shorter, and what
    comes while it is looked for makes it longer.
    """

    __slots__ = ("_give_way", "ns")

    def __init__(self, give_way: Callable[[], object] = os.sched_yield) -> None:
        self.ns = LONGEST_NS
        self._give_way = give_way

    def sees(self, awaited: Callable[[int, int], bool], number: int) -> bool:
        """Looks, lets others go first, looks once more. ``awaited`` gets the number and the ns to look."""
        if awaited(number, self.ns):
            if self.ns < LONGEST_NS:
                self.learn(paid=True)
            return True
        self._give_way()
        if awaited(number, 0):
            self.learn(paid=False)
            return True
        return False

    def learn(self, *, paid: bool) -> None:
        """It came while it was looked for; or as soon as the core was let go."""
        if paid:
            self.ns = min(LONGEST_NS, 2 * self.ns + SHORTEST_NS)
        else:
            self.ns = self.ns // 4 if self.ns > SHORTEST_NS else 0
