"""All workers as one, from any of them."""

from typing import Any
from unittest.mock import Mock

import gevent
import pytest

from tests.fleet.boards import in_memory
from tests.fleet.test_merge import state
from tests.fleet.test_scoreboard import live
from tests.forked import Cfg
from tests.sockets import Journal, eventually
from veillink.fleet.control import Heartbeat
from veillink.fleet.scoreboard import Scoreboard, Slot
from veillink.fleet.view import FleetView

pytestmark = pytest.mark.usefixtures("hub")


def view_of(board: Scoreboard, number: int, log: Any, own: Any) -> FleetView:
    return FleetView(own, Slot(board, Heartbeat(Cfg()), number), log)


def test_any_worker_answers_for_all(journal: Journal) -> None:
    board = in_memory()
    views = [
        view_of(board, number, journal.log, Mock(status=lambda: state(3, 0, 1), connections=lambda: [live(1)]))
        for number in (1, 2)
    ]
    for view in views:
        view.publish()
    assert [view.status()["rules"][0]["total"] for view in views] == [6, 6]
    assert [worker["worker"] for worker in views[0].status()["workers"]] == [1, 2]
    assert views[0].not_ready_reason() == views[1].not_ready_reason()
    board.remove()


def test_connections_are_awaited_from_everybody(journal: Journal) -> None:
    board = in_memory()
    views = [
        view_of(board, number, journal.log, Mock(status=state, connections=lambda number=number: [live(number)]))
        for number in (1, 2)
    ]
    telling = [gevent.spawn(view.publish_connections_forever) for view in views]
    for view in views:
        view.publish()
    assert [connection["id"] for connection in views[0].connections()] == [1, 2]
    gevent.killall(telling)
    board.remove()


def test_without_a_place_for_it_a_worker_shows_itself_and_says_so_once(journal: Journal) -> None:
    board = in_memory()
    board.remove()
    view = view_of(board, 1, journal.log, Mock(status=lambda: state(3, 0, 1)))
    view.publish()
    view.publish()
    assert view.status()["rules"][0]["total"] == 3
    lines = eventually(lambda: [line for line in journal.finish() if "cannot show" in line.get("message", "")])
    assert len(lines) == 1
