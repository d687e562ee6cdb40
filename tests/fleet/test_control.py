"""Tests of what a master and its workers share: real forks, and descriptors that were opened before them."""

import pytest

from tests.fleet.clock import Clock
from tests.forked import Cfg, forked
from veillink.fleet.control import Control, Fleet, Heartbeat, State


def test_what_the_master_publishes_is_read_by_those_it_has_forked() -> None:
    control = Control()
    assert control.fleet == Fleet(1)
    with forked(lambda: control.fleet, lambda: control.fleet) as worker:
        for published in (Fleet(3), Fleet(2, draining=True)):
            control.publish_fleet(published)
            assert worker.does() == str(published)


def test_that_one_has_served_stays_known_when_it_is_dead() -> None:
    control = Control()
    assert not control.has_served
    with forked(control.mark_served) as worker:
        worker.does()
    assert control.has_served


def test_how_far_a_worker_is_is_read_by_its_master_also_after_its_end() -> None:
    heartbeat = Heartbeat(Cfg())
    assert heartbeat.state == State("starting")
    entered = State("not started", 70_000)
    with forked(lambda: heartbeat.enter(entered)) as worker:
        worker.does()
        assert heartbeat.state == entered
    heartbeat.close()
    heartbeat.close()
    assert heartbeat.state == entered


@pytest.mark.parametrize("how", ["resigns", "is killed"])
def test_one_process_leads_until_it_ends_or_resigns(how: str) -> None:
    control = Control()
    with forked(control.lead, control.lead) as other:
        with forked(control.lead, control.lead, control.resign) as first:
            assert (first.does(), first.does()) == ("True", "False")
            assert other.does() == "False"
            if how == "resigns":
                first.does()
                assert other.does() == "True"
        if how == "is killed":
            assert other.does() == "True"
    assert control.lead()
    assert control.leads


def test_time_in_which_the_master_did_not_run_does_not_count_and_other_time_does() -> None:
    clock = Clock()
    heartbeat = Heartbeat(Cfg(timeout=4), clock)
    heartbeat.notify()
    for _ in range(3):  # it looks as often as it should, and hears nothing
        clock.now += 1.9
        assert heartbeat.last_update() == 1000.0
    clock.now += 7.0  # it was stopped
    stopped_until = clock.now
    assert heartbeat.last_update() == stopped_until
    clock.now += 1.9
    assert heartbeat.last_update() == stopped_until
    heartbeat.notify()
    assert heartbeat.last_update() == clock.now


def test_a_worker_that_has_not_begun_yet_is_not_late() -> None:
    clock = Clock()
    heartbeat = Heartbeat(Cfg(), clock)
    for _ in range(30):
        clock.now += 1.0
        assert heartbeat.last_update() == clock.now
