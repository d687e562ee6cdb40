"""A worker's part in its fleet."""

from unittest.mock import Mock

import gevent
import pytest

from tests.fleet.boards import in_memory
from tests.forked import Cfg
from tests.sockets import eventually
from tests.system.harness import HOST, free_port
from veillink.daemon.commands import Command
from veillink.daemon.membership import Membership
from veillink.fleet.control import Fleet, Heartbeat
from veillink.fleet.member import FleetMember
from veillink.fleet.scoreboard import Scoreboard, Slot
from veillink.model import Address, RuleOptions

pytestmark = pytest.mark.usefixtures("hub")


def member_of(board: Scoreboard, number: int = 3) -> tuple[FleetMember, Heartbeat]:
    heartbeat = Heartbeat(Cfg())
    return FleetMember(Slot(board, heartbeat, number), None), heartbeat


def test_it_heeds_the_master_and_leads_when_nobody_does() -> None:
    board = in_memory()
    member, heartbeat = member_of(board)
    seam: Membership = member
    server, own, commands = Mock(), Mock(phase="starting", reads=0), Mock()
    board.control.publish_fleet(Fleet(4))
    assert seam.join(server, own, Mock(), commands, lambda: False, watched=False) is own
    server.set_worker_count.assert_called_with(4)
    server.lead.assert_called_once_with()
    led = [seam.leads]
    own.phase, own.reads = "running", 1
    member.publish()
    assert (heartbeat.state.phase, heartbeat.state.reads) == ("running", 1)
    assert board.control.has_served
    others = [member.others_go_on]
    board.control.publish_fleet(Fleet(4, draining=True))
    assert [*others, member.others_go_on] == [True, False]
    own.phase = "draining"
    member.resign()
    assert [*led, seam.leads] == [True, False]
    board.remove()


def test_the_one_that_leads_is_told_to_do_what_is_still_missing() -> None:
    board = in_memory()
    member, _ = member_of(board)
    own, commands = Mock(phase="running", reads=0), Mock()
    member.join(Mock(), own, Mock(), commands, lambda: True, watched=False)
    eventually(lambda: commands.put.called)
    commands.put.assert_called_with(Command.LEAD)
    own.phase = "drained"
    gevent.sleep(0)
    member.resign()
    board.remove()


def test_workers_share_their_addresses() -> None:
    board = in_memory()
    address = Address(HOST, free_port())
    (one, _), (other, _) = member_of(board), member_of(board, 4)
    with one.listen(address, RuleOptions()), other.listen(address, RuleOptions()):
        pass
    board.remove()
