"""Keep the account of every connection: the live ones, and totals of those that ended.

Rule: a connection is opened once and closed once; ``live`` holds exactly the ones in between. An account goes with the
last rule and the last connection of its name.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple, Protocol

from veillink.model import Address, End
from veillink.stats.metrics import PLACES
from veillink.stats.snapshot import Account, Times

_CONNECT_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_DURATION_BOUNDS: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0, 36000.0)


# A TCP connection to a target: its own host and port. Or the path of a UNIX socket.
Leg = tuple[str, int] | str


class ByteLimit(Protocol):
    """How many bytes may be moved when."""

    @property
    def waits(self) -> bool:
        """Whether bytes wait for their turn."""

    def take(self, now: float, wanted: int) -> tuple[int, float]:
        """Return how many bytes may be moved within the seconds from now, or 0 and those after which to ask again."""

    def give_back(self, unused: int) -> None:
        """Give back bytes of the last that were allowed."""

    def leave(self, now: float) -> None:
        """Give up its part."""


class Flow:
    """One direction of a connection.

    ``bytes``: forwarded so far. ``done``: its source has finished. ``limit``: what it has to heed, from now on.
    """

    __slots__ = ("bytes", "done", "limit")

    def __init__(self) -> None:
        self.bytes = 0
        self.done = False
        self.limit: ByteLimit | None = None


class Chosen(Protocol):
    """A member of a pool: the target as the rules have it, whose host may be a name."""

    address: Address

    def leave(self) -> None:
        """Give its place up."""


class Proxied(NamedTuple):
    """A connection that somebody has passed on.

    Args:
        via: whose own address the connection has.
        destination: where the client has connected to, if that was said.
    """

    via: Address
    destination: Address | None


@dataclass(slots=True)
class TlsFacts:
    """What a client has said and shown in TLS; what it has not is nothing.

    Args:
        tls: the version that was agreed on, as ``TLSv1.3``.
        sni: the name that it has asked for.
        alpn: the protocol that was agreed on.
        client_cert: a name of its certificate.
    """

    tls: str = ""
    sni: str = ""
    alpn: str = ""
    client_cert: str = ""

    def summary(self) -> dict[str, str]:
        """Return what there is."""
        return {name: text for name, text in asdict(self).items() if text}


class Scope(Protocol):
    """Where a connection is served."""

    def cancel(self, ended: Exception) -> None:
        """End it with this."""


class Connection:
    """One connection, from accept to its access line.

    Args:
        number: unique in this process, and among its siblings.
        rule: the rule's name.
        client: where it comes from.
        listen: the address it was accepted on.
        opened: monotonic seconds.
        scope: ends the connection.
    """

    __slots__ = (
        "accepted",
        "client",
        "connected",
        "inbound",
        "leg",
        "listen",
        "member",
        "number",
        "opened",
        "outbound",
        "passed",
        "proxied",
        "rule",
        "scope",
        "target",
        "tls",
        "tried",
    )

    def __init__(
        self,
        number: int,
        rule: str,
        client: Address,
        listen: Address,
        opened: float,
        scope: Scope,
    ) -> None:
        self.number = number
        self.rule = rule
        self.client = client
        self.listen = listen
        self.opened = self.accepted = opened
        """``accepted``: when its target began to be looked for, in monotonic seconds."""
        self.scope = scope
        self.target: Address | None = None
        self.member: Chosen | None = None
        self.connected: float | None = None
        self.tried: tuple[str, ...] = ()
        self.leg: Leg | None = None
        """Its connection to the target, as the ledger's ``legs`` or ``unix_legs`` have it."""
        self.passed: tuple[Address, ...] = ()
        """Our own listeners that its bytes have come through before this one."""
        self.proxied: Proxied | None = None
        """What its PROXY header has said, in whose place ``client`` is."""
        self.tls: TlsFacts | None = None
        """What its client has said in TLS, where that is heeded."""
        self.inbound = Flow()
        self.outbound = Flow()

    def summary(self, end: End, now: float, detail: str = "") -> dict[str, object]:
        """Return the access line's fields in its order; ``None`` for what never was.

        Args:
            end: why it ended.
            now: monotonic seconds.
            detail: more of why, where TLS has any.
        """
        return {
            "rule": self.rule,
            "id": self.number,
            "client": str(self.client),
            **({"via": str(self.proxied.via)} if self.proxied else {}),
            "listen": str(self.listen),
            **(self.tls.summary() if self.tls else {}),
            "target": str(self.target) if self.target else None,
            "tried": ", ".join(self.tried) or None,
            "bytes_in": self.inbound.bytes,
            "bytes_out": self.outbound.bytes,
            "connect_ms": None if self.connected is None else round((self.connected - self.opened) * 1000, 1),
            "duration_ms": round((now - self.opened) * 1000, 1),
            "end": end.value,
            **({"detail": detail} if detail else {}),
        }


