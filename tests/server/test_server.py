"""Tests of a rule set at work: listeners, changes of the rules, limits, the end."""

import errno
import gc
import itertools
import math
import os
import socket as stdlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sockets import Journal, Sockets, address_of, eventually
from tests.system.harness import HOST, free_port, read_exactly, read_to_eof
from tests.system.namespace import Network
from veillink.config.rules import parse
from veillink.model import Address, RuleOptions, RuleSet
from veillink.net import listening
from veillink.net import sockets as net
from veillink.server import listeners, server
from veillink.server.fd_budget import FdBudget
from veillink.server.listeners import Listeners
from veillink.server.server import Server

FD_LIMIT = 1000


def rules(*rows: str) -> RuleSet:
    """Return the rules of these rows, which have no problem."""
    parsed, problems, _ = parse("\n".join(rows).encode())
    assert not problems
    return parsed


@pytest.fixture
def start(journal: Journal) -> Iterator[Callable[..., Server]]:
    """Make a server; afterwards nothing of it goes on."""
    servers: list[Server] = []

    def _start(*rows: str, max_connections: int = 0) -> Server:
        servers.append(Server(journal.log, "rules.csv", FdBudget(FD_LIMIT), max_connections))
        servers[-1].apply(rules(*rows))
        return servers[-1]

    yield _start
    for each in servers:
        each.apply(RuleSet())
    gevent.sleep(0)
    for each in servers:
        each.cut()
    eventually(lambda: not any(each.limiter.in_use for each in servers))


Start = Callable[..., Server]


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


def row(port: int, backend: socket.socket, options: str = "") -> str:
    return f"{HOST}:{port},{HOST},{address_of(backend).port},{options}"


@dataclass
class Talk:
    """A client and the target that it was forwarded to."""

    client: socket.socket
    target: socket.socket

    def works(self) -> bool:
        self.client.sendall(b"ping")
        self.target.sendall(read_exactly(self.target, 4))
        return read_exactly(self.client, 4) == b"ping"

    def close(self) -> None:
        self.client.close()
        self.target.close()


def talk_to(sockets: Sockets, port: int, backend: socket.socket, host: str = HOST) -> Talk:
    return Talk(sockets.client(Address(host, port)), sockets.accept(backend))


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


# --- listeners that cannot be had ------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try listeners that are down again soon."""
    monkeypatch.setattr(listeners, "_FIRST_RETRY", 0.02)
    monkeypatch.setattr(listeners, "_LAST_RETRY", 0.05)


def test_a_listener_that_cannot_be_had_is_reported_and_tried_again(
    sockets: Sockets, start: Start, quick: None, other_port: int, backend: socket.socket, journal: Journal
) -> None:
    taken = sockets.listener(port=free_port())
    port = address_of(taken).port
    running = start("# rules", row(port, backend, "name=db"), row(other_port, backend))
    assert list(running.down) == [Address(HOST, port)]
    assert talk_to(sockets, other_port, backend).works()
    error = journal.wait_for("cannot listen")
    assert error["level"] == "error"
    assert error["rule"] == "db"
    assert error["message"].startswith(
        f"rules.csv:2: cannot listen on {HOST}:{port}: Address already in use (EADDRINUSE)"
    )
    taken.close()
    again = journal.wait_for("listening at last")
    assert (again["rule"], again["listen"]) == ("db", f"{HOST}:{port}")
    assert running.down == {}
    assert talk_to(sockets, port, backend).works()
    eventually(lambda: running._listeners._keeper is None)


def absent(port: int, backend: socket.socket) -> str:
    return f"192.0.2.1:{port},{HOST},{address_of(backend).port},name=vip"  # this host has no such address


