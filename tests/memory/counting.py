"""A process that counts on one page together with another one. Run by test_atomics as a program.

    python -m tests.memory.counting KIND WAY FD ROUNDS

Word 0 is the counter, word 1 says how many have come, word 2 takes what is left at the end, word 3 is set by
who notices the other one: both count at least ROUNDS, and on until that has happened. KIND says which
atomics, WAY which operation. ``cas`` adds one by compare and swap. ``swap`` exchanges the number it holds,
made one larger, for the number in the word: the sum of all numbers, held or in the word, grows by one each
time, unless two processes ever get the same number out.
"""

from __future__ import annotations

import sys

from supervisor.memory import GuestMemory, Region, atomics
from supervisor.memory.atomics import Libatomic, MachineCode

COUNTER, COME, REST, MET = 0, 4, 8, 12


def add(memory: GuestMemory, addr: int, n: int) -> int:
    """Add ``n`` by compare and swap; return how often somebody else was faster."""
    lost = 0
    old = memory.load_uint32(addr)
    while True:
        seen = memory.compare_and_swap_uint32(addr, old, (old + n) & 0xFFFFFFFF)
        if seen == old:
            return lost
        old, lost = seen, lost + 1


def count_by_cas(memory: GuestMemory, rounds: int) -> tuple[int, int]:
    """Add one at a time; return how many were added, and how often the other one was faster."""
    done = lost = 0
    while done < rounds or not memory.load_uint32(MET):
        faster = add(memory, COUNTER, 1)
        done += 1
        if faster and not lost:
            memory.swap_uint32(MET, 1)
        lost += faster
    return done, lost


def count_by_swap(memory: GuestMemory, rounds: int) -> tuple[int, int]:
    """Exchange numbers; return how often, and how often the number was not the one put there before."""
    done = lost = held = 0
    put = 0
    while done < rounds or not memory.load_uint32(MET):
        last, put = put, held + 1
        held = memory.swap_uint32(COUNTER, put)
        done += 1
        if done > 1 and held != last:
            if not lost:
                memory.swap_uint32(MET, 1)
            lost += 1
    add(memory, REST, held)
    return done, lost


def main(kind: str, way: str, fd: int, rounds: int) -> None:
    """Wait for the other one, then count until the two have met; print what came of it."""
    atomics._found = Libatomic() if kind == "libatomic" else MachineCode()
    with GuestMemory() as memory:
        memory.map(Region(guest_addr=0, size_bytes=4096), fd)
        add(memory, COME, 1)
        while memory.load_uint32(COME) < 2:
            pass
        print(*(count_by_cas if way == "cas" else count_by_swap)(memory, rounds))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
