"""Who may come in: the PROXY header, the lists, and what one client may have.

Rule: nothing reaches a target, and no connection to it is begun, before a client has passed all of it.
"""

import time

from veillink.limits import Networks, Rate, client_key
from veillink.model import End, Ended, RuleOptions
from veillink.net.proxy_protocol import LIMIT, parse
from veillink.net.stream import Stream
from veillink.net.ticker import Ticker
from veillink.proxy.access import Access
from veillink.proxy.client_limits import Client, ClientLimits
from veillink.stats.ledger import Connection, Proxied


class Edge:
    """What a form of a rule asks of who comes to it; ``None`` of it where it asks for nothing.

    Args:
        options: of the rule.
        before: of its last form; what is known of clients is kept.
        among: how many processes share the limits.
    """

    def __init__(self, options: RuleOptions, before: "Edge | None", among: int) -> None:
        self._options = options
        self._trusted = Access(options.accept_proxy, Networks()) if options.accept_proxy else None
        self._access: Access | None = None
        if options.allow or options.deny:
            self._access = Access(options.allow or None, options.deny)
        self._clients: ClientLimits = before._clients if before else ClientLimits(0, Rate())
        self._counts = bool(options.max_connections_per_client or options.connection_rate_per_client)
        self.divide(among)

    def divide(self, among: int) -> None:
        """Share the limits of each client with so many processes."""
        most, rate = self._options.max_connections_per_client, self._options.connection_rate_per_client
        self._clients.change(-(-most // among), rate.divided(among), time.monotonic())

    def admit(self, client: Stream, connection: Connection, ticker: Ticker) -> Client | None:
        """Let a client in, as who it is; what is returned has to be released.

        Args:
            client: who has come.
            connection: its account; its scope ends it if it is too late.
            ticker: tells, and reminds of clients who may be forgotten.

        Raises:
            Ended: it may not come in.
        """
        if self._trusted is not None:
            if not self._trusted.allows(connection.client.host):
                raise Ended(End.BAD_PROXY_HEADER, "not trusted")
            with Limit(connection, self._options.proxy_timeout, ticker, End.BAD_PROXY_HEADER):
                _read_header(client, connection)
        host = connection.client.host
        if self._access is not None and not self._access.allows(host):
            raise Ended(End.DENIED)
        if not self._counts:
            return None
        admitted = self._clients.admit(client_key(host), time.monotonic())
        if admitted is None:
            raise Ended(End.OVER_LIMIT)
        ticker.watch(self._clients)
        return admitted

    def release(self, admitted: Client) -> None:
        """Note that a connection of a client's has ended."""
        self._clients.release(admitted, time.monotonic())


def build_edge(options: RuleOptions, before: Edge | None, among: int) -> Edge | None:
    """Return what a rule asks of who comes to it, if it asks for anything; what is known of clients is kept."""
    asks = options.accept_proxy or options.allow or options.deny
    counts = options.max_connections_per_client or options.connection_rate_per_client
    return Edge(options, before, among) if asks or counts or before else None


class Limit:
    """The time that a client has for what comes before its bytes, counted from its coming.

    What arrives while this process does not run is in time, and that time does not count.

    Args:
        connection: its account, whose scope ends it.
        seconds: for it.
        ticker: tells.
        end: how it ends when it is too late.
    """

    __slots__ = ("_connection", "_end", "_lost", "_seconds", "_ticker")

    def __init__(self, connection: Connection, seconds: float, ticker: Ticker, end: End) -> None:
        self._connection = connection
        self._seconds = seconds
        self._ticker = ticker
        self._end = end
        self._lost = ticker.lost

    def __enter__(self) -> None:
        self._ticker.watch(self)

    def __exit__(self, *_: object) -> None:
        self._ticker.forget(self)

    def on_tick(self, now: float) -> bool:
        """End it if it is too late; return whether it is not."""
        if now - self._connection.accepted < self._seconds + self._ticker.lost - self._lost:
            return True
        self._connection.scope.cancel(Ended(self._end, "too late"))
        return False


def _read_header(client: Stream, connection: Connection) -> None:
    """Read the PROXY header, and let the connection have the ends that it names."""
    try:
        header = client.read_prefix(parse, LIMIT)
    except EOFError as error:
        if error.args[0]:
            raise Ended(End.BAD_PROXY_HEADER, "not whole") from None
        raise Ended(End.CLIENT_LEFT) from None  # a balancer's check
    except OSError:
        raise Ended(End.CLIENT_LEFT) from None
    connection.accepted = time.monotonic()
    if header.source is not None:
        connection.proxied = Proxied(connection.client, header.destination)
        connection.client = header.source
