"""Tests of what workers share through files."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from veillink.control import Control, Fleet, Slot
from veillink.folder import remove_unheld
from veillink.scoreboard import Scoreboard, Seat

from .forked import Cfg, forked
from .test_merge import state


def in_memory() -> Scoreboard:
    board = Scoreboard([Path("/dev/shm")], Control())
    board.keep()
    return board


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = in_memory()
    yield board
    board.remove()
    assert not board.folder.exists()


def seats(board: Scoreboard, count: int) -> list[Seat]:
    return [Seat(board, Slot(Cfg()), number) for number in range(1, count + 1)]


def shown(board: Scoreboard) -> dict[str, Any]:
    status = board.status()
    assert status is not None
    return status


def test_only_its_owner_may_look_into_it(board: Scoreboard) -> None:
    assert board.folder.stat().st_mode & 0o777 == 0o700


def test_the_states_of_all_are_one_state(board: Scoreboard) -> None:
    for seat in seats(board, 3):
        seat.publish(state(2, seat.number, 1))
    whole = shown(board)
    assert whole["rules"][0]["total"] == 12
    assert [(each["worker"], each["pid"], each["active"]) for each in whole["workers"]] == [
        (number, os.getpid(), number) for number in (1, 2, 3)
    ]
    assert all(0 <= each["age"] < 5 for each in whole["workers"])


def test_one_that_runs_speaks_for_those_that_do_not(board: Scoreboard) -> None:
    first, second = seats(board, 2)
    first.publish(state(phase="draining"))
    second.publish(state(phase="running"))
    assert shown(board)["phase"] == "running"
    second.publish(state(phase="starting"))
    assert shown(board)["phase"] == "draining"
    board.control.tell(Fleet(2, draining=True))
    assert shown(board)["phase"] == "draining"


def test_the_dead_are_counted_once_at_every_moment(board: Scoreboard) -> None:
    """One thread buries, another reads: not even for a moment is somebody missing, or counted twice."""
    dying = seats(board, 60)
    Seat(board, Slot(Cfg()), 1000).publish(state(1, 0, 1))
    for seat in dying:
        seat.publish(state(1, 0, 1))
    seen, over = set(), threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(shown(board)["rules"][0]["total"])

    looker = threading.Thread(target=look)
    looker.start()
    for seat in dying:
        board.bury(seat.number)
    over.set()
    looker.join()
    assert seen == {61}


def test_of_rules_that_nobody_has_any_more_the_dead_leave_no_more_than_the_totals(board: Scoreboard) -> None:
    """Otherwise a generator that renames rules would have it grow for ever."""
    for seat in seats(board, 3):
        seat.publish(state(1, 0, 1, rule={"name": "old"}))
    board.bury(1)
    for seat in seats(board, 4)[2:]:
        seat.publish(state(1, 0, 1, rule={"name": "new"}))

    def left() -> list[str]:
        gone = board.read()[1]
        assert gone is not None
        return [rule["name"] for rule in gone["rules"]]

    board.bury(3)
    assert left() == ["old", "new"]  # the second one has not read the rules again yet
    board.bury(2)
    assert left() == ["old", "new"]
    *_, starts, next_one = seats(board, 6)
    starts.publish(state(rules=[]))
    board.bury(4)
    assert left() == ["new"]
    board.bury(5)
    assert left() == ["new"]  # when all of them are killed, those in their place know of no rule at first
    next_one.publish(state(1, 0, 1, rule={"name": "new"}))
    assert shown(board)["rules"][0]["total"] == 3
    assert shown(board)["totals"]["connections"] == 5


def test_one_that_has_published_nothing_leaves_nothing(board: Scoreboard) -> None:
    board.bury(1)
    assert board.read() == ([], None)
    assert board.status() is None


def test_connections_are_told_once_asked_for_and_awaited_from_everybody(board: Scoreboard) -> None:
    assert not board.is_asked_for_connections()
    board.ask_for_connections()
    assert board.is_asked_for_connections()
    first, second = seats(board, 2)
    for seat in (first, second):
        seat.publish(state())
    first.publish_connections([{"id": 1}])
    assert board.connections(1.0) is None
    assert board.connections(0.0) == [{"id": 1}]
    second.publish_connections([{"id": 2}, {"id": 3}])
    assert board.connections(1.0) == [{"id": 1}, {"id": 2}, {"id": 3}]


def test_a_folder_that_was_removed_for_good_stays_so() -> None:
    board = in_memory()
    (seat,) = seats(board, 1)
    board.remove()
    with pytest.raises(FileNotFoundError):
        seat.publish(state())
    board.ask_for_connections()
    assert not board.is_asked_for_connections()
    assert not board.folder.exists()


def test_a_folder_that_somebody_removed_is_made_again_with_what_the_dead_have_left(board: Scoreboard) -> None:
    first, second = seats(board, 2)
    for seat in (first, second):
        seat.publish(state(2, 0, 1))
    board.bury(1)
    shutil.rmtree(board.folder)
    second.publish(state(2, 0, 1))
    board.keep()
    assert shown(board)["rules"][0]["total"] == 4
    assert board.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("junk", [b"", b"junk", b"\xfb\0\0", bytes(1000)])
def test_what_cannot_be_decoded_is_absent(junk: bytes, board: Scoreboard) -> None:
    for seat in seats(board, 2):
        seat.publish(state(3, 0, 1))
        seat.publish_connections([{"id": seat.number}])
    for name in ("1.status", "1.connections", "buried"):
        (board.folder / name).write_bytes(junk)
    assert shown(board)["rules"][0]["total"] == 3
    assert board.connections(0.0) == [{"id": 2}]


# --- whose folder it is ----------------------------------------------------------------------------------------------


def test_no_link_is_followed(board: Scoreboard, tmp_path: Path) -> None:
    """Neither one in the place of the folder nor one in the place of a file; what it leads to is not touched."""
    (seat,) = seats(board, 1)
    seat.publish(state(3, 0, 1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    treasure = tmp_path / "treasure"
    treasure.write_bytes((board.folder / "1.status").read_bytes())
    (board.folder / "1.status").unlink()
    for name in ("1.status", "1.status.new"):
        (board.folder / name).symlink_to(treasure)
    assert board.status() is None
    with pytest.raises(OSError, match="symbolic links"):
        seat.publish(state())
    shutil.rmtree(board.folder)
    board.folder.symlink_to(elsewhere)
    board.keep()
    with pytest.raises(OSError, match="Not a directory"):
        seat.publish(state())
    assert board.status() is None
    board.remove()
    assert list(elsewhere.iterdir()) == []
    assert len(treasure.read_bytes()) > 100
    board.folder.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.parametrize("change", [lambda path: os.chown(path, 12345, 12345), lambda path: path.chmod(0o755)])
def test_a_folder_that_is_not_ours_alone_is_not_used(change: Callable[[Path], object], board: Scoreboard) -> None:
    (seat,) = seats(board, 1)
    seat.publish(state(3, 0, 1))
    change(board.folder)
    assert board.status() is None
    with pytest.raises(PermissionError):
        seat.publish(state())
    os.chown(board.folder, 0, 0)
    board.folder.chmod(0o700)


def test_where_one_home_has_no_room_the_other_one_is_used(tmp_path: Path) -> None:
    """And as soon as the first has room again, what is in the second is not read any more."""
    full, roomy = tmp_path / "full", tmp_path / "roomy"
    roomy.mkdir()
    board = Scoreboard([full, roomy], Control())
    first, second = seats(board, 2)
    for seat in (first, second):
        seat.publish(state(1, 0, 1))
    board.bury(1)
    assert shown(board)["rules"][0]["total"] == 2
    full.mkdir()
    second.publish(state(4, 0, 1))
    assert shown(board)["rules"][0]["total"] == 5
    shutil.rmtree(full)
    full.touch()
    second.publish(state(6, 0, 1))
    assert shown(board)["rules"][0]["total"] == 7
    board.remove()
    assert list(roomy.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_an_older_state_in_a_home_that_is_full_is_not_read(tmp_path: Path) -> None:
    small, roomy = tmp_path / "small", tmp_path / "roomy"
    for path in (small, roomy):
        path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False).returncode:
        pytest.skip("needs CAP_SYS_ADMIN, to mount")
    try:
        board = Scoreboard([small, roomy], Control())
        (seat,) = seats(board, 1)
        seat.publish(state(1, 0, 1))
        seat.publish(state(2, 0, 1) | {"more": "x" * 200_000})
        assert shown(board)["rules"][0]["total"] == 2
        assert [path.name for path in (small / board.folder.name).iterdir()] == []
        seat.publish(state(3, 0, 1) | {"more": "x" * 40_000})
        seat.publish(state(3, 0, 1) | {"more": "x" * 40_000})  # there is no room for both
        assert [path.name for path in (small / board.folder.name).iterdir()] == ["1.status"]
        assert shown(board)["rules"][0]["total"] == 3
        board.remove()
        os.close(board._folders[0]._held)
    finally:
        subprocess.run(["umount", small], check=True)


def test_folders_whose_processes_are_gone_are_removed_by_the_next_one(tmp_path: Path) -> None:
    """By a lock that goes with the last process that has inherited it, and not by age."""
    board = Scoreboard([tmp_path], Control())
    board.keep()
    board.write("1.status", state())
    os.utime(board.folder, (0, 0))
    (tmp_path / "link").symlink_to(board.folder)
    with forked() as worker:
        os.close(board._folders[0]._held)  # as when the master is killed
        remove_unheld(tmp_path, "*")
        assert worker.pid
        assert board.folder.exists()
    remove_unheld(tmp_path, "link")
    assert board.folder.exists()
    remove_unheld(tmp_path, "*")
    assert not board.folder.exists()
