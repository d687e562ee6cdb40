"""The text of one cell in, its value out: addresses, ports, and the options that a row may have.

Rule: a cell that is not accepted raises ``ValueError`` with a message for the operator, and nothing else is raised.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, ip_address
from typing import Literal, TypeVar

from .model import Address, Balance, Health, OnDown


def printable(text: str) -> str:
    """Return the text, or with whatever does not print escaped."""
    return text if text.isprintable() else ascii(text)


def shown(text: str) -> str:
    """Return what is quoted from a file as one short printable line, whatever it holds."""
    start = text[:40].encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{start}..."' if len(text) > 40 else f'"{start}"'


# --- options ---------------------------------------------------------------------------------------------------------

_Word = TypeVar("_Word", bound=StrEnum)

_YEAR = 365 * 24 * 3600
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"(0|[1-9][0-9]{0,10})(ms|s|m|h)")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_MODE = re.compile(r"0?[0-7]{3}")


def parse_duration(text: str) -> float:
    """Return the seconds that ``250ms``, ``5s``, ``2m``, ``1h`` or ``0`` stand for.

    Raises:
        ValueError: anything else, or more than a year; the message says what is accepted.
    """
    match = _DURATION.fullmatch("0s" if text == "0" else text)
    if match and (seconds := int(match[1]) * _MILLISECONDS[match[2]] / 1000) <= _YEAR:
        return seconds
    raise ValueError(f"{shown(text)} is not a duration: write 250ms, 5s, 2m, 1h or 0, at most 8760h")


def _keepalive(text: str) -> float:
    seconds = parse_duration(text)
    if seconds and not 1 <= seconds <= 9 * 3600:  # TCP_KEEPIDLE takes 1 to 32767 seconds
        raise ValueError(f"{shown(text)} is not between 1s and 9h, nor 0")
    return seconds


def _dns_refresh(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 1:
        raise ValueError(f"{shown(text)} is less than 1s")
    return seconds


def _at_least_100ms(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 0.1:
        raise ValueError(f"{shown(text)} is less than 100ms")
    return seconds


def _retry_interval(text: str) -> float:
    seconds = parse_duration(text)
    if 0 < seconds < 0.01:
        raise ValueError(f"{shown(text)} is less than 10ms")
    return seconds


def number(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers in plain digits, with both limits allowed."""

    def parse(text: str) -> int:
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise ValueError(f"{shown(text)} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _one_of(words: type[_Word]) -> Callable[[str], _Word]:
    def parse(text: str) -> _Word:
        try:
            return words(text)
        except ValueError:
            raise ValueError(f"{shown(text)} is not one of {', '.join(words)}") from None

    return parse


def _mode(text: str) -> int:
    if not _MODE.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a mode of three octal digits, like 0660")
    return int(text, 8)


def parse_token(text: str) -> str:
    """Return a token, or nothing.

    Raises:
        ValueError: it could not be sent in a header as it is (RFC 9110 section 5.5).
    """
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a token is printable ASCII without blanks")
    return text


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{shown(text)} is not yes or no")
    return text == "yes"


def _label(text: str) -> str:
    if not 1 <= len(text) <= 100 or not text.isprintable():
        raise ValueError(f"{shown(text)} is not 1 to 100 printable characters")
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


# --- cells -----------------------------------------------------------------------------------------------------------

_LISTEN = re.compile(r"(?:\[([^]]*:[^]]*)]:|([0-9.]+):|\*:)?([^][:]+)")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_RANGE = re.compile(r"([^-]+)-([^-]+)")
_NAME_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,15}")
_UNIX = "unix:"
_LONGEST_NAME = 253  # characters, a dot at the end not counted
_LONGEST_PATH = 107  # bytes; sun_path in unix(7) has room for one more, the NUL


def _port(text: str) -> int:
    if _PORT.fullmatch(text) and int(text) <= 65535:
        return int(text)
    fault = "between 1 and 65535" if _INTEGER.fullmatch(text) else "a number from 1 to 65535 in plain digits"
    raise ValueError(f"port {shown(text)} is not {fault}")


def parse_ports(text: str) -> range:
    """Return the ports of ``8080`` or ``8000-8010``.

    Raises:
        ValueError: it is neither, or out of 1 to 65535.
    """
    match = _RANGE.fullmatch(text)
    first, last = map(_port, match.groups() if match else (text, text))
    if match and first >= last:
        raise ValueError(f"range {shown(text)} does not go up")
    return range(first, last + 1)


