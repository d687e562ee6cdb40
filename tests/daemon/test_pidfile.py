"""The file with the process's number."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forked import forked
from veillink.daemon.pidfile import check_pid, remove_pid, write_pid
from veillink.model import StartupError


def refusal(do: Callable[[str], None], path: str) -> str:
    """Return what is wrong."""
    with pytest.raises(StartupError) as why:
        do(path)
    return str(why.value)


def test_the_number_is_written_whole_and_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    for _ in range(2):
        write_pid(str(path))
        assert path.read_text() == f"{os.getpid()}\n"
    assert [each.name for each in tmp_path.iterdir()] == ["pid"]
    remove_pid(str(path))
    assert list(tmp_path.iterdir()) == []
    write_pid("")
    remove_pid("")


def test_the_number_of_a_living_process_is_left_alone_and_that_of_a_dead_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with forked() as other:
        path.write_text(f"{other.pid}\n")
        told = f"{path} has the number of process {other.pid}, which runs: stop it first, or remove the file"
        for do in (check_pid, write_pid):
            assert refusal(do, str(path)) == told
        assert path.read_text() == f"{other.pid}\n"
        remove_pid(str(path))
        assert path.exists()
        write_pid(str(path), instead_of=other.pid)
        path.write_text(f"{other.pid}\n")
    write_pid(str(path))


def test_a_process_that_began_after_the_file_was_written_has_not_written_it(tmp_path: Path) -> None:
    """As after a reboot, when its number is another program's."""
    path = tmp_path / "pid"
    with forked() as other:
        path.write_text(f"{other.pid}\n")
        os.utime(path, (0, time.time() - 60))
        write_pid(str(path))


@pytest.mark.parametrize("junk", ["", "\n", "junk", "-1", "9" * 30, "\0\0\0"])
def test_what_is_no_number_is_replaced(junk: str, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(junk)
    write_pid(str(path))


def _link(path: Path) -> None:
    path.with_name("elsewhere").write_text("precious")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [os.mkfifo, _link, Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_regular_file_is_neither_waited_for_nor_followed_nor_replaced(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    make(path)
    for do in (check_pid, write_pid):
        assert refusal(do, str(path)) == f"cannot write {path}: it is no regular file"
    remove_pid(str(path))
    assert not path.is_file() or path.read_text() == "precious"
    assert os.path.lexists(path)


def test_why_a_number_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "none" / "pid")
    for do in (check_pid, write_pid):
        assert refusal(do, path) == f"cannot write {path}: No such file or directory"
        assert "null" in refusal(do, "/tmp/\0")
