"""What others had to fix: each known hole of vhost-user and virtqueues, as a test that it is not ours.

The rows are those of DPDK, SPDK, QEMU and rust-vmm. ``ELSEWHERE`` names the tests of other files that hold a
row, or a part of it, at the level of the parser or the queue; a test holds that they are there. What is here
goes through a real keeper with a worker behind it, or through the worker's own memory.
"""

from __future__ import annotations

import importlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.events import DeviceDied
from supervisor.vhost_user import wire
from supervisor.vhost_user.areas import Inflight, Log, MemoryTable, Region
from supervisor.vhost_user.errors import BackEndRefused
from supervisor.vhost_user.messages import Config, Empty, Header, Opaque, Payload, VringFd, VringState
from supervisor.vhost_user.requests import MAX_REGIONS, FrontEndRequest
from tests.chaos import until_witnessed
from tests.vhost_user.driver import GUEST_BASE
from tests.vhost_user.hostile import (
    ATTACKS,
    LOG_BYTES,
    MEMORY,
    Hostile,
    besieged,
    goes_on,
    is_unharmed,
    serve,
)
from tests.vhost_user.test_worker_rings import QUEUE, USER_BASE
from tests.vhost_user.wires import count_open, eventfds

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60)]
F = FrontEndRequest
BUDGET = "intensity: 1000, period: 1s"

ELSEWHERE = {
    "CVE-2018-1059": [
        "test_virtqueue.test_given_address_outside_of_the_guest_memory_faults",
        "test_cve_memory.test_cve_2018_1059_given_buffers_and_tables_across_regions_they_are_followed_or_refused",
    ],
    "CVE-2020-14374 to -14378, CVE-2024-11614": [
        "test_cve_memory.test_cve_2020_14374_given_guest_that_changes_what_was_read_what_was_read_counts"
    ],
    "CVE-2019-14818": [
        "test_any_stream.test_given_the_same_requests_again_and_again_nothing_grows",
        "test_messages.test_given_other_number_of_descriptors_the_request_is_refused",
    ],
    "CVE-2020-10722": ["test_messages.test_given_values_that_cannot_be_they_are_refused"],
    "CVE-2020-10723": ["test_messages.test_given_values_that_cannot_be_they_are_refused"],
    "CVE-2020-10725, CVE-2016-7422": [
        "test_virtqueue.test_given_broken_chain_it_is_named_and_can_be_completed"
    ],
    "CVE-2021-3839": ["test_messages.test_given_values_that_cannot_be_they_are_refused"],
    "CVE-2022-0669": ["test_messages.test_given_other_number_of_descriptors_the_request_is_refused"],
    "DPDK 585283f9a7, 218daf1664": [
        "test_endpoint.test_given_full_table_of_descriptors_the_message_is_refused_and_nothing_leaks",
        "test_assembler.test_given_descriptors_in_the_wrong_place_they_are_closed_and_the_peer_is_blamed",
    ],
    "CVE-2022-2132": [
        "test_blk.test_given_short_header_or_no_status_the_request_ends",
        "test_blk.test_given_reads_and_writes_of_any_cut_the_image_is_what_a_plain_file_would_be",
    ],
    "CVE-2019-9547": ["test_virtqueue.test_given_broken_chain_it_is_named_and_can_be_completed"],
    "CVE-2016-5403": ["test_virtqueue.test_given_more_under_way_than_the_ring_holds_it_is_broken"],
    "CVE-2023-41051, Firecracker 3149, vm-memory 95": [
        "test_virtqueue.test_given_broken_rings_nothing_more_is_taken",
        "test_virtqueue.test_given_size_that_cannot_be_the_areas_are_refused",
        "test_recovery.test_given_death_before_any_line_each_request_is_used_once",
    ],
    "fd that cannot be mapped, that is a regular file": [
        "test_hostile_vmm.test_given_set_up_that_cannot_be_served_nobody_dies_of_it"
    ],
    "region of no size, overlapping regions": [
        "test_messages.test_given_values_that_cannot_be_they_are_refused",
        "test_keeper.test_given_what_cannot_be_granted_it_is_refused_and_the_connection_goes_on",
    ],
    "slow-loris": ["test_keeper.test_given_half_a_message_the_connection_ends_in_time"],
    "second client": ["test_keeper.test_given_second_vmm_it_is_turned_away_and_the_first_is_served"],
}


