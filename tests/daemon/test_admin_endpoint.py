"""Opening the admin endpoint, or not."""

from collections.abc import Iterator
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.sockets import Journal, Sockets, address_of
from tests.system.harness import HOST, free_port, read_to_eof
from veillink.daemon.admin_endpoint import AdminEndpoint
from veillink.daemon.membership import Alone
from veillink.model import Address, AdminSettings, StartupError

SHOWN = SimpleNamespace(status=dict, connections=list, not_ready_reason=str)


def settings(address: Address) -> AdminSettings:
    return AdminSettings(str(address), (address,), frozenset(), "")


@pytest.fixture
def endpoint(journal: Journal) -> Iterator[AdminEndpoint]:
    endpoint = AdminEndpoint(settings(Address(HOST, free_port())), 4, Alone(), journal.log)
    yield endpoint
    endpoint.close()


def test_it_is_opened_once_and_answers(endpoint: AdminEndpoint, sockets: Sockets) -> None:
    assert endpoint.is_missing()
    assert endpoint.open(SHOWN)
    assert not endpoint.open(SHOWN)
    assert not endpoint.is_missing()
    assert endpoint._asked is not None
    client = sockets.client(endpoint._asked.addresses[0])
    client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert read_to_eof(client).endswith(b"alive\n")


def test_where_none_is_asked_for_there_is_none(journal: Journal) -> None:
    endpoint = AdminEndpoint(None, 4, Alone(), journal.log)
    assert not endpoint.is_missing()
    assert not endpoint.open(SHOWN)
    endpoint.close()


def test_an_address_that_somebody_has_stops_the_start(sockets: Sockets, journal: Journal) -> None:
    taken = address_of(sockets.listener())
    with pytest.raises(StartupError, match="EADDRINUSE"):
        AdminEndpoint(settings(taken), 4, Alone(), journal.log).open(SHOWN)


def test_of_workers_only_the_one_that_leads_has_a_unix_socket(journal: Journal) -> None:
    member = Mock(leads=False, number=2)
    endpoint = AdminEndpoint(settings(Address("unix:/run/none/veillink", 0)), 4, member, journal.log)
    assert not endpoint.open(SHOWN)
    assert endpoint.is_missing()  # it is tried again
    member.listen.assert_not_called()
