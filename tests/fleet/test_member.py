"""Tests of a worker's part in its fleet: real control, scoreboard and server, and other processes that lead."""

from collections.abc import Iterator

import pytest

from tests.fleet.members import Member, greenlets_ended
from tests.forked import forked
from tests.sockets import Journal, eventually
from tests.system.harness import HOST, free_port
from veillink.fleet.control import Fleet, State
from veillink.fleet.member import FleetMember
from veillink.model import Address, RuleOptions


@pytest.fixture
def worker(journal: Journal) -> Iterator[Member]:
    with greenlets_ended(), Member(journal.log, 1) as worker:
        yield worker


def test_the_first_one_leads_from_the_start_until_it_resigns(worker: Member) -> None:
    with forked(worker.control.lead, worker.control.lead) as other:
        worker.member.join(worker.server, worker.own, lambda: None)
        assert (worker.member.number, worker.member.leads, worker.server.leads) == (1, True, True)
        assert other.does() == "False"
        worker.own.phase = "draining"
        worker.member.resign()
        assert not worker.member.leads
        assert other.does() == "True"


def test_another_one_leads_when_the_first_has_gone_and_is_asked_to_do_what_that_takes(worker: Member) -> None:
    asked: list[bool] = []
    with forked(worker.control.lead) as first:
        assert first.does() == "True"
        worker.member.join(worker.server, worker.own, lambda: asked.append(worker.member.leads))
        assert (worker.member.leads, worker.server.leads) == (False, False)
    eventually(lambda: len(asked) > 1)
    assert all(asked)
    assert not worker.server.leads  # that is for the main greenlet to do


def test_limits_are_divided_among_as_many_as_there_are(worker: Member) -> None:
    worker.control.publish_fleet(Fleet(3))
    worker.member.join(worker.server, worker.own, lambda: None)
    assert worker.server.division.among == 3
    worker.control.publish_fleet(Fleet(4))
    eventually(lambda: worker.server.division.among == 4)


def test_who_stops_alone_leaves_others_and_who_stops_with_all_does_not(worker: Member) -> None:
    assert worker.member.others_go_on
    worker.control.publish_fleet(Fleet(2, draining=True))
    assert not worker.member.others_go_on


def test_workers_share_their_addresses(worker: Member, journal: Journal) -> None:
    address = Address(HOST, free_port())
    one, other = (FleetMember(worker.slot, None, journal.log, watched=False) for _ in range(2))
    with one.listen(address, RuleOptions()), other.listen(address, RuleOptions()):
        pass


def test_the_master_sees_how_far_it_is(worker: Member) -> None:
    worker.member.join(worker.server, worker.own, lambda: None)
    worker.own.phase = "running"
    worker.own.count_reload("applied", ())
    worker.member.publish()
    assert worker.heartbeat.state == State("running", 1)
    assert worker.control.has_served


@pytest.mark.parametrize("watched", [True, False])
def test_its_siblings_see_its_state_where_anything_is_shown(watched: bool, journal: Journal) -> None:
    with greenlets_ended(), Member(journal.log, 7, watched=watched) as worker:
        shown = worker.member.join(worker.server, worker.own, lambda: None)
        worker.own.phase = "running"
        worker.member.publish()
        seen = [(each["worker"], each["phase"]) for each in worker.scoreboard.read()[0]]
        assert seen == ([(7, "running")] if watched else [])
        assert shown.status()["phase"] == "running"
        assert ("workers" in shown.status()) is watched


def test_what_cannot_be_shown_keeps_nothing_from_the_master(journal: Journal) -> None:
    with greenlets_ended(), Member(journal.log, 1, watched=True) as worker:
        worker.member.join(worker.server, worker.own, lambda: None)
        worker.scoreboard.remove()
        worker.own.phase = "running"
        worker.member.publish()
        assert worker.heartbeat.state.phase == "running"
        assert journal.wait_for("the other workers cannot show this one")["level"] == "warning"
