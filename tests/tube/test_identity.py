"""``target_pid``: who may speak to an end, with real processes, in all the ways in which ends travel."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

import msgspec
import pytest

from supervisor.messages_pb2 import Connected, Fork, Hello, SupervisorMessage, WorkerMessage
from supervisor.tube import (
    Descriptor,
    Eventfd,
    ProtoTube,
    QueueFull,
    RecvTube,
    SendTube,
    Tube,
    UnknownProcess,
    WouldBlock,
    WrongPeer,
    process,
    scm,
)
from supervisor.tube.scm import SCM_CREDENTIALS
from tests.tube.conftest import DEADLINE_S
from tests.tube.conftest import Fork as ForkFixture


@pytest.fixture(autouse=True, params=["pidfs", "numbers"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run everything twice: with what this kernel tells, and as before 6.5, with numbers only."""
    monkeypatch.setattr(process, "_current", None)
    if request.param == "numbers":
        monkeypatch.setattr(process, "_pidfs", False)
        monkeypatch.setattr(scm, "SO_PASSPIDFD", 9999)
    return str(request.param)


CLONE_NEWPID = 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)


class Errand(msgspec.Struct):
    """What the tests send to workers: an end, and what to do with it."""

    tube: Tube
    word: str


def worker(control: Tube) -> None:
    """Serve errands.

    Report the end's target_pid, then say the word through the end and report what came back.
    """
    control.send(["hello", os.getpid()])
    kept: list[Tube] = []
    while True:
        errand = control.recv(Errand | None, timeout=DEADLINE_S)
        if errand is None:
            return
        kept.append(errand.tube)
        control.send(errand.tube.target_pid)
        if errand.word == "listen":
            control.send(errand.tube.recv(timeout=DEADLINE_S))
            control.send(errand.tube.target_pid)
        else:
            errand.tube.send(errand.word)
            control.send("said")


class Worker:
    """A worker process, and the supervisor's end of its control Tube."""

    def __init__(self, fork: ForkFixture) -> None:
        self.control, theirs = Tube.pair()
        self.process = fork(lambda: worker(theirs))
        theirs.close()
        assert self.control.recv(timeout=DEADLINE_S) == ["hello", self.process.pid]
        assert self.pid == self.process.pid

    @property
    def pid(self) -> int:
        pid = self.control.target_pid
        assert pid is not None
        return pid

    def heard(self) -> object:
        return self.control.recv(timeout=DEADLINE_S)

    def stop(self) -> None:
        self.control.send(None)
        assert self.process.wait() == 0
        self.control.close()


def test_given_a_worker_when_it_says_hello_then_target_pid_is_its_pid(fork: ForkFixture) -> None:
    """The first packet pins the process at the other side, with the kernel's word for it."""
    worker_ = Worker(fork)
    assert worker_.control.target_pid == worker_.process.pid
    worker_.stop()


def test_given_one_end_handed_to_a_worker_then_both_ends_know_each_other(fork: ForkFixture) -> None:
    """Case 1: the supervisor keeps one end and sends the other."""
    worker_ = Worker(fork)
    ours, theirs = Tube.pair()
    with ours, theirs:
        worker_.control.send(Errand(theirs, "hi"))
        assert ours.target_pid == worker_.pid
        assert worker_.heard() == os.getpid()
        assert worker_.heard() == "said"
        assert ours.recv(timeout=DEADLINE_S) == "hi"
        worker_.stop()


@pytest.mark.parametrize("first", [0, 1])
def test_given_both_ends_handed_to_two_workers_then_they_know_each_other(
    fork: ForkFixture, first: int
) -> None:
    """Case 2, in either order: neither end stays here, and each worker learns of the other."""
    workers = [Worker(fork), Worker(fork)]
    ends = Tube.pair()
    words = ["from 0", "listen"]
    for i in (first, 1 - first):
        workers[i].control.send(Errand(ends[i], words[i]))
    for end in ends:
        end.close()
    assert workers[0].heard() in (workers[1].pid, os.getpid())
    assert workers[0].heard() == "said"
    assert workers[1].heard() in (workers[0].pid, os.getpid())
    assert workers[1].heard() == "from 0"
    assert workers[1].heard() == workers[0].pid
    for each in workers:
        each.stop()


