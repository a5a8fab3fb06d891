"""The guest's file system: an archive that cpio understands, and modules in an order in which they load."""

from __future__ import annotations

import gzip
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines.initramfs import Entry, archive, guest_entries, with_dependencies


def _read(packed: bytes) -> Iterator[tuple[str, int, bytes]]:
    """The files of an archive in the newc format, read by its documentation alone."""
    data = gzip.decompress(packed)
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = at + 110 + name_size + -(110 + name_size) % 4
        if name == "TRAILER!!!":
            return
        yield name, mode, data[start : start + size]
        at = start + size + -size % 4


def _module(folder: Path, name: str, depends: str) -> None:
    (folder / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0")


def test_given_entries_each_is_in_the_archive_with_mode_and_content() -> None:
    """Folders, files of any length, links and device nodes."""
    entries = [
        Entry("dev", stat.S_IFDIR | 0o755),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        *(Entry(f"file{size}", stat.S_IFREG | 0o644, b"x" * size) for size in range(6)),
    ]
    assert list(_read(archive(entries))) == [(one.name, one.mode, one.data) for one in entries]
    assert archive(entries) == archive(entries)


def test_given_modules_each_comes_after_those_it_needs(tmp_path: Path) -> None:
    """Once each, with - and _ as the kernel reads them: as the same."""
    inner = tmp_path / "kernel" / "drivers"
    inner.mkdir(parents=True)
    _module(inner, "virtio_blk", "virtio,virtio_ring")
    _module(inner, "virtio_ring", "virtio")
    _module(inner, "virtio", "")
    _module(inner, "virtio-rng", "virtio,rng_core")
    _module(inner, "rng-core", "")
    found = [path.stem for path in with_dependencies(tmp_path, ["virtio_blk", "virtio_rng"])]
    assert found == ["virtio", "virtio_ring", "virtio_blk", "rng-core", "virtio-rng"]
    with pytest.raises(FileNotFoundError, match="no module ext5"):
        with_dependencies(tmp_path, ["ext5"])


def test_given_guest_its_init_is_the_first_script(tmp_path: Path) -> None:
    """With busybox behind every tool, the order of modules, and the noise that it writes."""
    busybox, script, workload = tmp_path / "busybox", tmp_path / "one.sh", tmp_path / "two.sh"
    busybox.write_bytes(struct.pack("<I", 7))
    script.write_text("#!/bin/sh\n")
    workload.write_text("true\n")
    _module(tmp_path, "virtio", "")
    files = {
        name: (mode, data)
        for name, mode, data in _read(
            archive(guest_entries(busybox, [tmp_path / "virtio.ko"], [script, workload]))
        )
    }
    assert files["init"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert files["two.sh"][1] == b"true\n"
    assert files["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox")
    assert files["modules/order"][1] == b"virtio.ko\n"
    assert len(files["pattern"][1]) == 1 << 20
