"""What a board takes of its host, by its size: nothing that is not written down."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from supervisor.host import Supervisor
from tests.chaos import COUNTING, board, census, open_descriptors, until_witnessed

PAGE = Path(__file__).parent.parent / "docs" / "embedding.md"


def _taken(devices: int, spares: int) -> tuple[int, int]:
    """Descriptors of the supervisor, and processes, for so many devices and spares."""
    before = len(open_descriptors())
    names = [COUNTING.replace("counter", f"counter{number}", 1) for number in range(devices)]
    with census(), Supervisor(board(*names, supervisor=f"spares: {spares}")) as sup:
        until_witnessed(sup)
        assert sup._workers is not None
        processes = sup._workers.processes
        while len(processes._spares) < spares or any(one.pidfd is None for one in processes._known.values()):
            sup.dispatch(1)
        assert sup.zygote_pid is not None
        children = psutil.Process(sup.zygote_pid).children()
        return len(open_descriptors()) - before, 1 + len(children)


def test_given_devices_and_spares_each_takes_what_the_page_says() -> None:
    """Descriptors and processes: so many for each device, for each spare, and for the board."""
    told = re.search(
        r"(\d+) descriptors of the supervisor for each device, (\d+) for each spare and (\d+) for the board",
        PAGE.read_text(),
    )
    assert told is not None
    a_device, a_spare, a_board = map(int, told.groups())
    for devices, spares in ((1, 0), (6, 0), (2, 3)):
        assert _taken(devices, spares) == (
            devices * a_device + spares * a_spare + a_board,
            devices + spares + 2,
        )
