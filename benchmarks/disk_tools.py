"""What is added to a guest so that it can measure: fio with its libraries, and an init that obeys.

    python -m benchmarks.disk_tools ROOT OUTPUT

makes an archive of the fio below ROOT, where packages were unpacked. Archives for an initial RAM file system
may stand behind one another, so the guests of ``make guests`` stay as they are.
"""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from machines.initramfs import Entry, plain_archive

__all__ = ["FIO", "INIT", "fio_entries", "initramfs"]

LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph")
LOADER = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
FIO = "/fio/ld.so --library-path /fio /fio/fio"
INIT = r"""#!/bin/sh
# Runs each line that comes from the host, and says how it has ended.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
while read -r module; do insmod "/modules/$module"; done </modules/order
tries=0
while [ ! -b /dev/vdc ] && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
echo "@done 0"
while read -r line; do eval "$line"; echo "@done $?"; done
poweroff -f
"""


def fio_entries(root: Path) -> Iterator[Entry]:
    """fio, its loader, and what the loader says that it needs, all in one folder."""
    loader = root / LOADER
    search = ":".join(str(root / folder) for folder in LIBRARIES)
    command = [str(loader), "--library-path", search, "--list", str(root / "usr/bin/fio")]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    files = {"fio": root / "usr/bin/fio", "ld.so": loader}
    for line in listed.splitlines():
        name, found, rest = line.strip().partition(" => ")
        if found:
            files[name] = Path(rest.split(" (")[0])
    yield Entry("fio", stat.S_IFDIR | 0o755)
    for name, path in files.items():
        if root not in path.parents:
            raise FileNotFoundError(f"{name} is not in the packages, only in this system: {path}")
        yield Entry(f"fio/{name}", stat.S_IFREG | 0o755, path.read_bytes())


def initramfs(guests: Path) -> bytes:
    """The guest of ``make guests`` with fio and our init, which is /bench_init."""
    init = plain_archive([Entry("bench_init", stat.S_IFREG | 0o755, INIT.encode())])
    return (guests / "fio.cpio").read_bytes() + init + (guests / "initramfs-qemu.gz").read_bytes()


def main() -> None:
    """The command."""
    root, output = Path(sys.argv[1]), Path(sys.argv[2])
    output.write_bytes(plain_archive(fio_entries(root)))


if __name__ == "__main__":
    main()
