"""Tests of the values of rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veillink.config.rates import parse_byte_rate, parse_rate
from veillink.limits import ByteRate, Per, Rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/s", Rate(100, 1)),
        ("6/m", Rate(6, 60)),
        ("5/h", Rate(5, 3600)),
        ("100/s:200", Rate(100, 1, 200)),
        ("1000000/h:1000000", Rate(1_000_000, 3600, 1_000_000)),
        ("0", Rate()),
    ],
)
def test_a_rate(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate
    assert str(rate) == text


@pytest.mark.parametrize(
    "text",
    ["", "5", "0/s", "05/s", "-5/s", "5/S", "5/d", "5 /s", "5/s ", "5/s:", "5/s:0", "5/s:x", "1000001/s", "1/s:1000001",
     "1.5/s", "/s", "5/s\n", "５/s", "9" * 5000 + "/s"],
)  # fmt: skip
def test_not_a_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a rate: write 100/s, 6/m, 5/h, 100/s:200 ") as raised:
        parse_rate(text)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1M", ByteRate(1 << 20)),
        ("512K", ByteRate(512 << 10)),
        ("10M/connection", ByteRate(10 << 20, Per.CONNECTION)),
        ("1M/client", ByteRate(1 << 20, Per.CLIENT)),
        ("3G", ByteRate(3 << 30)),
        ("1025K", ByteRate(1025 << 10)),
        ("0", ByteRate()),
    ],
)
def test_a_bandwidth(text: str, rate: ByteRate) -> None:
    assert parse_byte_rate(text) == rate
    assert str(rate) == text


@given(st.integers(1, 10_000), st.sampled_from("KMG"), st.sampled_from(["", "/client", "/connection"]))
def test_what_is_shown_of_a_bandwidth_reads_as_the_same(count: int, unit: str, scope: str) -> None:
    try:
        rate = parse_byte_rate(f"{count}{unit}{scope}")
    except ValueError:
        assert (count, unit) > (1024, "G") or count > 1024
    else:
        assert parse_byte_rate(str(rate)) == rate


@pytest.mark.parametrize(
    "text", ["", "1", "1m", "1MB", "01M", "0M", "1.5M", "-1M", "1 M", "1025G", "1M\n", "９M", "9" * 5000 + "M", "0/s"]
)
def test_not_a_bandwidth(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size a second: |has no scope: ") as raised:
        parse_byte_rate(text)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("text", ["1M/s", "1M/", "1M/rule", "1M/Client", "1M/client/client", "0/x"])
def test_an_unknown_scope(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"has no scope: /connection and /client are, and without one it is the rule's$"
    ):
        parse_byte_rate(text)
