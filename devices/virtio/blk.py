"""A disk: virtio's block device (virtio 1.2, section 5.2) over a raw image.

Data goes straight between the file and the guest's memory: one preadv(2) or pwritev(2) for a request, with
the guest's own buffers. What was written is durable exactly as the guest asked for it: with a flush where it
has negotiated FLUSH and the cache is write-back, before the request completes where it has not.

The layout of a request is the driver's: 16 bytes of header and the data to write may be cut anywhere, and the
status is the last byte that may be written. The common layout, each in buffers of their own, is the fast one.

A disk may grow: each process looks how large the image is, and the guest is told. It does not shrink: what
the guest has been told is state.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import Final

from devices.virtio._image import is_still, open_image
from supervisor.device import Context
from supervisor.errors import LocalError
from supervisor.vhost_user import Chain, SplitQueue, VirtioDevice

SECTOR: Final = 512
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
ID_BYTES = 20

F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

SEG_MAX = 126  # data segments: with header and status they fill QEMU's default queue of 128
MAX_RANGE_SECTORS = 1 << 22  # 2 GiB at once are discarded or zeroed within a fraction of a guest's patience
MAX_RANGES = 1  # a request is one range: what is cut short by a death is then done again whole
IOV_MAX = 1024  # buffers of one preadv(2)

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16

_HEADER = struct.Struct("<IIQ")  # type, ioprio, sector
_RANGE = struct.Struct("<QII")  # sector, sectors, flags
_CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
UNMAP = 1
WCE_OFFSET = 32  # of the cache's mode in the configuration space


class Blk(VirtioDevice):
    """One raw image. ``image`` is its path; ``serial`` is what the guest reads as its name; ``locks`` keeps
    others away from the image."""

    device_id = 2
    state = ("capacity",)

    @dataclass
    class Options:
        image: str
        read_only: bool = False
        serial: str = ""
        queues: int = 1
        block_size: int = 512
        locks: bool = True

    def start(self, ctx: Context) -> None:
        options = ctx.options
        size = options.block_size
        if size < SECTOR or size & (size - 1) or size > 65536:
            raise LocalError(f"block_size is {size}, but must be a power of two from 512 to 65536")
        if not 1 <= options.queues <= 64:
            raise LocalError(f"queues is {options.queues}, but must be from 1 to 64")
        path, read_only = options.image, options.read_only
        kept = ctx.passed.get("image")
        if kept is not None and is_still(kept, path, read_only=read_only):
            self.fd = kept
        else:
            self.fd = open_image(path, read_only=read_only, locks=options.locks, logger=ctx.logger)
            ctx.keep("image", self.fd)
        self.capacity = os.lseek(self.fd, 0, os.SEEK_END) // SECTOR
        self.write_through = False
        self._serial = options.serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self._block_sectors = size // SECTOR

    def stop(self) -> None:
        os.close(self.fd)

    def restore(self, data: bytes, version: int) -> None:
        found = self.capacity
        super().restore(data, version)
        if found >= self.capacity:
            self.capacity = found
            return
        self.ctx.logger.error(
            "image %s has shrunk to %d sectors: the disk keeps its %d, those that are missing read as zero",
            self.ctx.options.image,
            found,
            self.capacity,
        )

    def features(self) -> int:
        options = self.ctx.options
        offered = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE
        offered |= F_RO if options.read_only else F_DISCARD | F_WRITE_ZEROES
        return offered | (F_MQ if options.queues > 1 else 0)

    def queue_count(self) -> int:
        count: int = self.ctx.options.queues
        return count

    def config_space(self) -> bytes:
        options = self.ctx.options
        ranges = 0 if options.read_only else MAX_RANGE_SECTORS
        return _CONFIG.pack(
            self.capacity,
            0,  # size_max: not offered
            SEG_MAX,
            0, 0, 0,  # geometry: not offered
            options.block_size,
            0, 0, 1, 1,  # physical exponent, alignment offset, minimal and optimal size in blocks
            0 if self.write_through else 1,  # wce
            0,
            options.queues,
            ranges, MAX_RANGES, self._block_sectors,  # discard: sectors, ranges, alignment
            ranges, MAX_RANGES, 1,  # write zeroes: sectors, ranges, may unmap
        )  # fmt: skip

    def config_writable(self) -> bytes:
        writable = bytearray(_CONFIG.size)
        writable[WCE_OFFSET] = 1
        return bytes(writable)

    def write_config(self, offset: int, data: bytes) -> bool:
        if offset != WCE_OFFSET or len(data) != 1 or data[0] > 1:
            return False  # the cache's mode is all that may be written
        self.write_through = not data[0]
        return True

    # -- requests --------------------------------------------------------------------------------

    def attached(self, features: int, queues: dict[int, SplitQueue]) -> None:
        super().attached(features, queues)
        if not features & F_FLUSH:
            self.write_through = True  # a guest that cannot flush is never told what is not durable

    def execute(self, chain: Chain, index: int) -> int:
        writable = chain.writable
        if not writable:
            return 0  # no room for a status: nothing can be said
        last = writable[-1]
        status = last[len(last) - 1 :]
        data = writable[:-1] if len(last) == 1 else [*writable[:-1], last[:-1]]
        readable = chain.readable
        header: bytes | memoryview
        if readable and len(readable[0]) == _HEADER.size:
            header, rest = readable[0], readable[1:]
        else:
            header, rest = _split(readable, _HEADER.size)
        if len(header) < _HEADER.size:
            status[0] = IOERR
            return 1
        kind, _priority, sector = _HEADER.unpack(header)
        written = 0
        try:
            if kind == IN:
                written = self._read(sector, data)
            elif kind == OUT:
                self._write(sector, rest)
            elif kind == FLUSH:
                os.fdatasync(self.fd)
            elif kind == GET_ID:
                written = _fill(data, self._serial)
            elif kind in (DISCARD, WRITE_ZEROES) and not self.ctx.options.read_only:
                self._clear(kind, rest)
            else:
                raise _Refused(UNSUPP)
        except _Refused as refused:
            status[0] = refused.status
        except OSError as error:
            self.ctx.logger.error("request of type %d at sector %d: %s", kind, sector, error)
            status[0] = IOERR
        else:
            status[0] = OK
        return written + 1

    def fail(self, chain: Chain, index: int) -> int:
        if not chain.writable:
            return 0
        chain.writable[-1][-1] = IOERR
        return 1

    def _place(self, sector: int, length: int) -> int:
        """Where a stretch of the disk begins in the file, in bytes."""
        if length % SECTOR or sector + length // SECTOR > self.capacity:
            raise _Refused(IOERR)
        if self._block_sectors > 1 and (sector | length // SECTOR) % self._block_sectors:
            raise _Refused(IOERR)
        return sector * SECTOR

    def _read(self, sector: int, buffers: list[memoryview]) -> int:
        length = sum([len(one) for one in buffers])
        at = self._place(sector, length)
        if not length:
            return 0
        done = os.preadv(self.fd, buffers[:IOV_MAX], at)
        while done < length:
            rest = _behind(buffers, done)
            more = os.preadv(self.fd, rest[:IOV_MAX], at + done)
            if not more:  # the file is shorter than the disk that it was: what is not there is zero
                _fill(rest, bytes(length - done))
                break
            done += more
        return length

    def _write(self, sector: int, buffers: list[memoryview]) -> None:
        length = sum([len(one) for one in buffers])
        if self.ctx.options.read_only:
            raise _Refused(IOERR)
        at = self._place(sector, length)
        flags = os.RWF_DSYNC if self.write_through else 0
        done = 0
        while done < length:
            rest = _behind(buffers, done) if done else buffers
            done += os.pwritev(self.fd, rest[:IOV_MAX], at + done, flags)

    def _clear(self, kind: int, buffers: list[memoryview]) -> None:
        length = sum([len(one) for one in buffers])
        if not length or length % _RANGE.size:
            raise _Refused(IOERR)
        if length > MAX_RANGES * _RANGE.size:  # up to 4 GiB, which must not be copied first
            raise _Refused(UNSUPP)
        sector, sectors, flags = _RANGE.unpack(b"".join(buffers))
        if flags & ~UNMAP or (kind == DISCARD and flags):
            raise _Refused(UNSUPP)
        if sectors > MAX_RANGE_SECTORS:
            raise _Refused(IOERR)
        at = self._place(sector, sectors * SECTOR)
        length = sectors * SECTOR
        if kind == DISCARD or flags & UNMAP:
            mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        else:
            mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
        if length and not _fallocate(self.fd, mode, at, length) and kind == WRITE_ZEROES:
            _write_zeroes(self.fd, at, length)  # a discard is a hint, and this is none
        if self.write_through:
            os.fdatasync(self.fd)


class _Refused(Exception):
    """A request ends with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _split(buffers: list[memoryview], length: int) -> tuple[bytes, list[memoryview]]:
    """The first ``length`` bytes as a copy (fewer where there are not so many), and the buffers behind."""
    head = b""
    for index, buffer in enumerate(buffers):
        missing = length - len(head)
        head += buffer[:missing]
        if len(buffer) > missing:
            return head, [buffer[missing:], *buffers[index + 1 :]]
    return head, []


def _behind(buffers: list[memoryview], done: int) -> list[memoryview]:
    """The buffers without their first ``done`` bytes."""
    for index, buffer in enumerate(buffers):
        if done < len(buffer):
            return [buffer[done:], *buffers[index + 1 :]]
        done -= len(buffer)
    return []


def _fill(buffers: list[memoryview], data: bytes) -> int:
    """Copies ``data`` over the buffers, as far as they go; returns how much that was."""
    done = 0
    for buffer in buffers:
        piece = data[done : done + len(buffer)]
        buffer[: len(piece)] = piece
        done += len(piece)
    return done


def _fallocate(fd: int, mode: int, at: int, length: int) -> bool:
    """fallocate(2); false where this file system cannot do that."""
    import ctypes  # only where somebody discards

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(length)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
        return False
    raise OSError(number, os.strerror(number))


def _write_zeroes(fd: int, at: int, length: int) -> None:
    zeroes = bytes(min(length, 1 << 20))
    end = at + length
    while at < end:
        at += os.pwrite(fd, zeroes[: end - at], at)


DEVICE = Blk