@pytest.mark.parametrize("row", ELSEWHERE)
def test_given_row_held_elsewhere_its_tests_are_there(row: str) -> None:
    """A table that names tests which are gone would hold nothing."""
    for name in ELSEWHERE[row]:
        module, _, function = name.partition(".")
        assert callable(getattr(importlib.import_module(f"tests.vhost_user.{module}"), function)), name


@pytest.fixture
def vmm(tmp_path: Path) -> Iterator[Hostile]:
    with besieged(tmp_path) as made:
        until_witnessed(made.sup)  # descriptors are counted
        yield made


def raw(vmm: Hostile, code: int, payload: bytes, fds: int = 0, flags: int = 1 | 8) -> bool:
    """Sends a message as it is; true if it was answered, false if the connection is over for it."""
    with eventfds(fds) as numbers:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{fds}i", *numbers))] if fds else []
        with socket.socket(fileno=os.dup(vmm.front.endpoint.wire.fileno())) as sock:
            sock.setblocking(False)
            try:
                sock.sendmsg([struct.pack("<III", code, flags, len(payload)) + payload], control)
            except BrokenPipeError:
                return False
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                vmm.sup.dispatch(0.01)
                try:
                    return bool(sock.recv(1 << 16))
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    return False
    raise AssertionError("neither an answer nor an end")


def _message(code: int, body: Payload, fds: int = 0, flags: int = 9) -> tuple[int, bytes, int, int]:
    return code, body.pack(), fds, flags


TABLE = MemoryTable((MEMORY,))
NO_LOG, TWO_LOGS = Inflight(0, 0, 1, QUEUE), Inflight(1 << 20, 0, 2, QUEUE)
LOG = Inflight(LOG_BYTES, 0, 1, QUEUE)
ENDED: dict[str, tuple[int, bytes, int, int]] = {
    "CVE-2019-14818 descriptors where there are none": _message(F.SET_VRING_NUM, VringState(0, QUEUE), 8),
    "CVE-2019-14818 more descriptors than regions": _message(F.SET_MEM_TABLE, TABLE, 8),
    "CVE-2020-10722 log's sum wraps": _message(F.SET_LOG_BASE, Log(1 << 63, 1 << 63), 1),
    "CVE-2020-10722 offset's sum wraps": _message(
        F.SET_MEM_TABLE, MemoryTable((Region(0, 1 << 63, 0, 1 << 63),)), 1
    ),
    "CVE-2020-10723 ring 65536": (F.SET_VRING_NUM, struct.pack("<II", 65536, QUEUE), 0, 9),
    "CVE-2020-10723 addresses of ring 65536": (
        F.SET_VRING_ADDR,
        struct.pack("<II4Q", 65536, 0, 0, 0, 0, 0),
        0,
        9,
    ),
    "CVE-2021-3839 more rings than memory": _message(F.SET_INFLIGHT_FD, Inflight(4096, 0, 64, 1024), 1),
    "CVE-2022-0669 descriptors with GET_INFLIGHT_FD": _message(
        F.GET_INFLIGHT_FD, Inflight(0, 0, 1, QUEUE), 4
    ),
    "CVE-2022-0669 descriptors with SET_INFLIGHT_FD": _message(F.SET_INFLIGHT_FD, LOG, 3),
    "585283f9a7 size too big": (F.SET_VRING_KICK, bytes(5000), 1, 9),
    "218daf1664 more descriptors than anything has": _message(F.SET_MEM_TABLE, TABLE, 200),
    "a reply to nothing": _message(F.GET_FEATURES, Empty(), 0, 1 | 4),
    "a region of no size": _message(F.SET_MEM_TABLE, MemoryTable((Region(0, 0, 0),)), 1),
    "unknown, no answer wanted": _message(200, Opaque(b"what"), 2, 1),
}
"""What ends the connection: its message's descriptors are closed, and the next VMM may come."""

