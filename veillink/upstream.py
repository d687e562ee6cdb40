"""Give a connected stream to a chosen target, or the reason why not.

Rule: next address, next target, and one time limit for all of them.
"""

import _socket
import errno
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gevent.hub import Waiter, get_hub

from .model import Address, End, Ended, Target
from .names import Names
from .net import SocketOptions, Stream, error_name, finish_connect, numeric, start_connect
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
        options: for the sockets to them.
    """

    pool: Pool
    names: Names
    options: SocketOptions


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
    failure = Ended(End.NO_TARGET, "every target has weight 0")
    failed: list[Target] = []
    while (target := route.pool.choose(failed)) is not None:
        now = time.monotonic()
        share = now + (until - now) / route.pool.untried(failed)
        try:
            return _dial(route, target.at(offset), share, tried)
        except Ended as ended:
            failure = ended
            failed.append(target)
    raise failure


def _dial(route: Route, target: Address, until: float, tried: list[str]) -> tuple[Stream, Address]:
    if not target.is_name:
        return _race([target], route.options, until, tried)
    try:
        hosts = route.names.lookup(target.host, until)
    except Ended as ended:
        tried.append(f"{target} {ended.end}")
        raise
    try:
        return _race([Address(host, target.port) for host in hosts], route.options, until, tried)
    except Ended:
        route.names.suspect(target.host)
        raise


@dataclass(frozen=True, slots=True)
class _Attempt:
    address: Address
    socket: _socket.socket
    writable: Any

    def abandon(self) -> None:
        self.writable.close()
        self.socket.close()


def _race(
    addresses: Sequence[Address], options: SocketOptions, until: float, tried: list[str]
) -> tuple[Stream, Address]:
    """Try the addresses one after another, each with a head start on the next; the first to connect wins."""
    waiting = deque(addresses)
    attempts: list[_Attempt] = []
    failure = Ended(End.CONNECT_FAILED)
    next_start = 0.0
    try:
        while waiting or attempts:
            now = time.monotonic()
            if now >= until:
                tried += [f"{attempt.address} ETIMEDOUT" for attempt in attempts]
                raise Ended(End.CONNECT_TIMEOUT, "ETIMEDOUT")
            try:
                if waiting and (now >= next_start or not attempts):
                    next_start = now + _HEAD_START
                    address = waiting.popleft()
                    attempts.append(_start(address, options))
                decided = _first_decided(attempts, min(until, next_start) if waiting else until)
                if decided is not None:
                    address = decided.address
                    finish_connect(decided.socket)
                    attempts.remove(decided)
                    decided.writable.close()
                    return Stream(decided.socket), address
            except OSError as error:
                tried.append(f"{address} {error_name(error)}")
                failure = Ended(_ENDS.get(error.errno or 0, End.CONNECT_FAILED), error_name(error))
                next_start = 0.0
                for attempt in [a for a in attempts if a.address is address]:
                    attempts.remove(attempt)
                    attempt.abandon()
        raise failure
    finally:
        for attempt in attempts:
            attempt.abandon()


def _start(address: Address, options: SocketOptions) -> _Attempt:
    sock = start_connect(*numeric(address.host, address.port), options)
    return _Attempt(address, sock, get_hub().loop.io(sock.fileno(), 2))


def _first_decided(attempts: Sequence[_Attempt], until: float) -> _Attempt | None:
    """Wait until one of the connects has succeeded or failed, and return it, or ``None`` when time is up."""
    hub = get_hub()
    waiter: Any = Waiter(hub)
    timer: Any = None
    try:
        for attempt in attempts:
            attempt.writable.start(waiter.switch, attempt)
        if until != float("inf"):
            timer = hub.loop.timer(max(0.0, until - time.monotonic()))
            timer.start(waiter.switch, None)
        decided: _Attempt | None = waiter.get()
        return decided
    finally:
        for attempt in attempts:
            attempt.writable.stop()
        if timer is not None:
            timer.close()
