"""Decide who may come in.

Rule: denied by ``deny``, or not in ``allow`` where there is one.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from veillink.limits import Network, ip_number


def _edges(networks: Iterable[Network]) -> list[int]:
    """Return, in order, where each of the disjoint ranges begins that these networks cover, and where it is over."""
    edges: list[int] = []
    for first, last in sorted((network.first, network.last) for network in networks):
        if edges and first <= edges[-1]:
            edges[-1] = max(edges[-1], last + 1)
        else:
            edges += (first, last + 1)
    return edges


class _Ranges:
    """The addresses of some networks."""

    __slots__ = ("_edges",)

    def __init__(self, networks: Iterable[Network]) -> None:
        known = tuple(networks)
        # An array: 16 bytes for a range and not 80, and nothing for the garbage collector. IPv6 does not fit into one.
        self._edges: dict[int, Sequence[int]] = {
            4: array("Q", _edges(network for network in known if network.version == 4)),
            6: _edges(network for network in known if network.version == 6),
        }

    def hold(self, version: int, number: int) -> bool:
        """Return whether an address is one of them: behind an odd number of edges."""
        return bool(bisect_right(self._edges[version], number) & 1)


class Access:
    """Who may come to a rule.

    Args:
        allow: those who may; ``None`` where the rule has no such option, and nobody where it has one that is empty.
        deny: those who may not, whatever ``allow`` says.
    """

    __slots__ = ("_allow", "_deny")

    def __init__(self, allow: Iterable[Network] | None, deny: Iterable[Network] = ()) -> None:
        self._allow = None if allow is None else _Ranges(allow)
        self._deny = _Ranges(deny)

    def allows(self, host: str) -> bool:
        """Return whether a client may come in.

        Who comes by a UNIX socket has no address: the permissions of the socket have decided already.

        Args:
            host: an IP address, IPv4-mapped ones being IPv4, or ``unix:`` and any path.

        Raises:
            ValueError: it is neither.
        """
        if host.startswith("unix:"):
            return True
        version, number = ip_number(host)
        if self._deny.hold(version, number):
            return False
        return self._allow is None or self._allow.hold(version, number)