@pytest.mark.skipif(not listening._HAS_FREEBIND, reason="needs Linux")
def test_an_address_this_host_does_not_have_yet_is_listened_on_and_warned_of_once(
    start: Start, port: int, other_port: int, backend: socket.socket, journal: Journal
) -> None:
    running = start("# rules", absent(port, backend))
    assert list(running.listeners) == [Address("192.0.2.1", port)]
    assert running.down == {}
    running.apply(rules(absent(port, backend), row(other_port, backend)))
    (warning,) = [line for line in journal.finish() if "EADDRNOTAVAIL" in line.get("message", "")]
    assert warning["message"].startswith(f"rules.csv:2: nobody reaches 192.0.2.1:{port} yet")
    assert (warning["level"], warning["rule"]) == ("warning", "vip")


def test_an_address_this_host_does_not_have_yet_is_waited_for_where_the_kernel_cannot_listen_there(
    start: Start, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_HAS_FREEBIND", False)
    monkeypatch.setattr(listeners, "_AWAITED_RETRY", 0.02)
    running = start(absent(port, backend))
    assert "EADDRNOTAVAIL" in running.down[Address("192.0.2.1", port)]
    assert running.can_go_on
    error = journal.wait_for("cannot listen")["message"]
    assert "does not have that address now" in error
    assert error.endswith("it is tried again")
    monkeypatch.undo()  # stands for the address that comes
    eventually(lambda: running.down == {})


def test_a_lone_listener_that_cannot_be_had_is_not_said_to_be_tried_again(
    sockets: Sockets, start: Start, backend: socket.socket, journal: Journal
) -> None:
    running = start(row(address_of(sockets.listener()).port, backend))
    assert not running.can_go_on
    (error,) = [line for line in journal.finish() if "cannot listen" in line.get("message", "")]
    assert "tried again" not in error["message"]


def test_each_address_that_is_down_has_a_delay_of_its_own(
    sockets: Sockets,
    start: Start,
    backend: socket.socket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: Counter[Address] = Counter()
    listen = Listeners._listen

    def counted(self: Listeners, address: Address, options: RuleOptions) -> stdlib.socket:
        tries[address] += 1
        return listen(self, address, options)

    monkeypatch.setattr(Listeners, "_listen", counted)
    monkeypatch.setattr(listeners, "_FIRST_UNIX_RETRY", 0.02)
    monkeypatch.setattr(listeners, "_LAST_UNIX_RETRY", 0.05)
    monkeypatch.setattr(listeners, "_FIRST_RETRY", 60.0)
    path = tmp_path / "socket"
    with stdlib.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        port = address_of(sockets.listener()).port
        start(row(port, backend), f"unix:{path},{HOST},{address_of(backend).port}")
        eventually(lambda: tries[Address(f"unix:{path}", 0)] > 5, 10)
    assert tries[Address(HOST, port)] == 1


def test_the_delay_of_an_address_that_stays_down_grows() -> None:
    tcp, unix = [0.0], [0.0]
    for _ in range(6):
        tcp.append(listeners._delay(Address(HOST, 80), tcp[-1]))
        unix.append(listeners._delay(Address("unix:/path", 0), unix[-1]))
    assert tcp[1:] == [1, 2, 4, 8, 10, 10]
    assert unix[1:] == [0.2, 0.4, 0.8, 0.8, 0.8, 0.8]


# --- listeners whose place has gone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by_itself", [False, True], ids=["at a reload", "by itself"])
@pytest.mark.parametrize("another", [False, True], ids=["removed", "replaced"])
def test_a_unix_listener_whose_file_has_gone_listens_anew(
    another: bool,
    by_itself: bool,
    start: Start,
    backend: socket.socket,
    journal: Journal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by_itself:
        monkeypatch.setattr(listeners, "_LOOK", 0.02)
    path = tmp_path / "socket"
    running = start(f"unix:{path},{HOST},{address_of(backend).port},name=local")
    path.unlink()
    if another:
        with stdlib.socket(socket.AF_UNIX) as passing:
            passing.bind(str(path))
    if not by_itself:
        running.apply(running.rules)
    told = journal.wait_for("listening anew")
    reason = "another file is in its place" if another else "its file was removed"
    assert (told["level"], told["rule"], told["reason"]) == ("warning", "local", reason)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"word")
        with backend.accept()[0] as target:
            assert read_exactly(target, 4) == b"word"


def test_a_unix_listener_whose_place_somebody_else_has_is_down(
    start: Start, backend: socket.socket, journal: Journal, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    running = start(f"unix:{path},{HOST},{address_of(backend).port}")
    path.unlink()
    with stdlib.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        running.apply(running.rules)
        assert "EADDRINUSE" in running.down[Address(f"unix:{path}", 0)]
        journal.wait_for("cannot listen any more")
    eventually(lambda: running.down == {})


def test_a_link_local_listener_whose_interface_was_made_anew_listens_there(
    start: Start, port: int, backend: socket.socket, journal: Journal
) -> None:
    with Network() as network, network.inside():
        make = ("ip", "link", "add", "wire", "type", "veth", "peer", "name", "end")
        network.run(*make)
        running = start(f"[fe80::1%wire]:{port},{HOST},{address_of(backend).port}")
        (listener,) = running.listeners.values()
        network.run("ip", "link", "delete", "wire")
        running.apply(running.rules)
        assert "ENODEV" in running.down[Address("fe80::1%wire", port)]
        assert running.can_go_on
        network.run(*make)
        running.apply(running.rules)
        (anew,) = running.listeners.values()
        assert anew is not listener
        assert anew.socket.getsockname()[3] == stdlib.if_nametoindex("wire")
        network.run("ip", "link", "delete", "wire")
        network.run(*make)
        running.apply(running.rules)
        (last,) = running.listeners.values()
        assert last.socket.getsockname()[3] == stdlib.if_nametoindex("wire")
        assert [line["reason"] for line in journal.finish() if "reason" in line] == [
            "its interface has gone",
            "its interface was made anew",
        ]
        running.apply(RuleSet())


def test_a_listener_that_is_down_is_given_up_with_its_rule(
    sockets: Sockets, start: Start, quick: None, other_port: int, backend: socket.socket
) -> None:
    taken = sockets.listener(port=free_port())
    running = start(row(address_of(taken).port, backend))
    running.apply(rules(row(other_port, backend)))
    assert running.down == {}
    eventually(lambda: running._listeners._keeper is None)


def test_a_listener_that_comes_late_serves_the_rule_of_now(
    sockets: Sockets, start: Start, quick: None, backend: socket.socket, other_backend: socket.socket
) -> None:
    taken = sockets.listener(port=free_port())
    port = address_of(taken).port
    running = start(row(port, backend))
    running.apply(rules(row(port, other_backend)))
    taken.close()
    eventually(lambda: running.listeners)
    assert talk_to(sockets, port, other_backend).works()


def test_a_listener_that_stays_down_is_reported_with_the_line_of_now(
    sockets: Sockets, start: Start, backend: socket.socket, journal: Journal
) -> None:
    port = address_of(sockets.listener(port=free_port())).port
    running = start(row(port, backend))
    running.apply(rules("# one line more", row(port, backend)))
    reports = [line["message"] for line in journal.finish() if "cannot listen" in line.get("message", "")]
    assert [report.partition(": ")[0] for report in reports] == ["rules.csv:1", "rules.csv:2"]


# --- accepting -------------------------------------------------------------------------------------------------------


class FaultySocket(stdlib.socket):
    """A listening socket whose next accepts fail with these errors; ``clients_leave`` takes a client with each."""

    errors: list[int]
    clients_leave = False

    def _accept(self) -> Any:
        if self.errors:
            if self.clients_leave:
                os.close(super()._accept()[0])  # type: ignore[misc]
            raise OSError(self.errors.pop(0), "injected")
        return super()._accept()  # type: ignore[misc]


def make_faulty(running: Server, *errors: int) -> FaultySocket:
    listener = next(iter(running.listeners.values()))
    listening: Any = listener.socket
    faulty = FaultySocket(fileno=listening.detach())
    faulty.errors = list(errors)
    listener.socket = faulty
    return faulty


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
def test_a_failed_accept_costs_a_pause_and_one_line(
    number: int, sockets: Sockets, start: Start, port: int, backend: socket.socket, journal: Journal
) -> None:
    make_faulty(start(row(port, backend)), number, number)
    started = time.monotonic()
    assert talk_to(sockets, port, backend).works()
    assert time.monotonic() - started >= 2 * 0.1
    line, rest = [line for line in journal.finish() if "cannot accept" in line.get("message", "")]
    assert (line["listen"], line["reason"]) == (f"{HOST}:{port}", errno.errorcode[number])
    assert rest["message"] == "cannot accept: 1 suppressed"


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EINTR, errno.EPROTO])
def test_a_client_that_gave_up_before_accept_costs_nothing(
    number: int, sockets: Sockets, start: Start, port: int, backend: socket.socket, journal: Journal
) -> None:
    make_faulty(start(row(port, backend)), *[number] * 20)
    started = time.monotonic()
    assert talk_to(sockets, port, backend).works()
    assert time.monotonic() - started < 0.1 * 20
    assert not [line for line in journal.finish() if "cannot accept" in line.get("message", "")]


def test_a_client_that_gave_up_leaves_the_place_to_another_listener(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), max_connections=1)
    faulty = make_faulty(running, errno.ECONNABORTED)
    faulty.clients_leave = True
    first, faulty.errors = faulty.errors, []
    running.apply(rules(row(port, backend), row(other_port, backend)))
    talk = talk_to(sockets, port, backend)
    faulty.errors = first
    sockets.client(Address(HOST, port))
    eventually(lambda: len(running.limiter._waiting) == 1)
    waiting = sockets.client(Address(HOST, other_port))
    eventually(lambda: len(running.limiter._waiting) == 2)
    talk.close()
    assert Talk(waiting, sockets.accept(backend)).works()


