"""Tests of a folder of our own: whole files, nobody else's, and gone with its processes."""

import shutil
from pathlib import Path

import pytest

from tests.forked import forked
from tests.sockets import open_files
from veillink.fleet.folder import Folder, remove_unheld


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "ours")
    folder.keep()
    return folder


def test_a_file_is_there_whole_until_it_is_replaced_or_removed(folder: Folder) -> None:
    assert (folder.read("one"), folder.changed("one"), folder.names()) == (b"", 0.0, [])
    for data in (b"a" * 100_000, b"b"):
        folder.write("one", data)
        assert folder.read("one") == data
    assert folder.names() == ["one"]
    assert folder.changed("one") > 0
    folder.unlink("one")
    folder.unlink("one")
    assert folder.names() == []


def test_nothing_is_left_open(folder: Folder) -> None:
    before = open_files()
    for _ in range(3):
        folder.keep()
        folder.write("one", b"1")
        assert folder.read("one") == b"1"
        assert folder.read("none") == b""
        assert folder.names() == ["one"]
    assert open_files() == before


def test_what_somebody_removed_is_made_again_for_its_owner_alone(folder: Folder) -> None:
    shutil.rmtree(folder.path)
    assert folder.names() == []
    folder.write("one", b"1")
    assert folder.read("one") == b"1"
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_what_was_removed_for_good_stays_so(folder: Folder) -> None:
    folder.write("one", b"1")
    folder.remove()
    assert not folder.path.exists()
    with pytest.raises(FileNotFoundError):
        folder.write("one", b"1")
    folder.remove()


@pytest.mark.parametrize("name", ["file", "folder"])
def test_no_link_is_followed(name: str, folder: Folder, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    (theirs / "one").write_bytes(b"precious")
    if name == "file":
        (folder.path / "one").symlink_to(theirs / "one")
    else:
        shutil.rmtree(folder.path)
        folder.path.symlink_to(theirs)
    assert folder.read("one") == b""
    if name == "folder":
        with pytest.raises(NotADirectoryError):
            folder.write("one", b"mine")
    folder.unlink("one")
    folder.remove()
    assert (theirs / "one").read_bytes() == b"precious"


def test_what_others_may_look_into_is_not_used(folder: Folder) -> None:
    folder.write("one", b"1")
    folder.path.chmod(0o755)
    assert folder.read("one") == b""
    with pytest.raises(PermissionError):
        folder.write("one", b"2")


def test_it_is_held_by_who_inherits_it_and_removed_when_nobody_holds_it(tmp_path: Path) -> None:
    def make() -> str:
        Folder(tmp_path / "ours").write("one", b"1")
        return "made"

    kept: list[Folder] = []

    def hold() -> str:
        kept.append(Folder(tmp_path / "ours"))
        kept[0].keep()
        return "holds"

    with forked(make, hold) as process:
        process.does()
        process.does()
        remove_unheld(tmp_path, "ours")
        assert (tmp_path / "ours" / "one").exists()
    remove_unheld(tmp_path, "theirs")
    assert (tmp_path / "ours").exists()
    remove_unheld(tmp_path, "ours")
    assert not (tmp_path / "ours").exists()
