"""Whose folder it is."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fleet.test_merge import state
from tests.fleet.test_scoreboard import shown, slots
from tests.forked import forked
from veillink.fleet.control import Control
from veillink.fleet.folder import remove_unheld
from veillink.fleet.scoreboard import Scoreboard


def test_no_link_is_followed(scoreboard: Scoreboard, tmp_path: Path) -> None:
    """Neither one in the place of the folder nor one in the place of a file; what it leads to is not touched."""
    (slot,) = slots(scoreboard, 1)
    slot.publish(state(3, 0, 1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    treasure = tmp_path / "treasure"
    treasure.write_bytes((scoreboard.folder / "1.status").read_bytes())
    (scoreboard.folder / "1.status").unlink()
    for name in ("1.status", "1.status.new"):
        (scoreboard.folder / name).symlink_to(treasure)
    assert scoreboard.status() is None
    with pytest.raises(OSError, match="symbolic links"):
        slot.publish(state())
    shutil.rmtree(scoreboard.folder)
    scoreboard.folder.symlink_to(elsewhere)
    scoreboard.keep()
    with pytest.raises(OSError, match="Not a directory"):
        slot.publish(state())
    assert scoreboard.status() is None
    scoreboard.remove()
    assert list(elsewhere.iterdir()) == []
    assert len(treasure.read_bytes()) > 100
    scoreboard.folder.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.parametrize("change", [lambda path: os.chown(path, 12345, 12345), lambda path: path.chmod(0o755)])
def test_a_folder_that_is_not_ours_alone_is_not_used(change: Callable[[Path], object], scoreboard: Scoreboard) -> None:
    (slot,) = slots(scoreboard, 1)
    slot.publish(state(3, 0, 1))
    change(scoreboard.folder)
    assert scoreboard.status() is None
    with pytest.raises(PermissionError):
        slot.publish(state())
    os.chown(scoreboard.folder, 0, 0)
    scoreboard.folder.chmod(0o700)


def test_where_one_home_has_no_room_the_other_one_is_used(tmp_path: Path) -> None:
    """And as soon as the first has room again, what is in the second is not read any more."""
    full, roomy = tmp_path / "full", tmp_path / "roomy"
    roomy.mkdir()
    scoreboard = Scoreboard([full, roomy], Control())
    first, second = slots(scoreboard, 2)
    for slot in (first, second):
        slot.publish(state(1, 0, 1))
    scoreboard.archive_worker(1)
    assert shown(scoreboard)["rules"][0]["total"] == 2
    full.mkdir()
    second.publish(state(4, 0, 1))
    assert shown(scoreboard)["rules"][0]["total"] == 5
    shutil.rmtree(full)
    full.touch()
    second.publish(state(6, 0, 1))
    assert shown(scoreboard)["rules"][0]["total"] == 7
    scoreboard.remove()
    assert list(roomy.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_an_older_state_in_a_home_that_is_full_is_not_read(tmp_path: Path) -> None:
    small, roomy = tmp_path / "small", tmp_path / "roomy"
    for path in (small, roomy):
        path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False).returncode:
        pytest.skip("needs CAP_SYS_ADMIN, to mount")
    try:
        scoreboard = Scoreboard([small, roomy], Control())
        (slot,) = slots(scoreboard, 1)
        slot.publish(state(1, 0, 1))
        slot.publish(state(2, 0, 1) | {"more": "x" * 200_000})
        assert shown(scoreboard)["rules"][0]["total"] == 2
        assert [path.name for path in (small / scoreboard.folder.name).iterdir()] == []
        slot.publish(state(3, 0, 1) | {"more": "x" * 40_000})
        slot.publish(state(3, 0, 1) | {"more": "x" * 40_000})  # there is no room for both
        assert [path.name for path in (small / scoreboard.folder.name).iterdir()] == ["1.status"]
        assert shown(scoreboard)["rules"][0]["total"] == 3
        scoreboard.remove()
        os.close(scoreboard._folders[0]._held)
    finally:
        subprocess.run(["umount", small], check=True)


def test_folders_whose_processes_are_gone_are_removed_by_the_next_one(tmp_path: Path) -> None:
    """By a lock that goes with the last process that has inherited it, and not by age."""
    scoreboard = Scoreboard([tmp_path], Control())
    scoreboard.keep()
    scoreboard.write("1.status", state())
    os.utime(scoreboard.folder, (0, 0))
    (tmp_path / "link").symlink_to(scoreboard.folder)
    with forked() as worker:
        os.close(scoreboard._folders[0]._held)  # as when the master is killed
        remove_unheld(tmp_path, "*")
        assert worker.pid
        assert scoreboard.folder.exists()
    remove_unheld(tmp_path, "link")
    assert scoreboard.folder.exists()
    remove_unheld(tmp_path, "*")
    assert not scoreboard.folder.exists()