def test_a_client_that_gave_up_does_not_cost_those_behind_it_their_turn_when_the_rule_is_removed(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend))
    make_faulty(running, errno.ECONNABORTED)
    with stdlib.create_connection((HOST, port)) as early:  # blocks the loop: nobody accepts meanwhile
        running.apply(RuleSet())
        target = sockets.accept(backend)
        early.sendall(b"still served")
        assert read_exactly(target, 12) == b"still served"


def test_a_rule_may_be_removed_while_its_listener_pauses(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend))
    faulty = make_faulty(running, errno.EMFILE)
    early = sockets.client(Address(HOST, port))
    eventually(lambda: not faulty.errors)
    running.apply(RuleSet())
    assert running.listeners == {}
    assert faulty.fileno() < 0
    target = sockets.accept(backend)
    early.sendall(b"still served")
    assert read_exactly(target, 12) == b"still served"


@given(st.integers(0, 1 << 20), st.integers(0, 1000), st.booleans(), st.integers(0, 100))
def test_whatever_is_in_use_at_a_time_fits_into_the_descriptors(
    limit: int, listeners: int, splice: bool, inherited: int
) -> None:
    fd_budget = FdBudget(limit, splice, inherited=inherited)
    connections = fd_budget.connections(listeners)
    in_use = 2 * (connections + fd_budget.lookups + fd_budget.pipes) + fd_budget.parallel_attempts + listeners + 22
    in_use += fd_budget.probes + fd_budget.admin + inherited
    assert in_use in (limit, limit - 1)
    assert sum(fd_budget.breakdown(listeners).values()) == in_use
    assert splice or not fd_budget.pipes


