"""Tests of a master's log: lines among those of workers, and nobody waited for."""

import contextlib
import json
import logging
import os
from pathlib import Path

import pytest
from gunicorn.config import Config

from tests.daemon.life import settings_of
from tests.forked import forked
from veillink.fleet.journal import Journal, MasterLog


class Stdout:
    """A pipe in the place of descriptor 1."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)

    def fill(self) -> None:
        """Leave no room in it."""
        os.set_blocking(self._writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._writing, b"\n" * (1 << 16))
        os.set_blocking(self._writing, True)

    def lines(self) -> list[dict[str, object]]:
        """Return what has been written since the last time."""
        found = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                found += os.read(self._reading, 1 << 16)
        return [json.loads(line) for line in found.splitlines() if line]

    def __enter__(self) -> "Stdout":
        self._kept = os.dup(1)
        os.dup2(self._writing, 1)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._kept, 1)
        for descriptor in (self._reading, self._writing, self._kept):
            os.close(descriptor)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(settings_of(tmp_path / "rules.csv", log_format="json", log_level="info"))


def test_a_line_is_written_at_once_if_its_level_is_wanted(journal: Journal) -> None:
    with Stdout() as stdout:
        journal.write("info", "ready", workers=3)
        journal.write("debug", "detail")
        (line,) = stdout.lines()
    assert (line["level"], line["message"], line["workers"]) == ("info", "ready", 3)


def test_a_reader_that_has_stopped_is_not_waited_for_and_gets_the_last_lines_later(journal: Journal) -> None:
    with Stdout() as stdout:
        stdout.fill()
        for number in range(2000):
            journal.write("info", f"line {number}")
        assert stdout.lines() == []
        found: list[dict[str, object]] = []
        for _ in range(3):  # not all of them fit into the pipe
            journal.flush()
            found += stdout.lines()
    assert [line["message"] for line in found] == [f"line {number}" for number in range(1000, 2000)]


def test_a_worker_does_not_write_what_its_master_could_not(journal: Journal) -> None:
    with Stdout() as stdout:
        stdout.fill()
        journal.write("error", "once")
        with forked(stdout.lines, journal.flush, stdout.lines) as worker:
            assert [worker.does() for _ in range(3)] == ["[]", "None", "[]"]
        journal.flush()
        assert [line["message"] for line in stdout.lines()] == ["once"]


@pytest.mark.parametrize(
    ("level", "written"),
    [(logging.INFO, []), (logging.WARNING, ["warning"]), (logging.ERROR, ["error"]), (logging.CRITICAL, ["error"])],
)
def test_what_gunicorn_says_is_among_them_by_its_weight(level: int, written: list[str], journal: Journal) -> None:
    with Stdout() as stdout:
        MasterLog(Config(), journal).error_log.log(level, "Worker (pid:%s)", 7)
        lines = stdout.lines()
    assert [(line["level"], line["message"]) for line in lines] == [(each, "Worker (pid:7)") for each in written]


def test_a_traceback_is_a_field_of_one_line(journal: Journal) -> None:
    with Stdout() as stdout:
        try:
            raise ValueError("broken")
        except ValueError:
            MasterLog(Config(), journal).exception("in the main loop")
        (line,) = stdout.lines()
    assert line["message"] == "in the main loop"
    assert str(line["traceback"]).endswith("ValueError: broken\n")
