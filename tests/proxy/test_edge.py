"""What a rule asks of who comes to it, from form to form."""

import time
from time import sleep as stdlib_sleep
from unittest.mock import Mock

import gevent
import pytest
from gevent import socket

from tests.proxy.front import Forward, is_reset
from tests.sockets import Sockets, address_of, eventually
from veillink.config.networks import parse_networks
from veillink.config.rates import parse_rate
from veillink.limits import EVERYBODY
from veillink.model import Address, End, Ended, RuleOptions
from veillink.net.proxy_protocol import encode
from veillink.net.ticker import Ticker
from veillink.proxy.edge import Edge, build_edge

CLIENT = Address("192.0.2.1", 1)


def come(edge: Edge, client: Address = CLIENT) -> object:
    """Let a client in, or return why not."""
    try:
        return edge.admit(Mock(), Mock(client=client, proxied=None), Mock())
    except Ended as ended:
        return ended.end


def test_a_rule_that_asks_for_nothing_has_none() -> None:
    assert build_edge(RuleOptions(), None, 1) is None


@pytest.mark.parametrize(
    ("allow", "deny", "end"),
    [
        ("off", "off", None),
        ("192.0.2.0/24", "off", None),
        ("10.0.0.0/8", "off", End.DENIED),
        ("off", "192.0.2.1", End.DENIED),
    ],
)
def test_the_lists_decide(allow: str, deny: str, end: End | None) -> None:
    options = RuleOptions(allow=parse_networks(allow), deny=parse_networks(deny))
    edge = build_edge(options, None, 1)
    assert (come(edge) if edge else None) is end


def test_counts_survive_a_reload_that_changes_the_limit() -> None:
    edge = Edge(RuleOptions(max_connections_per_client=2), None, 1)
    held = [come(edge), come(edge)]
    assert come(edge) is End.OVER_LIMIT
    after = build_edge(RuleOptions(max_connections_per_client=3), edge, 1)
    assert after is not None
    assert come(after) not in (End.OVER_LIMIT, None)
    assert come(after) is End.OVER_LIMIT
    edge.release(held[0])  # type: ignore[arg-type]
    assert come(after) is not End.OVER_LIMIT


def test_a_limit_that_is_switched_off_holds_nobody_back() -> None:
    edge = Edge(RuleOptions(max_connections_per_client=1), None, 1)
    come(edge)
    after = build_edge(RuleOptions(), edge, 1)
    assert after is not None
    assert come(after) is None


@pytest.mark.parametrize(("among", "most"), [(1, 5), (2, 3), (4, 2), (8, 1)])
def test_processes_share_the_limit_of_a_client(among: int, most: int) -> None:
    edge = Edge(RuleOptions(max_connections_per_client=5), None, among)
    served = [come(edge) for _ in range(10)]
    assert sum(each is not End.OVER_LIMIT for each in served) == most


def test_a_client_that_comes_too_often_is_over_its_limit() -> None:
    edge = Edge(RuleOptions(connection_rate_per_client=parse_rate("6/m")), None, 1)
    come(edge)
    assert come(edge) is End.OVER_LIMIT
    assert come(edge, Address("192.0.2.2", 1)) is not End.OVER_LIMIT


def test_who_has_gone_is_forgotten_though_nobody_comes_any_more(hub: None) -> None:
    edge, ticker = Edge(RuleOptions(connection_rate_per_client=parse_rate("10/s")), None, 1), Ticker(0.01)
    for last in range(200):
        connection = Mock(client=Address(f"192.0.2.{last}", 1), proxied=None)
        admitted = edge.admit(Mock(), connection, ticker)
        assert admitted is not None
        edge.release(admitted)
    assert len(edge._clients) > 0
    eventually(lambda: len(edge._clients) == 0)
    eventually(lambda: not ticker._watched)


# --- the time for a header -------------------------------------------------------------------------------------------

HEADER = encode(2, CLIENT, Address("192.0.2.2", 2))


def test_a_header_that_is_not_whole_in_time_is_given_up(forward: Forward, backend: socket.socket) -> None:
    front = forward(address_of(backend), accept_proxy=EVERYBODY, proxy_timeout=0.3)
    client, began = front.client(), time.monotonic()
    client.sendall(HEADER[:-1])
    assert is_reset(client)
    assert 0.3 <= time.monotonic() - began < 2
    assert front.access()["end"] == End.BAD_PROXY_HEADER


def test_time_in_which_this_process_did_not_run_is_no_clients_fault(
    forward: Forward, sockets: Sockets, backend: socket.socket
) -> None:
    front = forward(address_of(backend), accept_proxy=EVERYBODY, proxy_timeout=0.6)
    whole, parts, silent = front.client(), front.client(), front.client()
    gevent.sleep(0.1)
    whole.sendall(HEADER)
    parts.sendall(HEADER[:20])
    stdlib_sleep(1.0)  # as after SIGSTOP
    sockets.accept(backend)
    parts.sendall(HEADER[20:])
    sockets.accept(backend)
    assert is_reset(silent)