def _ip(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is not an IP address") from None
    if isinstance(address, IPv4Address):
        return str(address)
    zone = address.scope_id
    if zone is not None and not (_ZONE.fullmatch(zone) and address.is_link_local):
        raise ValueError(f"{shown(text)} has a zone that is no interface name, or needs none")
    # To the kernel a mapped address is the IPv4 one; with one spelling no overlap or loop hides.
    return str(address.ipv4_mapped or address)


def _unix(text: str) -> str:
    path = text.removeprefix(_UNIX)
    # With one spelling no overlap or loop hides; ".." stays: what it means depends on symbolic links.
    plain = "".join(f"/{part}" for part in path.split("/") if part not in ("", "."))
    if not path.startswith("/") or path.endswith("/") or not path.isprintable() or not plain:
        raise ValueError(f"{shown(text)} is not {_UNIX} and an absolute path")
    if len(path.encode()) > _LONGEST_PATH:
        raise ValueError(f"the path of {shown(text)} is longer than {_LONGEST_PATH} bytes")
    return _UNIX + plain


def parse_listen(text: str) -> tuple[Address, int]:
    """Return the first address of a listen cell and the number of its ports.

    Raises:
        ValueError: the form is not one of those in the message.
    """
    if text.startswith(_UNIX):
        return Address(_unix(text), 0), 1
    match = _LISTEN.fullmatch(text)
    if not match:
        forms = "PORT (on every address), IPV4:PORT, [IPV6]:PORT (in brackets) or unix:/PATH"
        raise ValueError(f"listen {shown(text)} is not {forms}")
    host, ports = match[1] or match[2], parse_ports(match[3])
    return Address(_ip(host) if host else "", ports.start), len(ports)


def parse_window(text: str) -> tuple[Address, str]:
    """Return the address of ``127.0.0.1:9090``, ``[::1]:9090``, ``name:9090`` or ``unix:/path``, and the name if any.

    The host of a name is the name itself: it has to be looked up.

    Raises:
        ValueError: it is none of them.
    """
    name, colon, port = text.rpartition(":")
    is_name = colon and not text.startswith(_UNIX) and "[" not in name and name != "*"
    if is_name and not _NUMERIC.fullmatch(name.rpartition(".")[2]):
        host = _name(name)
        return Address(host, _port(port)), host
    address, ports = parse_listen(text)
    if ports > 1:
        raise ValueError(f"{shown(text)} has more than one port")
    return address, ""


def parse_names(text: str) -> tuple[str, ...]:
    """Return host names that stand between blanks or commas.

    Raises:
        ValueError: one of them is none.
    """
    return tuple(_name(name).removesuffix(".") for name in text.replace(",", " ").split())


def _in_ascii(text: str) -> str:
    """Return a host name with other letters as DNS has it: IDNA 2008 (RFC 5891), after the mapping of UTS 46.

    Python's own codec is IDNA 2003, to which ``straße.example`` is ``strasse.example``: somebody else's host.
    """
    import idna  # 20 ms and 2 MiB that other names do not need

    try:
        labels = idna.uts46_remap(text, std3_rules=False).split(".")
        return ".".join(label if label.isascii() else idna.alabel(label).decode() for label in labels)
    except idna.IDNAError:
        raise ValueError(f"host {shown(text)} is no host name that IDNA 2008 allows (RFC 5891)") from None


def _name(text: str) -> str:
    """Return a host name as DNS has it (RFC 1123 section 2.1)."""
    name = text.lower() if text.isascii() or len(text) > _LONGEST_NAME else _in_ascii(text)
    labels = name.removesuffix(".").split(".")
    if len(name.removesuffix(".")) > _LONGEST_NAME or not all(map(_NAME_LABEL.fullmatch, labels)):
        raise ValueError(f"host {shown(text)} is neither an IP address nor a host name")
    if _NUMERIC.fullmatch(labels[-1]):  # getaddrinfo takes 127.1 and 0177.0.0.1 for addresses
        raise ValueError(f"host {shown(text)} is not an IPv4 address: four numbers, 0 to 255, no leading zeros")
    return name


def parse_host(text: str) -> str:
    """Return the canonical form of an IP address, host name, or UNIX socket.

    Raises:
        ValueError: it is none of them.
    """
    if text.startswith(_UNIX):
        return _unix(text)
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in inside:
        return _ip(inside)
    try:
        return _ip(text)
    except ValueError:
        return _name(text)
