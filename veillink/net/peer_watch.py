"""See that a peer has reset its connection, also while nobody reads from it."""

import contextlib
import select
from collections.abc import Callable
from typing import Final

from gevent.hub import get_hub

_READ: Final = 1


class _ResetWatch:
    """Sees resets of connections that nobody reads from at the moment.

    libev can only wait for readable or writable, and a stream with unread data is always readable. An epoll set of our
    own with an empty event mask reports EPOLLERR and EPOLLHUP alone, at no cost while nothing happens (epoll_ctl(2)).
    EPOLLHUP by itself is two FINs that have met; edge-triggered, it is told once.
    """

    def __init__(self) -> None:
        self._told: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        self._watcher = get_hub().loop.io(self._epoll.fileno(), _READ, ref=False)
        self._watcher.start(self._report)

    def add(self, fd: int, told: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):  # no more watches to be had (epoll(7)): it is noticed by the next write
            if fd in self._told:
                self._epoll.modify(fd, select.EPOLLET)  # tells again of a reset that was there before
            else:
                self._epoll.register(fd, select.EPOLLET)
            self._told[fd] = told

    def forget(self, fd: int) -> None:
        self._told.pop(fd, None)  # closing the descriptor takes it out of the set

    def _report(self) -> None:
        for fd, events in self._epoll.poll(0):
            if events & select.EPOLLERR and fd in self._told:
                self._told[fd]()


class _NoResetWatch:
    """Without epoll a reset is noticed with the next read or write."""

    def add(self, fd: int, told: Callable[[], None]) -> None: ...

    def forget(self, fd: int) -> None: ...


def watch_resets() -> None:
    """Take the descriptor that it needs now, not with the first connection that lasts."""
    reset_watch()


_watch: "_ResetWatch | _NoResetWatch | None" = None


def reset_watch() -> "_ResetWatch | _NoResetWatch":
    """Return the one of this process."""
    global _watch
    if _watch is None:
        _watch = _ResetWatch() if hasattr(select, "epoll") else _NoResetWatch()
    return _watch
