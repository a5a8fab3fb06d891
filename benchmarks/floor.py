"""The two floors: a lean parent that does nothing but bring its children back, by fork or by posix_spawn.

    python -S -E floor.py fork|spawn COUNT STAMPS LIFE CHILD

A forked child does what ``child`` does; a spawned one is ``python -S -E child.py``, given as CHILD.
"""

import posix
import sys
import time

way, count, stamps_path, life_path, child_path = sys.argv[1:6]
stamps = posix.open(stamps_path, posix.O_WRONLY | posix.O_NONBLOCK)


def start(index: int) -> int:
    """Starts child ``index`` and returns its pid."""
    if way == "spawn":
        command = [sys.executable, "-S", "-E", child_path, str(index), stamps_path, life_path]
        return posix.posix_spawn(sys.executable, command, posix.environ)
    pid = posix.fork()
    if pid == 0:
        stamp_ns = time.monotonic_ns()
        posix.write(stamps, b"%d %d %d\n" % (index, posix.getpid(), stamp_ns))
        life = posix.open(life_path, posix.O_RDONLY | posix.O_NONBLOCK)
        posix.set_blocking(life, True)
        posix.read(life, 1)
        posix._exit(0)
    return pid


children = {start(index): index for index in range(int(count))}
while True:
    dead, _status = posix.waitpid(-1, 0)
    index = children.pop(dead)
    children[start(index)] = index