def test_given_both_hand_overs_done_when_the_workers_look_then_each_names_the_other(
    fork: ForkFixture,
) -> None:
    """Case 2, with both ends handed over before either worker has its end: both know at once."""
    gates, children = [], []
    for _ in range(2):
        gate, far = Tube.pair()

        def work(far: Tube = far) -> None:
            far.send("hello")
            gate_word, end = far.recv(tuple[int, Tube], timeout=DEADLINE_S)
            far.recv(timeout=DEADLINE_S)  # both have been handed over
            assert gate_word == 1
            far.send(end.target_pid)
            far.recv(timeout=DEADLINE_S)

        children.append(fork(work))
        far.close()
        assert gate.recv(timeout=DEADLINE_S) == "hello"
        gates.append(gate)
    for gate, end in zip(gates, Tube.pair(), strict=True):
        gate.send([1, end])
        end.close()
    for gate in gates:
        gate.send("go")
    assert [gate.recv(timeout=DEADLINE_S) for gate in gates] == [children[1].pid, children[0].pid]
    for gate, child in zip(gates, children, strict=True):
        gate.send("done")
        assert child.wait() == 0
        gate.close()


def test_given_an_end_handed_on_after_a_restart_then_the_far_worker_expects_the_new_one(
    fork: ForkFixture,
) -> None:
    """Case 3: worker A keeps talking to B's successor; the supervisor handed the same end on again."""
    a, b = Worker(fork), Worker(fork)
    end_a, end_b = Tube.pair()
    a.control.send(Errand(end_a, "to b"))
    b.control.send(Errand(end_b, "from the first"))
    for each in (a, b):
        each.heard()
        assert each.heard() == "said"
    end_a.close()
    old_pid = b.pid
    b.process.kill()
    successor = Worker(fork)
    successor.control.send(Errand(end_b, "from the second"))
    assert successor.heard() == a.pid
    assert successor.heard() == "said"
    assert successor.pid != old_pid
    b.control.close()
    end_b.close()
    a.stop()
    successor.stop()


def test_given_the_supervisor_keeps_one_end_when_the_other_is_handed_on_again_then_it_follows(
    fork: ForkFixture,
) -> None:
    """Case 3, one end here.

    Words of the first worker are received, then those of the second, and no others.
    """
    first, second = Worker(fork), Worker(fork)
    ours, theirs = Tube.pair()
    with ours, theirs:
        first.control.send(Errand(theirs, "one"))
        first.heard()
        assert first.heard() == "said"
        first.process.kill()
        second.control.send(Errand(theirs, "two"))
        second.heard()
        assert second.heard() == "said"
        assert ours.recv(timeout=DEADLINE_S) == "one"
        assert ours.target_pid == second.pid
        assert ours.recv(timeout=DEADLINE_S) == "two"
        first.control.close()
        second.stop()


def test_given_an_old_generation_that_lives_when_it_speaks_then_it_is_refused(fork: ForkFixture) -> None:
    """After the supervisor handed the end on, the former holder is nobody.

    Neither its words nor its hand-overs.
    """
    ours, theirs = Tube.pair()
    go, going = Eventfd(), Eventfd()

    def old() -> None:
        theirs.send("first words")
        go.wait(DEADLINE_S)
        theirs.send("late words")
        theirs.announce(os.getpid())
        going.signal()

    with ours, theirs, go, going:
        child = fork(old)
        assert ours.recv(timeout=DEADLINE_S) == "first words"
        new = Worker(fork)
        new.control.send(Errand(theirs, "new words"))
        assert new.heard() == os.getpid()
        assert new.heard() == "said"
        go.signal()
        going.wait(DEADLINE_S)
        assert ours.recv(timeout=DEADLINE_S) == "new words"
        for _ in range(2):
            with pytest.raises(WrongPeer):
                ours.recv(timeout=DEADLINE_S)
        assert ours.target_pid == new.pid
        assert child.wait() == 0
        new.stop()


