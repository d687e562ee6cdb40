"""Tests of the part in a fleet that a process without one has."""

import pytest

from tests.sockets import Journal
from tests.system.harness import HOST
from veillink.admin.status import ProcessStatus
from veillink.daemon.membership import Alone, Membership
from veillink.model import Address, RuleOptions
from veillink.server.fd_budget import FdBudget
from veillink.server.server import Server


def test_a_process_that_is_alone_leads_shows_itself_and_has_nobody_to_go_on(journal: Journal) -> None:
    member: Membership = Alone()
    budget = FdBudget(1000, splice=True, watched=False, inherited=0)
    server = Server(journal.log, budget, 0, worker=member.number)
    own = ProcessStatus("rules.csv", server, 1000, journal.log)
    asked: list[str] = []
    assert member.join(server, own, lambda: asked.append("to lead")) is own
    member.publish()
    member.resign()
    assert (member.number, member.leads, member.others_go_on, server.leads) == (0, True, False, True)
    assert asked == []  # what it leads is its own, from the start


def test_it_listens_where_nobody_else_may() -> None:
    with Alone().listen(Address(HOST, 0), RuleOptions()) as sock:
        address = Address(HOST, sock.getsockname()[1])
        with pytest.raises(OSError, match="Address already in use"):
            Alone().listen(address, RuleOptions())
