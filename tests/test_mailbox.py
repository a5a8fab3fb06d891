"""The two halves of the mailbox, Python and compiled: the same memory, and nothing lost at any store."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor.device import NO_ALARM
from supervisor.errors import DeviceError
from supervisor.host import Supervisor
from supervisor.ledger import Ledger
from supervisor.policy.records import DeviceDied
from supervisor.worker import layout
from supervisor.worker.doorbell import RING, make_doorbell
from supervisor.worker.journal import Journal, create_journal
from supervisor.worker.layout import Layout
from supervisor.worker.mailbox import LACKS_ROOM, PURE, Mailbox, compiled
from supervisor.worker.records import Input, InputKind, Output, OutputKind
from tests.chaos import board, census

ROOT = Path(__file__).parent.parent
SMALL = Layout(register_words=4, input_slots=8, output_bytes=256, state_bytes=256)
DEATHS = 150
WORD = st.integers(0, 2**64 - 1)

if compiled() is None and not os.environ.get("TUBEVISOR_NO_SKIPS"):
    pytest.skip("the mailbox was not compiled: there was no C compiler", allow_module_level=True)


@contextlib.contextmanager
def _journal(half: str) -> Iterator[Journal]:
    before = os.environ.pop(PURE, None)
    try:
        if half == "python":
            os.environ[PURE] = "1"
        fd, journal = create_journal("test", SMALL)
    finally:
        os.environ.pop(PURE, None)
        if before is not None:
            os.environ[PURE] = before
    assert isinstance(journal.mailbox, Mailbox) is (half == "python")
    try:
        yield journal
    finally:
        journal.close()
        os.close(fd)


@st.composite
def _commit(draw: st.DrawFn) -> tuple[Any, ...]:
    outputs = draw(
        st.lists(
            st.builds(
                Output,
                st.sampled_from([int(kind) for kind in OutputKind]),
                st.integers(0, 127),
                WORD,
                st.binary(max_size=100),
            ),
            max_size=4,
        )
    )
    registers = draw(st.lists(WORD, max_size=4))
    packed = draw(st.binary(max_size=220))
    return outputs, registers, packed, draw(WORD), draw(WORD | st.just(NO_ALARM)), draw(st.integers(0, 9))


_STEP = st.one_of(
    st.tuples(
        st.just("submit"),
        st.integers(1, 7),
        WORD,
        st.integers(0, 2**32 + 1),
        st.integers(0, 9),
        st.integers(-1, 2**64),
    ),
    st.tuples(st.just("payload"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("commit"), _commit()),
    st.tuples(st.just("drain")),
    st.tuples(st.just("skip")),
    st.tuples(st.just("wanted"), st.integers(0, 20)),
    st.tuples(st.just("sleep"), st.integers(0, 1)),
)


def _do(journal: Journal, step: tuple[Any, ...]) -> object:
    """One step, and what it came to."""
    words, mailbox = journal.words, journal.mailbox
    submitted, applied = words[layout.SUBMITTED], words[layout.PUBLISHED]
    match step:
        case ("submit", *fields) if submitted - applied < SMALL.input_slots:
            kind, stamp_ns, offset, size, value = fields
            try:
                return mailbox.submit(submitted, kind, stamp_ns, offset, size, value)
            except ValueError:
                return "out of range"
        case ("payload", payload) if submitted - applied < SMALL.input_slots - 2:
            record = Input(submitted, InputKind.CALL, 7, 1, 2, 3, payload)
            words[layout.SUBMITTED] = journal.put_input(record)
        case ("commit", (outputs, registers, packed, levels, next_alarm_ns, version)) if submitted != applied:
            took = mailbox.take(applied)
            after = applied + 1 if took is not None else journal.get_input(applied)[1]
            flat = memoryview(bytearray(struct.pack(f"={len(registers)}Q", *registers)))
            rings = mailbox.commit(outputs, flat, packed, after, levels, next_alarm_ns, version)
            if rings != LACKS_ROOM:
                words[layout.HEARTBEAT] += 1
            awaited = mailbox.await_published(after, 0), mailbox.await_submitted(after + 1, 1000)
            return took, rings, mailbox.output_end, awaited
        case ("skip",) if submitted != applied:
            journal.skip_input(applied)
        case ("drain",):
            words[layout.CONSUMED] = words[layout.OUTPUT_END]
        case ("wanted", number):
            words[layout.WANTED] = number
        case ("sleep", flag):
            words[layout.WORKER_SLEEPS] = flag
    return None


@settings(deadline=None, max_examples=300)
@given(st.lists(_STEP, max_size=40))
def test_given_the_same_calls_both_halves_leave_the_same_memory(steps: list[tuple[Any, ...]]) -> None:
    """Each call comes to the same, and after it the two journals are the same, byte for byte."""
    with _journal("python") as slow, _journal("compiled") as fast:
        for step in steps:
            assert _do(slow, step) == _do(fast, step), step
            fast.words[layout.RUNS_ON] = 0  # which Python cannot see
            assert bytes(slow.bytes) == bytes(fast.bytes), step


@settings(deadline=None, max_examples=300)
@given(
    number=st.integers(0, 2**40),
    position=st.integers(0, 2**20),
    outputs=st.lists(
        st.tuples(st.integers(0, 5), st.integers(-1, 1), st.sampled_from([0, 7, 8, 9, 200])),
        min_size=1,
        max_size=2,
    ),
    value=WORD,
    scribbles=st.lists(st.tuples(st.sampled_from([layout.CONSUMED, layout.OUTPUT_END]), WORD), max_size=2),
)
@example(number=0, position=0, outputs=[(1, 0, 8)], value=7, scribbles=[])
def test_given_any_outputs_only_the_awaited_value_alone_is_taken(
    number: int, position: int, outputs: list[tuple[int, int, int]], value: int, scribbles: list[Any]
) -> None:
    """A value is taken if it is the only output, of that number, and whole; else all is left as it was."""
    with _journal("compiled") as journal:
        words, (door, bell) = journal.words, make_doorbell()
        try:
            position = end = position * 16
            payload = value.to_bytes(8, "little")
            for kind, off, length in outputs:
                output = Output(kind, 0, max(0, number + off), (payload * 25)[:length])
                end = journal.put_output(end, output)
            words[layout.CONSUMED], words[layout.OUTPUT_END] = position, end
            words[layout.PUBLISHED], words[layout.WORKER_SLEEPS] = number + 1, 1
            for word, scribble in scribbles:
                words[word] = scribble
            before = bytes(journal.bytes)
            alone = len(outputs) == 1 and outputs[0][0] == OutputKind.VALUE and outputs[0][2] == 8
            mine = alone and (outputs[0][1] == 0 or max(0, number + outputs[0][1]) == number)
            took = journal.mailbox.take_value(number, 0, bell)
            if scribbles:
                assert took is None or took in range(2**64)
            elif mine:
                assert took == value
                assert words[layout.CONSUMED] == end
                assert len(os.read(door, 64)) == len(RING), "it may wait for room"
            else:
                assert took is None
                assert bytes(journal.bytes) == before
        finally:
            os.close(door)
            os.close(bell)


def test_given_nothing_there_looking_ends() -> None:
    """A look that finds nothing ends, with nothing taken."""
    for half in ("python", "compiled"):
        with _journal(half) as journal:
            assert not journal.mailbox.await_submitted(1, 20_000)
            assert not journal.mailbox.await_published(1, 0)
            assert journal.mailbox.take_value(0, 1000, -1 % 2**31) is None


class _Seven:
    """An integer that is no ``int``, like NumPy's."""

    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize("half", ["python", "compiled"])
