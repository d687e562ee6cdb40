"""The rates at which a rule's bytes may move, up and down, from reload to reload.

Rule: connections of a rule without rates have nothing of it; those that are there already heed a change at once.
"""

from collections.abc import Iterable, Iterator

from veillink.limits import ByteRate, client_key
from veillink.model import RuleOptions
from veillink.proxy.shaping import Shaping
from veillink.stats.ledger import Connection, Flow


class Bandwidth:
    """What limits the bytes of a rule's connections.

    ``on``: whether anything does.
    """

    __slots__ = ("_download", "_upload", "on")

    def __init__(self) -> None:
        self.on = False
        self._upload: Shaping | None = None
        self._download: Shaping | None = None

    def change(self, options: RuleOptions, among: int, live: Iterable[Connection], now: float) -> None:
        """Go on with other rates.

        Args:
            options: of the rule.
            among: how many processes share its rates.
            live: the connections that the rule has. Who is not connected yet begins by itself, as the client that its
                PROXY header has named by then.
            now: monotonic seconds.
        """
        upload, download = options.upload_rate.divided(among), options.download_rate.divided(among)
        before = self._upload, self._download
        self._upload, self._download = _changed(self._upload, upload), _changed(self._download, download)
        self.on = bool(upload or download)
        if before != (self._upload, self._download):
            for connection in (each for each in live if each.connected is not None):
                for flow, shaping in self._flows(connection):
                    if shaping is None:
                        _leave(flow, now)
                self.begin(connection, now)

    def begin(self, connection: Connection, now: float) -> None:
        """Have a connection heed the rates, at ``now`` (monotonic seconds), if it does not yet."""
        for flow, shaping in self._flows(connection):
            if shaping is not None and flow.limit is None:
                flow.limit = shaping.join(client_key(connection.client.host), now)

    def _flows(self, connection: Connection) -> Iterator[tuple[Flow, Shaping | None]]:
        yield connection.inbound, self._upload
        yield connection.outbound, self._download


def leave_bandwidth(connection: Connection, now: float) -> None:
    """Have a connection heed no rate any more, from ``now`` (monotonic seconds)."""
    for flow in (connection.inbound, connection.outbound):
        _leave(flow, now)


def _leave(flow: Flow, now: float) -> None:
    limit, flow.limit = flow.limit, None
    if limit is not None:
        limit.leave(now)


def _changed(shaping: Shaping | None, rate: ByteRate) -> Shaping | None:
    """Return what limits by that rate: what has done so before, as long as there was a rate."""
    if not rate:
        return None
    if shaping is None:
        return Shaping(rate)
    shaping.change(rate)
    return shaping
