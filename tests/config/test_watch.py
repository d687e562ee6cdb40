"""The rules' file on a file system that hangs (when it is read at all: test_daemon.py)."""

import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from tests.sockets import eventually
from veillink.config import watch as rules_watch
from veillink.config.files import Signature, signature
from veillink.config.rows import Problem
from veillink.config.source import load
from veillink.config.watch import RulesWatch, Schedule
from veillink.model import RuleOptions

WRITE, ASK, LOOK = "write", "ask", "look"


class FileSystem:
    """Answers stat(2), but for the time that it hangs."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()

    def stat(self, path: str) -> Signature:
        self.asked += 1
        self.answers.wait()
        return signature(path)


@pytest.fixture
def file_system(hub: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
    found = FileSystem()
    monkeypatch.setattr(rules_watch, "signature", found.stat)
    yield found
    found.answers.set()


class Watched:
    def __init__(self, path: Path) -> None:
        self.said: list[str] = []
        self.read: list[list[str]] = []
        self.watch = RulesWatch(str(path), RuleOptions(), watch=True, log=self.say)
        self.watch.follow(lambda: self.read.append([rule.name for rule in self.watch.found.rules.rules]))

    def say(self, level: str, message: str, **fields: Any) -> None:
        self.said.append(message)


@pytest.fixture
def watched(file_system: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(rules_watch, "_PATIENCE", 0.05)
    (tmp_path / "rules.csv").write_text("8080,host,80")
    watched = Watched(tmp_path / "rules.csv")
    yield watched
    file_system.answers.set()
    watched.watch.close()


def test_a_file_system_that_hangs_is_told_once_and_asked_one_thing_at_a_time(
    watched: Watched, file_system: FileSystem, tmp_path: Path
) -> None:
    eventually(lambda: watched.read == [["8080"]])
    file_system.answers.clear()
    eventually(lambda: watched.said)
    asked = file_system.asked
    (tmp_path / "rules.csv").write_text("8081,host,80")
    for _ in range(20):
        watched.watch.ask()
        gevent.sleep(0.01)
    assert file_system.asked == asked
    assert watched.said == [
        f"{tmp_path}/rules.csv: no answer for 0.05 s: its file system hangs; the rules stay as they are"
    ]
    file_system.answers.set()
    eventually(lambda: watched.read[-1] == ["8081"])
    assert watched.said[1:] == [f"{tmp_path}/rules.csv: the file system answers again"]


def test_asked_for_while_it_is_read_it_is_read_again(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: watched.read)
    reads, go_on = [], threading.Event()

    def slow(*arguments: Any) -> Any:
        found = load(*arguments)
        reads.append(found)
        go_on.wait()
        return found

    monkeypatch.setattr(rules_watch, "load", slow)
    watched.watch.ask()
    eventually(lambda: reads)
    (tmp_path / "rules.csv").write_text("8081,host,80")
    watched.watch.ask()
    go_on.set()
    eventually(lambda: watched.read[-1] == ["8081"])


@pytest.mark.parametrize("prepare", [lambda: None, lambda: gevent.sleep(0.05)], ids=["at once", "later"])
def test_it_ends_at_once_while_the_file_system_hangs(
    prepare: Callable[[], object], file_system: FileSystem, tmp_path: Path
) -> None:
    file_system.answers.clear()
    watched = Watched(tmp_path / "rules.csv")
    prepare()
    watched.watch.close()
    assert watched.read == []


def test_what_could_not_be_read_for_lack_of_descriptors_is_read_later_unasked(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: watched.read)
    monkeypatch.setattr(rules_watch, "_AGAIN", 0.05)
    (tmp_path / "rules.csv").write_text("8081,host,80")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        eventually(lambda: watched.read[1:])
        problems = watched.watch.found.problems
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert problems == (Problem(0, 0, "cannot be read: Too many open files"),)
    eventually(lambda: watched.read[-1] == ["8081"])


def test_a_file_that_is_not_there_is_told_once(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: watched.read)
    monkeypatch.setattr(rules_watch, "_AGAIN", 0.01)
    (tmp_path / "rules.csv").unlink()
    eventually(lambda: watched.read[1:])
    gevent.sleep(0.7)
    assert watched.read == [["8080"], []]
    (tmp_path / "rules.csv").write_text("8081,host,80")
    eventually(lambda: watched.read[-1] == ["8081"])


def test_what_breaks_while_it_is_read_is_told_and_tried_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: watched.read)
    monkeypatch.setattr(rules_watch, "_AGAIN", 0.05)

    def broken(*_: object) -> None:
        monkeypatch.setattr(rules_watch, "load", load)
        raise MemoryError("no room")

    monkeypatch.setattr(rules_watch, "load", broken)
    watched.watch.ask()
    eventually(lambda: watched.read[1:] == [[], ["8080"]])
    assert watched.said == ["unforeseen error"]


@pytest.mark.parametrize(
    ("watch", "steps", "read_at"),
    [
        (True, [], []),
        (True, [(1.0, WRITE)], [1.5]),
        (False, [(1.0, WRITE)], []),
        (True, [(1.0, WRITE), (1.4, WRITE), (1.8, WRITE)], [2.3]),
        (True, [(1.0, ASK)], [1.1]),
        (False, [(1.0, ASK)], [1.1]),
        (True, [(1.0, WRITE), (1.0, ASK)], [1.1]),
        (True, [(1.0, WRITE), (1.0, ASK), (2.0, ASK)], [1.1, 2.1]),
        (True, [(1.0, ASK), (1.05, WRITE), (1.14, WRITE)], [1.24]),
        (False, [(1 + n * 0.05, ASK) for n in range(40)], [2.0, 3.05]),
        (True, [(1.0, WRITE), (1.5, WRITE)], [2.0]),
        (True, [(1.0, WRITE), (1.6, WRITE)], [1.5, 2.1]),
    ],
)
def test_the_file_is_read_once_it_stands_still(
    watch: bool, steps: list[tuple[float, str]], read_at: list[float], tmp_path: Path
) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("")
    file = Schedule(signature(str(path)), watch=watch)
    due = []
    for tick in range(400):
        now = tick / 100
        for at, step in steps:
            if round(at * 100) == tick:
                if step == WRITE:
                    path.write_text(path.read_text() + "x")
                else:
                    file.ask(now)
        if file.due(signature(str(path)), now):
            due.append(now)
    assert due == pytest.approx(read_at, abs=0.011)


def test_how_often_it_is_looked_at_follows_from_what_is_awaited() -> None:
    assert Schedule(None, watch=False).next_look(0) is None
    file = Schedule(None, watch=True)
    assert file.next_look(0) == 0.25
    file.ask(0)
    assert file.next_look(0) == 0.025
    assert file.due(None, 1)
    assert file.next_look(1) == 0.25
    assert not file.due((1,), 10)  # it has changed
    looks = [file.next_look(now) for now in (10, 10.125, 10.4, 10.5)]
    assert looks == pytest.approx([0.125, 0.125, 0.1, 0.25])
    assert file.due((1,), 10.5)


@pytest.mark.parametrize("watch", [True, False])
def test_what_was_not_to_be_had_is_read_once_more_later(watch: bool) -> None:
    file = Schedule(None, watch=watch)
    file.ask_again(10)
    assert [now for now in range(10, 30) if file.due(None, now)] == [15]
