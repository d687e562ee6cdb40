"""Tests of rules that lead back to themselves without their text showing it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.hub import spawn_raw

from tests.proxy.making import make_shared
from tests.sockets import Journal, Sockets, address_of, eventually, open_files
from tests.system.harness import HOST, read_exactly, read_to_eof
from veillink.model import Address, End, Rule, RuleOptions, Target
from veillink.net import listening
from veillink.net.sockets import adopt, readable
from veillink.proxy.service import Binding, Service
from veillink.proxy.session import serve

FAR_TOO_MANY = 40  # rounds, of a loop that nobody ends


class Ring:
    """Rules of one process that really listen; what they lead to is not checked."""

    def __init__(self, sockets: Sockets, journal: Journal, folder: Path) -> None:
        self.journal = journal
        self.folder = folder
        self._sockets = sockets
        self._shared = make_shared(journal.log, sockets.peer_watch)
        self.ledger = self._shared.ledger
        self._accepting: list[gevent.Greenlet[..., None]] = []
        self._listening: list[socket.socket] = []

    def listener(self, host: str = "", unix: str = "") -> tuple[socket.socket, Address]:
        """Return a listening socket and its address, with the port that it has got."""
        listener = listening.listen(Address(f"unix:{self.folder}/{unix}" if unix else host, 0), RuleOptions())
        sock = socket.socket(fileno=listener.detach())
        self._listening.append(sock)
        return sock, Address(f"unix:{self.folder}/{unix}", 0) if unix else Address(host, sock.getsockname()[1])

    def lead(self, listener: tuple[socket.socket, Address], target: Address) -> None:
        """Lead those who come to a listener to a target."""
        sock, address = listener
        rule = Rule(str(address), address, 1, (Target(target),))
        service = Service.build(rule, self._shared)
        self._accepting.append(gevent.spawn(self._accept, sock, address, service))

    def _accept(self, sock: socket.socket, address: Address, service: Service) -> None:
        for _ in range(FAR_TOO_MANY):
            accepted, peer = sock.accept()
            spawn_raw(serve, adopt(accepted.detach(), sock.family), readable(peer), address, Binding(service, 0))

    def ends(self) -> dict[End, int]:
        """Return how many connections have ended how, once all have."""
        eventually(lambda: self.ledger.opened and not self.ledger.live)
        found: dict[End, int] = {}
        for totals in self.ledger.totals.values():
            for end, count in totals.ends.items():
                found[end] = found.get(end, 0) + count
        return found

    def close(self) -> None:
        """Stop listening."""
        gevent.killall(self._accepting)
        for sock in self._listening:
            sock.close()
        self._shared.resolver._threads.kill()


@pytest.fixture
def ring(sockets: Sockets, journal: Journal) -> Iterator[Ring]:
    with tempfile.TemporaryDirectory(prefix="vl-", dir="/tmp") as folder:
        ring = Ring(sockets, journal, Path(folder))
        yield ring
        ring.close()


def sees_the_end(client: socket.socket) -> bool:
    """Return whether the connection ends without a byte."""
    try:
        return read_to_eof(client) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("rules", "host"), [(1, HOST), (2, HOST), (3, HOST), (1, "::1"), (2, f"::ffff:{HOST}"), (1, "0.0.0.0"), (1, "::")]
)
def test_a_client_that_comes_round_is_reset_and_with_it_all_rounds(
    rules: int, host: str, ring: Ring, sockets: Sockets
) -> None:
    listeners = [ring.listener() for _ in range(rules)]
    before = open_files()
    for number, listener in enumerate(listeners):
        ring.lead(listener, Address(host, listeners[(number + 1) % rules][1].port))
    client = sockets.client(Address(HOST, listeners[0][1].port))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert ring.ends() == {End.LOOP: 1, End.TARGET_RESET: rules}
    assert ring.ledger.legs == {}
    client.close()
    assert open_files() == before
    warning = ring.journal.wait_for("a connection of our own")
    assert warning["way"] == " -> ".join(str(address) for _, address in (*listeners, listeners[0]))
    assert warning["rule"] == str(listeners[0][1])
    assert warning["client"].startswith("[::1]:" if host in ("::1", "::") else f"{HOST}:")


def test_a_loop_through_a_unix_socket_and_a_link_ends(ring: Ring, sockets: Sockets) -> None:
    ring.folder.joinpath("real").mkdir()
    ring.folder.joinpath("link").symlink_to("real")
    tcp, unix = ring.listener(), ring.listener(unix="real/s")
    ring.lead(tcp, Address(f"unix:{ring.folder}/link/s", 0))
    ring.lead(unix, Address(HOST, tcp[1].port))
    client = sockets.client(Address(HOST, tcp[1].port))
    assert sees_the_end(client)
    client.close()
    assert ring.ends()[End.LOOP] == 1
    assert ring.ledger.opened == 3
    assert ring.ledger.legs == ring.ledger.unix_legs == {}


def test_a_chain_of_rules_is_no_loop(ring: Ring, sockets: Sockets) -> None:
    backend = sockets.listener()
    first, second, third = ring.listener(), ring.listener(unix="s"), ring.listener()
    ring.lead(first, second[1])
    ring.lead(second, Address(HOST, third[1].port))
    ring.lead(third, address_of(backend))
    for _ in range(3):  # also beside each other
        client = sockets.client(Address(HOST, first[1].port))
        target = sockets.accept(backend)
        client.sendall(b"through")
        assert read_exactly(target, 7) == b"through"
    longest = max((connection.passed for connection in ring.ledger.live.values()), key=len)
    assert longest == (first[1], second[1])


@pytest.mark.parametrize(("leads_to", "is_ours"), [("127.0.0.2", False), (HOST, True)])
def test_a_client_with_the_port_of_a_connection_of_ours_to_another_host_is_somebody_else(
    leads_to: str, is_ours: bool, ring: Ring, sockets: Sockets
) -> None:
    backend, listener = sockets.listener(), ring.listener()
    ring.lead(listener, address_of(backend))
    sockets.client(Address(HOST, listener[1].port))
    sockets.accept(backend)
    (connection,) = eventually(lambda: [connection for connection in ring.ledger.live.values() if connection.leg])
    with socket.socket() as client:
        client.bind((HOST, 0))
        ring.ledger.legs[client.getsockname()] = connection
        connection.target = Address(leads_to, listener[1].port)
        client.connect((HOST, listener[1].port))
        if is_ours:
            assert sees_the_end(client)
        else:
            assert sockets.accept(backend)
    assert (End.LOOP in ring.ledger.totals[connection.rule].ends) is is_ours
