"""A card on a tap interface, in a network namespace of the test's own: nothing of the host's is touched."""

from __future__ import annotations

import fcntl
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from devices.virtio import _ports
from devices.virtio.net import F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_MRG_RXBUF, TX
from supervisor.errors import LocalError
from supervisor.host import Supervisor
from tests.chaos import board, census
from tests.vhost_user.netns import GUEST, HOST, ip, make_tap, own_network
from tests.vhost_user.stations import FEATURES, Station, is_whole, numbered, stations, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(150)]

MAC = bytes.fromhex("525400090002")
OTHER = bytes.fromhex("525400090003")
ETHERTYPE = 0x88B5  # for experiments: nobody else's frames have it


@pytest.fixture
def network() -> Iterator[None]:
    with census(), own_network():
        make_tap()
        yield


@pytest.fixture
def card(network: None, tmp_path: Path) -> Iterator[tuple[Supervisor, Station]]:
    device = (
        f"name: card, device: virtio.net, options: {{tap: tap0, mac: '{MAC.hex(':')}'}}, "
        f'backoff: {{max: 10ms}}, vhost_user: {{socket: "{tmp_path}/card.sock"}}'
    )
    with Supervisor(board(device)) as sup, stations(sup, tmp_path / "card.sock") as (station,):
        yield sup, station


