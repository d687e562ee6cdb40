"""Tests of host names that are kept fresh in the background."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink import names
from veillink.model import End, Ended
from veillink.names import Names, interleave

from .sockets import Journal, eventually

FOREVER = float("inf")
NXDOMAIN = "Name or service not known"


class NameServer:
    """Stands for ``getaddrinfo``: answers from a table, not at all while it hangs, and notes who was asked for."""

    def __init__(self) -> None:
        self.hosts: dict[str, tuple[str, ...]] = {}
        self.asked: Counter[str] = Counter()
        self.hanging: set[str] = set()
        self.awake = threading.Event()

    def __call__(self, host: str) -> tuple[tuple[str, ...], str]:
        if host in self.hanging:
            self.asked[host] += 1
            self.awake.wait(20)
            return self.answer(host)
        answer = self.answer(host)
        self.asked[host] += 1  # last: who sees this may change the table
        return answer

    def answer(self, host: str) -> tuple[tuple[str, ...], str]:
        return (self.hosts[host], "") if host in self.hosts else ((), NXDOMAIN)


class Clock:
    """The monotonic clock, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(names, "_getaddrinfo", server)
    yield server
    server.awake.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(names, "time", clock)
    return clock


@pytest.fixture
def book(journal: Journal, server: NameServer, clock: Clock) -> Iterator[Names]:
    book = Names(journal.log, 64)
    yield book
    book.keep({})
    server.awake.set()
    eventually(lambda: not len(book._threads))
    book._threads.kill()


def failure(book: Names, host: str, until: float = FOREVER) -> Ended:
    with pytest.raises(Ended) as caught:
        book.lookup(host, until)
    return caught.value


# --- asking ----------------------------------------------------------------------------------------------------------


def test_a_name_is_asked_for_once_and_then_known(book: Names, server: NameServer) -> None:
    server.hosts["once"] = ("10.0.0.1", "10.0.0.2")
    assert [book.lookup("once", FOREVER) for _ in range(3)] == [("10.0.0.1", "10.0.0.2")] * 3
    assert server.asked["once"] == 1


def test_all_who_wait_for_a_name_share_one_question(book: Names, server: NameServer) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    server.hanging.add("db")
    waiting = [gevent.spawn(book.lookup, "db", FOREVER) for _ in range(5)]
    eventually(lambda: server.asked["db"])
    server.awake.set()
    assert [greenlet.get() for greenlet in waiting] == [("10.0.0.1",)] * 5
    assert server.asked["db"] == 1


def test_a_name_that_is_not_found_says_why(book: Names) -> None:
    ended = failure(book, "nowhere")
    assert (ended.end, ended.detail) == (End.NAME_NOT_FOUND, f"nowhere: {NXDOMAIN}")


def test_a_name_that_was_just_not_found_is_not_asked_for_again(book: Names, server: NameServer, clock: Clock) -> None:
    ends = [failure(book, "nowhere").end for _ in range(5)]
    assert (ends, server.asked["nowhere"]) == ([End.NAME_NOT_FOUND] * 5, 1)
    clock.ahead += 1
    server.hosts["nowhere"] = ("10.0.0.1",)
    assert book.lookup("nowhere", FOREVER) == ("10.0.0.1",)


def test_who_waits_for_a_silent_name_server_gives_up_in_time(book: Names, server: NameServer, clock: Clock) -> None:
    server.hanging.add("db")
    started = time.monotonic()
    ended = failure(book, "db", clock.monotonic() + 0.05)
    assert 0.05 <= time.monotonic() - started < 1
    assert ended.end is End.CONNECT_TIMEOUT
    assert failure(book, "db", clock.monotonic() - 1).end is End.CONNECT_TIMEOUT
    assert server.asked["db"] == 1


def test_silent_names_stop_no_other(book: Names, server: NameServer) -> None:
    server.hanging |= {f"silent{n}" for n in range(40)}  # gevent's own 10 threads would all wait
    server.hosts["db"] = ("10.0.0.1",)
    for host in server.hanging:
        gevent.spawn(failure, book, host)
    eventually(lambda: server.asked.total() == 40)
    assert book.lookup("db", FOREVER) == ("10.0.0.1",)
    server.awake.set()


# --- keeping ---------------------------------------------------------------------------------------------------------


def test_names_that_are_kept_are_resolved_before_anybody_asks(book: Names, server: NameServer) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    book.keep({"db": 30})
    eventually(lambda: server.asked["db"])
    assert book.lookup("db", FOREVER) == ("10.0.0.1",)
    assert server.asked["db"] == 1


def test_a_name_is_looked_up_again_at_its_age(book: Names, server: NameServer, clock: Clock) -> None:
    server.hosts |= {"db": ("10.0.0.1",), "web": ("10.0.1.1",)}
    book.keep({"db": 30, "web": 60})
    eventually(lambda: server.asked.total() == 2)
    server.hosts |= {"db": ("10.0.0.2",), "web": ("10.0.1.2",)}
    clock.ahead += 31
    eventually(lambda: book.lookup("db", FOREVER) == ("10.0.0.2",))
    assert book.lookup("web", FOREVER) == ("10.0.1.1",)
    clock.ahead += 30
    eventually(lambda: book.lookup("web", FOREVER) == ("10.0.1.2",))


