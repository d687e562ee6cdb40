"""The options that a row may have, in one table.

Rule: parsing, --check, --help and the documents follow from the table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeVar

from veillink.config.values import number, parse_duration
from veillink.model import Balance, Health, OnDown
from veillink.text import quoted

_Word = TypeVar("_Word", bound=StrEnum)


_MODE = re.compile(r"0?[0-7]{3}")


def _keepalive(text: str) -> float:
    seconds = parse_duration(text)
    if seconds and not 1 <= seconds <= 9 * 3600:  # TCP_KEEPIDLE takes 1 to 32767 seconds
        raise ValueError(f"{quoted(text)} is not between 1s and 9h, nor 0")
    return seconds


def _dns_refresh(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 1:
        raise ValueError(f"{quoted(text)} is less than 1s")
    return seconds


def _at_least_100ms(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 0.1:
        raise ValueError(f"{quoted(text)} is less than 100ms")
    return seconds


def _retry_interval(text: str) -> float:
    seconds = parse_duration(text)
    if 0 < seconds < 0.01:
        raise ValueError(f"{quoted(text)} is less than 10ms")
    return seconds


def _one_of(words: type[_Word]) -> Callable[[str], _Word]:
    def parse(text: str) -> _Word:
        try:
            return words(text)
        except ValueError:
            raise ValueError(f"{quoted(text)} is not one of {', '.join(words)}") from None

    return parse


def _mode(text: str) -> int:
    if not _MODE.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not a mode of three octal digits, like 0660")
    return int(text, 8)


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{quoted(text)} is not yes or no")
    return text == "yes"


def _label(text: str) -> str:
    if not 1 <= len(text) <= 100 or not text.isprintable():
        raise ValueError(f"{quoted(text)} is not 1 to 100 printable characters")
    return text


@dataclass(frozen=True, slots=True)
class Option:
    """One ``option=value`` of a row.

    Args:
        name: as it is written in a row or over a column.
        parse: from the value's text; raises ValueError with a message for the operator.
        scope: whether it belongs to the rule or to the row's target.
        default: the text of the value it has where no row gives it.
        help: one line for the manual and the command line.
    """

    name: str
    parse: Callable[[str], str | float]
    scope: Literal["rule", "target"]
    default: str
    help: str


OPTIONS = (
    Option("name", _label, "rule", "", "label in logs, metrics and on the page; else the listen cell"),
    Option("weight", number(0, 1000), "target", "1", "the target's share of new connections, 0 to 1000; 0 takes none"),
    Option("backup", _yes_or_no, "target", "no", "yes or no: use the target only when no other can be"),
    Option("connect_timeout", parse_duration, "rule", "5s", "limit from accept to a connected target; 0 is off"),
    Option("idle_timeout", parse_duration, "rule", "0", "close after this long without a byte either way; 0 is off"),
    Option("half_close_timeout", parse_duration, "rule", "5m", "the same once one side has finished; 0 is off"),
    Option("max_lifetime", parse_duration, "rule", "0", "close after this long, whatever moves; 0 is off"),
    Option("keepalive", _keepalive, "rule", "60s", "silence before TCP probes a peer, 1s to 9h; 0 is off"),
    Option("dns_refresh", _dns_refresh, "rule", "30s", "age at which a host name is looked up again, at least 1s"),
    Option("max_connections", number(0, 1_000_000), "rule", "0", "the most at a time, others wait; 0 is no limit"),
    Option("socket_mode", _mode, "rule", "0660", "permissions of the UNIX socket to listen on"),
    Option("balance", _one_of(Balance), "rule", "round_robin", f"who gets the next client: {', '.join(Balance)}"),
    Option("retries", number(0, 1000), "rule", "1000", "further targets to try when one cannot be had, 0 to 1000"),
    Option("retry_interval", _retry_interval, "rule", "0", "when all fail, try again after this, from 10ms; 0 is off"),
    Option("max_fails", number(0, 1000), "rule", "3", "failed connects within fail_timeout that take a target out"),
    Option("fail_timeout", _at_least_100ms, "rule", "10s", "how long it stays out, at least 100ms"),
    Option("health", _one_of(Health), "rule", "off", "tcp: probe the targets by connecting to them; off"),
    Option("health_interval", _at_least_100ms, "rule", "2s", "from probe to probe, at least 100ms"),
    Option("health_timeout", _at_least_100ms, "rule", "1s", "limit for one probe, at least 100ms"),
    Option("health_rise", number(1, 100), "rule", "2", "good probes in a row that bring a target back, 1 to 100"),
    Option("health_fall", number(1, 100), "rule", "3", "bad probes in a row that take a target out, 1 to 100"),
    Option("on_down", _one_of(OnDown), "rule", "keep", "keep or reset connections of a target that probes take out"),
)