@pytest.fixture
def host(network: None) -> Iterator[socket.socket]:
    """The host's side of the tap, frame by frame."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)) as end:
        end.bind(("tap0", ETHERTYPE))
        end.setblocking(False)
        yield end


def _wrapped(frame: bytes, to: bytes = OTHER) -> bytes:
    return to + MAC + ETHERTYPE.to_bytes(2, "big") + frame


def _frames(end: socket.socket) -> list[bytes]:
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(end.recv(65536)[14:])
    return found


def test_given_tap_frames_flow_both_ways(card: tuple[Supervisor, Station], host: socket.socket) -> None:
    """What the guest sends the host sees, and the other way round, unchanged."""
    sup, guest = card
    guest.bring_up()
    guest.post()
    chooser = random.Random(1)
    out = [numbered(chooser, number)[:1400] for number in range(200)]
    left, seen = list(out), []

    def seen_all() -> bool:
        while left and guest.send(_wrapped(left[0])):
            left.pop(0)
        seen.extend(_frames(host))
        return len(seen) >= len(out)

    until(seen_all, sup, guest)
    assert seen == out
    back = [numbered(chooser, number)[:1400] for number in range(200)]
    for frame in back:
        host.send(MAC + OTHER + ETHERTYPE.to_bytes(2, "big") + frame)
    until(lambda: len([one for one in guest.received if one[:6] == MAC]) >= len(back), sup, guest)
    assert [one[14:] for one in guest.received if one[:6] == MAC] == back


def test_given_card_killed_while_frames_flow_they_go_on(
    card: tuple[Supervisor, Station], host: socket.socket
) -> None:
    """Frames may be lost while nobody serves; none is changed, and no buffer is lost or used twice."""
    sup, guest = card
    guest.bring_up()
    guest.post()
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    kills = number = 0
    seen: list[bytes] = []

    def enough() -> bool:
        nonlocal kills, number
        for _ in range(8):
            number += guest.send(_wrapped(numbered(chooser, number)[:1400]))
            with suppress(OSError):  # full, or nobody there just now
                host.send(MAC + OTHER + ETHERTYPE.to_bytes(2, "big") + numbered(chooser, number)[:1400])
        seen.extend(_frames(host))
        if chooser.random() < 0.03:
            kills += sup.kill("card", charged=False) is not None
        return kills >= 50 and len(seen) > 500 and len(guest.received) > 500

    until(enough, sup, guest, seconds=100)
    print(f"kills={kills} sent={number} seen={len(seen)} received={len(guest.received)}")
    assert all(is_whole(frame) for frame in seen)
    assert all(is_whole(one[14:]) for one in guest.received if one[:6] == MAC)
    until(lambda: not guest.slots[TX], sup, guest)


def test_given_tap_the_guest_may_leave_checksums_to_the_host(
    card: tuple[Supervisor, Station], network: None
) -> None:
    """A datagram whose checksum is only begun arrives at a socket of the host, which takes no wrong one."""
    sup, guest = card
    offered = guest.ask(guest.front.get_features)
    wanted = F_CSUM | F_GUEST_CSUM | F_HOST_TSO4 | F_GUEST_TSO4 | F_MRG_RXBUF
    assert offered & wanted == wanted
    assert guest.ask(lambda: guest.front.get_config(0, 6)) == MAC
    guest.bring_up(FEATURES | wanted)
    guest.post()
    ip("neighbour", "replace", GUEST, "lladdr", MAC.hex(":"), "dev", "tap0")
    tap_mac = bytes.fromhex(_mac_of("tap0"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind((HOST, 0))
        end.setblocking(False)
        datagram = _datagram(tap_mac, end.getsockname()[1], b"half a checksum")
        needs_csum = struct.pack("<BBHHHHH", 1, 0, 0, 0, 14 + 20, 6, 0)

        def arrived() -> bool:
            if not guest.slots[TX]:
                guest.send(datagram)
                at = next(iter(guest.slots[TX].values()))
                guest.guest.view(at, 12)[:] = needs_csum
            with suppress(BlockingIOError):
                return end.recv(100) == b"half a checksum"
            return False

        until(arrived, sup, guest)


def _mac_of(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        answer: bytes = fcntl.ioctl(end, 0x8927, struct.pack("256s", name.encode()))  # SIOCGIFHWADDR
    return answer[18:24].hex()


def _sum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(total)


def _datagram(to: bytes, port: int, data: bytes) -> bytes:
    """A frame with a UDP datagram whose checksum is that of the pseudo header only."""
    source, target = socket.inet_aton(GUEST), socket.inet_aton(HOST)
    length = 8 + len(data)
    pseudo = _sum(source + target + struct.pack(">BBH", 0, 17, length))
    udp = struct.pack(">HHHH", 1000, port, length, pseudo) + data
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + length, 1, 0, 64, 17, 0, source, target)
    head = head[:10] + struct.pack(">H", _sum(head) ^ 0xFFFF) + head[12:]
    return to + MAC + b"\x08\x00" + head + udp


def test_given_interface_removed_the_card_dies_and_is_back_with_it(card: tuple[Supervisor, Station]) -> None:
    """It says what is wrong; when somebody has made the interface again, it serves again."""
    sup, guest = card
    guest.bring_up()
    guest.post()
    generation = sup["card"].generation
    ip("link", "delete", "tap0")
    until(lambda: sup["card"].generation > generation + 2, sup, guest)
    make_tap()
    until(lambda: sup["card"].state == "ready", sup, guest)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)) as end:
        end.bind(("tap0", ETHERTYPE))
        end.setblocking(False)

        def arrived() -> bool:
            if not guest.slots[TX]:
                guest.send(_wrapped(bytes(60)))
            return bool(_frames(end))

        until(arrived, sup, guest)


def test_given_tap_that_somebody_has_the_error_says_so(network: None) -> None:
    """One process at a time: two cards on one tap would each get half of the frames."""
    nobody: Any = SimpleNamespace(passed={}, keep=lambda _name, _fd: None)
    first = _ports.Tap("tap0", nobody)
    with pytest.raises(LocalError, match="tap tap0: somebody else has it open"):
        _ports.Tap("tap0", nobody)
    first.close()
    _ports.Tap("tap0", nobody).close()


def test_given_interface_that_is_down_sending_goes_on(card: tuple[Supervisor, Station]) -> None:
    """Frames are dropped, as with a cable that leads nowhere."""
    sup, guest = card
    ip("link", "set", "tap0", "down")
    guest.bring_up()
    guest.post()
    for _ in range(10):
        guest.send(_wrapped(bytes(60)))
    generation = sup["card"].generation
    until(lambda: not guest.slots[TX], sup, guest)
    assert sup["card"].generation == generation


def test_given_card_that_is_dead_its_tap_keeps_its_carrier_and_its_frames(
    card: tuple[Supervisor, Station], host: socket.socket
) -> None:
    """The host sees no cable pulled; what it sends meanwhile waits, and arrives."""
    sup, station = card
    station.bring_up()
    station.post()
    for number in range(20):
        while (pid := sup.kill("card", charged=False)) is None:
            sup.dispatch(1)
        while psutil.pid_exists(pid):
            pass  # nobody dispatches: its successor cannot come yet
        assert "LOWER_UP" in ip("link", "show", "tap0")
        frame = numbered(random.Random(number), number)
        host.send(_wrapped(frame, MAC))
        until(lambda frame=frame: any(frame in one for one in station.received), sup, station)  # type: ignore[misc]
