"""Fixtures for tests of one connection."""

from collections.abc import Iterator
from typing import Any

import pytest
from gevent import socket

from tests.names import NameServer
from tests.proxy.connecting import FOREVER, Connect, Outcome, connect_to, outcome
from tests.proxy.front import Forward, Front
from tests.proxy.making import TICK
from tests.sockets import Journal, Sockets
from veillink.model import Address, Rule, RuleOptions, Target
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.unix_queue import UnixQueues
from veillink.proxy.pool import Pool
from veillink.proxy.upstream import Upstream


@pytest.fixture
def forward(sockets: Sockets, journal: Journal, name_server: NameServer) -> Iterator[Forward]:
    """Make a front for these targets; every descriptor it took has to be given back."""
    fronts: list[Front] = []

    def _forward(*targets: Address | Target, tick: float = TICK, **limits: Any) -> Front:
        whole = tuple(target if isinstance(target, Target) else Target(target) for target in targets)
        fronts.append(Front(sockets, journal, whole, RuleOptions(**limits), tick, name_server))
        return fronts[-1]

    yield _forward
    name_server.awake.set()
    for front in fronts:
        front.shared.resolver.keep({})
        front.shared.resolver._threads.kill()


@pytest.fixture
def backend(sockets: Sockets) -> socket.socket:
    return sockets.listener()


@pytest.fixture
def connect(book: Resolver) -> Connect:
    def _connect(*targets: Target, seconds: float = FOREVER, offset: int = 0, retry_interval: float = 0) -> Outcome:
        rule = Rule("web", Address("", 80), offset + 1, targets)
        pool = Pool(rule, lambda: 0.5)
        route = Upstream(
            pool, book, UnixQueues(), Places(16), lambda member, reason: None, lambda member: None, retry_interval
        )
        return outcome(lambda until, tried: connect_to(route, offset, until, tried)[:2], seconds)

    return _connect
