"""Tests of a rule set at work: listeners, changes of the rules, limits, the end."""

import gc
import itertools
import socket as stdlib
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.running import Start, many, row, rules, talk_to
from tests.server.test_listener import ports_in_a_row
from tests.sockets import Journal, Sockets, address_of, eventually
from tests.system.harness import HOST, free_port, read_exactly, read_to_eof
from veillink.config.rules import parse
from veillink.model import Address, RuleSet
from veillink.net import sockets as net
from veillink.server import server
from veillink.server.server import Server

# --- listeners -------------------------------------------------------------------------------------------------------


def test_a_rule_forwards_from_each_of_its_ports(sockets: Sockets, start: Start) -> None:
    first = second = free_port()
    while second != first + 1:
        first, second = second, free_port()
    backends = [sockets.listener(port=free_port()) for _ in range(2)]
    start(f"{HOST}:{first}-{second},{HOST},{address_of(backends[0]).port}")
    for listen_port in (first, second):
        assert talk_to(sockets, listen_port, backends[0]).works()


def test_an_ipv4_client_of_a_listener_on_every_address_is_shown_as_one(
    sockets: Sockets, start: Start, port: int, backend: socket.socket, journal: Journal
) -> None:
    start(f"{port},{HOST},{address_of(backend).port}")
    for host in (HOST, "::1"):
        talk_to(sockets, port, backend, host).close()
    eventually(lambda: len(journal.access()) == 2)
    assert {line["client"].rpartition(":")[0] for line in journal.access()} == {HOST, "[::1]"}
    assert {line["listen"] for line in journal.access()} == {f"*:{port}"}


def test_a_rule_that_stays_the_same_is_not_touched(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend))
    (before,) = running.listeners.values()
    socket_before, service = before.socket, before.binding.service
    talk = talk_to(sockets, port, backend)
    running.apply(rules("# a comment moves it to another line", row(other_port, backend), row(port, backend)))
    after = running.listeners[Address(HOST, port)]
    assert after is before
    assert (after.socket, after.binding.service) == (socket_before, service)
    assert after.binding.service is service
    assert talk.works()


def test_an_added_rule_forwards(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend))
    running.apply(rules(row(port, backend), row(other_port, backend)))
    assert talk_to(sockets, port, backend).works()
    assert talk_to(sockets, other_port, backend).works()


def test_a_removed_rule_refuses_and_its_connections_go_on(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), row(other_port, backend))
    talk = talk_to(sockets, port, backend)
    running.apply(rules(row(other_port, backend)))
    with pytest.raises(ConnectionRefusedError):
        sockets.client(Address(HOST, port))
    assert talk.works()
    assert talk_to(sockets, other_port, backend).works()


def test_a_changed_rule_keeps_its_socket_and_its_connections_their_target(
    sockets: Sockets, start: Start, port: int, backend: socket.socket, other_backend: socket.socket
) -> None:
    running = start(row(port, backend))
    before = running.listeners[Address(HOST, port)].socket
    talk = talk_to(sockets, port, backend)
    running.apply(rules(row(port, other_backend, "name=other")))
    assert running.listeners[Address(HOST, port)].socket is before
    assert talk_to(sockets, port, other_backend).works()
    assert talk.works()


def test_a_rule_may_become_one_of_a_range_and_back(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend))
    before = running.listeners[Address(HOST, port)].socket
    wide = f"{HOST}:{port - 1}-{port},{HOST},{address_of(backend).port}"
    running.apply(rules(wide))
    assert running.listeners[Address(HOST, port)].socket is before
    assert running.listeners[Address(HOST, port)].binding.port_offset == 1
    running.apply(rules(row(port, backend)))
    assert {address: listener.binding.port_offset for address, listener in running.listeners.items()} == {
        Address(HOST, port): 0
    }
    assert talk_to(sockets, port, backend).works()


@pytest.mark.parametrize(("before", "after"), [("{port}", "127.0.0.1:{port}"), ("127.0.0.1:{port}", "{port}")])
def test_one_address_may_take_the_place_of_every_address_and_the_other_way_round(
    before: str, after: str, sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    target = f",{HOST},{address_of(backend).port}"
    running = start(before.format(port=port) + target)
    running.apply(rules(after.format(port=port) + target))
    assert running.down == {}
    assert talk_to(sockets, port, backend).works()


def test_changed_keepalive_counts_for_new_connections(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend, "keepalive=60s"))
    running.apply(rules(row(port, backend, "keepalive=30s")))
    listening: Any = running.listeners[Address(HOST, port)].socket
    options = net._keepalive_options(30)
    assert {o: listening.getsockopt(*o[:2]) for o in options} == {o: o[2] for o in options}


