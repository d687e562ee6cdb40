"""What connections say of targets."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gevent import socket

from tests.proxy.connecting import FOREVER, connect_to
from tests.sockets import address_of, no_descriptor_left, no_port_left
from tests.system.harness import HOST
from tests.system.namespace import Network
from veillink.model import Address, End, Ended, Rule, RuleOptions, Target
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.unix_queue import UnixQueues
from veillink.proxy.pool import Pool
from veillink.proxy.upstream import Upstream


@pytest.fixture
def down() -> list[str]:
    """Why targets have gone out."""
    return []


@pytest.fixture
def route(book: Resolver, down: list[str]) -> Callable[..., Upstream]:
    """Make a route to targets that one failure takes out."""

    def _route(*targets: Address) -> Upstream:
        rule = Rule("web", Address("", 80), 1, tuple(map(Target, targets)), RuleOptions(max_fails=1))
        return Upstream(
            Pool(rule, lambda: 0.5),
            book,
            UnixQueues(),
            Places(16),
            lambda member, why: down.append(why),
            lambda member: None,
        )

    return _route


def test_what_this_host_lacks_takes_no_target_out(
    route: Callable[..., Upstream], down: list[str], live: Address, tmp_path: Path
) -> None:
    way, tried = route(live, Address(f"unix:{tmp_path}/x", 0)), list[str]()
    with no_descriptor_left(), pytest.raises(Ended) as caught:
        connect_to(way, 0, FOREVER, tried)
    assert (caught.value.end, caught.value.detail) == (End.CONNECT_FAILED, "EMFILE")
    assert [connection.split()[-1] for connection in tried] == ["EMFILE", "EMFILE"]
    assert down == []


def test_a_lack_of_free_ports_takes_no_target_out(route: Callable[..., Upstream], down: list[str]) -> None:
    with Network() as network, network.inside(), socket.create_server((HOST, 0)) as listener:
        way = route(address_of(listener), Address("127.0.0.2", 1))
        with no_port_left(listener), pytest.raises(Ended) as caught:
            connect_to(way, 0, FOREVER, [])
    assert caught.value.end is End.CONNECT_REFUSED  # at the other one, which is to blame
    assert down == ["ECONNREFUSED"]
