"""Tests of host names that are kept fresh in the background."""

import errno
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.names import NXDOMAIN, NameServer
from tests.sockets import Journal, eventually
from veillink.net import resolver
from veillink.net.resolver import Name, Resolver, interleave

MOST = 16  # look-ups at a time
PERIOD = 0.01  # seconds from one look at what is due to the next
TROUBLE = [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM]


class Clock:
    """The monotonic clock, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def server(name_server: NameServer) -> NameServer:
    return name_server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(journal: Journal, server: NameServer, clock: Clock) -> Iterator[Resolver]:
    book = Resolver(journal.log, MOST, server, clock.monotonic, PERIOD)
    threads = book._threads
    yield book
    book.keep({})
    server.awake.set()
    eventually(lambda: not len(threads))
    threads.kill()


def lookup(book: Resolver, host: str, seconds: float = 10) -> tuple[str, ...]:
    """Return the addresses of a name, as a client asks for them: who knows none waits for an answer."""
    name = book.find(host)
    if not name.addresses and book.ask(name, book._clock()):
        name.answered.wait(seconds)
    return name.addresses


# --- asking ----------------------------------------------------------------------------------------------------------


def test_a_name_is_asked_for_once_and_then_known(book: Resolver, server: NameServer) -> None:
    server.hosts["once"] = ("10.0.0.1", "10.0.0.2")
    assert [lookup(book, "once") for _ in range(3)] == [("10.0.0.1", "10.0.0.2")] * 3
    assert server.asked["once"] == 1


def test_all_who_wait_for_a_name_share_one_question(book: Resolver, server: NameServer) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    server.hanging.add("db")
    waiting = [gevent.spawn(lookup, book, "db") for _ in range(5)]
    eventually(lambda: server.asked["db"])
    server.awake.set()
    assert [greenlet.get() for greenlet in waiting] == [("10.0.0.1",)] * 5
    assert server.asked["db"] == 1


def test_a_name_that_is_not_found_says_why(book: Resolver) -> None:
    assert lookup(book, "nowhere") == ()
    name = book.find("nowhere")
    assert (name.missing, name.failure) == (True, NXDOMAIN)


def test_a_name_that_was_just_not_found_is_not_asked_for_again(
    book: Resolver, server: NameServer, clock: Clock
) -> None:
    assert [lookup(book, "nowhere") for _ in range(5)] == [()] * 5
    assert server.asked["nowhere"] == 1
    clock.ahead += 1
    server.hosts["nowhere"] = ("10.0.0.1",)
    assert lookup(book, "nowhere") == ("10.0.0.1",)


def test_who_waits_for_a_silent_name_server_may_give_up(book: Resolver, server: NameServer) -> None:
    server.hanging.add("db")
    assert [lookup(book, "db", 0.05), lookup(book, "db", 0)] == [(), ()]
    assert server.asked["db"] == 1


def test_names_that_hang_leave_threads_for_a_name_that_somebody_waits_for(
    book: Resolver, server: NameServer, clock: Clock
) -> None:
    server.hanging |= {f"silent{n}" for n in range(3 * MOST)}
    server.hosts["db"] = ("10.0.0.1",)
    book.keep(dict.fromkeys(sorted(server.hanging), 30))
    clients = [gevent.spawn(lookup, book, host) for host in server.hanging]
    for turn in range(3):
        server.hosts[f"db{turn}"] = ("10.0.0.1",)
        assert lookup(book, f"db{turn}") == ("10.0.0.1",)
        clock.ahead += resolver._HANGS  # so the next of the silent names get their turn
    eventually(lambda: server.hung() > MOST // 2)  # the silent ones with clients are asked for too
    gevent.killall(clients)


def test_a_name_gets_its_turn_as_soon_as_it_is_known_that_those_before_it_hang(
    book: Resolver, server: NameServer
) -> None:
    server.hanging |= {f"silent{n}" for n in range(MOST)}
    clients = [gevent.spawn(lookup, book, host) for host in server.hanging]
    eventually(lambda: server.hung() >= 3)
    server.hosts["db"] = ("10.0.0.1",)
    assert lookup(book, "db", 5) == ("10.0.0.1",)
    gevent.killall(clients)


def test_names_that_nobody_waits_for_hold_at_most_half_of_the_threads(book: Resolver, server: NameServer) -> None:
    server.hanging |= {f"silent{n}" for n in range(3 * MOST)}
    book.keep(dict.fromkeys(sorted(server.hanging), 30))
    eventually(lambda: server.hung() == MOST // 2)
    gevent.sleep(5 * PERIOD)
    assert server.hung() == MOST // 2
    server.hosts["db"] = ("10.0.0.1",)
    assert lookup(book, "db") == ("10.0.0.1",)


def test_names_that_have_hung_hold_at_most_half_of_the_threads_whoever_waits(
    book: Resolver, server: NameServer, clock: Clock
) -> None:
    server.hanging |= {f"silent{n}" for n in range(MOST)}
    for host in server.hanging:
        book.find(host).hung = True
    clients = [gevent.spawn(lookup, book, host) for host in server.hanging]
    eventually(lambda: server.hung() == MOST // 2)
    gevent.sleep(5 * PERIOD)
    assert server.hung() == MOST // 2
    gevent.killall(clients)


@pytest.mark.parametrize(
    ("seconds", "pauses"), [(0.0, [0.25, 0.5, 1, 1, 1, 1]), (10.0, [1, 2, 4, 8, 16, 16])], ids=["quick", "hangs"]
)
def test_pauses_grow_while_a_name_cannot_be_looked_up(seconds: float, pauses: list[float]) -> None:
    name, now, seen = Name("db"), 0.0, []
    for _ in pauses:
        name.begin(now)
        now += seconds
        name.take(((), "try again", False), now)
        seen.append(name.again - now)
        now = name.again
    assert seen == pauses
    assert name.hung is bool(seconds)
    name.take((("10.0.0.1",), "", False), now)
    name.begin(now)
    name.take(((), "try again", False), now)
    assert name.again - now == 0.25


def test_the_address_that_connected_last_comes_first_for_as_long_as_it_is_one_of_the_name(
    book: Resolver, server: NameServer, clock: Clock
) -> None:
    server.hosts["db"] = ("::1", "10.0.0.1", "::2")
    book.keep({"db": 1})
    assert lookup(book, "db") == ("::1", "10.0.0.1", "::2")
    book.find("db").reached("10.0.0.1", clock.monotonic())
    assert lookup(book, "db") == ("10.0.0.1", "::1", "::2")
    for hosts, expected in [
        (("::3", "10.0.0.1", "::1"), ("10.0.0.1", "::3", "::1")),
        (("::3", "10.0.0.2", "::1"), ("::3", "10.0.0.2", "::1")),
    ]:
        asked = server.asked["db"]
        server.hosts["db"] = hosts
        clock.ahead += 2
        eventually(lambda asked=asked: server.asked["db"] > asked)  # type: ignore[misc]
        eventually(lambda expected=expected: lookup(book, "db") == expected)  # type: ignore[misc]


# --- keeping ---------------------------------------------------------------------------------------------------------


def test_names_that_are_kept_are_resolved_before_anybody_asks(book: Resolver, server: NameServer) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    book.keep({"db": 30})
    eventually(lambda: server.asked["db"])
    assert lookup(book, "db") == ("10.0.0.1",)
    assert server.asked["db"] == 1


def test_while_a_thousand_names_are_noted_others_run(book: Resolver) -> None:
    turns = 0

    def look() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    looking = gevent.spawn(look)
    book.keep({f"name-{number}": 30 for number in range(1000)})
    looking.kill()
    assert turns >= 10


def test_a_name_is_looked_up_again_at_its_age(book: Resolver, server: NameServer, clock: Clock) -> None:
    server.hosts |= {"db": ("10.0.0.1",), "web": ("10.0.1.1",)}
    book.keep({"db": 30, "web": 60})
    eventually(lambda: server.asked.total() == 2)
    server.hosts |= {"db": ("10.0.0.2",), "web": ("10.0.1.2",)}
    clock.ahead += 31
    eventually(lambda: lookup(book, "db") == ("10.0.0.2",))
    assert lookup(book, "web") == ("10.0.1.1",)
    clock.ahead += 30
    eventually(lambda: lookup(book, "web") == ("10.0.1.2",))


def test_a_changed_age_counts_at_once_and_what_is_known_stays(book: Resolver, server: NameServer, clock: Clock) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    book.keep({"db": 3600})
    eventually(lambda: server.asked["db"])
    clock.ahead += 31
    book.keep({"db": 30})
    assert lookup(book, "db") == ("10.0.0.1",)
    eventually(lambda: server.asked["db"] == 2)


def test_a_name_without_an_answer_is_tried_again_within_seconds(
    book: Resolver, server: NameServer, clock: Clock
) -> None:
    book.keep({"db": 3600})
    eventually(lambda: server.asked["db"])
    server.hosts["db"] = ("10.0.0.1",)
    clock.ahead += 5
    eventually(lambda: server.asked["db"] == 2)
    assert lookup(book, "db") == ("10.0.0.1",)


def test_names_that_are_kept_no_longer_are_forgotten(book: Resolver, server: NameServer, clock: Clock) -> None:
    server.hosts |= {"db": ("10.0.0.1",), "web": ("10.0.1.1",)}
    book.keep({"db": 1, "web": 1})
    eventually(lambda: server.asked.total() == 2)
    book.keep({"web": 1})
    clock.ahead += 2
    eventually(lambda: server.asked["web"] == 2)
    assert server.asked["db"] == 1


def test_the_last_good_answer_is_kept_and_told_once(
    book: Resolver, server: NameServer, clock: Clock, journal: Journal
) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    book.keep({"db": 1})
    eventually(lambda: server.asked["db"])
    del server.hosts["db"]
    for round_ in (2, 3):
        clock.ahead += 2
        eventually(lambda round_=round_: server.asked["db"] == round_)  # type: ignore[misc]
        assert lookup(book, "db") == ("10.0.0.1",)
    server.hosts["db"] = ("10.0.0.2",)
    clock.ahead += 2
    again = journal.wait_for("resolved again")
    assert (again["host"], again["addresses"]) == ("db", "10.0.0.2")
    assert lookup(book, "db") == ("10.0.0.2",)
    (warning,) = journal.lines("cannot resolve")
    assert (warning["host"], warning["reason"]) == ("db", NXDOMAIN)
    assert warning["kept"]


def test_a_silent_name_server_does_not_take_the_last_answer_away(
    book: Resolver, server: NameServer, clock: Clock
) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    book.keep({"db": 1})
    eventually(lambda: server.asked["db"])
    server.hanging.add("db")
    clock.ahead += 2
    eventually(lambda: server.asked["db"] == 2)
    assert lookup(book, "db") == ("10.0.0.1",)


def test_a_name_whose_addresses_do_not_answer_is_looked_up_again_but_not_for_each_client(
    book: Resolver, server: NameServer, clock: Clock
) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    lookup(book, "db")
    name = book.find("db")
    assert not book.ask(name, clock.monotonic()), "it was looked up a moment ago"
    clock.ahead += 1
    server.hosts["db"] = ("10.0.0.2",)
    assert all(book.ask(name, clock.monotonic()) for _ in range(5))
    eventually(lambda: lookup(book, "db") == ("10.0.0.2",))
    assert server.asked["db"] == 2


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([("::1", 0, 0, 0), ("::2", 0, 0, 0), ("10.0.0.1", 0)], (("::1", "10.0.0.1", "::2"), "", False)),
        ([("10.0.0.1", 0), ("10.0.0.1", 0)], (("10.0.0.1",), "", False)),
        (socket.gaierror(socket.EAI_NONAME, NXDOMAIN), ((), NXDOMAIN, True)),
        (socket.gaierror(socket.EAI_NODATA, "no address"), ((), "no address", True)),
        (UnicodeError("label too long"), ((), "label too long", True)),
        *((socket.gaierror(code, "trouble"), ((), "trouble", False)) for code in TROUBLE),
        (OSError(errno.EMFILE, "too many"), ((), "too many", False)),
        (OSError("without a number"), ((), "without a number", False)),
    ],
)
def test_the_system_s_answer_is_addresses_or_a_reason(
    answer: list[tuple[object, ...]] | Exception, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(host: str, port: None, type: int) -> list[tuple[object, ...]]:  # noqa: A002
        if isinstance(answer, Exception):
            raise answer
        return [(0, 0, 0, "", where) for where in answer]

    monkeypatch.setattr("veillink.net.resolver.socket.getaddrinfo", getaddrinfo)
    assert resolver.getaddrinfo("db") == expected


def test_the_system_is_asked() -> None:
    addresses, why, missing = resolver.getaddrinfo("localhost")
    assert set(addresses) <= {"127.0.0.1", "::1"}
    assert addresses
    assert (why, missing) == ("", False)


def test_a_name_is_not_missing_because_the_resolver_could_open_no_file() -> None:
    script = """
