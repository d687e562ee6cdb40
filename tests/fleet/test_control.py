"""Tests of what a master and its workers share: real forks, and descriptors that were opened before them."""

import time

import pytest

from tests.forked import Cfg, forked
from veillink.fleet.control import Control, Fleet, Heartbeat, State


def test_what_the_master_says_is_read_by_those_it_has_forked() -> None:
    control = Control()
    assert control.fleet == Fleet(1)
    with forked(lambda: control.fleet, lambda: control.fleet) as worker:
        for said in (Fleet(3), Fleet(2, draining=True)):
            control.publish_fleet(said)
            assert worker.does() == str(said)


def test_that_one_has_served_stays_known_when_it_is_dead() -> None:
    control = Control()
    assert not control.has_served
    with forked(control.note_service) as worker:
        worker.does()
    assert control.has_served


def test_what_a_worker_says_is_read_by_its_master_also_after_its_end() -> None:
    slot = Heartbeat(Cfg())
    assert slot.state == State("starting")
    said = State("not started", 70_000)
    with forked(lambda: slot.enter(said)) as worker:
        worker.does()
        assert slot.state == said
    slot.close()
    slot.close()
    assert slot.state == said


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
    slot = Heartbeat(Cfg(timeout=4))
    slot.notify()
    began = slot.last_update()
    for _ in range(3):  # it looks as often as it should, and hears nothing
        slot._looked -= 1.9
        assert slot.last_update() == began
    slot._looked -= 7.0  # it was stopped
    late = slot.last_update()
    assert late > began
    assert slot.last_update() == late
    slot.notify()
    assert slot.last_update() > late


def test_a_worker_that_has_not_begun_yet_is_not_late() -> None:
    slot = Heartbeat(Cfg())
    before = time.monotonic()
    assert slot.last_update() >= before
