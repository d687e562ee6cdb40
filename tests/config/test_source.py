"""Reading the rules' file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.life import DEFAULT
from tests.sockets import open_files
from veillink.config.files import anybody_may_write, read_regular, signature
from veillink.config.rows import MAX_FILE, Problem
from veillink.config.source import read_rules
from veillink.config.watch import Schedule
from veillink.model import RuleOptions


def test_a_file_is_read_with_the_defaults_given(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("8080,db,5432\n8081,db,70000\n")
    rules, problems, _ = read_rules(str(path), RuleOptions(idle_timeout=7))
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
    rules, problems, _ = read_rules(str(tmp_path / "rules.csv"), DEFAULT)
    assert rules.rules == ()
    assert problems == (Problem(0, 0, f"cannot be read: {reason}"),)
    assert open_files() == before


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert len(read_regular(str(path), MAX_FILE + 1)) == MAX_FILE + 1
    _, (problem,), _ = read_rules(str(path), DEFAULT)
    assert "larger than 16 MiB" in problem.message


@pytest.mark.parametrize(("mode", "warned"), [(0o644, False), (0o666, True), (0o664, False)])
def test_a_file_that_everybody_may_change_is_found(mode: int, warned: bool, tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.touch()
    path.chmod(mode)
    assert anybody_may_write(str(path)) is warned
    assert not anybody_may_write(str(tmp_path / "missing"))
    assert not anybody_may_write("/dev/null")


def test_another_file_at_its_path_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("same")
        os.utime(tmp_path / name, (1, 1))
    path = tmp_path / "rules.csv"
    path.symlink_to("one")
    file = Schedule(signature(str(path)), watch=True)

    def due(now: float) -> bool:
        return file.due(signature(str(path)), now)

    assert not due(10)
    path.unlink()
    path.symlink_to("two")
    assert not due(20)
    assert due(20.5)
    path.unlink()
    assert not due(30)
    assert due(30.5)
    assert not due(40)


def test_a_change_that_keeps_size_and_time_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("8080,one,80")
    os.utime(path, (1, 1))
    before = signature(str(path))
    path.write_text("8080,two,80")  # as cp -p does: in place, and with the time of what is copied
    os.utime(path, (1, 1))
    assert signature(str(path)) != before
