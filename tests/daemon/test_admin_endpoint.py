"""Tests of when the admin endpoint is opened, and where: over real sockets, with real memberships."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent import socket

from tests.fleet.members import Member
from tests.sockets import Journal, Sockets, address_of
from tests.system.harness import HOST, free_port
from veillink.admin.status import ProcessStatus
from veillink.daemon.admin_endpoint import AdminEndpoint
from veillink.daemon.membership import Alone, Membership
from veillink.model import Address, StartupError
from veillink.server.fd_budget import FdBudget
from veillink.server.server import Server
from veillink.settings import AdminSettings


@pytest.fixture
def status(journal: Journal) -> ProcessStatus:
    server = Server(journal.log, FdBudget(1000, splice=True, watched=True, inherited=0), 0)
    return ProcessStatus("rules.csv", server, 1000, journal.log)


@pytest.fixture
def worker(journal: Journal) -> Iterator[Member]:
    with Member(journal.log, 1) as worker:
        yield worker


def at(address: Address) -> AdminSettings:
    return AdminSettings(str(address), (address,), frozenset(), "")


def endpoint(asked: AdminSettings | None, member: Membership, journal: Journal) -> AdminEndpoint:
    return AdminEndpoint(asked, 10, member, journal.log)


def answer(sock: socket.socket) -> bytes:
    with sock:
        sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(4096), b""))


def test_nothing_is_opened_unasked(status: ProcessStatus, journal: Journal) -> None:
    unasked = endpoint(None, Alone(), journal)
    assert (unasked.is_missing(), unasked.open(status), unasked.is_missing()) == (False, False, False)
    unasked.close()


def test_it_is_opened_once_and_answers_until_it_is_closed(
    status: ProcessStatus, journal: Journal, sockets: Sockets
) -> None:
    address = Address(HOST, free_port())
    asked = endpoint(at(address), Alone(), journal)
    assert asked.is_missing()
    assert (asked.open(status), asked.open(status), asked.is_missing()) == (True, False, False)
    assert answer(sockets.client(address)).startswith(b"HTTP/1.1 503")  # it is starting
    asked.close()
    with pytest.raises(ConnectionRefusedError):
        sockets.client(address)


def test_why_it_cannot_be_opened_is_a_reason_not_to_start(
    status: ProcessStatus, journal: Journal, sockets: Sockets
) -> None:
    address = address_of(sockets.listener())
    asked = endpoint(at(address), Alone(), journal)
    with pytest.raises(StartupError) as why:
        asked.open(status)
    assert str(why.value) == f"cannot show the state at {address}: Address already in use (EADDRINUSE)"
    assert asked.is_missing()


def test_of_workers_the_one_that_leads_has_a_unix_socket(
    status: ProcessStatus, journal: Journal, worker: Member, tmp_path: Path
) -> None:
    path = tmp_path / "admin"
    asked = endpoint(at(Address(f"unix:{path}", 0)), worker.member, journal)
    assert (asked.open(status), asked.is_missing(), path.exists()) == (False, True, False)
    worker.control.lead()
    assert (asked.open(status), asked.is_missing(), path.exists()) == (True, False, True)
    asked.close()


def test_a_unix_socket_of_the_program_before_is_waited_for_by_a_worker_alone(
    status: ProcessStatus, journal: Journal, worker: Member, tmp_path: Path
) -> None:
    path = tmp_path / "admin"
    worker.control.lead()
    with socket.socket(socket.AF_UNIX) as before:
        before.bind(str(path))
        before.listen()
        asked = endpoint(at(Address(f"unix:{path}", 0)), worker.member, journal)
        assert (asked.open(status), asked.is_missing()) == (False, True)
        with pytest.raises(StartupError, match="EADDRINUSE"):
            endpoint(at(Address(f"unix:{path}", 0)), Alone(), journal).open(status)
    assert asked.open(status)
    asked.close()
