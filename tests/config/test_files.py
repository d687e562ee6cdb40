"""Reading files (what is no file: test_source.py)."""

from pathlib import Path

import pytest

from veillink.config.files import read_regular, signature


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
