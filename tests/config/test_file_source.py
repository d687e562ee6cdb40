"""Reading the rules' file, also on a file system that hangs (when it is read again: test_schedule.py)."""

import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from tests.sockets import eventually, open_files
from tests.tls import authority, certificate
from veillink.config import file_source, schedule
from veillink.config.file_source import FileSource, read
from veillink.config.files import Signature, read_regular, signature
from veillink.config.rows import MAX_FILE, Problem
from veillink.config.rules import Parsed
from veillink.model import RuleOptions

DEFAULT = RuleOptions()


def test_a_file_is_read_with_the_defaults_given(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("8080,db,5432\n8081,db,70000\n")
    rules, problems, *_ = FileSource(str(path), RuleOptions(idle_timeout=7)).load()
    assert [(rule.name, rule.options.idle_timeout) for rule in rules.rules] == [("8080", 7)]
    assert [(problem.line, problem.column) for problem in problems] == [(2, 3)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (Path.mkdir, "it is a directory"),
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
    ids=["missing", "directory", "FIFO", "device", "loop of links"],
)
def test_what_is_no_file_is_a_problem_of_one_line(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "rules.csv")
    before = open_files()
    rules, problems, *_ = FileSource(str(tmp_path / "rules.csv"), DEFAULT).load()
    assert rules.rules == ()
    assert problems == (Problem(0, 0, f"cannot be read: {reason}"),)
    assert open_files() == before


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert len(read_regular(str(path), MAX_FILE + 1)) == MAX_FILE + 1
    _, (problem,), *_ = FileSource(str(path), DEFAULT).load()
    assert "larger than 16 MiB" in problem.message


@pytest.mark.parametrize(("mode", "warned"), [(0o644, False), (0o666, True)])
def test_a_file_that_everybody_may_change_comes_with_a_warning(mode: int, warned: bool, tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("8080,db,70000\n")
    path.chmod(mode)
    warning = f"{path}: everybody on this host may change it; chmod o-w {path}"
    assert FileSource(str(path), DEFAULT).load().warnings == ((warning,) if warned else ())


# --- followed -----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(file_source, "signature", found.stat)
    yield found
    found.answers.set()


class Watched:
    def __init__(self, path: Path) -> None:
        self.said: list[str] = []
        self.problems: list[str] = []
        self.read: list[list[str]] = []
        self.found = Parsed()
        self.source = FileSource(str(path), DEFAULT)
        self.source.follow(self.on_read, self.say, watch=True)

    def on_read(self, found: Parsed) -> None:
        self.found = found
        self.problems += [problem.at("rules.csv") for problem in found.problems]
        self.read.append([rule.name for rule in found.rules.rules])

    def say(self, level: str, message: str, **fields: Any) -> None:
        self.said.append(message)


@pytest.fixture
def watched(file_system: FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(file_source, "_PATIENCE", 0.05)
    (tmp_path / "rules.csv").write_text("8080,host,80")
    watched = Watched(tmp_path / "rules.csv")
    yield watched
    file_system.answers.set()
    watched.source.close()


def test_a_file_system_that_hangs_is_told_once_and_asked_one_thing_at_a_time(
    watched: Watched, file_system: FileSystem, tmp_path: Path
) -> None:
    eventually(lambda: watched.read == [["8080"]])
    file_system.answers.clear()
    eventually(lambda: watched.said)
    asked = file_system.asked
    (tmp_path / "rules.csv").write_text("8081,host,80")
    for _ in range(20):
        watched.source.refresh_soon()
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
        found = read(*arguments)
        reads.append(found)
        go_on.wait()
        return found

    monkeypatch.setattr(file_source, "read", slow)
    watched.source.refresh_soon()
    eventually(lambda: reads)
    (tmp_path / "rules.csv").write_text("8081,host,80")
    watched.source.refresh_soon()
    go_on.set()
    eventually(lambda: watched.read[-1] == ["8081"])


@pytest.mark.parametrize("prepare", [lambda: None, lambda: gevent.sleep(0.05)], ids=["at once", "later"])
def test_it_ends_at_once_while_the_file_system_hangs(
    prepare: Callable[[], object], file_system: FileSystem, tmp_path: Path
) -> None:
    file_system.answers.clear()
    watched = Watched(tmp_path / "rules.csv")
    prepare()
    watched.source.close()
    assert watched.read == []


def test_what_could_not_be_read_for_lack_of_descriptors_is_read_later_unasked(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: watched.read)
    monkeypatch.setattr(schedule, "_AGAIN", 0.05)
    (tmp_path / "rules.csv").write_text("8081,host,80")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        eventually(lambda: watched.read[1:])
        problems = watched.found.problems
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert problems == (Problem(0, 0, "cannot be read: Too many open files"),)
    eventually(lambda: watched.read[-1] == ["8081"])


def test_a_file_that_is_not_there_is_told_once(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: watched.read)
    monkeypatch.setattr(schedule, "_AGAIN", 0.01)
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
    monkeypatch.setattr(schedule, "_AGAIN", 0.05)

    def broken(*_: object) -> None:
        monkeypatch.setattr(file_source, "read", read)
        raise MemoryError("no room")

    monkeypatch.setattr(file_source, "read", broken)
    watched.source.refresh_soon()
    eventually(lambda: watched.read[1:] == [[], ["8080"]])
    assert watched.said == ["unforeseen error"]


# --- what the rules name -------------------------------------------------------------------------------------------


def put(path: Path, content: bytes) -> None:
    part = path.with_name("part")
    part.write_bytes(content)
    part.rename(path)


def names(watched: Watched) -> tuple[str, ...]:
    (rule,) = watched.found.rules.rules or (None,)
    return rule.tls.certificates[0].names if rule and rule.tls else ()


@pytest.fixture
def renewed(watched: Watched, tmp_path: Path) -> Watched:
    """A rule with a certificate that certbot has renewed once."""
    for number in (1, 2):
        leaf = authority("ours").issue_cert(f"{number}.example")
        (tmp_path / f"archive{number}").mkdir()
        (tmp_path / f"archive{number}" / "cert.pem").write_bytes(b"".join(p.bytes() for p in leaf.cert_chain_pems))
        (tmp_path / f"archive{number}" / "key.pem").write_bytes(leaf.private_key_pem.bytes())
    for name in ("cert", "key"):
        (tmp_path / f"{name}.pem").symlink_to(f"archive1/{name}.pem")
    (tmp_path / "rules.csv").write_text("8080,host,80,tls=cert.pem,tls_key=key.pem")
    eventually(lambda: names(watched) == ("1.example",))
    return watched


def relink(folder: Path, name: str, to: str) -> None:
    (folder / "link").symlink_to(to)
    (folder / "link").rename(folder / name)


def test_links_to_a_renewed_pair_are_followed(renewed: Watched, tmp_path: Path) -> None:
    for name in ("cert", "key"):
        relink(tmp_path, f"{name}.pem", f"archive2/{name}.pem")
    eventually(lambda: names(renewed) == ("2.example",))
    assert renewed.problems == []


def test_a_swapped_folder_is_followed(watched: Watched, tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        leaf = authority("ours").issue_cert(f"{version}.example")
        (tmp_path / version / "tls.pem").write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "tls.pem").symlink_to("..data/tls.pem")
    (tmp_path / "rules.csv").write_text("8080,host,80,tls=tls.pem")
    eventually(lambda: names(watched) == ("1.example",))
    relink(tmp_path, "..data", "2")
    eventually(lambda: names(watched) == ("2.example",))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Parsed]:
    """What was read, also what was not told."""
    found: list[Parsed] = []

    def counted(*arguments: Any) -> Parsed:
        found.append(read(*arguments))
        return found[-1]

    monkeypatch.setattr(file_source, "read", counted)
    return found


def test_a_pair_that_does_not_fit_for_a_moment_is_not_told(
    renewed: Watched, reads: list[Parsed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "_LASTED", 60.0)
    relink(tmp_path, "cert.pem", "archive2/cert.pem")
    eventually(lambda: reads)
    assert [problem.file for problem in reads[0].problems] == ["key.pem"]
    relink(tmp_path, "key.pem", "archive2/key.pem")
    eventually(lambda: names(renewed) == ("2.example",))
    assert renewed.problems == []


def test_a_pair_that_does_not_fit_is_told_once_when_that_has_lasted(
    renewed: Watched, reads: list[Parsed], tmp_path: Path
) -> None:
    relink(tmp_path, "cert.pem", "archive2/cert.pem")
    eventually(lambda: renewed.problems)
    gevent.sleep(0.7)
    assert renewed.problems == ["key.pem: the private key is of another certificate"]
    assert len(reads) == 2


def test_what_changes_while_it_is_read_is_read_again(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: watched.read)
    put(tmp_path / "a.pem", certificate("a.example").private_key_and_cert_chain_pem.bytes())
    later = [certificate("b.example").private_key_and_cert_chain_pem.bytes()]

    def slow(*arguments: Any) -> Parsed:
        found = read(*arguments)
        if later:
            put(tmp_path / "a.pem", later.pop())
        return found

    monkeypatch.setattr(file_source, "read", slow)
    (tmp_path / "rules.csv").write_text("8080,host,80,tls=a.pem")
    eventually(lambda: names(watched) == ("a.example",))
    eventually(lambda: names(watched) == ("b.example",))
