"""A VMM that hands over what cannot be served harms its own device, for as long as it is there.

Whatever it is, nobody dies of it (the board has no restart to give away), the supervisor answers, the device
beside it is served, and so is the next VMM.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from supervisor.vhost_user.errors import BackEndRefused
from tests.vhost_user.hostile import ATTACKS, besieged, is_unharmed
from tests.vhost_user.test_keeper import ORDERS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60)]


@pytest.mark.parametrize("what", sorted({name.partition(":")[0] for name in ATTACKS}))
def test_given_set_up_that_cannot_be_served_nobody_dies_of_it(tmp_path: Path, what: str) -> None:
    """Neither when it is handed over, nor when it is looked at, nor when the VMM takes it back."""
    with besieged(tmp_path) as vmm:
        for name, attack in ATTACKS.items():
            if not name.startswith(what):
                continue
            print(name)
            attack(vmm)
            for step in ORDERS["qemu blk"]:
                vmm.say(step)
            for _ in range(3):
                vmm.kick()
                vmm.sup.dispatch(0.02)
            with contextlib.suppress(BackEndRefused):
                vmm.ask(lambda: vmm.front.get_vring_base(0))
            is_unharmed(vmm)
            vmm.renew()
