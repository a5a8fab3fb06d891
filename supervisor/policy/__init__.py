"""The policy room: what is to be done about devices that start, die and stop. Pure.

    tree = initial(spec)
    tree, actions = step(tree, event, now_ns, chance)

Theory. A supervisor's decisions are what is hardest to test with real processes and easiest without: so they
are values. ``step`` takes what happened and answers what is to be done; the reactor alone does it and tells
back what came of it. Time and chance are arguments. The room imports nothing that could look at a clock, a
file or a process (a test holds it to that).

The words and rules are those of OTP's ``supervisor``; added are ``depends_on`` with readiness, backoff with
jitter, exit statuses that force or prevent a restart, deadlines for Hello, Ready and stop, isolation of one
device, and deaths that are charged to nobody.

Invariants, proved by simulation in ``tests/policy``:

* at most one generation of a child has a process; the next is spawned after the end of the last was seen;
* restarts are never more than the intensity allows in any period, and never faster than the backoff;
* what is stopped together goes in the reverse of the start order, level by level;
* nothing is said after ``Finished``; no event, in any order, raises.

From the bottom: ``states``, ``order``, ``spec``, ``events``, ``records``, ``actions`` (values) ·
``intensity``, ``backoff``, ``strategy`` (rules) · ``table`` (one child's life) · ``draft`` (one supervisor's
state, and one step's working copy) · ``rising``, ``falling``, ``ending`` (what the table's cells do) ·
``views`` (what its door asks) · ``node`` (one supervisor's step) · ``survey`` (the tree of supervisors, and
what may be asked of it) · ``tree`` (``step``) · ``foresight`` (what a death would lead
to) · ``diagram`` (the docs).
"""

from __future__ import annotations

from supervisor.policy.foresight import comes_back_at_once
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
from supervisor.policy.survey import (
    ROOT,
    SERVING,
    ChildView,
    Counts,
    Tree,
    child,
    children,
    count,
    devices_in,
    is_wanted,
    next_deadline_ns,
    phase,
    went_down_with,
    why_not_add,
    why_not_order,
    why_not_reload,
    why_not_remove,
)
from supervisor.policy.tree import initial, step

__all__ = [
    "ALIVE",
    "ROOT",
    "SERVING",
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
    "Strategy",
    "SupervisorSpec",
    "Tree",
    "child",
    "children",
    "comes_back_at_once",
    "count",
    "devices_in",
    "initial",
    "is_wanted",
    "next_deadline_ns",
    "phase",
    "step",
    "went_down_with",
    "why_not_add",
    "why_not_order",
    "why_not_reload",
    "why_not_remove",
]