MIB = 1 << 20


@pytest.mark.parametrize(
    ("memory", "workers", "fits"),
    [
        (0, 1, math.inf),
        (64 * MIB, 1, 2048),
        (1024 * MIB, 1, 51_200),
        (20 * MIB, 1, 64),
        (64 * MIB + 3 * 24 * MIB, 2, 1638),  # two workers and their master
    ],
)
def test_as_many_connections_are_held_as_fit_into_the_memory(
    memory: int, workers: int, fits: float, journal: Journal
) -> None:
    worker = 0 if workers == 1 else 1
    running = Server(journal.log, "rules.csv", FdBudget(1 << 20), 0, worker=worker, memory=memory)
    running.apply(RuleSet())
    running.set_worker_count(workers)
    assert running.fits_memory == fits
    assert running.limiter.limit == min(fits, FdBudget(1 << 20).connections(0))


@given(st.integers(0, 1000))
def test_what_is_needed_is_the_least_with_which_one_connection_fits(listeners: int) -> None:
    for splice, watched in ((True, True), (False, False)):
        needed = FdBudget(0, splice, watched).needed(listeners)
        assert FdBudget(needed, splice, watched).connections(listeners) > 0
        assert FdBudget(needed - 1, splice, watched).connections(listeners) <= 0


@pytest.mark.parametrize(
    ("max_connections", "listeners", "limit"),
    [
        (0, 1, FdBudget(FD_LIMIT).connections(1)),
        (0, 101, FdBudget(FD_LIMIT).connections(101)),
        (7, 1, 7),
        (10_000, 1, FdBudget(FD_LIMIT).connections(1)),
        (0, FD_LIMIT, 0),
    ],
)
def test_as_many_connections_are_held_as_descriptors_allow_and_the_operator_wants(
    max_connections: int, listeners: int, limit: int, start: Start, quick: None
) -> None:
    rows = (f"192.0.2.1:{port},{HOST},80" for port in range(1, 1 + listeners))  # this host has no such address
    assert start(*rows, max_connections=max_connections).limiter.limit == limit


