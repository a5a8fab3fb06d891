"""Fixtures for the tests of those who write devices and machines; pytest loads them by itself.

``tubevisor`` starts supervisors, stops them when the test is over, and then looks whether anything is left.
``chaos_monkey`` lets a monkey loose on one of them. Both are factories.

Every pytest session where this is installed imports this module, so it imports nothing of the supervisor's
before a fixture is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from supervisor.census import Census
    from supervisor.chaos import ChaosRule, Monkey
    from supervisor.config import Config
    from supervisor.host import Supervisor

__all__ = ["MonkeyFactory", "SupervisorFactory", "chaos_monkey", "tubevisor"]


class SupervisorFactory:
    """Starts supervisors: what the fixture ``tubevisor`` is."""

    def __init__(self, folder: str | os.PathLike[str] = os.curdir) -> None:
        self._folder = folder  # that of the test's file
        self._running = contextlib.ExitStack()
        self._before: Census | None = None
        self._counts = True

    def __call__(
        self,
        board: Config | Mapping[str, Any] | str | os.PathLike[str],
        *,
        overrides: Sequence[str] = (),
        census: bool = True,
    ) -> Supervisor:
        """A started supervisor; every device is ready. It is stopped when the test is over.

        ``board`` is a file's path (as seen from the working directory, or else from the test's file), or YAML
        text (a string of several lines), or the same as a mapping, or a ``Config``. Modules are looked for as
        the command does: installed ones, then in the working directory, then beside the file. ``overrides``
        are those of ``--set``. ``census=False`` switches the census of this test off, for one that keeps
        descriptors or processes of its own.
        """
        from supervisor.host import Supervisor

        config = self._load(board, overrides)
        self._counts = self._counts and census
        if self._before is None:
            from supervisor.census import Census

            self._before = Census.take()
        return self._running.enter_context(Supervisor(config))

    def close(self) -> None:
        """Stops all, the last one first; fails the test if anything is left of them."""
        self._running.close()
        if self._before is None or not self._counts:
            return
        if leaks := self._before.leaks():
            pytest.fail("left when the supervisors had stopped:\n  " + "\n  ".join(leaks), pytrace=False)

    def _load(
        self, board: Config | Mapping[str, Any] | str | os.PathLike[str], overrides: Sequence[str]
    ) -> Config:
        from supervisor.config import Config, load_config, parse_config
        from supervisor.errors import LocalError

        if isinstance(board, Config):
            if overrides:
                raise LocalError("overrides are laid over a file, a text or a mapping, not over a Config")
            return board
        self._find_modules_in(os.getcwd())
        if isinstance(board, Mapping):
            # JSON is YAML, and says of every scalar what it is.
            text = json.dumps(dict(board), indent=2, default=os.fspath)
            return parse_config(text, source="<mapping>", overrides=overrides)
        if isinstance(board, str) and "\n" in board:
            return parse_config(board, source="<text>", overrides=overrides)
        beside = os.path.join(self._folder, board)
        path = beside if os.path.exists(beside) and not os.path.exists(board) else board
        self._find_modules_in(os.path.dirname(os.path.abspath(path)))
        return load_config(path, overrides=overrides)

    def _find_modules_in(self, folder: str) -> None:
        if folder not in sys.path:
            sys.path.append(folder)
            self._running.callback(self._forget_modules_in, folder)

    @staticmethod
    def _forget_modules_in(folder: str) -> None:
        with contextlib.suppress(ValueError):  # a test may have put the path back itself
            sys.path.remove(folder)


class MonkeyFactory:
    """Lets monkeys loose: what the fixture ``chaos_monkey`` is."""

    def __init__(self) -> None:
        self._monkeys: list[Monkey] = []

    def __call__(self, supervisor: Supervisor, *rules: str | ChaosRule) -> Monkey:
        """A started monkey that carries out ``rules`` (as for ``--chaos``) until the test is over.

        Its ``kills`` counts by device. Seeds that chance gave are printed, so that pytest shows them when the
        test fails.
        """
        from supervisor.chaos import ChaosRule, Monkey
        from supervisor.errors import LocalError

        if not rules:
            raise LocalError("a monkey without a rule does nothing; write one such as kill=*,every=10ms")
        if supervisor.config.supervisor.in_process:
            raise LocalError("chaos needs devices in processes of their own: supervisor.in_process is set")
        parsed = [ChaosRule.parse(rule) if isinstance(rule, str) else rule for rule in rules]
        monkey = Monkey(supervisor, parsed)
        for rule, one, seed in zip(rules, parsed, monkey.seeds, strict=True):
            print(f"chaos_monkey: {rule}" if one.seed is not None else f"chaos_monkey: {rule},seed={seed}")  # noqa: T201 - for pytest to show
        monkey.start()
        self._monkeys.append(monkey)
        return monkey

    def close(self) -> None:
        """No more kills."""
        for monkey in self._monkeys:
            monkey.stop()


@pytest.fixture
def tubevisor(request: pytest.FixtureRequest) -> Iterator[SupervisorFactory]:
    """Starts supervisors: ``tubevisor("board.yaml")``; stopped, and counted, when the test is over."""
    factory = SupervisorFactory(request.path.parent)
    try:
        yield factory
    finally:
        factory.close()


@pytest.fixture
def chaos_monkey(tubevisor: SupervisorFactory) -> Iterator[MonkeyFactory]:
    """Kills devices of a supervisor: ``chaos_monkey(sup, "kill=*,every=10ms")``; stopped before it is."""
    factory = MonkeyFactory()
    try:
        yield factory
    finally:
        factory.close()
