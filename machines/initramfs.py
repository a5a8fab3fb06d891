"""An initial RAM file system for a Linux guest: busybox, kernel modules, and one script. Needs no root.

    python -m machines.initramfs OUTPUT --busybox FILE --modules FOLDER --module NAME ... --script FILE ...

The archive is cpio's "newc" format (Linux: Documentation/driver-api/early-userspace/buffer-format.rst), in
gzip; device nodes are entries like any other, so nobody has to be root to make them. Modules come with
what they need, in an order in which they can be loaded. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import random
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Entry", "archive", "guest_entries", "plain_archive", "with_dependencies"]

BLOCK_BYTES = 512
TOOLS = """
    awk cat cttyhack cmp cut date dd dmesg echo grep head hexdump insmod ls mkdir mknod mount poweroff reboot
    seq setsid sh sha256sum sleep sync tail tr umount uname wc
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive: its name, its mode (file type included), its content, its device numbers."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def _packed(entry: Entry, number: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _aligned(header) + _aligned(entry.data)


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries as a gzipped cpio archive."""
    return gzip.compress(plain_archive(entries), compresslevel=6, mtime=0)


def plain_archive(entries: Iterable[Entry]) -> bytes:
    """The same not compressed, in whole blocks: others may stand behind it."""
    packed = [_packed(entry, number) for number, entry in enumerate(entries, start=1)]
    packed.append(_packed(Entry("TRAILER!!!", 0), 0))
    whole = b"".join(packed)
    return whole + bytes(-len(whole) % BLOCK_BYTES)


def with_dependencies(folder: Path, names: Iterable[str]) -> list[Path]:
    """The modules' files below ``folder``, each after those that it needs. Raises ``FileNotFoundError``.

    ``modules.dep`` is made when a kernel is installed, and these are not: what a module needs stands in its
    own ``.modinfo`` section, as ``depends=a,b``.
    """
    files = {path.stem.replace("-", "_"): path for path in sorted(folder.rglob("*.ko"))}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        key = name.replace("-", "_")
        if key in ordered:
            return
        if key not in files:
            raise FileNotFoundError(f"there is no module {name} in {folder}")
        for needed in _needed(files[key]):
            add(needed)
        ordered[key] = files[key]

    for name in names:
        add(name)
    return list(ordered.values())


def _needed(module: Path) -> list[str]:
    for field in module.read_bytes().split(b"\0"):
        if field.startswith(b"depends="):
            return [name for name in field[8:].decode().split(",") if name]
    return []


def guest_entries(busybox: Path, modules: Iterable[Path], scripts: Iterable[Path]) -> Iterator[Entry]:
    """A guest's files; the first script is its init, the others lie beside it."""
    for folder in ("bin", "dev", "proc", "sys", "tmp", "modules"):
        yield Entry(folder, stat.S_IFDIR | 0o755)
    yield Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    yield Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3))
    yield Entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    for tool in TOOLS.split():
        yield Entry(f"bin/{tool}", stat.S_IFLNK | 0o777, b"busybox")
    names = []
    for module in modules:
        names.append(module.name)
        yield Entry(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
    yield Entry("pattern", stat.S_IFREG | 0o644, random.Random(0).randbytes(1 << 20))
    yield Entry("modules/order", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in names).encode())
    for index, script in enumerate(scripts):
        name = "init" if index == 0 else script.name
        yield Entry(name, stat.S_IFREG | 0o755, script.read_bytes())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--busybox", type=Path, required=True)
    parser.add_argument("--modules", type=Path, required=True)
    parser.add_argument("--module", action="append", default=[])
    parser.add_argument("--script", action="append", type=Path, required=True)
    asked = parser.parse_args()
    modules = with_dependencies(asked.modules, asked.module)
    asked.output.write_bytes(archive(guest_entries(asked.busybox, modules, asked.script)))


if __name__ == "__main__":
    main()
