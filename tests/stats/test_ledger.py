"""Tests of the account of connections."""

from collections import Counter
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink.model import Address, End
from veillink.stats.ledger import Connection, Histogram, Ledger

CLIENT = Address("192.0.2.7", 50000)
LISTEN = Address("", 8080)

CONNECTIONS = st.lists(
    st.tuples(
        st.sampled_from(["web", "db"]),
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 40),
        st.sampled_from(End),
        st.booleans(),
    )
)


def opened(ledger: Ledger, rule: str = "web", now: float = 0.0) -> Connection:
    return ledger.open(rule, CLIENT, LISTEN, now, Mock())


@given(CONNECTIONS)
def test_nothing_stays_live_and_totals_add_up(connections: list[tuple[str, int, int, End, bool]]) -> None:
    ledger = Ledger()
    live: dict[int, tuple[Connection, End]] = {}
    for rule, bytes_in, bytes_out, end, close_oldest in connections:
        connection = opened(ledger, rule)
        connection.inbound.bytes, connection.outbound.bytes = bytes_in, bytes_out
        live[connection.number] = connection, end
        if close_oldest:
            ledger.close(*live.pop(min(live)), 2.0)
        assert ledger.live == {number: connection for number, (connection, _) in live.items()}
    for connection, end in live.values():
        ledger.close(connection, end, 2.0)
    assert ledger.live == {}
    for name in ("web", "db"):
        mine = [connection for connection in connections if connection[0] == name]
        totals = ledger.totals[name]
        assert totals.connections == len(mine)
        assert totals.bytes_in == sum(connection[1] for connection in mine)
        assert totals.bytes_out == sum(connection[2] for connection in mine)
        assert totals.ends == Counter(connection[3] for connection in mine)


def test_a_number_is_never_given_twice() -> None:
    ledger = Ledger()
    numbers = []
    for _ in range(5):
        connection = opened(ledger)
        numbers.append(connection.number)
        ledger.close(connection, End.CLOSED, 2.0)
    assert numbers == [1, 2, 3, 4, 5]


def test_a_connection_cannot_be_closed_twice() -> None:
    ledger = Ledger()
    connection = opened(ledger)
    ledger.close(connection, End.CLOSED, 2.0)
    with pytest.raises(KeyError):
        ledger.close(connection, End.CLOSED, 2.0)
    assert ledger.totals["web"].connections == 1


def test_the_summary_of_a_connection_tells_its_whole_story() -> None:
    connection = opened(Ledger(), now=100.0)
    connection.target, connection.connected = Address("::1", 80), 100.0123
    connection.tried = ("10.0.0.1:80 ECONNREFUSED", "10.0.0.2:80 ETIMEDOUT")
    connection.inbound.bytes, connection.outbound.bytes = 3, 4
    assert list(connection.summary(End.CLOSED, 102.5).items()) == [
        ("rule", "web"),
        ("id", 1),
        ("client", "192.0.2.7:50000"),
        ("listen", "*:8080"),
        ("target", "[::1]:80"),
        ("tried", "10.0.0.1:80 ECONNREFUSED, 10.0.0.2:80 ETIMEDOUT"),
        ("bytes_in", 3),
        ("bytes_out", 4),
        ("connect_ms", 12.3),
        ("duration_ms", 2500.0),
        ("end", "closed"),
    ]


def test_what_never_was_is_none() -> None:
    summary = opened(Ledger()).summary(End.CONNECT_REFUSED, 0.0)
    assert [key for key, value in summary.items() if value is None] == ["target", "tried", "connect_ms"]


def test_an_entry_knows_how_to_end_its_connection() -> None:
    told: list[Exception] = []
    connection = Ledger().open("web", CLIENT, LISTEN, 0.0, Mock(cancel=told.append))
    reason = ValueError()
    connection.scope.cancel(reason)
    assert told == [reason]


def test_the_snapshot_has_ended_and_live_connections_of_the_rules_asked_for() -> None:
    ledger = Ledger()
    done, live, other = opened(ledger, now=1.0), opened(ledger, now=1.0), opened(ledger, "db")
    done.connected = 1.003
    for connection, moved in ((done, 10), (live, 5), (other, 1)):
        connection.inbound.bytes, connection.outbound.bytes = moved, 2 * moved
    ledger.close(done, End.CLOSED, 3.0)
    snapshot = ledger.snapshot(["web", "new"])
    web = snapshot["web"]
    assert (web["active"], web["total"], web["bytes_in"], web["bytes_out"]) == (1, 2, 15, 30)
    assert web["ends"] == {"closed": 1}
    assert list(snapshot) == ["web", "new"]
    assert (snapshot["new"]["total"], snapshot["new"]["ends"]) == (0, {})
    assert ledger.moved() == (16, 32)


def test_an_account_goes_with_the_last_rule_and_the_last_connection_of_its_name() -> None:
    ledger = Ledger()
    for rule in ("stays", "goes"):
        ended, live = opened(ledger, rule), opened(ledger, rule)
        ended.inbound.bytes = 7
        ledger.close(ended, End.CLOSED, 3.0)
    assert ledger.snapshot(["stays", "goes"])["goes"]["total"] == 2
    ledger.keep({"stays"})
    assert set(ledger.totals) == {"stays", "goes"}
    assert ledger.snapshot(["goes"])["goes"]["total"] == 2  # a rule of this name that comes back now goes on counting
    late = opened(ledger, "goes")  # one who waited in the queue of the listener that was closed
    live.outbound.bytes = 5
    for connection in (live, late):
        ledger.close(connection, End.CLOSED, 3.0)
    assert set(ledger.totals) == set(ledger._ended) == {"stays"}
    assert ledger.moved() == (14, 5)  # what the process has moved stays moved
    ledger.keep({"other"})
    assert set(ledger.totals) == {"stays"}
    ledger.keep({"stays", "goes"})
    assert ledger.snapshot(["goes"])["goes"]["total"] == 0


def test_an_account_without_connections_goes_at_once() -> None:
    ledger = Ledger()
    ledger.close(opened(ledger), End.CLOSED, 3.0)
    ledger.snapshot(["web", "never used"])
    ledger.keep({"other"})
    assert not ledger.totals
    assert not ledger._ended


def test_a_histogram_counts_up_to_each_bound_as_prometheus_does() -> None:
    times = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        times.add(seconds)
    assert times.snapshot() == {"le": [0.1, 1.0], "counts": [2, 3, 4], "sum": pytest.approx(7.65)}
