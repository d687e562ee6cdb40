"""Tests of a rule's rates: which connections heed them, and since when."""

import dataclasses
from typing import Any, cast

import pytest

from veillink.limits import ByteRate, Per
from veillink.model import Address, RuleOptions
from veillink.proxy.bandwidth import Bandwidth, leave_bandwidth
from veillink.stats.ledger import ByteLimit, Connection

NOW = 1e6
MIB = 1 << 20
LISTEN = Address("", 80)
OFF = RuleOptions()
UP = dataclasses.replace(OFF, upload_rate=ByteRate(MIB))
BOTH = dataclasses.replace(UP, download_rate=ByteRate(MIB, Per.CLIENT))


def connection(host: str = "192.0.2.1") -> Connection:
    found = Connection(1, "web", Address(host, 4711), LISTEN, NOW, cast(Any, None))
    found.connected = NOW
    return found


def limits(of: Connection) -> tuple[ByteLimit | None, ByteLimit | None]:
    return of.inbound.limit, of.outbound.limit


def taken(limit: ByteLimit | None, seconds: float = 1.0) -> int:
    """Return how many bytes a limit lets pass from now on."""
    assert limit is not None
    now, moved = NOW, 0
    while now < NOW + seconds:
        count, wait = limit.take(now, MIB)
        now, moved = now + wait, moved + count
    return moved


def test_only_directions_that_have_a_rate_are_limited() -> None:
    bandwidth, one = Bandwidth(), connection()
    bandwidth.begin(one, NOW)
    assert limits(one) == (None, None)
    bandwidth.change(UP, 1, [], NOW)
    bandwidth.begin(one, NOW)
    up, down = limits(one)
    assert down is None
    assert taken(up) == pytest.approx(MIB, rel=0.1)


def test_connections_that_are_there_heed_a_change_and_keep_their_place() -> None:
    bandwidth, one, two = Bandwidth(), connection(), connection()
    bandwidth.change(UP, 1, [one, two], NOW)
    before = limits(one)
    assert before[0] is not None
    bandwidth.change(dataclasses.replace(UP, upload_rate=ByteRate(2 * MIB)), 1, [one, two], NOW)
    assert limits(one) == before
    assert taken(one.inbound.limit) == pytest.approx(2 * MIB, rel=0.1)
    bandwidth.change(BOTH, 1, [one, two], NOW)
    assert limits(one)[0] is before[0]
    assert limits(one)[1] is not None
    bandwidth.change(OFF, 1, [one, two], NOW)
    assert (limits(one), limits(two)) == ((None, None), (None, None))


def test_who_is_not_connected_yet_begins_by_itself_as_who_it_is_by_then() -> None:
    bandwidth, one = Bandwidth(), connection("192.0.2.9")
    one.connected = None
    bandwidth.change(BOTH, 1, [one], NOW)
    assert (bandwidth.on, limits(one)) == (True, (None, None))
    bandwidth.change(OFF, 1, [one], NOW)
    assert not bandwidth.on


def test_processes_divide_what_is_shared() -> None:
    for options, part in (
        (UP, MIB // 4),
        (dataclasses.replace(UP, upload_rate=ByteRate(MIB, Per.CLIENT)), MIB // 4),
        (dataclasses.replace(UP, upload_rate=ByteRate(MIB, Per.CONNECTION)), MIB),
    ):
        bandwidth, one = Bandwidth(), connection()
        bandwidth.change(options, 4, [one], NOW)
        assert taken(one.inbound.limit, 2) == pytest.approx(2 * part, rel=0.1)


def test_a_client_is_the_one_of_its_host() -> None:
    bandwidth = Bandwidth()
    one, same, other = connection("2001:db8::1"), connection("2001:db8::2"), connection("2001:db8:1::1")
    bandwidth.change(BOTH, 1, [one, same, other], NOW)
    assert taken(one.outbound.limit) == pytest.approx(MIB, rel=0.1)
    assert same.outbound.limit is not None
    assert same.outbound.limit.take(NOW + 0.5, MIB)[0] == 0
    assert other.outbound.limit is not None
    assert other.outbound.limit.take(NOW + 0.5, MIB)[0] > 0


def test_who_leaves_leaves_its_part() -> None:
    bandwidth, one, two = Bandwidth(), connection(), connection()
    bandwidth.change(UP, 1, [one, two], NOW)
    leave_bandwidth(one, NOW)
    leave_bandwidth(one, NOW)
    assert limits(one) == (None, None)
    assert taken(two.inbound.limit) == pytest.approx(MIB, rel=0.1)