def test_keepalive_that_is_switched_off_leaves_nothing_behind(
    start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend, "keepalive=60s"))
    running.apply(rules(row(port, backend, "keepalive=0"), row(other_port, backend, "keepalive=0")))
    changed, new = (running.listeners[Address(HOST, each)].socket for each in (port, other_port))
    for option in (socket.SO_KEEPALIVE, net._TCP_RTO_MAX_MS if net._HAS_RTO_MAX else socket.TCP_NODELAY):
        level = socket.SOL_SOCKET if option == socket.SO_KEEPALIVE else socket.IPPROTO_TCP
        assert changed.getsockopt(level, option) == new.getsockopt(level, option)


def test_who_waits_in_the_kernel_s_queue_is_served_though_the_rule_is_removed(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend))
    with stdlib.create_connection((HOST, port)) as early:  # blocks the loop: nobody accepts meanwhile
        running.apply(RuleSet())
        target = sockets.accept(backend)
        early.sendall(b"still served")
        assert read_exactly(target, 12) == b"still served"


# --- the end ---------------------------------------------------------------------------------------------------------


def test_who_stops_accepting_is_not_down_anywhere(sockets: Sockets, start: Start, backend: socket.socket) -> None:
    running = start(row(address_of(sockets.listener()).port, backend))
    assert running.rules_down() == [f"{HOST}:{next(iter(running.down)).port}"]
    running.stop_accepting()
    assert (running.rules_down(), running.down) == ([], {})
    assert running.status()[0]["listener_up"]


def test_who_stops_accepting_lets_connections_go_on(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend))
    talk = talk_to(sockets, port, backend)
    running.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        sockets.client(Address(HOST, port))
    assert talk.works()
    assert running.limiter.in_use == 1
    talk.close()
    eventually(lambda: running.limiter.in_use == 0)


def test_a_cut_ends_every_connection(
    sockets: Sockets, start: Start, port: int, backend: socket.socket, journal: Journal
) -> None:
    running = start(row(port, backend))
    talks = [talk_to(sockets, port, backend) for _ in range(3)]
    assert all(talk.works() for talk in talks)
    running.cut()
    for far in [talk.client for talk in talks] + [talk.target for talk in talks]:
        with pytest.raises(ConnectionResetError):
            read_to_eof(far)
    eventually(lambda: running.limiter.in_use == 0)
    eventually(lambda: len(journal.access()) == 3)
    assert {line["end"] for line in journal.access()} == {"drained"}


def test_a_cut_ends_those_too_who_were_accepted_a_moment_ago(
    start: Start, port: int, backend: socket.socket, journal: Journal
) -> None:
    running = start(row(port, backend))
    with stdlib.create_connection((HOST, port)) as early:  # blocks the loop: nobody accepts meanwhile
        running.stop_accepting()
        running.cut()
        eventually(lambda: running.limiter.in_use == 0, 1)
        with pytest.raises(ConnectionResetError):
            early.recv(1)
        client = "{}:{}".format(*early.getsockname())
    eventually(journal.access)
    assert [(line["client"], line["end"], line["target"]) for line in journal.access()] == [(client, "drained", None)]


def test_the_limit_is_a_number_from_the_first(start: Start) -> None:
    assert start().limiter.limit < float("inf")


# --- thousands of rules ----------------------------------------------------------------------------------------------


def test_limits_are_divided_among_the_workers_of_now_also_for_rules_that_are_being_made(start: Start) -> None:
    running = start()
    told = gevent.spawn(running.set_worker_count, 4)  # it runs as soon as others may
    running.apply(many(250, "max_connections=100"))
    assert told.ready()
    assert {each.limiter.limit for each in running._services.values()} == {25}


def longest_turn(do: Callable[..., object], *arguments: object) -> float:
    """Do it, and return for which part of the time that it takes nobody else could run.

    Judged by CPU time: how quick the machine is, and what else it does, is no matter.
    """
    turns: list[float] = []

    def look() -> None:
        while True:
            turns.append(time.thread_time())
            gevent.sleep(0)

    gc.collect()
    gc.disable()
    try:
        looking = gevent.spawn(look)
        gevent.sleep(0)
        do(*arguments)
        gevent.sleep(0)
        looking.kill()
    finally:
        gc.enable()
    return max(after - before for before, after in itertools.pairwise(turns)) / (turns[-1] - turns[0])