REFUSED: dict[str, tuple[int, bytes, int, int]] = {
    "CVE-2020-10723 ring that the device has not": _message(F.SET_VRING_NUM, VringState(64, QUEUE)),
    "CVE-2020-10723 kick of ring 255": _message(F.SET_VRING_KICK, VringFd(255), 1),
    "CVE-2021-3839 more rings than the device has": _message(
        F.SET_INFLIGHT_FD, Inflight(1 << 20, 0, 2, QUEUE), 1
    ),
    "CVE-2021-3839 a log asked for more": _message(F.GET_INFLIGHT_FD, Inflight(0, 0, 60, QUEUE)),
    "overlapping regions": _message(F.SET_MEM_TABLE, MemoryTable((MEMORY, MEMORY)), 2),
    "configuration beyond its end": _message(F.SET_CONFIG, Config(4000, bytes(90))),
    "unknown, an answer wanted": _message(200, Opaque(b"what"), 2),
}
"""What is answered with "no"; the connection goes on as it was."""


@pytest.mark.parametrize("row", ENDED)
def test_given_message_that_cannot_be_the_connection_ends_and_nothing_else(vmm: Hostile, row: str) -> None:
    """With rings that run: the worker lets go of them, every descriptor is closed, the next VMM is served."""
    vmm.bring_up()
    serve(vmm, 5)
    before = count_open()
    assert not raw(vmm, *ENDED[row])
    assert count_open() <= before
    is_unharmed(vmm)


def test_given_requests_that_cannot_be_granted_the_answer_is_no_and_nothing_changes(vmm: Hostile) -> None:
    """With rings that run, all on one connection; no descriptor is left, and the rings go on."""
    vmm.bring_up()
    for row, message in REFUSED.items():
        before = count_open()
        assert raw(vmm, *message), row
        assert count_open() <= before, row
        serve(vmm, 5)
    is_unharmed(vmm)


def test_cve_2019_14818_given_the_same_message_in_a_loop_nothing_grows(vmm: Hostile) -> None:
    """CVE-2019-14818, CVE-2020-10726: SET_VRING_NUM, kicks, memory and logs, again and again."""
    front, fds = vmm.front, vmm.fds
    asked: list[Callable[[], Any]] = [
        lambda: front.set_vring_num(0, QUEUE),
        lambda: front.set_vring_call(0, fds["call"]),
        lambda: front.set_vring_err(0, fds["call"]),
        lambda: front.set_mem_table([MEMORY], [fds["memory"]]),
        lambda: front.set_inflight_fd(LOG, fds["log"]),
        lambda: front.set_backend_req_fd(fds["call"]),
        lambda: front.get_inflight_fd(1, QUEUE)[1].close(),  # type: ignore[union-attr]
    ]
    counts = []
    for _ in range(3):
        vmm.ask(lambda: [one() for one in asked for _ in range(20)])
        counts.append(count_open())
    assert counts[0] == counts[1] == counts[2]
    is_unharmed(vmm)


def test_cve_2021_3544_given_flood_while_the_worker_drains_the_supervisor_keeps_its_descriptors(
    vmm: Hostile,
) -> None:
    """CVE-2021-3544, CVE-2021-20263: a VMM that sends for ever is read as it is served."""
    vmm.bring_up()
    table = Header(F.SET_MEM_TABLE, 8 + 32).pack() + TABLE.pack()
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", vmm.fds["memory"]))]
    before = most = count_open()
    with socket.socket(fileno=os.dup(vmm.front.endpoint.wire.fileno())) as sock:
        sock.setblocking(False)
        deadline, sent = time.monotonic() + 20, 0
        while sent < 400:
            try:
                sock.sendmsg([table], control)
                sent += 1
            except BlockingIOError:
                vmm.sup.dispatch(0.01)
                most = max(most, count_open())
            assert time.monotonic() < deadline, sent
    assert most < before + 100
    vmm.ask(vmm.front.get_queue_num)  # behind all of them
    is_unharmed(vmm)


