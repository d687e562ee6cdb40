"""Connect to UNIX sockets, whose queue may be full.

Rule: one client at a time asks at a path; the others wait behind it, in the order in which they came.
"""

import _socket
import errno
import os
import time
from collections import OrderedDict
from typing import Any, Final

import gevent
from gevent.event import Event

from veillink.net.sockets import start_connect

# A full queue is told at once, and nothing tells when there is room (connect(2), EAGAIN): ask again, in seconds. With
# 4,000 clients asking every 10 ms a message of another rule took 200 ms.
_FIRST_PAUSE: Final = 0.01
_LAST_PAUSE: Final = 0.1


class UnixQueues:
    """Those who wait at UNIX sockets, by path."""

    def __init__(self) -> None:
        self._lines: dict[Any, OrderedDict[Event, None]] = {}

    def connect(self, family: int, path: Any, until: float) -> _socket.socket:
        """Return a connected socket.

        Args:
            family: of the path.
            path: where.
            until: monotonic seconds at which to give up.

        Raises:
            BlockingIOError: the queue was full until then.
            OSError: it failed.
        """
        if path not in self._lines:
            try:
                return start_connect(family, path)
            except BlockingIOError:
                self._lines[path] = OrderedDict()
        line = self._lines[path]
        mine = Event()
        line[mine] = None
        limit = None if until == float("inf") else max(0.0, until - time.monotonic())
        try:
            if next(iter(line)) is not mine and not mine.wait(limit):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return _ask(family, path, until)
        finally:
            del line[mine]
            if line:
                next(iter(line)).set()
            else:
                del self._lines[path]


def _ask(family: int, path: Any, until: float) -> _socket.socket:
    pause = _FIRST_PAUSE
    while True:
        try:
            return start_connect(family, path)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        gevent.sleep(min(pause, max(0.0, until - time.monotonic())))
        pause = min(2 * pause, _LAST_PAUSE)