@pytest.mark.parametrize(("options", "part"), [("", 16), ("idle_timeout=1h", 8)], ids=["none changes", "all change"])
def test_a_reload_of_thousands_of_rules_lets_others_run(options: str, part: int, start: Start) -> None:
    running = start()
    running.apply(many(3000))
    assert longest_turn(running.apply, many(3000, options)) < 1 / part


def test_who_stops_accepting_at_thousands_of_listeners_lets_others_run(start: Start) -> None:
    running = start()
    running.apply(many(3000))
    assert longest_turn(running.stop_accepting) < 1 / 8


def test_what_is_shown_while_rules_are_applied_is_of_a_piece(start: Start) -> None:
    running = start()
    shown = []

    def look() -> None:
        while True:
            running.rules_down()
            shown.append(len(running.status()))
            gevent.sleep(0)

    looking = gevent.spawn(look)
    for number in (250, 50, 150):
        running.apply(many(number))
        gevent.sleep(0.01)
    looking.kill()
    assert set(shown) == {0, 250, 50, 150}


def test_of_rules_that_have_gone_nothing_is_kept(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend, "name=goes"), row(other_port, backend, "name=stays"))
    for each in (port, other_port):
        talk_to(sockets, each, backend).close()
    eventually(lambda: not running.ledger.live)
    running.status()
    running.apply(rules(row(other_port, backend, "name=stays")))
    assert set(running.ledger.totals) == set(running.ledger._ended) == {"stays"}


# --- any change ------------------------------------------------------------------------------------------------------


def test_names_are_kept_at_the_shortest_age_that_a_rule_asks_for() -> None:
    wanted = server._host_names(
        rules(
            "8001,db,80,dns_refresh=60s",
            "8002,db,80,dns_refresh=5s",
            "8003,db,80,dns_refresh=7s",
            "8004,web,80",
            "8005,127.0.0.1,80",
            "8005,::1,80",
        )
    )
    assert wanted == {"db": 5.0, "web": 30.0}


def test_names_that_no_rule_needs_any_more_are_forgotten(start: Start, port: int, other_port: int) -> None:
    running = start(f"{HOST}:{port},localhost,80", f"{HOST}:{other_port},ip6-localhost,80")
    assert set(running._shared.resolver._names) == {"localhost", "ip6-localhost"}
    running.apply(rules(f"{HOST}:{port},localhost,80"))
    assert set(running._shared.resolver._names) == {"localhost"}


ROWS = st.builds(
    "{}{},127.0.0.1,1,{}".format,
    st.sampled_from(["", "127.0.0.1:", "127.0.0.2:", "[::1]:"]),
    st.sampled_from(["{0}", "{1}", "{2}", "{0}-{1}", "{1}-{2}"]),
    st.sampled_from(["", "name=other", "keepalive=7s", "idle_timeout=1h", "max_connections=2", "health=tcp"]),
)
RULE_SETS = st.lists(st.lists(ROWS, max_size=4), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def three_ports() -> list[int]:
    return ports_in_a_row(3)


def state(running: Server) -> object:
    listeners = {
        address: (
            listener.binding.service.rule,
            listener.binding.port_offset,
            address_of(listener.socket),
            [listener.socket.getsockopt(*option[:2]) for option in net._keepalive_options(60)],
        )
        for address, listener in running.listeners.items()
    }
    at_work = {key: (rule.limiter.limit, rule.probes is not None) for key, rule in running._services.items()}
    targets = [
        (service.rule, member.address, member.up)
        for service in running._services.values()
        for member in service.upstream.pool.members.values()
    ]
    return listeners, running.down, running.rules, running.limiter.limit, at_work, targets


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sets=RULE_SETS)
def test_any_changes_end_where_starting_with_the_last_rules_does(
    sets: list[list[str]], start: Start, three_ports: list[int]
) -> None:
    # Rows that overlap are left out: what matters is that the sets are valid.
    parsed = [parse("\n".join(rows).format(*three_ports).encode())[0] for rows in sets]
    changed, fresh = start(), start()
    for each in parsed:
        changed.apply(each)
    after = state(changed)
    changed.apply(RuleSet())
    fresh.apply(parsed[-1])
    assert after == state(fresh)
    fresh.apply(RuleSet())
