"""One region's mapping: made from a descriptor that somebody passed, unmapped exactly once.

The descriptor stays its owner's, who can close it as soon as the mapping is made: the memory lives as long as
the mapping does. CPython before 3.13 keeps a duplicate inside the ``mmap`` object; from 3.13 on it is told
not to.

Unmapping under somebody's view would make the view's next use a crash. The interpreter counts views and
refuses; ``close`` says so with ViewsAlive and leaves everything as it was.

What a mapping cannot guard against is a file that is made shorter *later*: touching the lost pages kills the
process (SIGBUS). Before mapping, the size is compared with fstat(2)'s. A memfd sealed with F_SEAL_SHRINK
cannot be cut at all; ``sealed=True`` insists on that, for whoever does not trust the other side.

A fork has the mapping, too, and may write when its parent is dead and somebody else has taken its place: with
``forked=False`` it has not, and ends by a signal if it tries.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import sys
from typing import Any

from supervisor.memory.atomics import address_of
from supervisor.memory.errors import BadRegion, MappingFailed, ViewsAlive
from supervisor.memory.regions import Region, window

__all__ = ["Mapping"]

# From 3.13 on no duplicate of the descriptor is kept. A dict, since older signatures do not know the word.
_NO_DUPLICATE: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class Mapping:
    """``region`` of the file behind ``fd``, mapped shared. Raises BadRegion, MappingFailed.

    ``view`` is the region as bytes, not more: without the rest of its first and last page. ``read_only`` is
    the same for those who must not write.
    """

    def __init__(self, region: Region, fd: int, *, sealed: bool = False, forked: bool = True) -> None:
        self.region = region
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise MappingFailed(f"descriptor {fd} cannot be asked for its size") from error
        if not stat.S_ISREG(status.st_mode):
            raise BadRegion(f"descriptor {fd} is not a file: it has no size that could be checked")
        if sealed:
            _check_sealed(fd)
        part = window(region, status.st_size, status.st_blksize, mmap.PAGESIZE)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if region.writable else 0)
        try:
            self._mapped = mmap.mmap(
                fd,
                part.length_bytes,
                flags=mmap.MAP_SHARED,
                prot=prot,
                offset=part.offset_bytes,
                **_NO_DUPLICATE,
            )
        except (OSError, ValueError, OverflowError) as error:
            # ValueError is mmap's word for a file that became shorter since.
            raise MappingFailed(
                f"{region.size_bytes:#x} bytes of descriptor {fd} cannot be mapped"
            ) from error
        # The guest's memory is not ours: a dump of this process must neither hold it nor be as large.
        with contextlib.suppress(OSError):
            self._mapped.madvise(mmap.MADV_DONTDUMP)
        if not forked:
            self._mapped.madvise(mmap.MADV_DONTFORK)
        self._skip_bytes = part.skip_bytes
        self._address = 0
        self._open_views()

    def _open_views(self) -> None:
        with memoryview(self._mapped) as whole:
            self.view = whole[self._skip_bytes : self._skip_bytes + self.region.size_bytes]
        self.read_only = self.view.toreadonly()

    @property
    def address(self) -> int:
        """The host address of the region's first byte, valid until ``close``."""
        if not self._address:
            self._address = address_of(self._mapped) + self._skip_bytes
        return self._address

    def close(self) -> None:
        """Unmap. Raises ViewsAlive, and then nothing has changed. Nothing happens the second time."""
        if self._mapped.closed:
            return
        try:
            self.read_only.release()
            self.view.release()
            self._mapped.close()
        except BufferError as error:
            self._open_views()
            where = f"{self.region.guest_addr:#x}"
            raise ViewsAlive(f"the region at {where} cannot be unmapped: views of it are alive") from error


def _check_sealed(fd: int) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BadRegion(f"descriptor {fd} is no memfd: it could be made shorter at any time") from error
    if not seals & fcntl.F_SEAL_SHRINK:
        raise BadRegion(f"descriptor {fd} is not sealed against shrinking")
