"""What a board takes of its host, by its size: nothing that is not written down."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from supervisor.host import Supervisor
from tests.chaos import COUNTING, board, census, open_descriptors, until_witnessed

PAGE = Path(__file__).parent.parent / "docs" / "embedding.md"


def _taken(devices: int, spares: int, standbys: int) -> tuple[int, int]:
    """Descriptors of the supervisor, and processes, for so many devices, the first ones with a standby."""
    before = len(open_descriptors())
    names = [COUNTING.replace("counter", f"counter{number}", 1) for number in range(devices)]
    names[:standbys] = [f"{name}, standby: true" for name in names[:standbys]]
    with census(), Supervisor(board(*names, supervisor=f"spares: {spares}")) as sup:
        until_witnessed(sup)
        assert sup._workers is not None
        processes = sup._workers.processes
        while len(processes._spares) < spares or any(one.pidfd is None for one in processes._known.values()):
            sup.dispatch(1)
        while sum(device.standby_pid is not None for device in sup.devices.values()) < standbys:
            sup.dispatch(1)
        assert sup.zygote_pid is not None
        children = psutil.Process(sup.zygote_pid).children()
        return len(open_descriptors()) - before, 1 + len(children)


def test_given_devices_and_spares_each_takes_what_the_page_says() -> None:
    """Descriptors and processes: so many for each device, spare and standby, and for the board."""
    told = re.search(
        r"(\d+) descriptors of the supervisor for each device, (\d+) for each spare, "
        r"(\d+) for each standby and (\d+) for the board",
        PAGE.read_text(),
    )
    assert told is not None
    a_device, a_spare, a_standby, a_board = map(int, told.groups())
    for devices, spares, standbys in ((1, 0, 0), (6, 0, 0), (2, 3, 0), (3, 1, 2)):
        assert _taken(devices, spares, standbys) == (
            devices * a_device + spares * a_spare + standbys * a_standby + a_board,
            devices + spares + standbys + 2,
        )
