"""What an access to guest memory costs: ``python -m benchmarks.memory``, some seconds, prints nanoseconds.

The best of several rounds: what disturbs a round only ever makes it slower. One process, nobody contends.
"""

from __future__ import annotations

import os
import platform
import timeit
from collections.abc import Callable

from supervisor.memory import AddrRangeSeq, FromReader, GuestMemory, NoTrueAtomics, Region
from supervisor.memory.atomics import Atomics, Libatomic, MachineCode, address_of
from supervisor.memory.fence import FENCE

SIZE_BYTES = 64 << 20
REGIONS = 4
ROUNDS = 7
ROUND_S = 0.05


class Zeros:
    """A stream of what is there already."""

    def readinto(self, buffer: memoryview, /) -> int:
        return len(buffer)


def best_ns(call: Callable[[], object]) -> float:
    """Return the nanoseconds of one call, without those of calling nothing."""
    timer = timeit.Timer(call)
    number, took = timer.autorange()
    number = max(1, int(number * ROUND_S / took))
    return min(timer.repeat(ROUNDS, number)) / number * 1e9


FLOOR_NS = best_ns(lambda: None)


def tell(what: str, call: Callable[[], object]) -> None:
    print(f"{what:52} {best_ns(call) - FLOOR_NS:8.0f} ns")


def tell_atomics(found: Atomics, address: int) -> None:
    tell(f"{found.name}: load", lambda: found.load_uint32(address))
    tell(f"{found.name}: swap", lambda: found.swap_uint32(address, 0))
    tell(f"{found.name}: compare and swap", lambda: found.compare_and_swap_uint32(address, 0, 0))
    tell(f"{found.name}: fence", found.fence)


def fence() -> None:
    assert FENCE is not None
    with FENCE:
        pass


def main() -> None:
    """Measures and prints."""
    fd = os.memfd_create("bench")
    os.ftruncate(fd, SIZE_BYTES)
    part = SIZE_BYTES // REGIONS
    floor = best_ns(lambda: None)
    print(
        f"{platform.machine()}, CPython {platform.python_version()}; an empty call, {floor:.0f}, is taken off"
    )

    def tell(what: str, call: Callable[[], object]) -> None:
        print(f"{what:52} {best_ns(call) - floor:8.0f} ns")

    with GuestMemory() as memory:
        for index in range(REGIONS):
            at = index * part
            memory.map(Region(guest_addr=at, size_bytes=part, offset_bytes=at, user_addr=at + (7 << 40)), fd)
        small, page, three = bytearray(16), bytearray(4096), ((0x5000, 16), (0x9000, 4096), (0x7000, 1))
        far = ((0x5000, 16), (part + 0x9000, 4096), (2 * part + 0x7000, 1))
        joint, one = ((part - 2048, 4096),), ((0x9000, 4096),)
        many = tuple((index * 8192, 4096) for index in range(64))
        tell("view of one buffer", lambda: memory.writable_views(one))
        tell("views of three buffers in one region", lambda: memory.writable_views(three))
        tell("views of three buffers in three regions", lambda: memory.writable_views(far))
        tell("views of 64 buffers in one region", lambda: memory.writable_views(many))
        tell("views of one buffer over a joint", lambda: memory.writable_views(joint))
        tell("copy_in of 16 bytes", lambda: memory.copy_in(0x5000, small))
        tell("copy_out of 16 bytes", lambda: memory.copy_out(0x5000, small))
        tell("copy_in of 4096 bytes", lambda: memory.copy_in(0x5000, page))
        tell("copy_in of 4096 bytes over a joint", lambda: memory.copy_in(part - 2048, page))
        tell("zero_out of 4096 bytes", lambda: memory.zero_out(0x5000, 4096))
        ranges, zeros = AddrRangeSeq([(0x5000, 0x6000), (0x9000, 0xA000)]), FromReader(Zeros())
        tell("copy_out_from, 2 ranges, nothing read", lambda: memory.copy_out_from(ranges, zeros))
        tell("guest_address of a VMM's address", lambda: memory.guest_address((7 << 40) + 5))
        tell("preadv of 4096 bytes into a view", lambda: os.preadv(fd, memory.writable_views(one), 0))
        tell("load_uint32", lambda: memory.load_uint32(0x5000))
        tell("swap_uint32", lambda: memory.swap_uint32(0x5000, 1))
        tell("compare_and_swap_uint32", lambda: memory.compare_and_swap_uint32(0x5000, 1, 1))
    os.close(fd)
    word = bytearray(8)
    with memoryview(word) as view:
        address = address_of(view)
        for make in (Libatomic, MachineCode):
            try:
                tell_atomics(make(), address)
            except NoTrueAtomics as error:
                print(f"{make.__name__}: {error}")
    if FENCE is not None:
        tell("with FENCE", fence)


if __name__ == "__main__":
    main()