def test_given_integer_of_another_kind_it_is_taken(half: str) -> None:
    """Emulators calculate with integers of their own."""
    with _journal(half) as journal:
        seven: Any = _Seven()
        journal.mailbox.submit(0, int(InputKind.READ), 1, 4, 4, seven)
        record, _after, _out_of_line = journal.get_input(0)
        assert record.value == 7
        with pytest.raises(TypeError):
            journal.mailbox.submit(1, int(InputKind.READ), 1, 4, 4, 1.5)  # type: ignore[arg-type]


def test_given_wrong_arguments_the_compiled_half_says_so() -> None:
    """No argument that Python can make brings the process down."""
    module = compiled()
    with _journal("compiled") as journal:
        mailbox: Any = journal.mailbox
        registers = memoryview(bytearray(8))
        wrong_calls: list[tuple[str, tuple[Any, ...]]] = [
            ("submit", (1, 2)),
            ("submit", (0, 1, "now", 0, 4, 0)),
            ("take", ()),
            ("take", (None,)),
            ("commit", ()),
            ("commit", ((), registers, b"", 1, 0, 0, 1)),
            ("commit", ([None], registers, b"", 1, 0, 0, 1)),
            ("commit", ([(3, 0, 0, "text")], registers, b"", 1, 0, 0, 1)),
            ("commit", ([("3", 0, 0, b"")], registers, b"", 1, 0, 0, 1)),
            ("commit", ([], None, b"", 1, 0, 0, 1)),
            ("commit", ([], registers, "", 1, 0, 0, 1)),
            ("commit", ([], memoryview(bytearray(8 * 5)), b"", 1, 0, 0, 1)),
        ]
        for method, arguments in wrong_calls:
            with pytest.raises((TypeError, ValueError)):
                getattr(mailbox, method)(*arguments)

        class Clears(list[Any]):
            def __index__(self) -> int:
                outputs.clear()
                return 1

        outputs: list[Any] = []
        outputs += [(Clears(), 0, 0, b""), (1, 0, 0, b"")]
        with pytest.raises(TypeError):
            mailbox.commit(outputs, registers, b"", 1, 0, 0, 1)

        class Releases:
            def __index__(self) -> int:
                mailbox.release()
                return 1

        with pytest.raises(ValueError, match="released"):
            mailbox.submit(0, 1, Releases(), 0, 4, 0)
        mailbox.release()
        mailbox.release()
        for method, arguments in [("take", (0,)), ("await_submitted", (0, 0)), ("take_value", (0, 0, 0))]:
            with pytest.raises(ValueError, match="released"):
                getattr(mailbox, method)(*arguments)
    memory = bytearray(1 << 16)
    for wrong in (
        (memory, Input, 4, 3, 256, 256),
        (memory, Input, 4, 8, 200, 256),
        (memory, Input, 2**62, 8, 256, 256),
        (memory, Input, 4, 8, 1 << 20, 256),
        (memory, int, 4, 8, 256, 256),
        (bytes(1 << 16), Input, 4, 8, 256, 256),
        (memory, Input),
    ):
        with pytest.raises((TypeError, ValueError, BufferError)):
            module.Mailbox(*wrong)