def test_given_a_third_process_with_a_copy_when_it_speaks_then_it_is_refused(fork: ForkFixture) -> None:
    """Having the descriptor is not enough; descriptors that came with the refused packet are closed."""
    ours, theirs = Tube.pair()
    with ours, theirs:
        theirs.send("mine")

        def stranger() -> None:
            theirs.send(["not mine", Eventfd()])
            theirs.announce(None)

        assert fork(stranger).wait() == 0
        theirs.send("mine again")
        assert ours.recv(timeout=DEADLINE_S) == "mine"
        for _ in range(2):
            with pytest.raises(WrongPeer):
                ours.recv(timeout=DEADLINE_S)
        assert ours.recv(timeout=DEADLINE_S) == "mine again"


def test_given_a_strangers_hand_over_waiting_when_target_pid_is_read_then_nothing_moves(
    fork: ForkFixture,
) -> None:
    """Reading target_pid takes waiting hand-overs; a refused one changes nothing and raises nothing."""
    ours, theirs = Tube.pair()
    with ours, theirs:
        theirs.send("pin")
        ours.recv(timeout=0)
        assert fork(lambda: theirs.announce(None)).wait() == 0
        assert ours.target_pid == os.getpid()
        assert ours.end.refused_handovers == 1
        with pytest.raises(WouldBlock):
            ours.recv(timeout=0)


def test_given_a_spawner_that_sets_target_pid_then_only_that_process_is_heard(fork: ForkFixture) -> None:
    """expect(pid): a process that speaks first is refused when it is not the one that was announced."""
    ours, theirs = Tube.pair()
    gate = Eventfd()

    def late() -> None:
        gate.wait(DEADLINE_S)
        theirs.send("right")

    with ours, theirs, gate:
        right = fork(late)
        ours.target_pid = right.pid
        assert ours.target_pid == right.pid
        assert fork(lambda: theirs.send("wrong")).wait() == 0
        gate.signal()
        with pytest.raises(WrongPeer):
            ours.recv(timeout=DEADLINE_S)
        assert ours.recv(timeout=DEADLINE_S) == "right"
        assert right.wait() == 0
        ours.target_pid = None
        assert ours.target_pid is None
        assert fork(lambda: theirs.send("anybody")).wait() == 0
        assert ours.recv(timeout=DEADLINE_S) == "anybody"


def test_given_a_dead_expected_process_when_its_words_arrive_then_they_are_accepted(
    fork: ForkFixture,
) -> None:
    """A worker that was reaped before its Hello was read is still who it was."""
    ours, theirs = Tube.pair()
    with ours, theirs:
        child = fork(lambda: theirs.send("last words"))
        assert child.wait() == 0
        ours.expect(child.pid)
        assert ours.recv(timeout=0) == "last words"
        assert ours.target_pid == child.pid


def _zygote_flow(fork: ForkFixture, *, as_number: bool) -> None:
    ours, theirs = ProtoTube.pair()
    line, zygote_line = ProtoTube.pair()

    def run() -> None:
        received = zygote_line.recv_proto_with_fds(Fork, timeout=DEADLINE_S)
        pid = os.fork()
        if pid == 0:
            with ProtoTube(received.descriptors[0]) as mine:
                mine.send_proto(WorkerMessage(generation=1, hello=Hello(pid=os.getpid())))
                mine.recv_proto(SupervisorMessage, timeout=DEADLINE_S)
                os._exit(0 if mine.target_pid == supervisor_pid else 1)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    supervisor_pid = os.getpid()
    with ours, line:
        child = fork(run)
        zygote_line.close()
        line.relays = True
        line.send_proto(Fork(ticket=1), fds=[theirs.fileno() if as_number else theirs])
        theirs.close()
        got = ours.recv_proto_with_fds(WorkerMessage, timeout=DEADLINE_S)
        assert got.pid == got.message.hello.pid == ours.target_pid
        assert got.pid != child.pid
        got.close()
        ours.send_proto(SupervisorMessage(generation=1))
        assert child.wait() == 0


