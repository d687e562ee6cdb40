"""Tests of what workers share through files."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veillink.scoreboard import Fleet, Scoreboard, Seat, State

from .test_merge import state


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.make()
    yield board
    board.remove()
    assert not board.folder.exists()


def seats(board: Scoreboard, count: int) -> list[Seat]:
    return [Seat(board, number) for number in range(1, count + 1)]


def shown(board: Scoreboard) -> dict[str, Any]:
    status = board.status()
    assert status is not None
    return status


def test_only_its_owner_may_look_into_it(board: Scoreboard) -> None:
    assert board.folder.stat().st_mode & 0o777 == 0o700


def test_what_the_master_says_is_read(board: Scoreboard) -> None:
    assert board.fleet == Fleet(1)
    for said in (Fleet(3), Fleet(2, draining=True)):
        board.tell(said)
        assert board.fleet == said


def test_what_a_worker_says_to_the_master_is_read(board: Scoreboard) -> None:
    seat = Seat(board, 7)
    assert board.state(7) == State("starting")
    assert not board.has_served
    seat.enter(State("running", 2))
    assert board.state(7) == State("running", 2)
    assert board.has_served


def test_that_one_has_served_is_remembered_when_it_is_dead(board: Scoreboard) -> None:
    Seat(board, 1).enter(State("running"))
    board.bury(1)
    assert board.has_served
    assert board.state(1) == State("starting")


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
    board.tell(Fleet(2, draining=True))
    assert shown(board)["phase"] == "draining"


def test_the_dead_are_counted_once_at_every_moment(board: Scoreboard) -> None:
    """One thread buries, another reads: not even for a moment is somebody missing, or counted twice."""
    dying = seats(board, 60)
    Seat(board, 1000).publish(state(1, 0, 1))
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


_LEADER = """
import sys
from pathlib import Path
from typing import Any
from veillink.scoreboard import Scoreboard, Seat
seat = Seat(Scoreboard(Path(sys.argv[1])), 2)
print(seat.lead(), seat.lead(), flush=True)
sys.stdin.readline()
"""


def leader(board: Scoreboard) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _LEADER, str(board.folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline()


@pytest.mark.parametrize("how", ["resigns", "is killed"])
def test_one_process_leads_until_it_ends_or_resigns(board: Scoreboard, how: str) -> None:
    if how == "resigns":
        seat = Seat(board, 1)
        assert (seat.lead(), seat.lead(), seat.leads) == (True, False, True)
        with leader(board) as other:
            assert said(other) == "False False\n"
            other.communicate("\n")
        seat.resign()
        assert not seat.leads
        with leader(board) as other:
            assert said(other) == "True False\n"
            other.communicate("\n")
    else:
        with leader(board) as other:
            assert said(other) == "True False\n"
            seat = Seat(board, 1)
            assert not seat.lead()
            other.kill()
            other.wait()
            assert seat.lead()


def test_when_the_folder_is_gone_nothing_happens() -> None:
    board = Scoreboard.make()
    seat = Seat(board, 1)
    board.remove()
    seat.publish(state())
    seat.enter(State("running"))
    board.ask_for_connections()
    assert not board.is_asked_for_connections()
    assert not Path(board.folder).exists()


def test_a_folder_that_was_removed_is_made_again_with_what_was_said(board: Scoreboard) -> None:
    board.tell(Fleet(3))
    board.keep()
    shutil.rmtree(board.folder)
    board.keep()
    assert board.fleet == Fleet(3)
    assert board.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_folder_of_somebody_else_is_not_used(board: Scoreboard) -> None:
    os.chown(board.folder, 12345, 12345)
    with pytest.raises(PermissionError, match="somebody else"):
        board.keep()
