"""Connect to one address, and say how that has ended.

Rule: nobody waits here; who wants to know is called back.
"""

import errno
from collections.abc import Callable
from typing import Any, Final

from gevent.hub import get_hub

from veillink.model import Address, End, Ended
from veillink.net.socket_stream import SocketStream
from veillink.net.sockets import connected_from, error_name, numeric, start_connect

_ENDS: Final = {
    errno.ECONNREFUSED: End.CONNECT_REFUSED,
    errno.ETIMEDOUT: End.CONNECT_TIMEOUT,
    errno.EAGAIN: End.CONNECT_TIMEOUT,  # the queue of a UNIX socket stayed full
}

Callback = Callable[[object], None]


def ended(error: OSError) -> Ended:
    """Return how a connection ends whose connect failed with this."""
    return Ended(_ENDS.get(error.errno or 0, End.CONNECT_FAILED), error_name(error))


class Attempt:
    """A connect under way, since ``began`` (monotonic seconds); ``error`` is what it has failed with."""

    __slots__ = ("_own", "_writable", "address", "began", "decided", "error", "socket")

    def __init__(self, address: Address, now: float) -> None:
        self.address = address
        self.began = now
        self.decided = False
        self.error: OSError | None = None
        self.socket: Any = None
        self._own: Any = None
        self._writable: Any = None

    def begin(self) -> bool:
        """Begin, and return whether it has connected at once."""
        try:
            self.socket = start_connect(*numeric(self.address))
            self._own = connected_from(self.socket)
        except OSError as error:
            self.error = error
            self.decided = True
        return self._own is not None

    def look(self) -> bool:
        """Return whether it has connected."""
        self.decided = False
        if self.error is None:
            try:
                self._own = connected_from(self.socket)
            except OSError as error:
                self.error = error
        return self._own is not None

    def watch(self, callback: Callback) -> None:
        """Have this called when it is decided."""
        if self._writable is None:
            self._writable = get_hub().loop.io(self.socket.fileno(), 2)
        self._writable.start(self._decide, callback)

    def unwatch(self) -> None:
        """Have it called no more."""
        self._writable.stop()

    def _decide(self, callback: Callback) -> None:
        self.decided = True
        callback(self)

    def stream(self) -> SocketStream:
        """Return what has connected."""
        self._forget()
        return SocketStream(self.socket, self._own)

    def abandon(self) -> None:
        """Give it up."""
        self._forget()
        if self.socket is not None:
            self.socket.close()

    def _forget(self) -> None:
        if self._writable is not None:
            self._writable.close()