@pytest.mark.parametrize("as_number", [False, True])
def test_given_a_zygote_when_it_forks_the_holder_then_the_worker_is_the_peer(
    fork: ForkFixture, as_number: bool
) -> None:
    """Through a zygote that forks without executing, the worker that says Hello is pinned, not the zygote."""
    _zygote_flow(fork, as_number=as_number)


def test_given_a_worker_in_its_own_pid_namespace_then_both_sides_know_each_other(fork: ForkFixture) -> None:
    """The supervisor sees the worker's number as it counts; the worker, to whom we have no number, sees 0."""
    if os.geteuid() != 0:
        pytest.skip("a pid namespace needs root")
    ours, theirs = Tube.pair()

    def inside() -> None:
        assert os.getpid() == 1
        theirs.send(os.getpid())
        assert theirs.recv(timeout=DEADLINE_S) == "welcome"
        assert theirs.target_pid == 0
        assert theirs.end.view.speaker is not None
        carried, kept = Tube.pair()
        with carried, kept:
            theirs.send(carried)  # to somebody without a number here
            assert kept.recv(timeout=DEADLINE_S) == "outside"
        theirs.recv(timeout=DEADLINE_S)

    def outside() -> None:
        if _libc.unshare(CLONE_NEWPID):
            raise OSError(ctypes.get_errno(), "unshare")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                inside()
                code = 0
            except BaseException as error:
                os.write(2, repr(error).encode())
            finally:
                os._exit(code)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    with ours, theirs:
        child = fork(outside)
        assert ours.recv(timeout=DEADLINE_S) == 1
        pid = ours.target_pid
        assert pid is not None
        assert pid > child.pid
        ours.send("welcome")
        with ours.recv(Tube, timeout=DEADLINE_S) as carried:
            assert carried.target_pid == pid
            carried.send("outside")
            ours.send("done")
            assert child.wait() == 0


def test_given_halves_when_each_goes_to_another_worker_then_the_far_side_follows_the_speaker(
    fork: ForkFixture,
) -> None:
    """A SendTube moves who speaks, a RecvTube who listens."""
    carrier, far = Tube.pair()
    sender, receiver = Tube.directional_pair()

    def work() -> None:
        far.send("hello")
        half = far.recv(SendTube, timeout=DEADLINE_S)
        half.send("spoken")

    with carrier, far, sender, receiver:
        child = fork(work)
        assert carrier.recv(timeout=DEADLINE_S) == "hello"
        carrier.send(sender)
        assert receiver.target_pid == child.pid
        assert receiver.recv(timeout=DEADLINE_S) == "spoken"
        assert child.wait() == 0


def test_given_a_recv_tube_handed_away_then_the_send_tube_knows_who_listens(fork: ForkFixture) -> None:
    """SendTube.target_pid is who receives."""
    carrier, far = Tube.pair()
    sender, receiver = Tube.directional_pair()

    def work() -> None:
        far.send("hello")
        half = far.recv(RecvTube, timeout=DEADLINE_S)
        far.send(half.recv(timeout=DEADLINE_S))

    with carrier, far, sender, receiver:
        child = fork(work)
        carrier.recv(timeout=DEADLINE_S)
        carrier.send(receiver)
        assert sender.target_pid == child.pid
        sender.send("heard")
        assert carrier.recv(timeout=DEADLINE_S) == "heard"
        assert child.wait() == 0


def test_given_proto_tubes_when_both_ends_go_to_workers_then_they_know_each_other(fork: ForkFixture) -> None:
    """The supervisor's Connected.

    Ends beside a protobuf message are handed over like those in a typed one.
    """
    lines = []
    children = []
    for word in ("left", "right"):
        ours, theirs = ProtoTube.pair()

        def work(theirs: ProtoTube = theirs, word: str = word) -> None:
            theirs.send_proto(Hello())
            got = theirs.recv_proto_with_fds(Connected, timeout=DEADLINE_S)
            with Tube(got.descriptors[0]) as tube:
                tube.send([word, os.getpid()])
                other, pid = tube.recv(timeout=DEADLINE_S)
                assert other != word
                assert tube.target_pid == pid
                theirs.send_proto(Connected(peer=other))
                theirs.recv_proto(Connected, timeout=DEADLINE_S)

        children.append(fork(work))
        theirs.close()
        ours.recv_proto(Hello, timeout=DEADLINE_S)
        lines.append(ours)
    ends = Tube.pair()
    for line, end in zip(lines, ends, strict=True):
        line.send_proto(Connected(peer="x"), fds=[end])
        end.close()
    assert [line.recv_proto(Connected, timeout=DEADLINE_S).peer for line in lines] == ["right", "left"]
    for line, child in zip(lines, children, strict=True):
        line.send_proto(Connected())
        assert child.wait() == 0
        line.close()


