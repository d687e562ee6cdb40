"""Tests of what any worker shows of all of them."""

from collections.abc import Iterator
from unittest.mock import Mock

import gevent
import pytest

from tests.fleet.members import Member
from tests.fleet.test_scoreboard import live
from tests.sockets import Journal
from veillink.fleet.view import FleetView


@pytest.fixture
def siblings(journal: Journal) -> Iterator[tuple[Member, Member]]:
    with Member(journal.log, 1) as first, Member(journal.log, 2, first.scoreboard) as second:
        yield first, second


def view(worker: Member, journal: Journal) -> FleetView:
    return FleetView(worker.own, worker.slot, journal.log)


def test_each_shows_all_that_were_published(siblings: tuple[Member, Member], journal: Journal) -> None:
    views = [view(worker, journal) for worker in siblings]
    for worker, each in zip(siblings, views, strict=True):
        worker.own.phase = "running"
        each.publish()
    for each in views:
        assert [worker["worker"] for worker in each.status()["workers"]] == [1, 2]
        assert each.not_ready_reason() == ""


def test_it_shows_what_was_published_last_and_not_what_it_knows_since(
    siblings: tuple[Member, Member], journal: Journal
) -> None:
    worker, _ = siblings
    shown = view(worker, journal)
    shown.publish()
    worker.own.phase = "running"
    assert shown.not_ready_reason() == "starting"
    shown.publish()
    assert shown.not_ready_reason() == ""


def test_connections_are_those_of_all(siblings: tuple[Member, Member], journal: Journal) -> None:
    shown = view(siblings[0], journal)
    for worker in siblings:
        view(worker, journal).publish()
        worker.slot.publish_connections([live(worker.slot.number)])
    assert shown.connections() == [live(1), live(2)]
    assert siblings[1].scoreboard.is_asked_for_connections()


def test_each_tells_its_connections_while_somebody_asks(siblings: tuple[Member, Member], journal: Journal) -> None:
    views = [
        FleetView(Mock(status=worker.own.status, connections=lambda n=number: [live(n)]), worker.slot, journal.log)
        for number, worker in enumerate(siblings, 1)
    ]
    for each in views:
        each.publish()
    publishing = [gevent.spawn(each.publish_connections_forever) for each in views]
    assert [connection["id"] for connection in views[0].connections()] == [1, 2]
    gevent.killall(publishing)


def test_one_that_does_not_answer_is_shown_as_it_was(siblings: tuple[Member, Member], journal: Journal) -> None:
    first, second = siblings
    for worker in siblings:
        view(worker, journal).publish()
    first.slot.publish_connections([live(1)])
    assert view(second, journal).connections() == [live(1)]


def test_without_what_they_share_each_shows_itself_and_says_so_once(
    siblings: tuple[Member, Member], journal: Journal
) -> None:
    worker, _ = siblings
    shown = view(worker, journal)
    shown.publish()
    worker.scoreboard.remove()
    for _ in range(3):
        shown.publish()
    assert "workers" not in shown.status()
    assert shown.status()["phase"] == "starting"
    assert [line["level"] for line in journal.finish() if "cannot show" in line["message"]] == ["warning"]
