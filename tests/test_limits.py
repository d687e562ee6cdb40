"""Tests of what a client is, and of how limits are written."""

import pytest

from veillink.config.networks import parse_network
from veillink.limits import ByteRate, ClientKey, Network, Per, Ranges, Rate, client_key, ip_number


@pytest.mark.parametrize(
    ("host", "number"),
    [
        ("1.2.3.4", (4, 0x01020304)),
        ("::ffff:1.2.3.4", (4, 0x01020304)),
        ("::1.2.3.4", (6, 0x01020304)),
        ("::1", (6, 1)),
        ("fe80::1%eth0", (6, (0xFE80 << 112) + 1)),
    ],
)
def test_number_of_an_address(host: str, number: tuple[int, int]) -> None:
    assert ip_number(host) == number


@pytest.mark.parametrize("host", ["", "example.org", "1.2.3", "unix:/run/x"])
def test_no_address(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        ip_number(host)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.2.3.4", "::ffff:1.2.3.4", True),
        ("1.2.3.4", "1.2.3.5", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("unix:", "unix:/tmp/any", True),
        ("::", "0.0.0.0", False),
    ],
)
def test_who_is_one_client(one: str, other: str, same: bool) -> None:
    keys: list[ClientKey] = [client_key(one), client_key(other)]
    assert (keys[0] == keys[1]) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.0/9 10.128.0.0/9", "10.0.0.0/8", True),
        ("10.0.0.0/8 10.1.2.3", "10.0.0.0/8", True),
        ("192.0.2.1 10.0.0.0/8", "10.0.0.0/8 192.0.2.1", True),
        ("10.0.0.0/8", "10.0.0.0/9", False),
        ("::/0", "0.0.0.0/0", False),
        ("::/1 8000::/1", "::/0", True),
    ],
)
def test_ranges_are_equal_where_it_is_the_same_addresses(one: str, other: str, same: bool) -> None:
    first, second = (Ranges(parse_network(entry) for entry in text.split()) for text in (one, other))
    assert (first == second) is same


def test_the_ends_of_a_network_belong_to_it() -> None:
    networks = [Network(4, 10 << 24, 8), Network(4, 7, 32), Network(6, 0, 0)]
    ranges = Ranges(networks)
    inside = [(4, 10 << 24), (4, (11 << 24) - 1), (4, 7), (6, 0), (6, (1 << 128) - 1)]
    outside = [(4, (10 << 24) - 1), (4, 11 << 24), (4, 6), (4, 8)]
    assert [place for place in inside + outside if ranges.hold(*place)] == inside


@pytest.mark.parametrize(
    ("rate", "room"),
    [(Rate(100), 100), (Rate(6, 60), 1), (Rate(120, 60), 2), (Rate(5, 3600, 3), 3), (Rate(9, 1, 1), 1)],
)
def test_a_rate_has_room_for_what_a_second_brings_and_at_least_one(rate: Rate, room: float) -> None:
    assert rate.room == room


@pytest.mark.parametrize(
    ("rate", "among", "room", "per_second"),
    [
        (Rate(100), 4, 25, 25),
        (Rate(100, 1, 200), 1, 200, 100),
        (Rate(100, 1, 200), 4, 50, 25),
        (Rate(100, 1, 5), 4, 2, 25),
        (Rate(6, 60, 1), 4, 1, 0.025),
        (Rate(2), 4, 1, 0.5),
    ],
)
def test_of_a_rate_and_of_its_burst_each_process_has_its_part(
    rate: Rate, among: int, room: float, per_second: float
) -> None:
    part = rate.divided(among)
    assert part.room == room
    assert part.per_second == pytest.approx(per_second)


def test_nothing_is_off() -> None:
    assert not Rate()
    assert not ByteRate()
    assert Rate(1)
    assert ByteRate(1, Per.CLIENT)
