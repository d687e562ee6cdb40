"""The master's log."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
from gunicorn.config import Config

from veillink.fleet.journal import Journal, MasterLog


@contextmanager
def stdout() -> Iterator[int]:
    """Give stdout to a pipe, and return what reads from it (not as a fixture: pytest sets its own after those)."""
    reader, writer = os.pipe()
    before = os.dup(1)
    os.dup2(writer, 1)
    os.close(writer)
    os.set_blocking(reader, False)
    yield reader
    os.dup2(before, 1)
    os.close(before)
    os.close(reader)


def journal(**settings: str) -> Journal:
    return Journal(Mock(**({"log_format": "text", "log_level": "info"} | settings)))


def test_lines_are_written_at_once_from_their_level_on() -> None:
    with stdout() as out:
        mine = journal()
        mine.write("debug", "too little")
        mine.write("info", "ready", pid=7)
        line = os.read(out, 1000).decode()
        assert line.endswith(" info ready pid=7\n")
        assert line.count("\n") == 1


def test_gunicorns_lines_are_among_them() -> None:
    with stdout() as out:
        log = MasterLog(Config(), journal(log_level="debug"))
        log.error("worker %s is late", 7)
        log.info("Booting worker")
        error, booting = os.read(out, 1000).decode().splitlines()
        assert error.endswith(" error worker 7 is late")
        assert " debug Booting worker" in booting


def test_a_reader_that_stopped_is_not_waited_for_and_gets_them_later() -> None:
    with stdout() as out:
        os.set_blocking(1, False)
        filled = 0
        while True:
            try:
                filled += os.write(1, b"x" * 4096)
            except BlockingIOError:
                break
        mine = journal()
        mine.write("info", "late")
        while filled:
            filled -= len(os.read(out, filled))
        mine.flush()
        assert os.read(out, 1000).endswith(b" info late\n")


def test_what_was_not_written_is_not_written_by_a_child_too() -> None:
    with stdout() as out:
        mine = journal()
        mine._unwritten.append("of the parent")
        pid = os.fork()
        if not pid:
            mine.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(BlockingIOError):
            os.read(out, 1000)