@pytest.mark.parametrize("half", ["python", "compiled"])
def test_given_record_with_a_payload_that_was_given_up_all_of_it_is_passed(
    half: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its room in the ring, which is not taken for records."""
    monkeypatch.setenv(PURE, "1" if half == "python" else "")
    device = 'device: "tests.devices.pressing:Pressing", backoff: {max: 0s}, poison: 1'
    with census(), Supervisor(board(f"name: d, {device}")) as sup:
        with pytest.raises(DeviceError):
            sup["d"].call_bytes(b"die " + bytes(range(1, 200)))
        assert sup["d"].call_bytes(b"") == b"1"


@pytest.mark.parametrize("half", ["python", "compiled"])
def test_given_interrupt_behind_the_store_the_record_counts(half: str) -> None:
    """Whoever catches Ctrl-C and goes on must not use its number again."""
    with _journal(half):
        ledger = Ledger("test", deque(), poison=3, request_timeout_ns=10**9)
        try:
            real = ledger.mailbox

            class Interrupted:
                def submit(self, *fields: int) -> bool:
                    real.submit(*fields)
                    raise KeyboardInterrupt

            ledger.mailbox = Interrupted()  # type: ignore[assignment]
            with pytest.raises(KeyboardInterrupt):
                ledger.put(int(InputKind.POSTED), 0, 0, 4, 1)
            ledger.mailbox = real
            assert ledger.submitted == 1
            assert ledger.put(int(InputKind.POSTED), 0, 0, 4, 1) == 1
        finally:
            ledger.close()


def test_given_successions_the_account_of_blame_is_of_what_is_not_applied_yet() -> None:
    """It would be looked through, and grow, for as long as nobody dies without a successor."""
    ledger = Ledger("test", deque(), poison=3, request_timeout_ns=10**9)
    try:
        for number in range(100):
            ledger.put(int(InputKind.POSTED), 0, 0, 4, 1)
            ledger.settle_succession(number, number + 1, charged=True)  # at work: the number and 1
            assert list(ledger._blame) == [(number, False)]
    finally:
        ledger.close()


def test_given_slow_posted_writes_each_is_committed_for_itself() -> None:
    """Two that are in time are not taken together for one that is not."""
    device = 'device: "tests.devices.pressing:Pressing"'
    with census(), Supervisor(board(f"name: d, {device}")) as sup:
        pressing: Any = sup["d"]
        for _ in range(50):
            pressing.write(0x4, 4, 0)  # a young worker takes one at a time
        pressing.flush()
        before = pressing.ledger.words[layout.COMMIT]
        for _ in range(4):
            pressing.write(0x4, 4, 20)
        pressing.flush()
        assert pressing.ledger.words[layout.COMMIT] - before >= 4


def test_given_read_that_moves_an_alarm_the_machine_is_told_of_it() -> None:
    """Also where the answer came at once, and the device was at rest."""
    with census(), Supervisor(board('name: d, device: "tests.devices.naughty:Winding"')) as sup:
        sup.clock = lambda: 0
        for expected in range(1, 200):
            assert sup["d"].read(0x30, 4) == expected
            assert sup.next_alarm_ns() == expected * 1000
            sup.dispatch(0)


def test_given_device_given_back_with_writes_outstanding_its_handle_still_answers() -> None:
    """What it says then is of no consequence, but it says it."""
    with census(), Supervisor(board('name: d, device: "tests.devices.pressing:Pressing"')) as sup:
        handle = sup["d"]
        sup.kill("d", charged=False)
        handle.write(0x4, 4, 0)
    handle.flush()
    assert handle.irq_levels == 0


@pytest.mark.chaos
def test_given_deaths_at_any_store_of_the_compiled_half_all_is_exact() -> None:
    """Every process dies at a store of its mailbox, torn copies included: counts, replies, outputs exact."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    chooser = random.Random(seed)
    device = f'device: "tests.devices.naughty:Mortal", options: {{seed: {seed}, stores: 120}}'
    config = board(f"name: counter, {device}, backoff: {{max: 0s}}, poison: 1000000")
    with census(), Supervisor(config) as sup:
        counter = sup["counter"]
        traced: list[int] = []
        counter.on_output(lambda data: traced.append(struct.unpack("<I", data)[0]))
        expected: list[int] = []
        total = deaths = 0
        while deaths < DEATHS:
            for _ in range(50):
                total += 1
                match chooser.randrange(5):
                    case 0:
                        assert counter.read(0x04, 4) == total
                    case 1:
                        counter.write(0x08, 4, 1)
                    case 2:
                        counter.write(0x0C, 4, 1)
                        expected.append(total)
                    case 3:
                        counter.write(0x10, 4, 1)
                    case 4:
                        blob = bytes(total % 300)
                        assert counter.call_bytes(blob) == struct.pack("<I", total) + blob
            sup.dispatch(0)
            deaths += sum(isinstance(record, DeviceDied) for record in sup.events())
        assert counter.read(0x00, 4) == total
        sup.dispatch(0)
        assert traced == expected


@pytest.mark.parametrize(
    ("compiler", "tag"), [("cc", "abi3"), ("no-such-compiler", "py3-none-any"), ("false", "py3-none-any")]
)
def test_given_a_compiler_or_none_a_wheel_is_built(compiler: str, tag: str, tmp_path: Path) -> None:
    """With a compiler the wheel is a machine's, without one it is pure: both are whole."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("supervisor", "devices", "machines"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=tree,
        env=os.environ | {"CC": compiler},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = (tmp_path / "dist").iterdir()
    assert tag in wheel.name, built.stderr
    names = zipfile.ZipFile(wheel).namelist()
    assert ("supervisor/worker/_mailbox.abi3.so" in names) is (compiler == "cc")
    assert "supervisor/worker/mailbox.py" in names
    if compiler != "cc":
        assert "requests take longer" in built.stdout + built.stderr
        environment = os.environ | {"CC": compiler, "TUBEVISOR_COMPILE": "1"}
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "none")]
        refused = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, check=False
        )
        assert refused.returncode
        assert "_mailbox.c" in refused.stderr
