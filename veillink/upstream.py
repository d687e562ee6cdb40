"""Give a connected stream to a chosen target, or the reason why not.

Rule: next address, next target, and one time limit for all of them.
"""

import errno
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gevent.hub import Waiter, get_hub

from .model import CONNECT_FAILURES, Address, End, Ended, Target
from .names import Names
from .net import Stream, error_name, is_connected, numeric, start_connect
from .pool import Pool

# RFC 8305, section 5: the head start of one address before the next is tried beside it, in seconds.
_HEAD_START: Final = 0.25

_ENDS: Final = {errno.ECONNREFUSED: End.CONNECT_REFUSED, errno.ETIMEDOUT: End.CONNECT_TIMEOUT}


@dataclass(frozen=True, slots=True)
class Route:
    """What ``connect`` needs to know of a rule.

    Args:
        pool: its targets.
        names: where their host names are resolved.
        most_beside: how many descriptors all connections together may use to try addresses side by side.
    """

    pool: Pool
    names: Names
    most_beside: int


def connect(route: Route, offset: int, until: float, tried: list[str]) -> tuple[Stream, Address]:
    """Return a stream to one of the targets, and the numeric address it is connected to.

    Args:
        route: the targets and how to reach them.
        offset: of the listener in its rule's range of ports.
        until: monotonic seconds at which to give up; each target gets an equal share of what is left.
        tried: gets ``address errno`` of each failed try.

    Raises:
        Ended: with the reason of the last failure.
    """
    failure: Ended | None = None
    failed: list[Target] = []
    while (target := route.pool.choose(failed)) is not None:
        now = time.monotonic()
        share = now + (until - now) / route.pool.untried(failed)
        try:
            return _dial(route, target.at(offset), share, tried)
        except Ended as ended:
            if ended.end not in CONNECT_FAILURES:
                raise  # the connection was ended from outside
            failure = ended
            failed.append(target)
    raise failure or Ended(End.NO_TARGET, "every target has weight 0")


def _dial(route: Route, target: Address, until: float, tried: list[str]) -> tuple[Stream, Address]:
    if not target.is_name:
        return _race([target], route, until, tried)
    try:
        hosts = route.names.lookup(target.host, until)
    except Ended as ended:
        if ended.end in CONNECT_FAILURES:
            tried.append(f"{target} {ended.end}")
        raise
    try:
        return _race([Address(host, target.port) for host in hosts], route, until, tried)
    except Ended:
        route.names.suspect(target.host)
        raise


# Attempts beside the first of each connection: what they may take of the process's descriptors is limited.
_beside: "set[_Attempt]" = set()


class _Attempt:
    """A connect under way."""

    __slots__ = ("_writable", "address", "socket")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.socket: Any = None
        self._writable: Any = None

    def succeeded(self) -> bool:
        """Begin, or look whether it has succeeded. Raises the ``OSError`` that it failed with."""
        if self.socket is None:
            self.socket = start_connect(*numeric(self.address.host, self.address.port))
        return is_connected(self.socket)

    def when_decided(self, told: Callable[[object], None]) -> None:
        if self._writable is None:
            self._writable = get_hub().loop.io(self.socket.fileno(), 2)
        self._writable.start(told, self)

    def stop(self) -> None:
        self._writable.stop()

    def stream(self) -> Stream:
        self._forget()
        return Stream(self.socket)

    def abandon(self) -> None:
        self._forget()
        if self.socket is not None:
            self.socket.close()

    def _forget(self) -> None:
        _beside.discard(self)
        if self._writable is not None:
            self._writable.close()


def _race(addresses: Sequence[Address], route: Route, until: float, tried: list[str]) -> tuple[Stream, Address]:
    """Try the addresses one after another, each with a head start on the next; the first to connect wins."""
    waiting = deque(addresses)
    attempts: list[_Attempt] = []
    failure = OSError()
    next_start = 0.0
    try:
        while waiting or attempts:
            now = time.monotonic()
            if now >= until:
                tried += [f"{attempt.address} ETIMEDOUT" for attempt in attempts]
                raise Ended(End.CONNECT_TIMEOUT, "ETIMEDOUT")
            if waiting and (now >= next_start or not attempts):
                next_start = now + _HEAD_START
                if attempts and len(_beside) >= route.most_beside:
                    gives_way = attempts.pop(0)
                    tried.append(f"{gives_way.address} ETIMEDOUT")
                    gives_way.abandon()
                attempt = _Attempt(waiting.popleft())
                if attempts:
                    _beside.add(attempt)
                attempts.append(attempt)
            else:
                decided = _first_decided(attempts, min(until, next_start) if waiting else until)
                if decided is None:
                    continue
                attempt = decided
            try:
                if attempt.succeeded():
                    attempts.remove(attempt)
                    return attempt.stream(), attempt.address
            except OSError as error:
                tried.append(f"{attempt.address} {error_name(error)}")
                failure = error
                next_start = 0.0
                attempts.remove(attempt)
                attempt.abandon()
    finally:
        for attempt in attempts:
            attempt.abandon()
    raise Ended(_ENDS.get(failure.errno or 0, End.CONNECT_FAILED), error_name(failure))


def _first_decided(attempts: Sequence[_Attempt], until: float) -> _Attempt | None:
    """Wait until one of the connects has succeeded or failed, and return it, or ``None`` when time is up."""
    hub = get_hub()
    waiter: Any = Waiter(hub)
    timer: Any = None
    try:
        for attempt in attempts:
            attempt.when_decided(waiter.switch)
        if until != float("inf"):
            timer = hub.loop.timer(max(0.0, until - time.monotonic()))
            timer.start(waiter.switch, None)
        decided: _Attempt | None = waiter.get()
        return decided
    finally:
        for attempt in attempts:
            attempt.stop()
        if timer is not None:
            timer.close()
