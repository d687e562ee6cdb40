"""The addresses of one target."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import gevent
import pytest
from gevent import socket

from tests.proxy.connecting import FOREVER, Outcome, outcome
from tests.sockets import Sockets, address_of, eventually, open_files
from veillink.model import Address, End, Ended
from veillink.net.dial import Race, first
from veillink.net.places import Claim, Places
from veillink.net.resolver import Resolver
from veillink.net.socket_stream import SocketStream
from veillink.net.sockets import OPTIONS
from veillink.net.stream import Stream

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
    races = [race([refusing, NOT_CONNECTABLE, live]) for _ in range(3)]
    for won in races:
        assert won.address == live
        assert won.tried == [f"{refusing} ECONNREFUSED", f"{NOT_CONNECTABLE} EINVAL"]
    assert min(won.seconds for won in races) < 0.25  # a busy machine may hold some of them up


def test_a_silent_address_has_a_head_start_of_250_ms(race: RunRace, sockets: Sockets, live: Address) -> None:
    won = race([sockets.silent(), live])
    assert (won.address, won.tried) == (live, [])
    assert 0.25 <= won.seconds < 5


def test_each_silent_address_gets_its_head_start(race: RunRace, sockets: Sockets, live: Address) -> None:
    won = race([sockets.silent(), sockets.silent(), live])
    assert won.address == live
    assert 0.5 <= won.seconds < 5


@pytest.mark.alone
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
    assert 0.35 <= lost.seconds < 5


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
        time.sleep(1.2)  # the kernel sends the SYN again after a second

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
    addresses = [{"refusing": refusing, "impossible": NOT_CONNECTABLE}[kind] for kind in order]
    races = [race(addresses) for _ in range(3)]
    assert [(lost.end, len(lost.tried)) for lost in races] == [(end, len(order))] * 3
    assert min(lost.seconds for lost in races) < 0.25  # a busy machine may hold some of them up


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

    def attempt(places: Places, seconds: float) -> tuple[End | None, Address | None, list[str]]:
        tried: list[str] = []
        each = Race(Address("db", live.port), book, Claim(places, "rule"), tried)
        try:
            if first((each,), time.monotonic() + seconds) is None:
                return each.expire().end, None, tried
            assert each.won
            each.won[0].close()
            return None, each.won[1], tried
        finally:
            each.close()

    alone = attempt(Places(0), 0.5)
    assert alone == (End.CONNECT_TIMEOUT, None, [f"127.0.0.2:{live.port} ETIMEDOUT"])
    waiting = gevent.spawn(attempt, Places(0), 5)
    gevent.sleep(0.1)
    assert attempt(Places(1), 5)[1] == live
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
    assert [places.take(rule) for rule in ("one", "two", "three")] == [True, True, False]
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
    assert set(taken) == set(range(11))
    for rule, count in taken.items():
        for _ in range(count):
            places.give_back(rule)
    assert [places.take(f"another {number}") for number in range(17)] == [True] * 16 + [False]