def test_a_changed_age_counts_at_once_and_what_is_known_stays(book: Names, server: NameServer, clock: Clock) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    book.keep({"db": 3600})
    eventually(lambda: server.asked["db"])
    clock.ahead += 31
    book.keep({"db": 30})
    assert book.lookup("db", clock.monotonic()) == ("10.0.0.1",)
    eventually(lambda: server.asked["db"] == 2)


def test_a_name_without_an_answer_is_tried_again_within_seconds(book: Names, server: NameServer, clock: Clock) -> None:
    book.keep({"db": 3600})
    eventually(lambda: server.asked["db"])
    server.hosts["db"] = ("10.0.0.1",)
    clock.ahead += 5
    eventually(lambda: server.asked["db"] == 2)
    assert book.lookup("db", FOREVER) == ("10.0.0.1",)


def test_names_that_are_kept_no_longer_are_forgotten(book: Names, server: NameServer, clock: Clock) -> None:
    server.hosts |= {"db": ("10.0.0.1",), "web": ("10.0.1.1",)}
    book.keep({"db": 1, "web": 1})
    eventually(lambda: server.asked.total() == 2)
    book.keep({"web": 1})
    clock.ahead += 2
    eventually(lambda: server.asked["web"] == 2)
    assert server.asked["db"] == 1


def test_the_last_good_answer_is_kept_and_told_once(
    book: Names, server: NameServer, clock: Clock, journal: Journal
) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    book.keep({"db": 1})
    eventually(lambda: server.asked["db"])
    del server.hosts["db"]
    for round_ in (2, 3):
        clock.ahead += 2
        eventually(lambda round_=round_: server.asked["db"] == round_)  # type: ignore[misc]
        assert book.lookup("db", FOREVER) == ("10.0.0.1",)
    server.hosts["db"] = ("10.0.0.2",)
    clock.ahead += 2
    again = journal.wait_for("resolved again")
    assert (again["host"], again["addresses"]) == ("db", "10.0.0.2")
    assert book.lookup("db", FOREVER) == ("10.0.0.2",)
    (warning,) = journal.lines("cannot resolve")
    assert (warning["host"], warning["reason"]) == ("db", NXDOMAIN)
    assert warning["kept"]


def test_a_silent_name_server_does_not_take_the_last_answer_away(book: Names, server: NameServer, clock: Clock) -> None:
    server.hosts["db"] = ("10.0.0.1",)
    book.keep({"db": 1})
    eventually(lambda: server.asked["db"])
    server.hanging.add("db")
    clock.ahead += 2
    eventually(lambda: server.asked["db"] == 2)
    assert book.lookup("db", clock.monotonic()) == ("10.0.0.1",)


def test_a_suspect_name_is_looked_up_again_but_not_for_each_client(
    book: Names, server: NameServer, clock: Clock
) -> None:
    server.hosts |= {"db": ("10.0.0.1",), "web": ("10.0.1.1",)}
    book.lookup("db", FOREVER)
    book.suspect("db")  # it was looked up a moment ago
    book.suspect("unknown")
    book.lookup("web", FOREVER)
    assert server.asked["db"] == 1
    clock.ahead += 1
    server.hosts["db"] = ("10.0.0.2",)
    for _ in range(5):
        book.suspect("db")
    eventually(lambda: book.lookup("db", FOREVER) == ("10.0.0.2",))
    assert server.asked == {"db": 2, "web": 1}


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([("::1", 0, 0, 0), ("::2", 0, 0, 0), ("10.0.0.1", 0)], (("::1", "10.0.0.1", "::2"), "")),
        ([("10.0.0.1", 0), ("10.0.0.1", 0)], (("10.0.0.1",), "")),
        (OSError(-2, NXDOMAIN), ((), NXDOMAIN)),
        (OSError("without a number"), ((), "without a number")),
        (UnicodeError("label too long"), ((), "label too long")),
    ],
)
def test_the_system_s_answer_is_addresses_or_a_reason(
    answer: list[tuple[object, ...]] | Exception, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(host: str, port: None, type: int) -> list[tuple[object, ...]]:  # noqa: A002
        if isinstance(answer, Exception):
            raise answer
        return [(0, 0, 0, "", where) for where in answer]

    monkeypatch.setattr(names, "socket", SimpleNamespace(getaddrinfo=getaddrinfo, SOCK_STREAM=1))
    assert names._getaddrinfo("db") == expected


def test_the_system_is_asked() -> None:
    addresses, why = names._getaddrinfo("localhost")
    assert set(addresses) <= {"127.0.0.1", "::1"}
    assert addresses
    assert not why


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