import resource
from veillink.net.resolver import getaddrinfo
getaddrinfo("localhost")
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
print(getaddrinfo("nosuch.invalid"))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "((), 'Too many open files', False)\n"


def test_without_a_thread_a_name_is_not_missing(
    book: Resolver, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply(function: object, args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(book, "_threads", SimpleNamespace(apply=apply))
    assert lookup(book, "db") == ()
    name = book.find("db")
    assert (name.missing, name.failure, name.busy) == (False, "can't start new thread", False)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([], ()),
        (["::1"], ("::1",)),
        (["10.0.0.1", "10.0.0.2"], ("10.0.0.1", "10.0.0.2")),
        (["::1", "::2", "::3", "10.0.0.1"], ("::1", "10.0.0.1", "::2", "::3")),
        (["10.0.0.1", "::1", "10.0.0.2", "::2"], ("10.0.0.1", "::1", "10.0.0.2", "::2")),
        (["::1", "::1", "10.0.0.1", "::1"], ("::1", "10.0.0.1")),
    ],
)
def test_families_come_in_turn(addresses: list[str], expected: tuple[str, ...]) -> None:
    assert interleave(addresses) == expected


@given(st.lists(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)))
def test_no_address_is_lost_and_each_family_keeps_its_order(addresses: list[str]) -> None:
    mixed = interleave(addresses)
    unique = list(dict.fromkeys(addresses))
    assert sorted(mixed) == sorted(unique)
    assert mixed[:1] == tuple(unique[:1])
    families = [":" in address for address in mixed]
    for family in (False, True):
        assert [a for a in mixed if (":" in a) == family] == [a for a in unique if (":" in a) == family]
    in_turn = families[: 2 * min(families.count(False), families.count(True))]
    assert all(a != b for a, b in pairwise(in_turn))