def test_at_the_limit_clients_wait_and_are_served_when_others_leave(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), max_connections=2)
    talks = [talk_to(sockets, port, backend) for _ in range(2)]
    waiting = [sockets.client(Address(HOST, port)) for _ in range(3)]
    eventually(lambda: running.limiter._waiting)
    assert all(talk.works() for talk in talks)
    for client in waiting:
        talks.pop(0).close()
        talks.append(Talk(client, sockets.accept(backend)))
        assert talks[-1].works()
        assert running.limiter.in_use == 2


def test_a_place_goes_to_a_client_of_another_listener_too(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), row(other_port, backend), max_connections=1)
    first = talk_to(sockets, port, backend)  # its listener asks for the next place, but nobody comes to it
    eventually(lambda: len(running.limiter._waiting) == 1)
    waiting = sockets.client(Address(HOST, other_port))
    eventually(lambda: len(running.limiter._waiting) == 2)
    first.close()
    waiting.sendall(b"at last")
    with gevent.Timeout(1):
        assert read_exactly(sockets.accept(backend), 7) == b"at last"


def test_the_place_goes_to_the_listener_that_has_waited_longest(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    ports = [port, *(free_port() for _ in range(4))]
    running = start(*(row(each, backend) for each in ports), max_connections=1)
    talks = [talk_to(sockets, port, backend)]
    waiting = []
    for number, each in enumerate(ports[1:], 2):
        waiting.append(sockets.client(Address(HOST, each)))
        eventually(lambda number=number: len(running.limiter._waiting) == number)  # type: ignore[misc]
    for client in waiting:
        talks.pop().close()
        talks.append(Talk(client, sockets.accept(backend)))
        assert talks[-1].works()


def test_a_listener_that_waits_for_a_place_may_be_removed(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), row(other_port, backend), max_connections=1)
    first = talk_to(sockets, port, backend)
    eventually(lambda: running.limiter._waiting)
    running.apply(rules(row(other_port, backend)))
    waiting = sockets.client(Address(HOST, other_port))
    first.close()
    waiting.sendall(b"at last")
    assert read_exactly(sockets.accept(backend), 7) == b"at last"


