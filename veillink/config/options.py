"""The options that a row may have, in one table.

Rule: parsing, --check, --help and the documents follow from the table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, TypeVar

from veillink.config.networks import format_trusted, parse_networks, parse_trusted
from veillink.config.rates import parse_byte_rate, parse_rate
from veillink.config.tls import (
    file_or,
    format_entries,
    format_name,
    parse_certificates,
    parse_files,
    parse_name,
    parse_patterns,
    parse_protocols,
    parse_version,
)
from veillink.config.values import number, parse_duration
from veillink.credentials import TargetTls
from veillink.model import Balance, Health, OnDown, SendProxy
from veillink.text import quoted

_Word = TypeVar("_Word", bound=StrEnum)


_MODE = re.compile(r"0?[0-7]{3}")


def _keepalive(text: str) -> float:
    seconds = parse_duration(text)
    if seconds and not 1 <= seconds <= 9 * 3600:  # TCP_KEEPIDLE takes 1 to 32767 seconds
        raise ValueError(f"{quoted(text)} is not between 1s and 9h, nor 0")
    return seconds


def _at_least_1s(text: str) -> float:
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


def _proxy_timeout(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 3:
        raise ValueError(f"{quoted(text)} is less than 3s: a header may wait for a segment to be sent again")
    return seconds


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{quoted(text)} is not yes or no")
    return text == "yes"


def _label(text: str) -> str:
    if not 1 <= len(text) <= 100 or not text.isprintable():
        raise ValueError(f"{quoted(text)} is not 1 to 100 printable characters")
    return text


# --- how a value is written ------------------------------------------------------------------------------------------


def _seconds(value: Any) -> str:
    return f"{value:g}s" if value else "0"


def _octal(value: Any) -> str:
    return f"{value:04o}"


def _file_or(word: str) -> Callable[[Any], str]:
    return lambda name: name or word


def _yes(value: Any) -> str:
    return "yes" if value else "no"


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One ``option=value`` of a row.

    Args:
        name: as it is written in a row or over a column, and the field of ``RuleOptions`` or ``Target`` that it sets.
        parse: from the value's text; raises ValueError with a message for the operator.
        format: a value as text that means the same.
        scope: whether it belongs to the rule or to the row's target.
        group: what it is about, for the manual.
        default: the text of the value it has where no row gives it.
        help: one line for the manual and the command line.
        on_command_line: whether the command line may set it for all rules.
    """

    name: str
    parse: Callable[[str], object]
    format: Callable[[Any], str]
    scope: Literal["rule", "target"]
    group: Literal["listener", "targets", "times", "health", "clients", "tls"]
    default: str
    help: str
    on_command_line: bool = True


