"""A process that is alone."""

from unittest.mock import Mock

from tests.system.harness import HOST, free_port
from veillink.daemon.membership import Alone, Membership
from veillink.model import Address, RuleOptions


def test_who_is_alone_leads_and_has_nobody_to_tell() -> None:
    member: Membership = Alone()
    own = Mock()
    assert (member.number, member.leads, member.others_go_on) == (0, True, False)
    assert member.join(Mock(), own, Mock(), Mock(), lambda: True, watched=True) is own
    member.publish()
    member.resign()
    assert member.leads
    assert not own.mock_calls


def test_who_is_alone_shares_its_address_with_nobody() -> None:
    address = Address(HOST, free_port())
    with Alone().listen(address, RuleOptions()) as sock:
        assert not sock.getsockopt(1, 15)  # SO_REUSEPORT
