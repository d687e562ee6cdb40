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
from veillink.config.rows import Problem
from veillink.config.source import Signature, load, signature
from veillink.config.watch import RulesWatch
from veillink.model import RuleOptions


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
