"""The nouns of who may come in, and how much: networks and rates, as rules have them, and what a client is."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import merge
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

_UNIX: Final = "unix:"
_BITS: Final = {4: 32, 6: 128}
_PERIODS: Final = {1: "s", 60: "m", 3600: "h"}
_UNITS: Final = ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))

ClientKey = str | int
"""What a client is to its limits: an IPv4 address, the first 64 bits of an IPv6 one, or ``unix:``."""


def ip_number(host: str) -> tuple[int, int]:
    """Return the IP version and the number of an address; an IPv4-mapped one is the IPv4 one, and a zone is dropped.

    Raises:
        ValueError: it is no IP address.
    """
    if ":" not in host:
        return 4, int(IPv4Address(host))
    number = int(IPv6Address(host))
    return (4, number & 0xFFFF_FFFF) if number >> 32 == 0xFFFF else (6, number)


def client_key(host: str) -> ClientKey:
    """Return whose limits hold for who comes from ``host``, an IP address or ``unix:`` and any path.

    Whoever has an IPv6 address has 2^64 of them. All who come by a UNIX socket are one client: nothing tells them
    apart but a path that they choose themselves.
    """
    if ":" not in host:
        return host
    if host.startswith(_UNIX):
        return _UNIX
    version, number = ip_number(host)
    return str(IPv4Address(number)) if version == 4 else number >> 64


class Network(NamedTuple):
    """An IP network (a tuple: 100,000 take 11 MiB; of ``ipaddress`` 56, once their ends were asked for).

    Args:
        version: 4 or 6.
        first: the number of its first address.
        length: of the prefix, in bits.
    """

    version: int
    first: int
    length: int

    def __str__(self) -> str:
        address = str(IPv4Address(self.first) if self.version == 4 else IPv6Address(self.first))
        return address if self.length == _BITS[self.version] else f"{address}/{self.length}"


# Sorted at a time: a list of 100,000 in one go, which no thread can interrupt, held up all others for 80 ms.
_AT_A_TIME: Final = 5_000


def _edges(networks: Iterable[Network]) -> list[int]:
    """Return, in order, where each of the disjoint ranges begins that these networks cover, and where it is over."""
    keys = [network.first << 8 | _BITS[network.version] - network.length for network in networks]
    edges: list[int] = []
    for key in merge(*(sorted(keys[start : start + _AT_A_TIME]) for start in range(0, len(keys), _AT_A_TIME))):
        first = key >> 8
        end = first + (1 << (key & 0xFF))
        if edges and first <= edges[-1]:
            edges[-1] = max(edges[-1], end)
        else:
            edges += (first, end)
    return edges


class Ranges:
    """The addresses of some networks; equal where it is the same addresses.

    Args:
        networks: whose.
    """

    __slots__ = ("_edges",)

    def __init__(self, networks: Iterable[Network]) -> None:
        known = tuple(networks)
        # An array: 16 bytes for a range and not 80, and nothing for the garbage collector. IPv6 does not fit into one.
        self._edges: dict[int, Sequence[int]] = {
            4: array("Q", _edges(network for network in known if network.version == 4)),
            6: tuple(_edges(network for network in known if network.version == 6)),
        }

    def hold(self, version: int, number: int) -> bool:
        """Return whether an address is one of them: behind an odd number of edges."""
        return bool(bisect_right(self._edges[version], number) & 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._edges == other._edges


@dataclass(frozen=True, slots=True)
class Networks:
    """A cell of networks; without any it is off.

    Args:
        networks: those that stand in it, in its order.
        files: the names of the lists of others, as written.
        listed: what stands in those, so that a changed list is a changed rule.
    """

    networks: tuple[Network, ...] = ()
    files: tuple[str, ...] = ()
    listed: tuple[Ranges, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.networks or self.files)

    def __str__(self) -> str:
        return " ".join([*map(str, self.networks), *(f"@{name}" for name in self.files)]) or "off"


EVERYBODY: Final = Networks((Network(4, 0, 0), Network(6, 0, 0)))


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a time; 0 is off.

    Args:
        count: how many.
        period: in so many seconds.
        burst: how many at once after silence; 0 is what one second brings, and at least one.
    """

    count: int = 0
    period: int = 1
    burst: int = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        return f"{self.count}/{_PERIODS[self.period]}" + (f":{self.burst}" if self.burst else "") if self else "0"

    @property
    def per_second(self) -> float:
        """How many a second."""
        return self.count / self.period

    @property
    def room(self) -> float:
        """How many at once after silence."""
        return self.burst or max(1.0, self.count / self.period)

    def divided(self, among: int) -> "Rate":
        """Return the part of each of so many processes; of what may come at once at least one."""
        return Rate(self.count, self.period * among, -(-self.burst // among))


class Per(StrEnum):
    """Who shares a bandwidth."""

    RULE = "rule"
    CONNECTION = "connection"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class ByteRate:
    """A bandwidth; 0 is off.

    Args:
        bytes_per_second: how much.
        per: who shares it.
    """

    bytes_per_second: int = 0
    per: Per = Per.RULE

    def __bool__(self) -> bool:
        return self.bytes_per_second > 0

    def __str__(self) -> str:
        size, unit = next(((size, unit) for size, unit in _UNITS if not self.bytes_per_second % size), (1, ""))
        shown = f"{self.bytes_per_second // size}{unit}" if self else "0"
        return shown if self.per is Per.RULE else f"{shown}/{self.per}"

    def divided(self, among: int) -> "ByteRate":
        """Return the part of each of so many processes; a connection is in one of them."""
        if not self or self.per is Per.CONNECTION:
            return self
        return ByteRate(max(1, self.bytes_per_second // among), self.per)
