"""Tests of getting a connected stream: next address, next target, and one time limit for all of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gevent
import pytest
from gevent import socket

from tests.names import NameServer
from tests.net.test_dial import NOT_CONNECTABLE, slow
from tests.proxy.connecting import FOREVER, Connect, Rows, Within, connect_to
from tests.sockets import Sockets, address_of, eventually, open_files
from tests.system.harness import HOST, free_port
from veillink.model import Address, End, Ended, Rule, RuleOptions, SendProxy, Target
from veillink.net.places import Places
from veillink.net.resolver import Resolver
from veillink.net.socket_stream import SocketStream
from veillink.net.stream import Stream
from veillink.net.unix_queue import UnixQueues
from veillink.proxy import connect as connect_module
from veillink.proxy.pool import Member, Pool
from veillink.proxy.upstream import Upstream

# --- targets ---------------------------------------------------------------------------------------------------------


def test_a_target_that_fails_is_followed_by_the_next(connect: Connect, refusing: Address, live: Address) -> None:
    won = connect(Target(refusing), Target(NOT_CONNECTABLE), Target(live))
    assert won.address == live
    assert won.tried == [f"{refusing} ECONNREFUSED", f"{NOT_CONNECTABLE} EINVAL"]


def test_beside_silent_targets_the_next_is_tried_before_the_time_is_up(
    connect: Connect, sockets: Sockets, live: Address
) -> None:
    first, second = sockets.silent(), sockets.silent()
    won = connect(Target(first), Target(second), Target(live), seconds=0.9)
    assert (won.address, won.tried) == (live, [f"{first} ETIMEDOUT", f"{second} ETIMEDOUT"])
    assert won.seconds >= 0.6


def test_a_target_that_is_slow_is_not_given_up_when_its_share_is_over(connect: Connect, sockets: Sockets) -> None:
    first = slow(sockets, 0.4)
    won = connect(Target(first), *(Target(sockets.silent()) for _ in range(3)), seconds=1.9)
    assert (won.address, won.tried) == (first, [])
    assert won.seconds > 1.9 / 2, "not late: there is nothing to test"


def test_one_of_many_targets_gets_a_second_before_the_next_is_tried(connect: Connect, sockets: Sockets) -> None:
    first, others = slow(sockets, 0.4), [sockets.listener() for _ in range(20)]
    won = connect(Target(first), *(Target(address_of(other)) for other in others), seconds=5)
    assert 0.95 < won.seconds < 4
    for other in others[1:]:
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()


@pytest.fixture
def rows(book: Resolver) -> Callable[..., Rows]:
    def _rows(*targets: Address, places: int = 16, **options: Any) -> Rows:
        turns: list[tuple[Address, str]] = []
        rule = Rule("web", Address("", 80), 1, tuple(Target(address) for address in targets), RuleOptions(**options))
        pool = Pool(rule, lambda: 0.5)
        on_state_change = lambda member, reason: turns.append((member.address, reason))  # noqa: E731
        return Rows(Upstream(pool, book, UnixQueues(), Places(places), on_state_change, lambda member: None), turns)

    return _rows


def test_a_late_target_has_failed_when_another_connects_first_and_is_left_by_all(
    rows: Callable[..., Rows], sockets: Sockets, live: Address
) -> None:
    silent = sockets.silent()
    both = rows(silent, live, max_fails=1)
    assert both.connect(1) == live
    assert both.turns == [(silent, "ETIMEDOUT")]
    assert [member.active for member in both.upstream.pool.members.values()] == [0, 0]


@pytest.mark.parametrize("places", [16, 0])
def test_a_late_target_that_connects_after_all_has_not_failed(
    places: int, rows: Callable[..., Rows], sockets: Sockets
) -> None:
    first, second = slow(sockets, 0.4), sockets.silent()
    both = rows(first, second, places=places, max_fails=1)
    assert both.connect(1.3) == first
    assert both.turns == []
    assert (both.member(first).active, both.member(second).active) == (0, 0)


def test_without_a_descriptor_to_spare_a_late_target_gives_way_only_to_one_that_has_answered_others(
    rows: Callable[..., Rows], sockets: Sockets, live: Address
) -> None:
    silent = sockets.silent()
    both = rows(silent, live, places=0, max_fails=0)
    with pytest.raises(Ended) as caught:
        both.connect(0.5)
    assert caught.value.end is End.CONNECT_TIMEOUT
    both.upstream.pool._credit[:] = [0, 0]  # so the silent one is the first again
    waiting = gevent.spawn(both.connect, 2)
    eventually(lambda: both.member(live).active)
    both.member(live).connected = time.monotonic()
    assert waiting.get() == live
    assert both.member(silent).active == 0


def test_a_target_that_was_never_tried_for_lack_of_a_descriptor_has_not_failed(
    rows: Callable[..., Rows], sockets: Sockets, live: Address
) -> None:
    silent = sockets.silent()
    both = rows(silent, live, places=0, max_fails=1)
    with pytest.raises(Ended):
        both.connect(0.5)
    assert both.turns == [(silent, "ETIMEDOUT")]


def test_what_a_target_leaves_of_its_share_is_the_others(connect: Connect, sockets: Sockets, refusing: Address) -> None:
    silent = sockets.silent()
    lost = connect(Target(refusing), Target(silent), seconds=0.4)
    assert (lost.end, lost.tried) == (End.CONNECT_TIMEOUT, [f"{refusing} ECONNREFUSED", f"{silent} ETIMEDOUT"])
    assert 0.4 <= lost.seconds < 5


def test_a_connection_that_is_ended_from_outside_tries_nothing_more(
    connect: Connect, sockets: Sockets, live: Address
) -> None:
    before = open_files()
    attempt = gevent.spawn(connect, Target(sockets.silent()), Target(live))
    eventually(lambda: open_files() > before + 2)  # those of the silent address, and the attempt
    attempt.kill(Ended(End.CLIENT_LEFT))
    assert (attempt.get().end, attempt.get().tried) == (End.CLIENT_LEFT, [])


def test_a_backup_is_the_last_resort(connect: Connect, refusing: Address, live: Address) -> None:
    won = connect(Target(live, backup=True), Target(refusing))
    assert (won.address, won.tried) == (live, [f"{refusing} ECONNREFUSED"])


@pytest.mark.parametrize("targets", [(), (Target(Address(HOST, 80), weight=0),)])
def test_without_a_usable_target_there_is_none(targets: tuple[Target, ...], connect: Connect) -> None:
    lost = connect(*targets)
    assert (lost.end, lost.tried) == (End.NO_TARGET, [])


@pytest.mark.parametrize("fixed", [False, True])
def test_a_listener_in_a_range_leads_to_its_own_port(fixed: bool, connect: Connect, live: Address) -> None:
    target = Target(Address(live.host, live.port - (0 if fixed else 7)), fixed=fixed)
    assert connect(target, offset=7).address == live


@pytest.mark.parametrize("returns", ["first", "backup", "unix"])
def test_when_all_have_refused_they_are_tried_again_until_one_is_there(
    returns: str, book: Resolver, sockets: Sockets, tmp_path: Path
) -> None:
    at = {name: Address(HOST, free_port()) for name in ("first", "backup")}
    at["unix"] = Address(f"unix:{tmp_path}/x", 0)
    targets = (Target(at["first"]), Target(at["unix"]), Target(at["backup"], backup=True))
    pool = Pool(Rule("web", Address("", 80), 1, targets, RuleOptions(max_fails=1)), lambda: 0.5)
    route = Upstream(pool, book, UnixQueues(), Places(16), lambda member, reason: None, lambda member: None, 0.01)
    tried: list[str] = []
    attempt = gevent.spawn(connect_to, route, 0, FOREVER, tried)
    gevent.sleep(0.1)  # for some tries: by now all are out, and asked all the same
    assert not attempt.ready()
    if returns == "unix":
        listener = sockets.keep(socket.socket(socket.AF_UNIX))
        listener.bind(at["unix"].path)
        listener.listen()
    else:
        sockets.listener(port=at[returns].port)
    stream, address, _ = attempt.get()
    stream.close()
    assert address == at[returns]
    failures = {f"{at['first']} ECONNREFUSED", f"{at['unix']} ENOENT", f"{at['backup']} ECONNREFUSED"}
    assert set(tried) == failures
    assert len(tried) == 3


def test_trying_again_ends_with_the_time_for_it(connect: Connect, refusing: Address) -> None:
    lost = connect(Target(refusing), seconds=0.6, retry_interval=0.2)
    assert (lost.end, lost.tried) == (End.CONNECT_REFUSED, [f"{refusing} ECONNREFUSED"])
    assert lost.seconds >= 0.2


def test_who_cannot_try_again_in_time_is_told_at_once(connect: Connect, refusing: Address) -> None:
    lost = connect(Target(refusing), seconds=60, retry_interval=61)
    assert lost.end is End.CONNECT_REFUSED
    assert lost.seconds < 30


def test_what_can_never_be_is_not_tried_again(connect: Connect, live: Address) -> None:
    assert connect(Target(live, weight=0), retry_interval=0.01).end is End.NO_TARGET


def test_a_connection_that_is_ended_from_outside_is_not_tried_again(connect: Connect, refusing: Address) -> None:
    attempt = gevent.spawn(connect, Target(refusing), retry_interval=0.01)
    gevent.sleep(0.1)
    attempt.kill(Ended(End.DRAINED))
    assert (attempt.get().end, attempt.get().tried) == (End.DRAINED, [f"{refusing} ECONNREFUSED"])


# --- targets with a name ---------------------------------------------------------------------------------------------


def test_all_addresses_of_a_name_are_tried(connect: Connect, hosts: dict[str, tuple[str, ...]], live: Address) -> None:
    hosts["db"] = ("127.0.0.2", "127.0.0.3", live.host)
    won = connect(Target(Address("db", live.port)))
    assert won.address == live
    assert won.tried == [f"127.0.0.2:{live.port} ECONNREFUSED", f"127.0.0.3:{live.port} ECONNREFUSED"]


def test_a_name_that_is_not_found_leads_to_the_next_target(
    connect: Connect, hosts: dict[str, tuple[str, ...]], live: Address
) -> None:
    won = connect(Target(Address("nowhere", 80)), Target(live))
    assert (won.address, won.tried) == (live, ["nowhere:80 name_not_found"])


def test_a_name_that_is_not_found_is_the_reason_if_nothing_else_is_left(
    connect: Connect, hosts: dict[str, tuple[str, ...]]
) -> None:
    lost = connect(Target(Address("nowhere", 80)))
    assert (lost.end, lost.tried) == (End.NAME_NOT_FOUND, ["nowhere:80 name_not_found"])


def test_a_name_that_is_not_found_is_looked_up_again(
    connect: Connect, name_server: NameServer, live: Address, book: Resolver
) -> None:
    attempt = gevent.spawn(connect, Target(Address("db", live.port)), retry_interval=0.01)
    eventually(lambda: name_server.asked["db"] and not book.find("db").busy)
    name_server.hosts["db"] = (live.host,)
    book.find("db").again = 0.0  # that was long ago
    assert (attempt.get().address, attempt.get().tried) == (live, [f"db:{live.port} name_not_found"])


def test_the_look_up_takes_from_the_same_time(connect: Connect, name_server: NameServer) -> None:
    name_server.hanging |= {"db", "web"}
    lost = connect(Target(Address("db", 80)), Target(Address("web", 80)), seconds=0.2)
    assert (lost.end, lost.tried) == (End.CONNECT_TIMEOUT, ["db:80 connect_timeout", "web:80 connect_timeout"])
    assert 0.2 <= lost.seconds < 5


def test_a_connection_that_is_ended_during_the_look_up_tries_nothing_more(
    connect: Connect, name_server: NameServer, live: Address
) -> None:
    name_server.hanging.add("db")
    attempt = gevent.spawn(connect, Target(Address("db", 80)), Target(live))
    eventually(lambda: name_server.asked["db"])
    attempt.kill(Ended(End.DRAINED))
    assert (attempt.get().end, attempt.get().tried) == (End.DRAINED, [])


def test_a_client_waits_for_a_name_server_in_trouble(connect: Connect, name_server: NameServer, live: Address) -> None:
    name_server.hosts["db"] = (live.host,)
    name_server.troubled["db"] = 2
    won = connect(Target(Address("db", live.port)), seconds=10)
    assert (won.address, won.tried) == (live, [])


def test_a_name_server_that_stays_in_trouble_is_no_name_that_is_not_found(
    connect: Connect, name_server: NameServer
) -> None:
    name_server.troubled["db"] = FOREVER
    lost = connect(Target(Address("db", 80)), seconds=0.3)
    assert (lost.end, lost.tried) == (End.CONNECT_TIMEOUT, ["db:80 connect_timeout"])
    assert lost.seconds >= 0.3


def test_while_a_name_server_is_in_trouble_the_next_target_is_tried_at_once(
    connect: Connect, name_server: NameServer, live: Address
) -> None:
    name_server.troubled["db"] = FOREVER
    won = connect(Target(Address("db", 80)), Target(live), seconds=60)
    assert (won.address, won.tried) == (live, ["db:80 connect_timeout"])
    assert won.seconds < 15, "half of the time is its share"


@pytest.mark.parametrize("failure", ["", "try again"])
@pytest.mark.parametrize("old", ["refuses", "silent"])
def test_a_client_of_a_name_that_has_moved_is_served_at_its_new_address(
    failure: str,
    old: str,
    connect: Connect,
    hosts: dict[str, tuple[str, ...]],
    sockets: Sockets,
    live: Address,
    book: Resolver,
) -> None:
    hosts["db"] = ("127.0.0.2",)
    if old == "silent":
        sockets.silent("127.0.0.2", live.port)
    name = book.find("db")
    book.ask(name, time.monotonic())
    name.answered.wait()
    name.again = 0.0  # that was long ago
    name.failure = failure  # and there may have been trouble since
    hosts["db"] = (live.host,)
    won = connect(Target(Address("db", live.port)), seconds=10)
    assert (won.address, won.tried) == (live, [f"127.0.0.2:{live.port} ECONNREFUSED"] if old == "refuses" else [])


def test_who_is_refused_at_an_address_that_was_just_looked_up_is_told_at_once(
    connect: Connect, hosts: dict[str, tuple[str, ...]], live: Address, book: Resolver
) -> None:
    hosts["db"] = ("127.0.0.2",)
    name = book.find("db")
    book.ask(name, time.monotonic())
    name.answered.wait()
    lost = connect(Target(Address("db", live.port)), seconds=120)
    assert (lost.end, lost.tried) == (End.CONNECT_REFUSED, [f"127.0.0.2:{live.port} ECONNREFUSED"])
    assert lost.seconds < 30


def test_who_is_refused_does_not_wait_for_a_name_server_that_has_hung_but_asks_it(
    connect: Connect, name_server: NameServer, live: Address, book: Resolver
) -> None:
    name_server.hanging.add("db")
    name = book.find("db")
    name.addresses, name.hung = ("127.0.0.2",), True
    lost = connect(Target(Address("db", live.port)), seconds=60)
    eventually(lambda: name_server.asked["db"])
    assert lost.end is End.CONNECT_REFUSED
    assert lost.seconds < 30


def test_a_silent_first_address_costs_only_the_first_client_its_head_start(
    connect: Connect, hosts: dict[str, tuple[str, ...]], sockets: Sockets, live: Address
) -> None:
    hosts["db"] = ("127.0.0.2", live.host)
    sockets.silent("127.0.0.2", live.port)
    target = Target(Address("db", live.port))
    assert connect(target).seconds >= 0.25
    assert min(connect(target).seconds for _ in range(3)) < 0.25


@pytest.mark.parametrize("end", [End.CLIENT_LEFT, End.DRAINED, End.TARGET_TLS])
def test_only_a_target_that_does_not_want_to_hear_us_is_followed_by_the_next(
    end: End, sockets: Sockets, book: Resolver
) -> None:
    targets = tuple(Target(address_of(sockets.listener()), send_proxy=SendProxy.V1) for _ in range(2))
    pool = Pool(Rule("web", Address("", 80), 1, targets, RuleOptions(max_fails=1)), lambda: 0.5)
    failed: list[str] = []
    route = Upstream(pool, book, UnixQueues(), Places(16), lambda member, reason: failed.append(reason), Mock())
    asked: list[Address] = []

    class Ending(Within):
        def introduce(self, stream: SocketStream, address: Address, member: Member, until: float) -> Stream:
            stream.abort()
            asked.append(address)
            raise Ended(end)

    with pytest.raises(Ended) as caught:
        connect_module.connect(route, 0, HOST, Ending(time.monotonic() + 5), [])
    assert caught.value.end is end
    blamed = end is End.TARGET_TLS
    assert (len(asked), len(failed)) == ((2, 2) if blamed else (1, 0))
    assert [member.active for member in pool.members.values()] == [0, 0]
