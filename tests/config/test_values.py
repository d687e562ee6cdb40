"""The option table and the values of single cells (whole rows: test_rules.py)."""

import pytest

from veillink.config.values import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1ms", 0.001), ("5s", 5), ("2m", 120), ("1h", 3600), ("0", 0), ("0s", 0), ("8760h", 31_536_000)],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert isinstance(parse_duration(text), float)


@pytest.mark.parametrize(
    "text",
    ["", "5", "s", "05s", "00", "-5s", "+5s", "5 s", " 5s", "5s ", "5s\n", "5S", "1.5s", "1e3s", "５s", "1_0s", "1d",
     "inf", "8761h", "31536001s", "9" * 5000 + "s", "5ss", "1m30s"],
)  # fmt: skip
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: write 250ms, 5s, 2m, 1h or 0, at most 8760h$") as raised:
        parse_duration(text)
    assert str(raised.value).isprintable()
