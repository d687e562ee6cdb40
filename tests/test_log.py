"""Tests of log lines: what they look like, and that nobody waits for them."""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink import log
from veillink.log import LEVELS, Log, escape
from veillink.model import Address, End

from .sockets import Journal, eventually

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^" =\\]+)')

VALUES = st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.text(" =\\\"'\n\r\t\x1b\x7f\x85\u2028é\ud800a"))
FIELDS = st.dictionaries(st.sampled_from(["rule", "client", "reason", "end"]), VALUES, min_size=1)


class Pipe:
    """A log that writes into a pipe."""

    def __init__(self, stack: ExitStack, **options: Any) -> None:
        self.reader, self.writer = os.pipe()
        stack.callback(os.close, self.writer)
        stack.callback(self.stop_reading)
        self.log = Log(fd=self.writer, **options)
        stack.callback(self.log.close, 0.1)

    def finish(self) -> list[str]:
        """Read while what is queued is written, and return all lines."""
        closer = threading.Thread(target=self.log.close, args=(10,))
        closer.start()
        os.set_blocking(self.reader, False)
        data = b""
        while True:
            finished = not closer.is_alive()
            try:
                data += os.read(self.reader, 1 << 16)
            except BlockingIOError:
                if finished:
                    return data.decode("ascii").splitlines()
                time.sleep(0.001)

    def stop_reading(self) -> None:
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


# --- one line each ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", '""'),
        ("plain", "plain"),
        (12.5, "12.5"),
        (End.CLOSED, "closed"),
        (Address("::1", 80), "[::1]:80"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "hi"', r'"say \"hi\""'),
        ("back\\slash", r'"back\\slash"'),
        ("first\nsecond\r", r'"first\nsecond\r"'),
        ("\x1b[31mred\x7f", r'"\u001b[31mred\u007f"'),
        ("bücher\u2028", r'"b\u00fccher\u2028"'),
        ("\ud800", r'"\ud800"'),
        ("x" * 300, "x" * 300),
        ("x" * 10_000, "x" * 300 + "..."),
    ],
)
def test_a_value_is_one_word_that_no_terminal_minds(value: object, shown: str) -> None:
    assert escape(value) == shown


@given(VALUES)
def test_whatever_a_value_holds_it_stays_one_printable_word(value: object) -> None:
    word = escape(value)
    assert word.isascii()
    assert word.isprintable()
    assert PAIR.fullmatch(f"key={word}")
    if word.startswith('"') and len(str(value)) <= 300:
        assert json.loads(word) == value


class Collected(Log):
    """A log whose lines are looked at before they are queued."""

    def __init__(self, **options: Any) -> None:
        super().__init__(fd=-1, **options)
        self.close()
        self.put: list[str] = []

    def _put(self, line: str) -> None:
        self.put.append(line)


TEXT, JSON = Collected(), Collected(json_lines=True)


@given(FIELDS, st.text())
def test_a_text_line_can_be_read_back_field_by_field(fields: dict[str, object], message: str) -> None:
    TEXT.put.clear()
    TEXT.access(fields)
    TEXT.error(message, **fields)
    for line in TEXT.put:
        assert line.isascii()
        assert line.isprintable()
    assert PAIR.findall(TEXT.put[0])[1:] == [(key, escape(value)) for key, value in fields.items()]
    assert re.match(STAMP + " error ", TEXT.put[1])


@given(FIELDS, st.text(max_size=300))
def test_a_json_line_is_one_object_with_the_same_fields(fields: dict[str, object], message: str) -> None:
    JSON.put.clear()
    JSON.access(fields)
    JSON.error(message, **fields)
    for line in JSON.put:
        assert line.isascii()
        assert line.isprintable()
    connection, error = map(json.loads, JSON.put)
    assert list(connection) == ["time", *fields]
    assert list(error) == ["time", "level", "message", *fields]
    assert error["message"] == message
    for key, value in fields.items():
        if not isinstance(value, float):
            assert connection[key] == error[key] == (value if len(str(value)) <= 300 else str(value)[:300] + "...")


