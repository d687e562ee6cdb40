"""Give a connected stream to a chosen target, or the reason why not.

Rule: next address, next target, and one time limit for all of them.
"""

import errno
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gevent
from gevent.hub import Waiter, get_hub

from . import unix_queue
from .model import CONNECT_FAILURES, Address, End, Ended, RuleOptions
from .names import Names
from .net import error_name, is_connected, numeric, start_connect
from .pool import Member, Pool
from .stream import Stream

# RFC 8305, section 5: the head start of one address before the next is tried beside it, in seconds.
_HEAD_START: Final = 0.25

_ENDS: Final = {
    errno.ECONNREFUSED: End.CONNECT_REFUSED,
    errno.ETIMEDOUT: End.CONNECT_TIMEOUT,
    errno.EAGAIN: End.CONNECT_TIMEOUT,
}
# What this host lacks says nothing about the target.
_OURS: Final = frozenset({"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL", "EADDRINUSE"})


@dataclass(frozen=True, slots=True)
class Route:
    """What ``connect`` needs to know of a rule.

    Args:
        pool: its targets.
        names: where their host names are resolved.
        most_beside: how many descriptors all connections together may use to try addresses side by side.
        turned: is told when a target went out (with the reason) or came back (with nothing).
        lost: is told when a target's probes have failed.
        retry_interval: seconds after which to try again when no target could be connected; 0 never does.
    """

    pool: Pool
    names: Names
    most_beside: int
    turned: Callable[[Member, str], None]
    lost: Callable[[Member], None]
    retry_interval: float = 0.0

    def failed(self, member: Member, reason: str) -> None:
        """Count a failed connect, or one that was worth nothing."""
        was_up = member.up
        if reason not in _OURS:
            self.pool.failed(member, time.monotonic())
        self._tell(member, was_up, reason)

    def succeeded(self, member: Member) -> None:
        """Count a connection that has proved that its target serves."""
        was_up = member.up
        member.count_success()
        self._tell(member, was_up, "")

    def probed(self, member: Member, failure: str, options: RuleOptions) -> None:
        """Count a probe, by what has failed, or nothing."""
        was_up, was_down = member.up, member.down
        if failure not in _OURS:
            member.count_probe(good=not failure, rise=options.health_rise, fall=options.health_fall)
        self._tell(member, was_up, failure)
        if member.down and not was_down:
            self.lost(member)

    def _tell(self, member: Member, was_up: bool, reason: str) -> None:
        if member.up is not was_up:
            self.turned(member, reason)


def connect(route: Route, offset: int, client: str, until: float, tried: list[str]) -> tuple[Stream, Address, Member]:
    """Return a stream to one of the targets, the numeric address it is connected to, and the target.

    Args:
        route: the targets and how to reach them.
        offset: of the listener in its rule's range of ports.
        client: the host that the client comes from.
        until: monotonic seconds at which to give up; each target gets an equal share of what is left.
        tried: gets ``address errno`` of each failed try; what comes again and again, once.

    Raises:
        Ended: with the reason of the last failure.
    """
    while True:
        try:
            return _connect_once(route, offset, client, until, tried)
        except Ended as ended:
            again = route.retry_interval and ended.end in CONNECT_FAILURES and ended.end is not End.NO_TARGET
            if not again or time.monotonic() + route.retry_interval >= until:
                raise
        finally:
            tried[:] = dict.fromkeys(tried)
        gevent.sleep(route.retry_interval)


def _connect_once(
    route: Route, offset: int, client: str, until: float, tried: list[str]
) -> tuple[Stream, Address, Member]:
    """Try each target once; see ``connect``."""
    failure: Ended | None = None
    failed: list[Member] = []
    now = time.monotonic()
    while (member := route.pool.choose(offset, client, now, failed)) is not None:
        try:
            stream, address = dial(route, member.address, now + (until - now) / route.pool.untried(failed), tried)
        except BaseException as error:
            member.leave()
            if not isinstance(error, Ended) or error.end not in CONNECT_FAILURES:
                raise  # the connection was ended from outside
            failure = error
            now = time.monotonic()
            route.failed(member, error.detail or error.end)
        else:
            return stream, address, member
        failed.append(member)
    raise failure or Ended(End.NO_TARGET, "every target has weight 0")


def dial(route: Route, target: Address, until: float, tried: list[str]) -> tuple[Stream, Address]:
    """Return a stream to this target, and the numeric address it is connected to; see ``connect``.

    Raises:
        Ended: with the reason of the last failure.
    """
    if target.is_unix:
        return _dial_unix(target, until, tried), target
    if not target.is_name:
        return _race([target], route.most_beside, until, tried)
    try:
        hosts = route.names.lookup(target.host, until)
    except Ended as ended:
        if ended.end in CONNECT_FAILURES:
            tried.append(f"{target} {ended.end}")
        raise
    try:
        return _race([Address(host, target.port) for host in hosts], route.most_beside, until, tried)
    except Ended:
        route.names.suspect(target.host)
        raise


def _dial_unix(address: Address, until: float, tried: list[str]) -> Stream:
    try:
        return Stream(unix_queue.connect(*numeric(address), until))
    except OSError as error:
        tried.append(f"{address} {error_name(error)}")
        raise _ended(error) from None


def _ended(error: OSError) -> Ended:
    return Ended(_ENDS.get(error.errno or 0, End.CONNECT_FAILED), error_name(error))


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
            self.socket = start_connect(*numeric(self.address))
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


def _race(addresses: Sequence[Address], most_beside: int, until: float, tried: list[str]) -> tuple[Stream, Address]:
    """Try the addresses one after another, each with a head start on the next; the first to connect wins."""
    waiting = deque(addresses)
    attempts: list[_Attempt] = []
    failure = OSError()
    next_start = 0.0
    try:
        while waiting or attempts:
            now = time.monotonic()
            if now >= until:
                if not attempts:
                    raise Ended(End.CONNECT_TIMEOUT, "ETIMEDOUT")
                attempt = attempts[0]  # it may have been decided while this process did not run
            elif waiting and (now >= next_start or not attempts):
                next_start = now + _HEAD_START
                if attempts and len(_beside) >= most_beside:
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
                if now >= until:
                    raise TimeoutError(errno.ETIMEDOUT, "the time is up")
            except OSError as error:
                tried.append(f"{attempt.address} {error_name(error)}")
                failure = error
                next_start = 0.0
                attempts.remove(attempt)
                attempt.abandon()
    finally:
        for attempt in attempts:
            attempt.abandon()
    raise _ended(failure)


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
