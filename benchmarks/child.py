"""The child of every contender that knows no requests: says that it lives, then waits for the end of the run.

    python -S -E child.py INDEX STAMPS LIFE

Its first statement after two built-in modules takes the time. It writes ``index pid monotonic_ns`` to the
FIFO STAMPS, and then reads the FIFO LIFE, to which nobody writes: that ends when the benchmark does, however
it does.
"""

import posix  # not os: that alone would take longer than all the rest
import sys
import time

stamp_ns = time.monotonic_ns()
stamps = posix.open(sys.argv[2], posix.O_WRONLY | posix.O_NONBLOCK)
posix.write(stamps, b"%s %d %d\n" % (sys.argv[1].encode(), posix.getpid(), stamp_ns))
life = posix.open(sys.argv[3], posix.O_RDONLY | posix.O_NONBLOCK)
posix.set_blocking(life, True)
posix.read(life, 1)
