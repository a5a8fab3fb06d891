"""The policy room: what is to be done about devices that start, die and stop. Pure.

    state = initial(spec)
    state, actions = step(state, event, now_ns, chance)

Theory. A supervisor's decisions are what is hardest to test with real processes and easiest without: so they
are values. ``step`` takes what happened and answers what is to be done; the reactor alone does it and tells
back what came of it. Time and chance are arguments. The room imports nothing that could look at a clock, a
file or a process (a test holds it to that).

The words and rules are those of OTP's ``supervisor``; added are ``depends_on`` with readiness, backoff with
jitter, deadlines for Hello, Ready and stop, isolation of one device, and deaths that are charged to nobody.

Invariants, proved by simulation in ``tests/policy``:

* at most one generation of a child has a process; the next is spawned after the end of the last was seen;
* restarts are never more than the intensity allows in any period, and never faster than the backoff;
* what is stopped together goes in the reverse of the start order, level by level;
* nothing is said after ``Finished``; no event, in any order, raises.

From the bottom: ``states``, ``order``, ``spec``, ``events``, ``actions`` (values) · ``intensity``,
``backoff``, ``strategy`` (rules) · ``table`` (one child's life) · ``draft`` (state, and one step's working
copy) · ``rising``, ``falling``, ``ending`` (what the table's cells do) · ``views`` (what may be
asked) · ``tree`` (``step``) · ``diagram`` (the docs).
"""

from __future__ import annotations

from supervisor.policy.draft import State
from supervisor.policy.spec import (
    AutoShutdown,
    BackoffSpec,
    ChildSpec,
    HeartbeatSpec,
    OnGiveUp,
    Restart,
    Strategy,
    SupervisorSpec,
)
from supervisor.policy.states import ALIVE, ChildState, Phase
from supervisor.policy.tree import initial, step
from supervisor.policy.views import (
    ChildView,
    Counts,
    child,
    children,
    count,
    next_deadline_ns,
    phase,
    why_not_add,
    why_not_remove,
)

__all__ = [
    "ALIVE",
    "AutoShutdown",
    "BackoffSpec",
    "ChildSpec",
    "ChildState",
    "ChildView",
    "Counts",
    "HeartbeatSpec",
    "OnGiveUp",
    "Phase",
    "Restart",
    "State",
    "Strategy",
    "SupervisorSpec",
    "child",
    "children",
    "count",
    "initial",
    "next_deadline_ns",
    "phase",
    "step",
    "why_not_add",
    "why_not_remove",
]
