"""Reading files (what is no file: test_file_source.py)."""

import os
from pathlib import Path

import pytest

from veillink.config.files import anybody_may_write, read_regular, signature


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    assert read_regular(str(tmp_path / "file"), 10) == b"x" * 10
    assert len(read_regular(str(tmp_path / "file"), 5000)) == 1000


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"):
        read_regular(str(tmp_path), 10)


def test_what_is_not_there_has_no_signature(tmp_path: Path) -> None:
    assert signature(str(tmp_path / "none")) is None
    assert signature("\0") is None


@pytest.mark.parametrize(("mode", "warned"), [(0o644, False), (0o666, True), (0o664, False)])
def test_a_file_that_everybody_may_change_is_found(mode: int, warned: bool, tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.touch()
    path.chmod(mode)
    assert anybody_may_write(str(path)) is warned
    assert not anybody_may_write(str(tmp_path / "missing"))
    assert not anybody_may_write("/dev/null")


def test_a_change_that_keeps_size_and_time_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text("8080,one,80")
    os.utime(path, (1, 1))
    before = signature(str(path))
    path.write_text("8080,two,80")  # as cp -p does: in place, and with the time of what is copied
    os.utime(path, (1, 1))
    assert signature(str(path)) != before