def test_cve_2021_3544_given_endless_stream_the_device_beside_it_is_served(vmm: Hostile) -> None:
    """One VMM's messages are taken in portions: nobody else waits for their end."""
    owner = Header(F.SET_OWNER).pack() * 300
    with socket.socket(fileno=os.dup(vmm.front.endpoint.wire.fileno())) as sock:
        sock.setblocking(False)
        rounds = 0

        def refill(at: Any, assembler: Any) -> Any:
            nonlocal rounds
            rounds += 1
            try:
                sock.send(owner)  # there is always one more
            except BlockingIOError:
                pass
            assert rounds < 10_000, "the supervisor listens to one VMM and to nobody else"
            return receive(at, assembler)

        receive = wire.receive_message
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("supervisor.keeper.receive_message", refill)
            sock.send(owner)
            for _ in range(5):
                vmm.sup.dispatch(0.01)
            assert rounds
    is_unharmed(vmm)


def test_given_log_that_cannot_be_read_a_death_is_survived(tmp_path: Path) -> None:
    """After a death the keeper looks who is to blame: what it cannot read blames nobody."""
    with besieged(tmp_path, BUDGET) as vmm:
        for name, attack in ATTACKS.items():
            if not name.startswith("log"):
                continue
            print(name)
            attack(vmm)
            vmm.bring_up()
            assert vmm.sup.kill("disk") is not None
            deadline = time.monotonic() + 20
            while not any(isinstance(one, DeviceDied) for one in vmm.sup.events()):
                vmm.sup.dispatch(0.05)
                assert time.monotonic() < deadline
            goes_on(vmm)
            vmm.renew()


def test_given_memory_cut_short_later_the_worker_dies_of_it_and_comes_back(tmp_path: Path) -> None:
    """SIGBUS: the supervisor maps nothing of a guest, so it is the worker that dies, and it is restarted."""
    with besieged(tmp_path, BUDGET) as vmm:
        vmm.bring_up()
        serve(vmm, 5)
        pid = vmm.sup["disk"].pid
        vmm.driver.release()
        vmm.guest.bytes.release()
        vmm.mapping.close()
        os.truncate(f"/proc/self/fd/{vmm.fds['memory']}", 0)
        vmm.kick()
        deadline = time.monotonic() + 20
        while vmm.sup["disk"].pid == pid or vmm.sup["disk"].state != "ready":
            vmm.sup.dispatch(0.05)
            assert time.monotonic() < deadline
        vmm.restore()
        goes_on(vmm)


def test_given_rings_before_memory_they_wait_for_it(vmm: Hostile) -> None:
    """SET_* before SET_MEM_TABLE: nothing to serve yet, and nothing to be refused."""
    for what in ("features", "num", "base", "addr", "kick", "call", "enable"):
        vmm.say(what)
    assert vmm.ask(lambda: vmm.front.get_vring_base(0)) == 0
    is_unharmed(vmm)


def test_given_regions_added_without_end_there_is_an_end(vmm: Hostile) -> None:
    """More regions than descriptors go to a worker at once are refused where they come in."""
    for index in range(MAX_REGIONS):
        region = Region(GUEST_BASE + (index << 30), 4096, USER_BASE + (index << 30))
        vmm.ask(lambda region=region: vmm.front.add_mem_reg(region, vmm.fds["memory"]))  # type: ignore[misc]
    with pytest.raises(BackEndRefused):
        vmm.ask(lambda: vmm.front.add_mem_reg(Region(0, 4096, 0), vmm.fds["memory"]))
    for what in ("features", "num", "base", "addr", "kick", "call", "enable"):
        vmm.say(what)
    is_unharmed(vmm)
