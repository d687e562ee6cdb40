"""Fixtures for tests of a server."""

from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import socket

from tests.server.running import FD_LIMIT, rules
from tests.sockets import Journal, Sockets, eventually
from tests.system.harness import free_port
from veillink.model import RuleSet
from veillink.server.fd_budget import FdBudget
from veillink.server.listeners import PACE, Pace
from veillink.server.server import Server


@pytest.fixture
def start(journal: Journal) -> Iterator[Callable[..., Server]]:
    """Make a server; afterwards nothing of it goes on."""
    servers: list[Server] = []

    def _start(*rows: str, max_connections: int = 0, pace: Pace = PACE) -> Server:
        servers.append(Server(journal.log, FdBudget(FD_LIMIT), max_connections, pace=pace))
        servers[-1].apply(rules(*rows))
        return servers[-1]

    yield _start
    for each in servers:
        each.apply(RuleSet())
    gevent.sleep(0)
    for each in servers:
        each.cut()
    eventually(lambda: not any(each.limiter.in_use for each in servers))
    for each in servers:
        each._shared.peer_watch.close()


@pytest.fixture
def port(hub: None) -> int:
    return free_port()


@pytest.fixture
def other_port(hub: None) -> int:
    return free_port()


@pytest.fixture
def backend(sockets: Sockets) -> socket.socket:
    return sockets.listener()


@pytest.fixture
def other_backend(sockets: Sockets) -> socket.socket:
    return sockets.listener()
