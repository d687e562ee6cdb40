"""Keep the account of every connection: the live ones, and totals of those that ended.

Rule: an entry is opened once and closed once; ``live`` holds exactly the ones in between.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from .model import Address, End


class Flow:
    """One direction of a connection.

    ``bytes``: forwarded so far. ``done``: its source has finished.
    """

    __slots__ = ("bytes", "done")

    def __init__(self) -> None:
        self.bytes = 0
        self.done = False


class Entry:
    """One connection, from accept to its access line.

    Args:
        number: unique in this process.
        rule: the rule's name.
        client: where it comes from.
        listen: the address it was accepted on.
        opened: monotonic seconds.
        interrupt: ends the connection with the exception it is given.
    """

    __slots__ = (
        "chosen",
        "client",
        "connected",
        "inbound",
        "interrupt",
        "listen",
        "number",
        "opened",
        "outbound",
        "rule",
        "target",
        "tried",
    )

    def __init__(
        self,
        number: int,
        rule: str,
        client: Address,
        listen: Address,
        opened: float,
        interrupt: Callable[[Exception], None],
    ) -> None:
        self.number = number
        self.rule = rule
        self.client = client
        self.listen = listen
        self.opened = opened
        self.interrupt = interrupt
        self.target: Address | None = None
        self.chosen: Address | None = None  # the target as the rules have it, which may be a name
        self.connected: float | None = None
        self.tried: tuple[str, ...] = ()
        self.inbound = Flow()
        self.outbound = Flow()

    def summary(self, end: End, now: float) -> dict[str, object]:
        """Return the access line's fields in its order; ``None`` for what never was."""
        return {
            "rule": self.rule,
            "id": self.number,
            "client": str(self.client),
            "listen": str(self.listen),
            "target": str(self.target) if self.target else None,
            "tried": ", ".join(self.tried) or None,
            "bytes_in": self.inbound.bytes,
            "bytes_out": self.outbound.bytes,
            "connect_ms": None if self.connected is None else round((self.connected - self.opened) * 1000, 1),
            "duration_ms": round((now - self.opened) * 1000, 1),
            "end": end.value,
        }


@dataclass(slots=True)
class Totals:
    """What a rule's ended connections add up to."""

    connections: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    ends: Counter[End] = field(default_factory=Counter)


class Ledger:
    """The account of one process."""

    def __init__(self) -> None:
        self.live: dict[int, Entry] = {}
        self.totals: defaultdict[str, Totals] = defaultdict(Totals)
        self._opened = 0

    def open(
        self, rule: str, client: Address, listen: Address, now: float, interrupt: Callable[[Exception], None]
    ) -> Entry:
        """Enter a connection that was just accepted."""
        self._opened += 1
        entry = Entry(self._opened, rule, client, listen, now, interrupt)
        self.live[entry.number] = entry
        return entry

    def close(self, entry: Entry, end: End) -> None:
        """Move a connection from the live ones to the totals."""
        del self.live[entry.number]
        totals = self.totals[entry.rule]
        totals.connections += 1
        totals.bytes_in += entry.inbound.bytes
        totals.bytes_out += entry.outbound.bytes
        totals.ends[end] += 1
