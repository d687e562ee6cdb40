"""Try a UNIX target, whose queue may be full.

Rule: what has connected unseen is closed.
"""

from collections.abc import Callable
from typing import Final

import gevent

from veillink.model import Address, End, Ended
from veillink.net.attempt import ended
from veillink.net.socket_stream import SocketStream
from veillink.net.sockets import error_name, numeric
from veillink.net.unix_queue import UnixQueues

_NEVER: Final = float("inf")


class UnixTry:
    """A UNIX target that is being tried; where its queue is full, a greenlet waits for room.

    Args:
        target: where to.
        queues: where it waits.
        tried: gets ``address errno`` of each failed connect.
    """

    __slots__ = ("_closed", "_queues", "_target", "_tried", "_waits", "due", "failed", "idle", "won")

    def __init__(self, target: Address, queues: UnixQueues, tried: list[str]) -> None:
        self._target = target
        self._queues = queues
        self._tried = tried
        self._waits: gevent.Greenlet[[], SocketStream | Ended] | None = None
        self._closed = False
        self.won: tuple[SocketStream, Address] | None = None
        self.failed: Ended | None = None
        self.idle = False
        self.due = _NEVER

    def advance(self, now: float, *, last: bool) -> bool:
        """Connect, or look whether there was room."""
        found = self._waits.value if self._waits is not None else None
        if self._waits is None and not last:
            found = self._connect(now)
        if isinstance(found, SocketStream):
            self.won = found, self._target
        elif found is not None:
            self.failed = found
        return found is not None

    def watch(self, callback: Callable[[object], None]) -> None:
        """Wait for room."""
        if self._waits is not None:
            self._waits.rawlink(callback)

    def unwatch(self, callback: Callable[[object], None]) -> None:
        """Wait no more."""
        if self._waits is not None:
            self._waits.unlink(callback)

    def expire(self) -> Ended:
        """Note that there was no room."""
        self._tried.append(f"{self._target} EAGAIN")
        return Ended(End.CONNECT_TIMEOUT, "EAGAIN")

    def close(self) -> None:
        """Leave the queue, and close what has connected unseen."""
        self._closed = True
        if self._waits is not None and self.won is None:
            if isinstance(self._waits.value, SocketStream):
                self._waits.value.close()
            self._waits.kill(block=False)

    def _connect(self, now: float) -> SocketStream | Ended | None:
        tried: list[str] = []
        try:
            return _dial_unix(self._queues, self._target, now, tried)
        except Ended as failure:
            if failure.end is End.CONNECT_TIMEOUT:
                self._waits = gevent.spawn(self._wait)
                return None
            self._tried += tried
            return failure

    def _wait(self) -> SocketStream | Ended:
        try:
            stream = _dial_unix(self._queues, self._target, _NEVER, self._tried)
        except Ended as failure:
            return failure
        if self._closed:  # there was room before the kill came
            stream.close()
        return stream


def _dial_unix(queues: UnixQueues, address: Address, until: float, tried: list[str]) -> SocketStream:
    try:
        return SocketStream(queues.connect(*numeric(address), until))
    except OSError as error:
        tried.append(f"{address} {error_name(error)}")
        raise ended(error) from None
