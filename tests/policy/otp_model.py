"""Erlang/OTP's supervisor in the plainest words: what the policy has to agree with where OTP has an opinion.

No processes, no time to start or stop, no delays, no dependencies: a death is followed at once by all that it
leads to. Written from OTP's documentation, without a look at the policy, and meant to be obviously right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Model", "ModelChild"]


@dataclass
class ModelChild:
    """A child; ``incarnation`` 0 has not been started, and ``alive`` says whether its process is there."""

    name: str
    restart: str
    significant: bool = False
    incarnation: int = 0
    alive: bool = False

    def start(self) -> None:
        self.incarnation += 1
        self.alive = True


@dataclass
class Model:
    """One supervisor. ``ended`` is None, ``gave_up`` or ``auto_shutdown``."""

    strategy: str
    intensity: int
    period: int
    auto_shutdown: str
    children: list[ModelChild]
    ended: str | None = None
    restarts: list[int] = field(default_factory=list)

    def start(self) -> None:
        """Starts all children in order."""
        for child in self.children:
            child.start()

    def die(self, name: str, *, clean: bool, now: int) -> None:
        """A child's process ends by itself at ``now``."""
        child = self._child(name)
        if self.ended or child is None or not child.alive:
            return
        child.alive = False
        if child.restart == "permanent" or (child.restart == "transient" and not clean):
            self._restart(child, now)
            return
        if child.restart == "temporary":
            self.children.remove(child)
        if child.significant:
            self._judge_significant()

    def incarnations(self) -> dict[str, int]:
        """Whose process is there, and which one it is."""
        return {child.name: child.incarnation for child in self.children if child.alive}

    def _child(self, name: str) -> ModelChild | None:
        return next((child for child in self.children if child.name == name), None)

    def _restart(self, child: ModelChild, now: int) -> None:
        self.restarts = [at for at in self.restarts if now - at <= self.period] + [now]
        if len(self.restarts) > self.intensity:
            self._end("gave_up")
            return
        index = self.children.index(child)
        if self.strategy == "one_for_one":
            group = [child]
        elif self.strategy == "one_for_all":
            group = list(self.children)
        else:
            group = self.children[index:]
        for one in reversed(group):
            if one is not child and one.restart == "temporary":
                self.children.remove(one)  # stopped on a sibling's account, and not restarted
            one.alive = False
        for one in group:
            if one in self.children:
                one.start()

    def _judge_significant(self) -> None:
        left = [child for child in self.children if child.significant and child.alive]
        if self.auto_shutdown == "any_significant" or (self.auto_shutdown == "all_significant" and not left):
            self._end("auto_shutdown")

    def _end(self, why: str) -> None:
        self.ended = why
        for child in self.children:
            child.alive = False
