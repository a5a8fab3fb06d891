"""A network of the test's own: a namespace with nothing in it but what the test makes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CLONE_NEWNET = 0x4000_0000
HOST, GUEST = "10.9.0.1", "10.9.0.2"
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and all that it starts, sees another network meanwhile. Skips where that cannot be."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK) or shutil.which("ip") is None:
        pytest.skip("no /dev/net/tun or no ip command: needs the tun module and iproute2")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(CLONE_NEWNET):
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}; needs root")
        try:
            yield
        finally:
            if _libc.setns(before, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot go back to the network of before")
    finally:
        os.close(before)


def ip(*words: str) -> str:
    """The ``ip`` command; what it prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30).stdout


def make_tap(name: str = "tap0") -> None:
    """A persistent tap, up, with the host's address. No IPv6: it talks without being asked."""
    ip("tuntap", "add", "dev", name, "mode", "tap")
    ip("link", "set", "dev", name, "addrgenmode", "none")
    ip("address", "add", f"{HOST}/24", "dev", name)
    ip("link", "set", "dev", name, "up")
