"""Tests of what workers share through files."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.test_merge import state
from tests.forked import Cfg, forked
from veillink.fleet.control import Control, Fleet, Heartbeat
from veillink.fleet.folder import remove_unheld
from veillink.fleet.scoreboard import Scoreboard, Slot
from veillink.stats.snapshot import ConnectionState


def live(number: int) -> ConnectionState:
    return {
        "id": number,
        "rule": "web",
        "client": "192.0.2.7:50000",
        "target": None,
        "age": 1.0,
        "bytes_in": 0,
        "bytes_out": 0,
    }


def slots(scoreboard: Scoreboard, count: int) -> list[Slot]:
    return [Slot(scoreboard, Heartbeat(Cfg()), number) for number in range(1, count + 1)]


def shown(scoreboard: Scoreboard) -> Any:
    status = scoreboard.status()
    assert status is not None
    return status


def test_only_its_owner_may_look_into_it(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_states_of_all_are_one_state(scoreboard: Scoreboard) -> None:
    for slot in slots(scoreboard, 3):
        slot.publish(state(2, slot.number, 1))
    whole = shown(scoreboard)
    assert whole["rules"][0]["total"] == 12
    assert [(each["worker"], each["pid"], each["active"]) for each in whole["workers"]] == [
        (number, os.getpid(), number) for number in (1, 2, 3)
    ]
    assert all(0 <= each["age"] < 5 for each in whole["workers"])


def test_one_that_runs_speaks_for_those_that_do_not(scoreboard: Scoreboard) -> None:
    first, second = slots(scoreboard, 2)
    first.publish(state(phase="draining"))
    second.publish(state(phase="running"))
    assert shown(scoreboard)["phase"] == "running"
    second.publish(state(phase="starting"))
    assert shown(scoreboard)["phase"] == "draining"
    scoreboard.control.publish_fleet(Fleet(2, draining=True))
    assert shown(scoreboard)["phase"] == "draining"


def test_the_dead_are_counted_once_at_every_moment(scoreboard: Scoreboard) -> None:
    """One thread archives, another reads: not even for a moment is somebody missing, or counted twice."""
    dying = slots(scoreboard, 60)
    Slot(scoreboard, Heartbeat(Cfg()), 1000).publish(state(1, 0, 1))
    for slot in dying:
        slot.publish(state(1, 0, 1))
    seen, over = set(), threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(shown(scoreboard)["rules"][0]["total"])

    looker = threading.Thread(target=look)
    looker.start()
    for slot in dying:
        scoreboard.archive_worker(slot.number)
    over.set()
    looker.join()
    assert seen == {61}


def test_of_rules_that_nobody_has_any_more_the_dead_leave_no_more_than_the_totals(scoreboard: Scoreboard) -> None:
    """Otherwise a generator that renames rules would have it grow for ever."""
    for slot in slots(scoreboard, 3):
        slot.publish(state(1, 0, 1, rule={"name": "old"}))
    scoreboard.archive_worker(1)
    for slot in slots(scoreboard, 4)[2:]:
        slot.publish(state(1, 0, 1, rule={"name": "new"}))

    def left() -> list[str]:
        gone = scoreboard.read()[1]
        assert gone is not None
        return [rule["name"] for rule in gone["rules"]]

    scoreboard.archive_worker(3)
    assert left() == ["old", "new"]  # the second one has not read the rules again yet
    scoreboard.archive_worker(2)
    assert left() == ["old", "new"]
    *_, starts, next_one = slots(scoreboard, 6)
    starts.publish(state(rules=[]))
    scoreboard.archive_worker(4)
    assert left() == ["new"]
    scoreboard.archive_worker(5)
    assert left() == ["new"]  # when all of them are killed, those in their place know of no rule at first
    next_one.publish(state(1, 0, 1, rule={"name": "new"}))
    assert shown(scoreboard)["rules"][0]["total"] == 3
    assert shown(scoreboard)["totals"]["connections"] == 5


def test_one_that_has_published_nothing_leaves_nothing(scoreboard: Scoreboard) -> None:
    scoreboard.archive_worker(1)
    assert scoreboard.read() == ([], None)
    assert scoreboard.status() is None


def test_connections_are_told_once_asked_for_and_awaited_from_everybody(scoreboard: Scoreboard) -> None:
    assert not scoreboard.is_asked_for_connections()
    scoreboard.ask_for_connections()
    assert scoreboard.is_asked_for_connections()
    first, second = slots(scoreboard, 2)
    for slot in (first, second):
        slot.publish(state())
    first.publish_connections([live(1)])
    assert scoreboard.connections(1.0) is None
    assert scoreboard.connections(0.0) == [live(1)]
    second.publish_connections([live(2), live(3)])
    assert scoreboard.connections(1.0) == [live(1), live(2), live(3)]


def test_a_folder_that_was_removed_for_good_stays_so(scoreboard: Scoreboard, folder: Path) -> None:
    (slot,) = slots(scoreboard, 1)
    scoreboard.remove()
    with pytest.raises(FileNotFoundError):
        slot.publish(state())
    scoreboard.ask_for_connections()
    assert not scoreboard.is_asked_for_connections()
    assert not folder.exists()


def test_a_folder_that_somebody_removed_is_made_again_with_what_the_dead_have_left(
    scoreboard: Scoreboard, folder: Path
) -> None:
    first, second = slots(scoreboard, 2)
    for slot in (first, second):
        slot.publish(state(2, 0, 1))
    scoreboard.archive_worker(1)
    shutil.rmtree(folder)
    second.publish(state(2, 0, 1))
    scoreboard.keep()
    assert shown(scoreboard)["rules"][0]["total"] == 4
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("junk", [b"", b"junk", b"\xfb\0\0", bytes(1000)])
def test_what_cannot_be_decoded_is_absent(junk: bytes, scoreboard: Scoreboard, folder: Path) -> None:
    for slot in slots(scoreboard, 2):
        slot.publish(state(3, 0, 1))
        slot.publish_connections([live(slot.number)])
    for name in ("1.status", "1.connections", "archive"):
        (folder / name).write_bytes(junk)
    assert shown(scoreboard)["rules"][0]["total"] == 3
    assert scoreboard.connections(0.0) == [live(2)]


# --- its folders ---


def test_no_link_is_followed_to_states_or_by_them(scoreboard: Scoreboard, folder: Path, tmp_path: Path) -> None:
    """Neither one in the place of the folder nor one in the place of a file; what it leads to is not touched."""
    (slot,) = slots(scoreboard, 1)
    slot.publish(state(3, 0, 1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    treasure = tmp_path / "treasure"
    treasure.write_bytes((folder / "1.status").read_bytes())
    (folder / "1.status").unlink()
    for name in ("1.status", "1.status.new"):
        (folder / name).symlink_to(treasure)
    assert scoreboard.status() is None
    with pytest.raises(OSError, match="symbolic links"):
        slot.publish(state())
    shutil.rmtree(folder)
    folder.symlink_to(elsewhere)
    scoreboard.keep()
    with pytest.raises(OSError, match="Not a directory"):
        slot.publish(state())
    assert scoreboard.status() is None
    scoreboard.remove()
    assert list(elsewhere.iterdir()) == []
    assert len(treasure.read_bytes()) > 100
    folder.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.parametrize("change", [lambda path: os.chown(path, 12345, 12345), lambda path: path.chmod(0o755)])
def test_a_folder_that_is_not_ours_alone_is_not_used(
    change: Callable[[Path], object], scoreboard: Scoreboard, folder: Path
) -> None:
    (slot,) = slots(scoreboard, 1)
    slot.publish(state(3, 0, 1))
    change(folder)
    assert scoreboard.status() is None
    with pytest.raises(PermissionError):
        slot.publish(state())
    os.chown(folder, 0, 0)
    folder.chmod(0o700)


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
        (folder,) = small.iterdir()
        assert list(folder.iterdir()) == []
        slot.publish(state(3, 0, 1) | {"more": "x" * 40_000})
        slot.publish(state(3, 0, 1) | {"more": "x" * 40_000})  # there is no room for both
        assert [path.name for path in folder.iterdir()] == ["1.status"]
        assert shown(scoreboard)["rules"][0]["total"] == 3
        scoreboard.remove()
        os.close(scoreboard._folders[0]._held)
    finally:
        subprocess.run(["umount", small], check=True)


def test_folders_whose_processes_are_gone_are_removed_by_the_next_one(tmp_path: Path) -> None:
    """By a lock that goes with the last process that has inherited it, and not by age."""
    scoreboard = Scoreboard([tmp_path], Control())
    scoreboard.keep()
    (folder,) = tmp_path.iterdir()
    scoreboard.write("1.status", state())
    os.utime(folder, (0, 0))
    (tmp_path / "link").symlink_to(folder)
    with forked() as worker:
        os.close(scoreboard._folders[0]._held)  # as when the master is killed
        remove_unheld(tmp_path, "*")
        assert worker.pid
        assert folder.exists()
    remove_unheld(tmp_path, "link")
    assert folder.exists()
    remove_unheld(tmp_path, "*")
    assert not folder.exists()
