"""The policy does what a naive model of OTP does, over the full matrix of its rules and beyond."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.policy import AutoShutdown, BackoffSpec, ChildSpec, ChildState, Restart, Strategy
from tests.policy.fake import CLEAN, CRASH, MS, Rig, S, spec_of
from tests.policy.otp_model import Model, ModelChild

STATIC = [one for one in Strategy if one is not Strategy.SIMPLE_ONE_FOR_ONE]
PERIOD_NS = 10 * S
AT_ONCE = BackoffSpec(max_ns=0)
Death = tuple[str, bool, int]  # who, whether cleanly, and how long (ns) after the one before


def _both(
    strategy: Strategy,
    intensity: int,
    auto: AutoShutdown,
    restarts: tuple[Restart, ...],
    marks: tuple[bool, ...],
) -> tuple[Rig, Model]:
    names = "abcdef"[: len(restarts)]
    significant = [
        mark and restart is not Restart.PERMANENT and auto is not AutoShutdown.NEVER
        for restart, mark in zip(restarts, marks, strict=True)
    ]
    children = [
        ChildSpec(name, restart, significant=mark, backoff=AT_ONCE)
        for name, restart, mark in zip(names, restarts, significant, strict=True)
    ]
    rig = Rig(
        spec_of(*children, strategy=strategy, intensity=intensity, period_ns=PERIOD_NS, auto_shutdown=auto)
    )
    model = Model(
        strategy.value,
        intensity,
        PERIOD_NS,
        auto.value,
        [ModelChild(one.name, one.restart.value, one.significant) for one in children],
    )
    rig.start()
    model.start()
    return rig, model


def _agree(rig: Rig, model: Model, deaths: tuple[Death, ...]) -> None:
    for name, clean, after_ns in deaths:
        rig.now_ns += after_ns
        if name in rig.processes and rig.state_of(name) is ChildState.READY:
            rig.gone(name, CLEAN if clean else CRASH)
        while True:  # whoever is asked obeys at once, whoever is started is ready at once
            before = dict(rig.processes)
            rig.obey()
            rig.settle()
            if rig.processes == before:
                break
        model.die(name, clean=clean, now=rig.now_ns)
        told = f"after {deaths}: policy {rig.processes}, OTP {model.incarnations()}, {model.ended}"
        assert rig.processes == model.incarnations(), told
        assert (rig.outcome.kind.value if rig.outcome else None) == model.ended, told


def _matrix(
    restarts: tuple[Restart, ...],
) -> Iterator[tuple[int, AutoShutdown, tuple[bool, ...], tuple[Death, ...]]]:
    deaths = [(name, clean, MS) for name in "abc" for clean in (True, False)]
    for intensity, auto in itertools.product((0, 1, 2), AutoShutdown):
        for marks in (
            ((True, True, True), (True, False, False)) if auto is not AutoShutdown.NEVER else ((False,) * 3,)
        ):
            for sequence in itertools.product(deaths, repeat=2):
                yield intensity, auto, marks, sequence


@pytest.mark.parametrize("restarts", list(itertools.product(Restart, repeat=3)), ids=str)
@pytest.mark.parametrize("strategy", STATIC)
def test_given_full_matrix_policy_and_otp_agree(strategy: Strategy, restarts: tuple[Restart, ...]) -> None:
    """Each strategy, restart types of three children, intensity, auto_shutdown, and any two deaths."""
    for intensity, auto, marks, deaths in _matrix(restarts):
        rig, model = _both(strategy, intensity, auto, restarts, marks)
        _agree(rig, model, deaths)


@settings(deadline=None, max_examples=400)
@given(
    strategy=st.sampled_from(STATIC),
    intensity=st.integers(0, 4),
    auto=st.sampled_from(AutoShutdown),
    children=st.lists(st.tuples(st.sampled_from(Restart), st.booleans()), min_size=1, max_size=6),
    deaths=st.lists(
        st.tuples(
            st.sampled_from("abcdef"),
            st.booleans(),
            st.sampled_from([0, MS, S, 5 * S, PERIOD_NS, PERIOD_NS + 1]),
        ),
        max_size=25,
    ),
)
def test_given_any_board_and_any_deaths_policy_and_otp_agree(
    strategy: Strategy,
    intensity: int,
    auto: AutoShutdown,
    children: list[tuple[Restart, bool]],
    deaths: list[Death],
) -> None:
    """Longer stories with time between the deaths, at and around the edge of the window."""
    restarts, marks = zip(*children, strict=True)
    rig, model = _both(strategy, intensity, auto, restarts, marks)
    _agree(rig, model, tuple(deaths))
