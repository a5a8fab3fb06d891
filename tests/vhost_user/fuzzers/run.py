"""``python -m tests.vhost_user.fuzzers.run TARGET [options of libFuzzer]``: one target, guided by coverage.

Needs atheris (``pip install '.[fuzz]'``). What it finds it writes to a file, and ends with a code other than
0; that file's name as the only further argument runs just that again.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["supervisor.vhost_user", "supervisor.memory", "devices.virtio"]):
    from tests.vhost_user.fuzzers.targets import TARGETS


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
