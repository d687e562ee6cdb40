"""Tests of cells of networks."""

from collections.abc import Callable
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink.config.networks import format_trusted, parse_network, parse_networks, parse_trusted
from veillink.limits import EVERYBODY, Networks


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1/32", "10.0.0.1"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::1", "::1"),
        ("::/0", "::/0"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/95", "::/95"),
    ],
)
def test_a_network(text: str, shown: str) -> None:
    assert str(parse_network(text)) == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/8", '"10.0.0.1/8" has bits set behind its prefix: the network is 10.0.0.0/8'),
        ("2001:db8::1/32", '"2001:db8::1/32" has bits set behind its prefix: the network is 2001:db8::/32'),
        ("::ffff:10.0.0.1/104", '"::ffff:10.0.0.1/104" has bits set behind its prefix: the network is 10.0.0.0/8'),
        ("10.0.0.0/33", '"10.0.0.0/33" has no prefix length from 0 to 32 behind the slash'),
        ("10.0.0.0/", '"10.0.0.0/" has no prefix length from 0 to 32 behind the slash'),
        ("10.0.0.0/08", '"10.0.0.0/08" has no prefix length from 0 to 32 behind the slash'),
        ("10.0.0.0/255.0.0.0", '"10.0.0.0/255.0.0.0" has no prefix length from 0 to 32 behind the slash'),
        ("::/129", '"::/129" has no prefix length from 0 to 128 behind the slash'),
        ("fe80::1%eth0", '"fe80::1%eth0" has a zone, which no network has'),
        *(
            (text, f'"{text}" is not an IP address, nor a network like 10.0.0.0/8 or fd00::/8')
            for text in ("", "10.0.0", "010.0.0.1", "1.2.3.256", "example.org", "10.0.0.*", "[::1]", ":::", "any")
        ),
    ],
)
def test_no_network(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        parse_network(text)
    assert str(raised.value) == message


@pytest.mark.parametrize("parse", [parse_network, parse_networks, parse_trusted])
@given(text=st.text())
def test_whatever_the_text_only_a_value_error_of_one_line(parse: Callable[[str], object], text: str) -> None:
    said = ""
    try:
        parse(text)
    except ValueError as error:
        said = str(error)
    assert said.isprintable()


@given(st.ip_addresses(), st.integers(0, 128))
def test_what_is_shown_reads_as_the_same(address: object, length: int) -> None:
    network = ip_network(f"{address}/{min(length, 32) if '.' in str(address) else length}", strict=False)
    parsed = parse_network(str(network))
    assert parse_network(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "networks", "files"),
    [
        ("10.0.0.0/8 ::1", 2, ()),
        (" 10.0.0.0/8\t@trusted.txt  @a/b.txt ", 1, ("trusted.txt", "a/b.txt")),
        ("@trusted.txt", 0, ("trusted.txt",)),
        ("off", 0, ()),
    ],
)
def test_a_cell(text: str, networks: int, files: tuple[str, ...]) -> None:
    cell = parse_networks(text)
    assert (len(cell.networks), cell.files) == (networks, files)
    assert bool(cell) is (text != "off")
    assert parse_networks(str(cell)) == cell
    assert hash(parse_networks(str(cell))) == hash(cell)


@pytest.mark.parametrize("text", ["", " ", "@", "10.0.0.1 @", "10.0.0.1,10.0.0.2", "any", "off 10.0.0.1"])
def test_no_cell(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_networks(text)


def test_who_is_trusted() -> None:
    assert parse_trusted("any") == EVERYBODY
    assert parse_trusted("off") == Networks()
    for text in ("any", "off", "10.0.0.0/8 ::1"):
        assert format_trusted(parse_trusted(text)) == text


@pytest.mark.parametrize("text", ["", "any 10.0.0.1", "@trusted.txt", "no"])
def test_who_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_trusted(text)
