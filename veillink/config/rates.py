"""The text of one cell in, its rate out: so many in a time.

Rule: a cell that is not accepted raises ``ValueError`` with a message for the operator, and nothing else is raised.
"""

import re

from veillink.limits import Rate
from veillink.text import quoted

_PERIODS = {"s": 1, "m": 60, "h": 3600}
_MOST = 1_000_000
_RATE = re.compile(r"([1-9][0-9]{0,6})/([smh])(?::([1-9][0-9]{0,6}))?")


def parse_rate(text: str) -> Rate:
    """Return the rate of ``100/s``, ``6/m``, ``5/h``, ``100/s:200`` (200 at once after silence), or ``0``.

    Raises:
        ValueError: anything else, or a number above a million; the message says what is accepted.
    """
    if text == "0":
        return Rate()
    match = _RATE.fullmatch(text)
    if match and max(int(match[1]), int(match[3] or 0)) <= _MOST:
        return Rate(int(match[1]), _PERIODS[match[2]], int(match[3] or 0))
    forms = "100/s, 6/m, 5/h, 100/s:200 (200 at once) or 0, with numbers of at most 1000000"
    raise ValueError(f"{quoted(text)} is not a rate: write {forms}")
