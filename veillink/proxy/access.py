"""Decide who may come in.

Rule: denied by ``deny``, or not in ``allow`` where there is one.
"""

from veillink.limits import Networks, Ranges, ip_number


def _ranges(cell: Networks) -> tuple[Ranges, ...]:
    """Return what a cell holds; those of its lists are not built again, which would take 0.1 s of 100,000 networks."""
    return (Ranges(cell.networks), *cell.listed)


class Access:
    """Who may come to a rule.

    Args:
        allow: those who may; ``None`` where the rule has no such option, and nobody where it has one that is empty.
        deny: those who may not, whatever ``allow`` says.
    """

    __slots__ = ("_allow", "_deny")

    def __init__(self, allow: Networks | None, deny: Networks) -> None:
        self._allow = None if allow is None else _ranges(allow)
        self._deny = _ranges(deny)

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
        if any(ranges.hold(version, number) for ranges in self._deny):
            return False
        return self._allow is None or any(ranges.hold(version, number) for ranges in self._allow)