class Histogram:
    """How many times in seconds were at most as long as each bound.

    Args:
        bounds: in seconds, going up.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count a time."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def snapshot(self) -> Times:
        """Return ``le`` (the bounds), ``counts`` (up to each of them, and of all) and ``sum``, as Prometheus has it."""
        return {"le": list(self._bounds), "counts": list(accumulate(self._counts)), "sum": round(self._sum, PLACES)}


@dataclass(slots=True)
class Totals:
    """What a rule's ended connections add up to.

    ``live``: connections that have not ended.
    """

    live: int = 0
    connections: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    ends: Counter[End] = field(default_factory=Counter)
    connect_seconds: Histogram = field(default_factory=lambda: Histogram(_CONNECT_BOUNDS))
    duration_seconds: Histogram = field(default_factory=lambda: Histogram(_DURATION_BOUNDS))
    handshakes: Counter[str] = field(default_factory=Counter)
    handshake_seconds: Histogram = field(default_factory=lambda: Histogram(_CONNECT_BOUNDS))


class Ledger:
    """The account of one process.

    Args:
        before: the number before that of the first connection.

    ``legs``: live connections by what a listener sees of their legs without a system call: where they come from.
    ``unix_legs``: the last one to each path.
    """

    def __init__(self, before: int = 0) -> None:
        self._before = before
        self.live: dict[int, Connection] = {}
        self.totals: defaultdict[str, Totals] = defaultdict(Totals)
        self.legs: dict[Leg, Connection] = {}
        self.unix_legs: dict[Leg, Connection] = {}
        self.opened = 0
        self._rules: Container[str] | None = None
        self._gone = Totals()
        self._ended: dict[str, Account] = {}

    def keep(self, rules: Container[str]) -> None:
        """Keep the accounts of rules of these names from now on, and others until their last connection has ended."""
        self._rules = rules
        for rule in [rule for rule, totals in self.totals.items() if rule not in rules and not totals.live]:
            self._drop(rule)
        self._ended = {rule: account for rule, account in self._ended.items() if rule in self.totals}

    def _drop(self, rule: str) -> None:
        """Forget an account; the bytes of the process stay counted."""
        totals = self.totals.pop(rule)
        self._ended.pop(rule, None)
        self._gone.bytes_in += totals.bytes_in
        self._gone.bytes_out += totals.bytes_out

    def open(self, rule: str, client: Address, listen: Address, now: float, scope: Scope) -> Connection:
        """Enter a connection that was just accepted."""
        self.opened += 1
        connection = Connection(self._before + self.opened, rule, client, listen, now, scope)
        self.live[connection.number] = connection
        self.totals[rule].live += 1
        return connection

    def drop_leg(self, connection: Connection) -> None:
        """Forget a connection's leg: it has none any more."""
        leg, connection.leg = connection.leg, None
        if leg is not None:  # another one may have its port since, or lead to the same path
            if self.legs.get(leg) is connection:
                del self.legs[leg]
            elif self.unix_legs.get(leg) is connection:
                del self.unix_legs[leg]

    def close(self, connection: Connection, end: End, now: float) -> None:
        """Move a connection from the live ones to the totals, at ``now`` (monotonic seconds)."""
        del self.live[connection.number]
        self.drop_leg(connection)
        totals = self.totals[connection.rule]
        totals.live -= 1
        totals.connections += 1
        totals.bytes_in += connection.inbound.bytes
        totals.bytes_out += connection.outbound.bytes
        totals.ends[end] += 1
        totals.duration_seconds.add(now - connection.opened)
        if connection.connected is not None:
            totals.connect_seconds.add(connection.connected - connection.opened)
        if not totals.live and self._rules is not None and connection.rule not in self._rules:
            self._drop(connection.rule)

    def count_handshake(self, rule: str, result: str, seconds: float | None = None) -> None:
        """Count a handshake with a client, and how long it has taken where it was through."""
        totals = self.totals[rule]
        totals.handshakes[result] += 1
        if seconds is not None:
            totals.handshake_seconds.add(seconds)

    def moved(self) -> tuple[int, int]:
        """Return the bytes moved so far, from clients and to them."""
        ended, live = (self._gone, *self.totals.values()), self.live.values()
        return (
            sum(totals.bytes_in for totals in ended) + sum(connection.inbound.bytes for connection in live),
            sum(totals.bytes_out for totals in ended) + sum(connection.outbound.bytes for connection in live),
        )

    def snapshot(self, rules: Collection[str]) -> dict[str, Account]:
        """Return the account of each of these rules by name, with live connections in all but ends and times."""
        accounts = {rule: self._account(rule).copy() for rule in rules}
        for connection in self.live.values():
            account = accounts.get(connection.rule)
            if account is not None:
                account["active"] += 1
                account["total"] += 1
                account["bytes_in"] += connection.inbound.bytes
                account["bytes_out"] += connection.outbound.bytes
        return accounts

    def _account(self, rule: str) -> Account:
        """Return the account of a rule's ended connections, made anew only when one more has ended (3 us)."""
        totals = self.totals.get(rule) or Totals()
        account = self._ended.get(rule)
        if account is None or account["total"] != totals.connections:
            account = self._ended[rule] = {
                "active": 0,
                "total": totals.connections,
                "bytes_in": totals.bytes_in,
                "bytes_out": totals.bytes_out,
                "ends": {end.value: count for end, count in totals.ends.items()},
                "connect_seconds": totals.connect_seconds.snapshot(),
                "duration_seconds": totals.duration_seconds.snapshot(),
                "handshakes": dict(totals.handshakes),
                "handshake_seconds": totals.handshake_seconds.snapshot(),
            }
        return account
