"""Tests of who may come in."""

import random
import time
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink.config.networks import parse_network
from veillink.limits import Network, Networks, Ranges
from veillink.proxy.access import Access


def networks(text: str) -> Networks:
    return Networks(tuple(parse_network(entry) for entry in text.split()))


@pytest.mark.parametrize(
    ("allow", "deny", "host", "allowed"),
    [
        (None, "", "1.2.3.4", True),
        ("", "", "1.2.3.4", False),
        ("", "", "::1", False),
        ("10.0.0.0/8", "", "10.255.255.255", True),
        ("10.0.0.0/8", "", "11.0.0.0", False),
        ("10.0.0.0/8", "", "9.255.255.255", False),
        ("10.0.0.0/8", "", "::1", False),
        ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", False),
        ("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0", True),
        ("10.1.2.3", "10.0.0.0/8", "10.1.2.3", False),
        ("10.0.0.0/8", "", "::ffff:10.1.2.3", True),
        ("::ffff:10.0.0.0/104", "", "10.1.2.3", True),
        (None, "::/0", "1.2.3.4", True),
        (None, "::/0", "::ffff:1.2.3.4", True),
        (None, "::/0", "2001:db8::1", False),
        (None, "0.0.0.0/0", "255.255.255.255", False),
        (None, "0.0.0.0/0", "2001:db8::1", True),
        (None, "ffff::/16", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", False),
        ("fe80::/10", "", "fe80::1%eth0", True),
        ("10.0.0.0/8", "0.0.0.0/0 ::/0", "unix:", True),
        ("", "", "unix:/run/client.sock", True),
    ],
)
def test_who_may_come_in(allow: str | None, deny: str, host: str, allowed: bool) -> None:
    access = Access(None if allow is None else networks(allow), networks(deny))
    assert access.allows(host) is allowed


near = st.integers(0, (1 << 12) - 1)  # so that networks meet, overlap and hold each other
some_networks = st.lists(
    st.one_of(
        st.builds(lambda n, k: ip_network((n << 20, k), strict=False), near, st.integers(4, 16)),
        st.builds(lambda n, k: ip_network((IPv6Address(n << 116), k), strict=False), near, st.integers(4, 16)),
    ),
    max_size=12,
)
some_hosts = st.one_of(
    st.builds(lambda n, d: str(IPv4Address(max(0, (n << 20) - d))), near, st.integers(0, 1)),
    st.builds(lambda n, d: str(IPv6Address(max(0, (n << 116) - d))), near, st.integers(0, 1)),
)


@given(some_networks, some_networks, st.lists(some_hosts, min_size=1, max_size=20))
def test_it_says_what_a_walk_over_all_networks_says(allow: list, deny: list, hosts: list[str]) -> None:  # type: ignore[type-arg]
    cells = [networks(" ".join(map(str, cell))) for cell in (allow, deny)]
    access = Access(*cells)
    listed = Access(
        *(
            Networks(files=("a", "b"), listed=(Ranges(cell.networks[::2]), Ranges(cell.networks[1::2])))
            for cell in cells
        )
    )
    for host in hosts:
        address = ip_address(host)
        expected = any(address in n for n in allow) and not any(address in n for n in deny)
        assert access.allows(host) is listed.allows(host) is expected


@pytest.mark.alone
def test_a_hundred_thousand_networks_are_built_in_a_second_and_looked_up_in_20_microseconds() -> None:
    draw = random.Random(1)
    many = [Network(4, draw.getrandbits(24) << 8, 24) for _ in range(50_000)]
    many += [Network(6, draw.getrandbits(48) << 80, 48) for _ in range(50_000)]
    began = time.process_time()
    allow, deny = (Networks(files=("a",), listed=(Ranges(each),)) for each in (many, many[::2]))
    access = Access(allow, deny)
    built = time.process_time() - began
    hosts = [str(IPv4Address(draw.getrandbits(32))) for _ in range(1000)]
    hosts += [str(IPv6Address(draw.getrandbits(128))) for _ in range(1000)]
    rounds = []
    for _ in range(5):
        began = time.process_time()
        for host in hosts:
            access.allows(host)
        rounds.append((time.process_time() - began) / len(hosts))
    print(f"built in {built:.2f} s, looked up in {min(rounds) * 1e6:.1f} us")
    assert built < 1
    assert min(rounds) < 20e-6
