"""What is said by whom."""

from unittest.mock import Mock

import pytest

from tests.sockets import Journal
from veillink.config.rows import Notice, Problem
from veillink.daemon.announcements import Announcements


@pytest.mark.parametrize("leads", [False, True])
def test_what_all_would_say_the_one_that_leads_says(leads: bool, journal: Journal) -> None:
    said = Announcements(Mock(config="config.csv"), Mock(leads=leads), journal.log)
    said.tell_remarks([Problem(3, 2, "is wrong")], [Notice(1, 0, "taken as a header")])
    lines = [(line["level"], line["message"]) for line in journal.finish()]
    told = [("info", "config.csv:1: taken as a header"), ("error", "config.csv:3:2: is wrong")]
    assert lines == (told if leads else [("debug", message) for _, message in told])
