"""Wait until a peer has what it was sent before the other one's reset."""

import time
from typing import Any

from gevent.hub import Waiter, get_hub

from veillink.net.stream import Stream
from veillink.net.ticker import Ticker
from veillink.proxy.deadlines import is_flushed


class Flush:
    """A wait until a peer has what it was sent before a reset: ours would throw the send queue away.

    Args:
        stream: to that peer.
        since: monotonic seconds at which something moved last.
        ticker: what looks at it.
    """

    __slots__ = ("_lost", "_since", "_stream", "_ticker", "_unacked", "_waiter")

    def __init__(self, stream: Stream, since: float, ticker: Ticker) -> None:
        self._stream = stream
        self._since = since
        self._ticker = ticker
        self._lost = ticker.lost
        self._unacked = stream.transport.bytes_a_reset_would_lose()
        self._waiter: Any = Waiter(get_hub())

    def wait(self) -> None:
        """Wait until all has arrived, or nothing has moved for too long."""
        if self._goes_on(time.monotonic()):
            self._ticker.watch_closely(self)
            try:
                self._waiter.get()
            finally:
                self._waiter = None

    def on_tick(self, now: float) -> bool:
        """Wake who waits, if that is over; return whether it is not."""
        if self._waiter is None:
            return False
        unacked = self._stream.transport.bytes_a_reset_would_lose()
        if unacked != self._unacked:
            self._unacked, self._since, self._lost = unacked, now, self._ticker.lost
        goes_on = self._goes_on(now)
        if not goes_on:
            self._waiter.switch(None)
        return goes_on

    def _goes_on(self, now: float) -> bool:
        since = self._since + self._ticker.lost - self._lost
        return bool(self._unacked) and not self._stream.broken and not is_flushed(since, since, now)