def test_a_raised_limit_lets_those_in_who_wait(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    running = start(row(port, backend), max_connections=1)
    first = talk_to(sockets, port, backend)
    waiting = [sockets.client(Address(HOST, port)) for _ in range(3)]
    eventually(lambda: running.limiter._waiting)
    running._max_connections = 0
    running.apply(running.rules)
    for _ in waiting:
        sockets.accept(backend)
    assert first.works()


def ports_in_a_row(number: int) -> list[int]:
    ports = [free_port()]
    while len(ports) < number:
        ports.append(free_port())
        if ports[-1] != ports[-2] + 1:
            del ports[:-1]
    return ports


def test_a_limit_that_is_raised_by_many_lets_the_clients_of_many_listeners_in(
    sockets: Sockets, start: Start, port: int, backend: socket.socket
) -> None:
    ports = ports_in_a_row(8)
    wide = f"{HOST}:{ports[0]}-{ports[-1]},{HOST},{address_of(backend).port}"
    running = start(row(port, backend), wide, max_connections=1)
    talk = talk_to(sockets, port, backend)
    waiting = [sockets.client(Address(HOST, each)) for each in ports]
    eventually(lambda: len(running.limiter._waiting) >= len(waiting))
    running._max_connections = 0
    running.apply(running.rules)  # wakes a listener for each rule; the others have to be woken by those
    for _ in waiting:
        sockets.accept(backend)
    assert talk.works()


def test_a_place_that_a_rule_has_no_use_for_any_more_goes_to_who_waits_behind_it(
    sockets: Sockets, start: Start, port: int, other_port: int, backend: socket.socket
) -> None:
    first, second = ports_in_a_row(2)
    narrow = f"{HOST}:{first}-{second},{HOST},{address_of(backend).port},max_connections=1"
    running = start(row(port, backend), narrow, row(other_port, backend), max_connections=2)
    talks = [talk_to(sockets, port, backend) for _ in range(2)]
    waiting = []
    for number, each in enumerate((first, second, other_port), 1):
        waiting.append(sockets.client(Address(HOST, each)))
        eventually(lambda number=number: len(running.limiter._waiting) >= number)  # type: ignore[misc]
    talks[0].close()
    assert Talk(waiting[0], sockets.accept(backend)).works()
    talks[1].close()  # the place is offered to the second port, whose rule is full by now
    with gevent.Timeout(5):
        assert Talk(waiting[2], sockets.accept(backend)).works()


def test_clients_of_several_rules_who_come_one_after_the_other_are_served_in_that_order(
    start: Start, backend: socket.socket
) -> None:
    """As a client's control port and then its data port: the target hears of them in the same order."""
    ports = [free_port() for _ in range(4)]
    start(*(row(each, backend) for each in ports))
    for _ in range(5):
        with ExitStack() as stack:
            for number, each in enumerate(ports):  # blocks the loop: it finds all of them at once
                client = stack.enter_context(stdlib.create_connection((HOST, each)))
                client.sendall(bytes([number]))
            targets = [stack.enter_context(backend.accept()[0]) for _ in ports]
            assert [read_exactly(target, 1)[0] for target in targets] == [0, 1, 2, 3]


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


def test_what_cannot_be_changed_is_told_and_ends_nothing(
    start: Start, port: int, backend: socket.socket, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(row(port, backend))

    def fails(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(listeners, "set_keepalive", fails)
    running.apply(rules(row(port, backend, "keepalive=7s")))
    assert "cannot change" in journal.wait_for("cannot change")["message"]
    assert running.rules.rules[0].options.keepalive == 7


def test_the_limit_is_a_number_from_the_first(start: Start) -> None:
    assert start().limiter.limit < float("inf")


# --- thousands of rules ----------------------------------------------------------------------------------------------


def many(number: int, options: str = "") -> RuleSet:
    """Return rules that listen where nobody else does: at an address that this host does not have."""
    host = f"198.51.100.{os.getpid() % 256}"
    return rules(*(f"{host}:{port},{HOST},80,name={port},{options}" for port in range(10_001, 10_001 + number)))


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
