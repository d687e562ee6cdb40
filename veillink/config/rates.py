"""The text of one cell in, its rate out: connections in a time, bytes a second.

Rule: a cell that is not accepted raises ``ValueError`` with a message for the operator, and nothing else is raised.
"""

import re

from veillink.limits import ByteRate, Per, Rate
from veillink.text import quoted

_PERIODS = {"s": 1, "m": 60, "h": 3600}
_SHIFTS = {"K": 10, "M": 20, "G": 30}
_MOST = 1_000_000
_RATE = re.compile(r"([1-9][0-9]{0,6})/([smh])(?::([1-9][0-9]{0,6}))?")
_SIZE = re.compile(r"([1-9][0-9]{0,8})([KMG])")
_LARGEST = 1 << 40
_PER = {"": Per.RULE, "/connection": Per.CONNECTION, "/client": Per.CLIENT}


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


def parse_byte_rate(text: str) -> ByteRate:
    """Return the bandwidth of ``1M`` (2^20 bytes a second), ``512K/connection``, ``10M/client``, or ``0``.

    Raises:
        ValueError: anything else, or more than 1024G; the message says what is accepted.
    """
    size, slash, word = text.partition("/")
    per = _PER.get(slash + word)
    if per is None:
        raise ValueError(f"{quoted(text)} has no scope: /connection and /client are, and without one it is the rule's")
    if text == "0":
        return ByteRate()
    match = _SIZE.fullmatch(size)
    if match and (count := int(match[1]) << _SHIFTS[match[2]]) <= _LARGEST:
        return ByteRate(count, per)
    raise ValueError(f"{quoted(text)} is not a size a second: write 512K, 1M, 1G or 0, at most 1024G")
