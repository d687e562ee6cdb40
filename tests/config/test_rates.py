"""Tests of the values of rates."""

import pytest

from veillink.config.rates import parse_rate
from veillink.limits import Rate


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