def test_given_a_full_queue_when_an_end_is_sent_then_it_stays_ours(fork: ForkFixture) -> None:
    """A carrying message that cannot be sent moves nothing."""
    carrier, far = Tube.pair()
    ours, theirs = Tube.pair()
    with carrier, far, ours, theirs:
        theirs.send("pin")
        ours.recv(timeout=0)
        with pytest.raises(QueueFull):  # noqa: PT012
            while True:
                carrier.send(0, timeout=0)
        with pytest.raises(QueueFull):
            carrier.send(theirs, timeout=0)
        theirs.send("still mine")
        assert ours.recv(timeout=0) == "still mine"


def test_given_a_holder_that_is_not_the_maker_when_the_carrier_fails_then_it_takes_the_end_back(
    fork: ForkFixture,
) -> None:
    """Until the new holder speaks, the giver may think better of it."""
    ours, theirs = Tube.pair()
    line, far = Tube.pair()

    def work() -> None:
        far.send("hello")
        end = far.recv(Tube, timeout=DEADLINE_S)
        end.announce(os.getppid())
        end.announce(os.getpid())
        end.send("back again")

    with ours, theirs, line, far:
        child = fork(work)
        line.recv(timeout=DEADLINE_S)
        line.send(theirs)
        assert ours.recv(timeout=DEADLINE_S) == "back again"
        assert ours.target_pid == child.pid
        assert child.wait() == 0


def test_given_no_such_process_when_announced_then_unknown_process() -> None:
    """announce() names a living process, or none."""
    ours, theirs = Tube.pair()
    with ours, theirs, pytest.raises(UnknownProcess):
        ours.announce(2**22 - 1)


def test_given_root_when_it_forges_credentials_then_the_kernel_believes_it(fork: ForkFixture) -> None:
    """The known limit.

    CAP_SYS_ADMIN may claim another pid, and the pidfd follows the claim. Others get EPERM.
    """
    ours, theirs = ProtoTube.pair()
    forged = [(socket.SOL_SOCKET, SCM_CREDENTIALS, struct.pack("=iII", 1, 0, 0))]

    def unprivileged() -> None:
        os.setgid(65534)
        os.setuid(65534)
        with pytest.raises(PermissionError):
            theirs.end.sock.sendmsg([b"x"], forged)

    with ours, theirs:
        theirs.send_proto(Hello())
        ours.recv_proto(Hello, timeout=0)
        if os.geteuid() != 0:
            pytest.skip("only root can show both sides")
        assert fork(unprivileged).wait() == 0
        theirs.end.sock.sendmsg([b"x"], forged)
        with pytest.raises(WrongPeer, match="process 1,"):
            ours.recv_proto(Hello, timeout=0)


def test_given_a_dead_sender_when_received_then_its_pidfd_still_names_it(
    fork: ForkFixture, kernel: str
) -> None:
    """Each packet brings its sender's pidfd, readable when the sender is gone, even if that was long ago."""
    ours, theirs = ProtoTube.pair()
    with ours, theirs:
        child = fork(lambda: theirs.send_proto(Hello(pid=1)))
        assert child.wait() == 0
        got = ours.recv_proto_with_fds(Hello, timeout=0)
        assert got.pid == child.pid
        if kernel == "numbers":
            assert got.pidfd is None
        else:
            assert isinstance(got.pidfd, Descriptor)
            assert not os.get_inheritable(got.pidfd.fileno())
        got.close()