def test_a_number_stays_a_number_in_json() -> None:
    JSON.put.clear()
    JSON.access({"bytes_in": 1 << 40, "connect_ms": 1.5, "target": None})
    assert re.search(r'"bytes_in": 1099511627776, "connect_ms": 1.5, "target": null}$', JSON.put[0])


def test_what_json_does_not_know_is_written_as_text() -> None:
    JSON.put.clear()
    JSON.warning("down", listen=Address("::1", 80))
    assert json.loads(JSON.put[0])["listen"] == "[::1]:80"


@pytest.mark.parametrize("now", [0.0, 1e9 + 0.9999, 1e9 + 1.0, 2e9 + 0.05])
def test_time_is_utc_in_milliseconds(now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "time", SimpleNamespace(**vars(time) | {"time": lambda: now}))
    expected = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(now))) + f".{int(now % 1 * 1000):03d}Z"
    TEXT.put.clear()
    TEXT.info("now")
    TEXT.info("in the same second")
    assert [line.split()[0] for line in TEXT.put] == [expected, expected]


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_below_the_level_is_written(level: str, stack: ExitStack) -> None:
    pipe = Pipe(stack, level=level)
    for name in LEVELS:
        getattr(pipe.log, name)("message")
    assert [line.split()[1] for line in pipe.finish()] == list(LEVELS[LEVELS.index(level) :])


@pytest.mark.parametrize(
    ("level", "access", "written"),
    [("debug", True, True), ("info", True, True), ("warning", True, False), ("info", False, False)],
)
def test_connections_are_written_if_asked_for_and_at_level_info(
    level: str, access: bool, written: bool, stack: ExitStack
) -> None:
    pipe = Pipe(stack, level=level, access=access)
    pipe.log.access({"end": "closed"})
    assert len(pipe.finish()) == written


def test_lines_come_in_order_and_whole(stack: ExitStack) -> None:
    pipe = Pipe(stack)
    for n in range(1000):
        pipe.log.info("line", n=n)
    assert [line.split()[-1] for line in pipe.finish()] == [f"n={n}" for n in range(1000)]


def test_a_pipe_that_somebody_set_to_non_blocking_gets_every_line(stack: ExitStack) -> None:
    pipe = Pipe(stack)
    os.set_blocking(pipe.writer, False)
    for n in range(2000):  # twice what the pipe holds
        pipe.log.info("line", n=n, filler="x" * 50)
    with os.fdopen(os.dup(pipe.reader)) as reader:
        lines = [reader.readline() for _ in range(2000)]
    assert [int(re.findall(r"n=(\d+)", line)[0]) for line in lines] == list(range(2000))
    assert pipe.log.dropped == 0


# --- a reader that stopped -------------------------------------------------------------------------------------------


def test_a_reader_that_stopped_costs_nobody_a_wait_and_lines_that_are_counted(stack: ExitStack) -> None:
    pipe = Pipe(stack)
    started = time.monotonic()
    for n in range(30_000):
        pipe.log.info("line", n=n)
    assert time.monotonic() - started < 5  # it would be for ever
    dropped = pipe.log.dropped
    assert dropped >= 30_000 - 10_000 - 1000 - 65536 // 30  # queued, in the writer's hands, in the pipe
    lines = pipe.finish()
    assert len([line for line in lines if " line n=" in line]) == 30_000 - dropped
    assert sum(int(line.split()[2]) for line in lines if line.endswith(" log lines dropped")) == dropped


def test_a_queue_that_is_more_than_half_full_is_crowded(stack: ExitStack) -> None:
    pipe = Pipe(stack)
    crowded = [pipe.log.crowded]
    for n in range(10_000):  # of which the pipe and the writer take some 3000
        pipe.log.info("line", n=n)
    crowded.append(pipe.log.crowded)
    assert len(pipe.finish()) == 10_000
    assert [*crowded, pipe.log.crowded] == [False, True, False]


def test_closing_does_not_wait_for_a_reader_that_stopped(stack: ExitStack) -> None:
    pipe = Pipe(stack)
    for n in range(5000):
        pipe.log.info("line", n=n)
    started = time.monotonic()
    pipe.log.close(0.05)
    assert time.monotonic() - started < 4  # it would be 5 s
    pipe.stop_reading()  # lets the writer go
    pipe.log._writer.join(5)
    assert not pipe.log._writer.is_alive()


