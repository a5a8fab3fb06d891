"""Names of devices and classes, followed without executing anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from supervisor.config.modules import resolve_device, resolve_object


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A search path with built-in devices and a package that must never be executed."""
    for name in ("nrf51/uart", "nrf51/timer", "nrf51/_helper", "virtio/blk"):
        file = tmp_path / "devices" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("raise SystemExit('executed')")
        (file.parent / "__init__.py").write_text("raise SystemExit('executed')")
    (tmp_path / "devices" / "__init__.py").write_text("raise SystemExit('executed')")
    board = tmp_path / "board" / "parts"
    board.mkdir(parents=True)
    (tmp_path / "board" / "__init__.py").write_text("raise SystemExit('executed')")
    (board / "led.py").write_text("raise SystemExit('executed')")  # a namespace package holds it
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("tree")
def test_a_built_in_name_is_its_place_below_devices() -> None:
    """family.file names the attribute DEVICE of that file."""
    assert resolve_device("nrf51.uart") == "devices.nrf51.uart:DEVICE"


@pytest.mark.usefixtures("tree")
def test_a_class_is_named_as_it_is_imported() -> None:
    """Packages, namespace packages and plain modules are followed, and nothing is imported."""
    before = set(sys.modules)
    assert resolve_device("board.parts.led:Led") == "board.parts.led:Led"
    assert resolve_object("devices.virtio.blk:Blk") == "devices.virtio.blk:Blk"
    assert not {name for name in set(sys.modules) - before if name.startswith(("board", "devices."))}


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("name", "what"),
    [
        (
            "nrf51.uat",
            "there is no device 'nrf51.uat'; did you mean 'nrf51.uart'?; devices/nrf51 has: timer, uart",
        ),
        (
            "nrf51",
            "'nrf51' names no device; write family.device or package.module:Class; did you mean "
            "'nrf51.uart'?; families: nrf51/, virtio/",
        ),
        ("virtio.zzzzzzz", "there is no device 'virtio.zzzzzzz'; devices/virtio has: blk"),
        ("foo.bar", "there is no device 'foo.bar'; families: nrf51/, virtio/"),
        (
            "../x",
            "'../x' names no device; write family.device or package.module:Class; families: nrf51/, virtio/",
        ),
        ("board.parts.lde:Led", "there is no module 'board.parts.lde'; did you mean 'led'?"),
        ("nobody.parts:X", "there is no package 'nobody' to hold 'nobody.parts'"),
        ("nobody:X", "there is no module 'nobody'"),
        ("board.parts.led.x:X", "there is no module 'board.parts.led.x'"),
        ("board.parts.led:", "must be package.module:Class, not 'board.parts.led:'"),
        ("a b:X", "must be package.module:Class, not 'a b:X'"),
        ("__main__:X", "__main__ is not imported in workers; put the class into a module of its own"),
    ],
)
def test_an_unknown_name_is_told_with_what_there_is(name: str, what: str) -> None:
    """Typos get a suggestion, and built-in families are listed."""
    with pytest.raises(ValueError) as caught:
        resolve_device(name)
    assert str(caught.value) == what


@pytest.mark.usefixtures("tree")
def test_a_family_is_not_a_device() -> None:
    """A package below a family is no device file."""
    with pytest.raises(ValueError, match="there is no device"):
        resolve_device("nrf51.__init__")
