"""See that a peer has reset its connection, also while nobody reads from it."""

import contextlib
import select
from collections.abc import Callable
from typing import Final

from gevent.hub import get_hub

_READ: Final = 1


class PeerWatch:
    """Sees resets of connections that nobody reads from at the moment.

    libev can only wait for readable or writable, and a stream with unread data is always readable. An epoll set of our
    own with an empty event mask reports EPOLLERR and EPOLLHUP alone, at no cost while nothing happens (epoll_ctl(2)).
    EPOLLHUP by itself is two FINs that have met; edge-triggered, it is told once. Without epoll a reset is noticed with
    the next read or write.
    """

    def __init__(self) -> None:
        self._on_reset: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll is not None:
            self._watcher = get_hub().loop.io(self._epoll.fileno(), _READ, ref=False)
            self._watcher.start(self._look)

    def add(self, fd: int, on_reset: Callable[[], None]) -> None:
        """Call this from the hub when the connection of a descriptor is reset. The last given counts."""
        if self._epoll is None:
            return
        with contextlib.suppress(OSError):  # no more watches to be had (epoll(7)): it is noticed by the next write
            if fd in self._on_reset:
                self._epoll.modify(fd, select.EPOLLET)  # tells again of a reset that was there before
            else:
                self._epoll.register(fd, select.EPOLLET)
            self._on_reset[fd] = on_reset

    def forget(self, fd: int) -> None:
        """Call nobody for a descriptor that is about to be closed, which takes it out of the set."""
        self._on_reset.pop(fd, None)

    def close(self) -> None:
        """Watch nothing any more."""
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            self._watcher.close()
            epoll.close()

    def _look(self) -> None:
        if self._epoll is None:
            return
        for fd, events in self._epoll.poll(0):
            if events & select.EPOLLERR and fd in self._on_reset:
                self._on_reset[fd]()