def test_a_reader_that_is_slow_gets_all_before_the_end(stack: ExitStack, capfd: pytest.CaptureFixture[str]) -> None:
    pipe = Pipe(stack)
    for n in range(9000):  # ten times what the pipe holds
        pipe.log.info("line", n=n, filler="x" * 30)
    closer = threading.Thread(target=pipe.log.close)
    closer.start()
    os.set_blocking(pipe.reader, False)
    data, slow_until, finished = b"", time.monotonic() + 1.5, False
    while not finished:
        finished = not closer.is_alive()
        slow = time.monotonic() < slow_until
        with contextlib.suppress(BlockingIOError):
            data += os.read(pipe.reader, 4096 if slow else 1 << 20)
        time.sleep(0.02 if slow else 0.001)
    assert data.count(b"\n") == 9000
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["has stopped", "has gone"])
def test_what_could_not_be_written_before_the_end_is_told_on_stderr(
    kind: str, stack: ExitStack, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = Pipe(stack)
    if kind == "has gone":
        pipe.stop_reading()
    for n in range(5000):
        pipe.log.info("line", n=n)
    started = time.monotonic()
    pipe.log.close(0.3)
    assert time.monotonic() - started < 5
    told = re.findall(r" warning (\d+) log lines dropped\n", capfd.readouterr().err)
    taken = 0 if kind == "has gone" else os.read(pipe.reader, 1 << 20).count(b"\n")  # all that was in the pipe
    assert [int(count) + taken for count in told] == [5000]


@pytest.mark.parametrize("kind", ["reader is gone", "disk is full", "descriptor is closed"])
def test_lines_that_cannot_be_written_are_counted_and_nothing_is_raised(kind: str, stack: ExitStack) -> None:
    pipe = Pipe(stack)
    if kind == "reader is gone":
        pipe.stop_reading()
    elif kind == "disk is full":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, pipe.writer)
        os.close(full)
    else:
        pipe.log = Log(fd=1_000_000)
    for n in range(10):
        pipe.log.info("line", n=n)
    pipe.log.close()
    assert pipe.log.dropped == 10


@pytest.mark.parametrize("json_lines", [False, True])
def test_what_was_dropped_is_told_once_lines_can_be_written_again(
    json_lines: bool, stack: ExitStack, tmp_path: Path
) -> None:
    pipe = Pipe(stack, json_lines=json_lines)
    pipe.stop_reading()
    pipe.log.info("lost")
    eventually(lambda: pipe.log.dropped == 1)
    mended = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(mended, pipe.writer)
    os.close(mended)
    pipe.log.info("found")
    pipe.log.info("found")
    pipe.log.close()
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line]
    assert ["1 log lines dropped" in line for line in lines] == [True, False, False]
    assert not json_lines or all(json.loads(line)["message"] for line in lines)


# --- the same thing again and again ----------------------------------------------------------------------------------


def test_the_same_warning_comes_once_a_second_and_then_tells_how_often_it_was_suppressed(journal: Journal) -> None:
    for _ in range(100):
        journal.log.limited("cannot accept", "*:80", reason="EMFILE")
        journal.log.limited("cannot accept", "*:81", reason="ENFILE")
    journal.log.limited("cannot reach a target", "*:80")
    eventually(lambda: len(journal.lines("suppressed")) == 2)
    assert {line["level"] for line in journal.lines()} == {"warning"}
    told = [(line["message"], line.get("about") or line.get("reason")) for line in journal.finish()]
    assert told[:3] == [("cannot accept", "EMFILE"), ("cannot accept", "ENFILE"), ("cannot reach a target", None)]
    assert sorted(told[3:]) == [("cannot accept: 99 suppressed", about) for about in ("*:80", "*:81")]


def test_a_warning_that_came_once_is_news_again_after_a_second(journal: Journal) -> None:
    journal.log.limited("cannot accept", "*:80")
    eventually(lambda: not journal.log._suppressed)
    journal.log.limited("cannot accept", "*:80")
    assert [line["message"] for line in journal.finish()] == ["cannot accept", "cannot accept"]
