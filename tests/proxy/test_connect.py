"""Tests of getting a connected stream: next address, next target, and one time limit for all of them."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from tests.proxy.connecting import FOREVER, Connect, Outcome, Rows, Within, outcome
from tests.sockets import Sockets, address_of, eventually, open_files
from tests.system.harness import HOST, free_port
from veillink.model import Address, End, Ended, Rule, RuleOptions, Target
from veillink.net import resolver
from veillink.net.dial import Race, first
from veillink.net.places import Claim, Places
from veillink.net.resolver import Resolver
from veillink.net.socket_stream import SocketStream
from veillink.net.sockets import OPTIONS
from veillink.net.stream import Stream
from veillink.net.unix_queue import UnixQueues
from veillink.proxy import connect as connect_module
from veillink.proxy.pool import Pool
from veillink.proxy.upstream import Upstream

NOT_CONNECTABLE = Address("fe80::1", 80)  # a link-local address without its zone: EINVAL at once


RunRace = Callable[..., Outcome]


def run_race(
    addresses: Sequence[Address], book: Resolver, claim: Claim, until: float, tried: list[str]
) -> tuple[Stream, Address]:
    """Try these as if they were the addresses of one target."""
    each = Race(addresses[0], book, claim, tried)
    each._waiting.extend(addresses[1:])
    try:
        if first((each,), until) is None:
            raise each.expire()
        if each.won is None:
            assert each.failed
            raise each.failed
        return each.won
    finally:
        each.close()


@pytest.fixture
def race(book: Resolver) -> RunRace:
    def _race(addresses: Sequence[Address], seconds: float = FOREVER, places: Places | None = None) -> Outcome:
        claim = Claim(places or Places(16), "rule")
        return outcome(lambda until, tried: run_race(addresses, book, claim, until, tried), seconds)

    return _race


@pytest.fixture
def refusing() -> Address:
    return Address(HOST, free_port())


# --- the addresses of one target -------------------------------------------------------------------------------------


def test_the_first_address_that_connects_is_taken_and_no_other_asked(
    race: RunRace, sockets: Sockets, live: Address
) -> None:
    other = sockets.listener()
    won = race([live, address_of(other)])
    assert (won.address, won.tried) == (live, [])
    other.settimeout(0)
    with pytest.raises(BlockingIOError):
        other.accept()


def test_a_connected_stream_works_and_has_the_options(sockets: Sockets, book: Resolver) -> None:
    listener = sockets.listener()
    stream, _ = run_race([address_of(listener)], book, Claim(Places(16), "rule"), FOREVER, [])
    assert isinstance(stream, SocketStream)
    assert {o: stream._socket.getsockopt(*o[:2]) for o in OPTIONS} == {o: o[2] for o in OPTIONS}
    stream.sendall(memoryview(b"through"))
    assert sockets.accept(listener).recv(100) == b"through"
    stream.close()


def test_the_next_address_is_tried_at_once_after_a_refusal(race: RunRace, refusing: Address, live: Address) -> None:
    won = race([refusing, NOT_CONNECTABLE, live])
    assert won.address == live
    assert won.tried == [f"{refusing} ECONNREFUSED", f"{NOT_CONNECTABLE} EINVAL"]
    assert won.seconds < 0.25


def test_a_silent_address_has_a_head_start_of_250_ms(race: RunRace, sockets: Sockets, live: Address) -> None:
    won = race([sockets.silent(), live])
    assert (won.address, won.tried) == (live, [])
    assert 0.25 <= won.seconds < 0.5


def test_each_silent_address_gets_its_head_start(race: RunRace, sockets: Sockets, live: Address) -> None:
    won = race([sockets.silent(), sockets.silent(), live])
    assert won.address == live
    assert 0.5 <= won.seconds < 0.75


def test_a_refusal_cuts_the_head_start_of_the_others_short(
    race: RunRace, sockets: Sockets, refusing: Address, live: Address
) -> None:
    won = race([sockets.silent(), refusing, live])
    assert (won.address, won.tried) == (live, [f"{refusing} ECONNREFUSED"])
    assert 0.25 <= won.seconds < 0.5


def test_silence_ends_when_time_is_up(race: RunRace, sockets: Sockets) -> None:
    silent = [sockets.silent(), sockets.silent()]
    lost = race(silent, 0.35)
    assert (lost.end, lost.tried) == (End.CONNECT_TIMEOUT, [f"{address} ETIMEDOUT" for address in silent])
    assert 0.35 <= lost.seconds < 1


@pytest.mark.parametrize("refuses", [False, True])
def test_a_connect_that_was_decided_while_this_process_did_not_run_is_looked_at_before_its_time_is_up(
    refuses: bool, race: RunRace, sockets: Sockets
) -> None:
    listener = sockets.listener(backlog=0)
    address = address_of(listener)
    sockets.client(address)

    def stop_for_a_while() -> None:
        if refuses:
            listener.shutdown(socket.SHUT_RDWR)
        else:
            sockets.accept(listener).close()
        time.sleep(1.5)  # the kernel sends the SYN again after a second

    gevent.spawn_later(0.05, stop_for_a_while)
    won = race([address], 0.5)
    assert (won.end, won.address) == ((End.CONNECT_REFUSED, None) if refuses else (None, address))


def test_time_that_was_up_before_is_a_timeout(race: RunRace, live: Address) -> None:
    assert race([live], -1).end is End.CONNECT_TIMEOUT


@pytest.mark.parametrize(
    ("order", "end"),
    [
        (["refusing"], End.CONNECT_REFUSED),
        (["impossible"], End.CONNECT_FAILED),
        (["impossible", "refusing"], End.CONNECT_REFUSED),
        (["refusing", "impossible"], End.CONNECT_FAILED),
    ],
)
def test_when_all_fail_the_last_reason_counts(race: RunRace, order: list[str], end: End, refusing: Address) -> None:
    lost = race([{"refusing": refusing, "impossible": NOT_CONNECTABLE}[kind] for kind in order])
    assert (lost.end, len(lost.tried)) == (end, len(order))
    assert lost.seconds < 0.25


def test_a_zone_that_is_no_interface_is_a_failed_try(race: RunRace) -> None:
    lost = race([Address("fe80::1%nosuch", 80)])
    assert lost.end is End.CONNECT_FAILED
    assert lost.tried[0].startswith("[fe80::1%nosuch]:80 ")


def test_an_attempt_that_is_interrupted_is_abandoned(race: RunRace, sockets: Sockets) -> None:
    silent = [sockets.silent(), sockets.silent()]
    before = open_files()
    attempt = gevent.spawn(race, silent)
    eventually(lambda: open_files() == before + 2)
    attempt.kill(Ended(End.CLIENT_LEFT))
    assert open_files() == before
    assert attempt.get().end is End.CLIENT_LEFT


def slow(sockets: Sockets, seconds: float) -> Address:
    """Return an address that answers a second after it was asked: there is room in its queue after so many seconds."""
    listener = sockets.listener(backlog=0)
    sockets.client(address_of(listener))
    gevent.spawn_later(seconds, lambda: listener.accept()[0].close())
    return address_of(listener)


def test_an_address_that_is_slow_is_not_given_up_for_one_that_is_silent(race: RunRace, sockets: Sockets) -> None:
    first = slow(sockets, 0.4)
    won = race([first, sockets.silent()], 5, Places(0))  # there is no descriptor for trying both
    assert (won.address, won.tried) == (first, [])


def test_an_address_gives_way_to_one_that_has_answered_others_where_there_is_no_descriptor_for_both(
    book: Resolver, sockets: Sockets, hosts: dict[str, tuple[str, ...]], live: Address
) -> None:
    hosts["db"] = ("127.0.0.2", live.host)
    sockets.silent("127.0.0.2", live.port)

    def attempt(places: Places) -> tuple[End | None, Address | None, list[str]]:
        tried: list[str] = []
        each = Race(Address("db", live.port), book, Claim(places, "rule"), tried)
        try:
            if first((each,), time.monotonic() + 1.2) is None:
                return each.expire().end, None, tried
            assert each.won
            each.won[0].close()
            return None, each.won[1], tried
        finally:
            each.close()

    alone = attempt(Places(0))
    assert alone == (End.CONNECT_TIMEOUT, None, [f"127.0.0.2:{live.port} ETIMEDOUT"])
    waiting = gevent.spawn(attempt, Places(0))
    gevent.sleep(0.1)
    assert attempt(Places(1))[1] == live
    assert waiting.get() == (None, live, [])


def test_all_connections_together_use_so_many_descriptors_only_to_try_addresses_side_by_side(
    book: Resolver, sockets: Sockets
) -> None:
    silent = [sockets.silent() for _ in range(3)]
    places = Places(2)
    before = open_files()

    def lose(rule: int) -> End:
        with pytest.raises(Ended) as caught:
            run_race(silent, book, Claim(places, rule), time.monotonic() + 0.7, [])
        return caught.value.end

    racing = [gevent.spawn(lose, rule) for rule in range(4)]
    most = 0
    while not all(greenlet.ready() for greenlet in racing):
        most = max(most, open_files() - before)
        gevent.sleep(0.01)
    assert most == 4 + 2
    assert open_files() == before
    assert not places.held
    assert [greenlet.get() for greenlet in racing] == [End.CONNECT_TIMEOUT] * 4


def test_what_has_connected_while_the_loop_stood_still_is_no_timeout(race: RunRace, sockets: Sockets) -> None:
    listener = sockets.listener(backlog=0)
    sockets.client(address_of(listener))
    attempt = gevent.spawn(race, [address_of(listener)], 0.3)
    gevent.sleep(0.1)
    listener.accept()[0].close()
    time.sleep(1.2)  # the kernel asks again after a second
    assert attempt.get().address == address_of(listener)


def test_no_rule_takes_the_descriptors_for_trying_beside_from_the_others() -> None:
    places = Places(16)
    taken = Counter(rule for rule in range(11) for _ in range(16) if places.take(rule))
    assert (set(taken), places.held) == (set(range(11)), taken.total())
    for rule, count in taken.items():
        for _ in range(count):
            places.give_back(rule)
    assert (places.held, places.take("another")) == (0, True)


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
    assert 0.6 <= won.seconds < 0.9


def test_a_target_that_is_slow_is_not_given_up_when_its_share_is_over(connect: Connect, sockets: Sockets) -> None:
    first = slow(sockets, 0.4)
    won = connect(Target(first), *(Target(sockets.silent()) for _ in range(3)), seconds=1.9)
    assert (won.address, won.tried) == (first, [])
    assert won.seconds > 1.9 / 2, "not late: there is nothing to test"


def test_one_of_many_targets_gets_a_second_before_the_next_is_tried(connect: Connect, sockets: Sockets) -> None:
    first, others = slow(sockets, 0.4), [sockets.listener() for _ in range(20)]
    won = connect(Target(first), *(Target(address_of(other)) for other in others), seconds=5)
    assert 0.95 < won.seconds < 2
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
    waiting = gevent.spawn(both.connect, 3)
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
    assert 0.4 <= lost.seconds < 1


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
    attempt = gevent.spawn(connect_module.connect, route, 0, HOST, Within(FOREVER), tried)
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
    lost = connect(Target(refusing), seconds=0.2, retry_interval=0.05)
    assert (lost.end, lost.tried) == (End.CONNECT_REFUSED, [f"{refusing} ECONNREFUSED"])
    assert lost.seconds >= 0.1


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


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """Stand for the name server."""
    table: dict[str, tuple[str, ...]] = {}
    monkeypatch.setattr(
        resolver,
        "_getaddrinfo",
        lambda host: (table.get(host, ()), *(("", False) if host in table else ("unknown", True))),
    )
    return table


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
    connect: Connect, hosts: dict[str, tuple[str, ...]], live: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_RETRY", 0.02)
    attempt = gevent.spawn(connect, Target(Address("db", live.port)), retry_interval=0.01)
    gevent.sleep(0.1)
    hosts["db"] = (live.host,)
    assert (attempt.get().address, attempt.get().tried) == (live, [f"db:{live.port} name_not_found"])


def test_the_look_up_takes_from_the_same_time(connect: Connect, monkeypatch: pytest.MonkeyPatch, live: Address) -> None:
    awake = threading.Event()
    monkeypatch.setattr(resolver, "_getaddrinfo", lambda host: ((), str(awake.wait(20)), True))
    lost = connect(Target(Address("db", 80)), Target(Address("web", 80)), seconds=0.2)
    awake.set()
    assert (lost.end, lost.tried) == (End.CONNECT_TIMEOUT, ["db:80 connect_timeout", "web:80 connect_timeout"])
    assert 0.2 <= lost.seconds < 1


def test_a_connection_that_is_ended_during_the_look_up_tries_nothing_more(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, live: Address
) -> None:
    asked, awake = threading.Event(), threading.Event()

    def getaddrinfo(host: str) -> tuple[tuple[str, ...], str, bool]:
        asked.set()
        return (), str(awake.wait(20)), True

    monkeypatch.setattr(resolver, "_getaddrinfo", getaddrinfo)
    attempt = gevent.spawn(connect, Target(Address("db", 80)), Target(live))
    eventually(asked.is_set)
    attempt.kill(Ended(End.DRAINED))
    awake.set()
    assert (attempt.get().end, attempt.get().tried) == (End.DRAINED, [])


def test_a_client_waits_for_a_name_server_in_trouble(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, live: Address
) -> None:
    answers = [((), "try again", False), ((), "try again", False), ((live.host,), "", False)]
    monkeypatch.setattr(resolver, "_getaddrinfo", lambda host: answers.pop(0))
    won = connect(Target(Address("db", live.port)), seconds=10)
    assert (won.address, won.tried) == (live, [])


def test_a_name_server_that_stays_in_trouble_is_no_name_that_is_not_found(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_getaddrinfo", lambda host: ((), "try again", False))
    lost = connect(Target(Address("db", 80)), seconds=0.3)
    assert (lost.end, lost.tried) == (End.CONNECT_TIMEOUT, ["db:80 connect_timeout"])
    assert lost.seconds >= 0.3


def test_while_a_name_server_is_in_trouble_the_next_target_is_tried_at_once(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, live: Address
) -> None:
    monkeypatch.setattr(resolver, "_getaddrinfo", lambda host: ((), "try again", False))
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
    connect: Connect, hosts: dict[str, tuple[str, ...]], live: Address, book: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_RETRY", 60.0)  # so long the name is not looked up again
    hosts["db"] = ("127.0.0.2",)
    name = book.find("db")
    book.ask(name, time.monotonic())
    name.answered.wait()
    lost = connect(Target(Address("db", live.port)), seconds=120)
    assert (lost.end, lost.tried) == (End.CONNECT_REFUSED, [f"127.0.0.2:{live.port} ECONNREFUSED"])
    assert lost.seconds < 30


def test_who_is_refused_does_not_wait_for_a_name_server_that_has_hung_but_asks_it(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, live: Address, book: Resolver
) -> None:
    asked, awake = threading.Event(), threading.Event()

    def getaddrinfo(host: str) -> resolver.Answer:
        asked.set()
        return (), str(awake.wait(60)), False

    monkeypatch.setattr(resolver, "_getaddrinfo", getaddrinfo)
    name = book.find("db")
    name.addresses, name.hung = ("127.0.0.2",), True
    lost = connect(Target(Address("db", live.port)), seconds=60)
    eventually(asked.is_set)
    awake.set()
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