# fmt: off
OPTIONS: Final = (
    Option("name", _label, str, "rule", "listener", "",
           "label in logs, metrics and on the page; else the listen cell", on_command_line=False),
    Option("weight", number(0, 1000), str, "target", "targets", "1",
           "the target's share of new connections, 0 to 1000; 0 takes none", on_command_line=False),
    Option("backup", _yes_or_no, _yes, "target", "targets", "no",
           "yes or no: use the target only when no other can be", on_command_line=False),
    Option("connect_timeout", parse_duration, _seconds, "rule", "times", "5s",
           "limit from accept to a connected target; 0 is off"),
    Option("idle_timeout", parse_duration, _seconds, "rule", "times", "0",
           "close after this long without a byte either way; 0 is off"),
    Option("half_close_timeout", parse_duration, _seconds, "rule", "times", "5m",
           "the same once one side has finished; 0 is off"),
    Option("max_lifetime", parse_duration, _seconds, "rule", "times", "0",
           "close after this long, whatever moves; 0 is off"),
    Option("keepalive", _keepalive, _seconds, "rule", "times", "60s",
           "silence before TCP probes a peer, 1s to 9h; 0 is off"),
    Option("dns_refresh", _at_least_1s, _seconds, "rule", "targets", "30s",
           "age at which a host name is looked up again, at least 1s"),
    Option("max_connections", number(0, 1_000_000), str, "rule", "listener", "0",
           "the most at a time, others wait; 0 is no limit", on_command_line=False),
    Option("socket_mode", _mode, _octal, "rule", "listener", "0660",
           "permissions of the UNIX socket to listen on"),
    Option("balance", _one_of(Balance), str, "rule", "targets", "round_robin",
           f"who gets the next client: {', '.join(Balance)}"),
    Option("retries", number(0, 1000), str, "rule", "targets", "1000",
           "further targets to try when one cannot be had, 0 to 1000"),
    Option("retry_interval", _retry_interval, _seconds, "rule", "targets", "0",
           "when all fail, try again after this, from 10ms; 0 is off"),
    Option("max_fails", number(0, 1000), str, "rule", "targets", "3",
           "failed connects within fail_timeout that take a target out"),
    Option("fail_timeout", _at_least_100ms, _seconds, "rule", "targets", "10s",
           "how long it stays out, at least 100ms"),
    Option("health", _one_of(Health), str, "rule", "health", "off",
           "probe the targets: tcp by connecting, tls by a handshake too; off"),
    Option("health_interval", _at_least_100ms, _seconds, "rule", "health", "2s",
           "from probe to probe, at least 100ms"),
    Option("health_timeout", _at_least_100ms, _seconds, "rule", "health", "1s",
           "limit for one probe, at least 100ms"),
    Option("health_rise", number(1, 100), str, "rule", "health", "2",
           "good probes in a row that bring a target back, 1 to 100"),
    Option("health_fall", number(1, 100), str, "rule", "health", "3",
           "bad probes in a row that take a target out, 1 to 100"),
    Option("on_down", _one_of(OnDown), str, "rule", "health", "keep",
           "keep or reset connections of a target that probes take out"),
    Option("accept_proxy", parse_trusted, format_trusted, "rule", "clients", "off",
           "networks whose PROXY header (v1 or v2) is required, or any; off"),
    Option("proxy_timeout", _proxy_timeout, _seconds, "rule", "clients", "5s",
           "limit from accept to a whole PROXY header, at least 3s"),
    Option("send_proxy", _one_of(SendProxy), str, "target", "clients", "off",
           "v1 or v2: send the target a PROXY header first; off", on_command_line=False),
    Option("allow", parse_networks, str, "rule", "clients", "off",
           "addresses, networks and @FILES of them that may come in; off: all"),
    Option("deny", parse_networks, str, "rule", "clients", "off",
           "addresses, networks and @FILES of them that are reset; off: none"),
    Option("max_connections_per_client", number(0, 1_000_000), str, "rule", "clients", "0",
           "the most of one client at a time, more are reset; 0 is off"),
    Option("connection_rate", parse_rate, str, "rule", "clients", "0",
           "accept so many, as 100/s, 6/m or 9/s:20; others wait; 0 is off"),
    Option("connection_rate_per_client", parse_rate, str, "rule", "clients", "0",
           "serve one client so often, as 5/s; more are reset; 0 is off"),
    Option("upload_rate", parse_byte_rate, str, "rule", "clients", "0",
           "bytes a second from clients: 1M, 1M/connection, 1M/client; 0 is off"),
    Option("download_rate", parse_byte_rate, str, "rule", "clients", "0",
           "bytes a second to clients: 1M, 1M/connection, 1M/client; 0 is off"),
    Option("tls", parse_certificates, format_entries, "rule", "tls", "off",
           "PEM files of certificates, which may hold the key: speak TLS with clients", on_command_line=False),
    Option("tls_key", parse_files, format_entries, "rule", "tls", "off",
           "files of their keys, in the order of tls; off: in the same files", on_command_line=False),
    Option("tls_client_ca", file_or("off"), _file_or("off"), "rule", "tls", "off",
           "file of CAs: clients have to show a certificate of one; off", on_command_line=False),
    Option("tls_client_names", parse_patterns, format_entries, "rule", "tls", "off",
           "names, *.example.org too, of which it has to hold one; off: any", on_command_line=False),
    Option("tls_min", parse_version, str, "rule", "tls", "1.2",
           "lowest version of TLS, with clients and targets: 1.2 or 1.3"),
    Option("alpn", parse_protocols, format_entries, "rule", "tls", "off",
           "protocols inside TLS, like h2 http/1.1; pass: the target's; off", on_command_line=False),
    Option("tls_timeout", _at_least_1s, _seconds, "rule", "tls", "10s",
           "limit for a client's hello and handshake together, at least 1s"),
    Option("sni", parse_patterns, format_entries, "target", "tls", "off",
           "names, *.example.org too, whose clients it is for; off: all others", on_command_line=False),
    Option("target_tls", _one_of(TargetTls), str, "target", "tls", "off",
           "speak TLS with it: verify who it is, or insecure: trust anybody; off", on_command_line=False),
    Option("target_ca", file_or("system"), _file_or("system"), "target", "tls", "system",
           "file of CAs, or of its certificate, that it is verified by", on_command_line=False),
    Option("target_name", parse_name, format_name, "target", "tls", "host",
           "name that it is asked for and has to prove; host: that of the row", on_command_line=False),
    Option("target_cert", file_or("off"), _file_or("off"), "target", "tls", "off",
           "PEM file of our certificate for it, which may hold the key; off", on_command_line=False),
    Option("target_key", file_or("off"), _file_or("off"), "target", "tls", "off",
           "file of that one's key; off: in the same file", on_command_line=False),
)
# fmt: on
