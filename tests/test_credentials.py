"""The nouns of TLS."""

import pytest

from veillink.credentials import Certificate

DAY = 86_400.0


@pytest.mark.parametrize(
    ("certificate", "now", "warnings"),
    [
        (Certificate("a", not_before=DAY, not_after=2 * DAY), DAY, ()),
        (Certificate("a", not_before=DAY, not_after=2 * DAY), 2 * DAY, ()),
        (Certificate("a", not_before=DAY, not_after=2 * DAY), 2 * DAY + 1, ("expired on 1970-01-03",)),
        (Certificate("a", not_before=DAY, not_after=2 * DAY), DAY - 1, ("not valid before 1970-01-02",)),
        (Certificate("a", not_after=DAY, doubts=("others may",)), 9 * DAY, ("expired on 1970-01-02", "others may")),
        (Certificate("a", doubts=("it could not be read",)), 9 * DAY, ("it could not be read",)),
    ],
)
def test_a_certificate_is_warned_of(certificate: Certificate, now: float, warnings: tuple[str, ...]) -> None:
    assert certificate.warnings(now) == warnings


@pytest.mark.parametrize(("seconds", "day"), [(0.0, ""), (1.8e9, "2027-01-15"), (253402300799.0, "9999-12-31")])
def test_its_end_is_shown_as_a_day(seconds: float, day: str) -> None:
    assert Certificate("a", not_after=seconds).until == day
