"""Give a connected stream to a chosen target, or the reason why not.

Rule: next address, next target beside those that are late, and one time limit for all of them.
"""

import time
from collections.abc import Iterable
from typing import Final, Protocol

import gevent

from veillink.model import CONNECT_FAILURES, Address, End, Ended, RuleOptions
from veillink.net.attempt import Attempt
from veillink.net.dial import HEAD_START, Race, Try, first
from veillink.net.places import Claim
from veillink.net.socket_stream import SocketStream
from veillink.net.stream import Stream
from veillink.proxy.pool import Member
from veillink.proxy.unix_try import UnixTry
from veillink.proxy.upstream import Upstream

# What a target gets of the time before the next is tried beside it, in seconds, and what is shared without a limit.
_LEAST_SHARE: Final = 1.0
_WITHOUT_LIMIT: Final = RuleOptions().connect_timeout
_NEVER: Final = float("inf")
# How a target ends that does not want to hear what comes before the client's bytes.
_NOT_HEARD: Final = (End.TARGET_TLS, End.TARGET_RESET)


class Waiting(Protocol):
    """What watches over a connect, entered for as long as it has to wait."""

    def until(self) -> float:
        """Return the monotonic seconds at which to give up, which may move."""

    def introduce(self, stream: SocketStream, address: Address, member: Member, until: float) -> Stream:
        """Say to a target that has connected what comes before the client's bytes, and return the stream for those.

        Args:
            stream: to it; closed when this fails.
            address: where it is.
            member: who it is.
            until: monotonic seconds at which to give up.

        Raises:
            Ended: it does not want to hear it.
        """

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...


def connect(upstream: Upstream, offset: int, client: str, waiting: Waiting, tried: list[str]) -> tuple[Stream, Member]:
    """Return a stream to one of the targets, introduced, and the target.

    Args:
        upstream: the targets and how to reach them.
        offset: of the listener in its rule's range of ports.
        client: the host that the client comes from.
        waiting: says when to give up. A target gets an equal share of what is left, at least a second; then the next is
            tried beside it.
        tried: gets ``address errno`` of each failed try; what comes again and again, once.

    Raises:
        Ended: with the reason of the last failure.
    """
    now = time.monotonic()
    member = upstream.pool.choose(offset, client, now, ())
    attempt: Attempt | None = None
    if member is not None and not member.address.is_unix and not member.address.is_name:
        attempt = Attempt(member.address, now)
        if attempt.begin() and not member.speaks_first:  # as nearly always on this host, and all there is to it
            member.connected = now
            return waiting.introduce(attempt.stream(), member.address, member, now), member
    with waiting:
        tries = Tries(upstream, waiting, tried)
        if member is not None:
            tries.add(member, now, attempt)
        while True:
            try:
                return tries.run(offset, client)
            except Ended as why:
                again = upstream.retry_interval and why.end in CONNECT_FAILURES and why.end is not End.NO_TARGET
                if not again or time.monotonic() + upstream.retry_interval >= waiting.until():
                    raise
            finally:
                tried[:] = dict.fromkeys(tried)
            gevent.sleep(upstream.retry_interval)
            tries = Tries(upstream, waiting, tried)


class Tries:
    """The targets that are being tried for one connection; the first to answer is the one it leads to.

    A target is late when its share of the time is over: the next is tried beside it, and it has failed only if that
    one connects first, or when the time for all is up.
    """

    __slots__ = ("_chosen", "_claim", "_failure", "_late", "_next_at", "_tried", "_under_way", "_upstream", "_waiting")

    def __init__(self, upstream: Upstream, waiting: Waiting, tried: list[str]) -> None:
        self._upstream = upstream
        self._waiting = waiting
        self._tried = tried
        self._claim = Claim(upstream.attempts, upstream.pool)
        self._failure = Ended(End.NO_TARGET, "every target has weight 0")
        self._chosen: list[Member] = []
        self._under_way: dict[Try, Member] = {}
        self._late: dict[Try, float] = {}  # since when
        self._next_at = 0.0

    def run(self, offset: int, client: str) -> tuple[Stream, Member]:
        """Try each target once; see ``connect``."""
        try:
            while True:
                while (found := self._go_on(offset, client)) is None:
                    pass
                if (introduced := self._introduce(*found)) is not None:
                    return introduced
        finally:
            self._close()

    def _introduce(self, stream: SocketStream, address: Address, member: Member) -> tuple[Stream, Member] | None:
        """Introduce the client to a target that has connected; one that does not want that has failed."""
        now = time.monotonic()
        left, untried = self._waiting.until() - now, self._upstream.pool.untried(self._chosen)
        until = now + (_share(left, untried + 1) if untried else left)
        try:
            return self._waiting.introduce(stream, address, member, until), member
        except BaseException as error:
            member.leave()
            if not isinstance(error, Ended) or error.end not in _NOT_HEARD:
                raise  # the client has left, or we are cut: that says nothing of the target, and nobody else is tried
            why = error.detail or error.end
            self._upstream.count_failure(member, why)
            self._tried.append(f"{address} {why}")
            self._failure, self._next_at = error, time.monotonic()
        return None

    def add(self, member: Member, now: float, begun: Attempt | None = None) -> None:
        """Try this target, the next one at the end of its share of the time."""
        untried = self._upstream.pool.untried(self._chosen)
        self._next_at = now + _share(self._waiting.until() - now, untried) if untried > 1 else _NEVER
        self._chosen.append(member)
        self._under_way[_begin(self._upstream, member.address, self._claim, self._tried, begun)] = member

    def _go_on(self, offset: int, client: str) -> tuple[SocketStream, Address, Member] | None:
        """Begin the next try if it is its turn, and wait until one is decided or late; return what has connected.

        Raises:
            Ended: nothing is left to try, or no time.
        """
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = _NEVER
            member = self._upstream.pool.choose(offset, client, now, self._chosen)
            if member is not None:
                self.add(member, now)
        if not self._under_way:
            raise self._failure  # all have failed
        until = min(self._waiting.until(), self._next_at)
        if self._late:
            self._make_room(now)
            until = min(until, now + HEAD_START)  # for others may find out meanwhile
        decided = first(tuple(self._under_way), until, patient=self._next_at == _NEVER)
        now = time.monotonic()
        if decided is not None:
            return self._settle(decided, now)
        if now >= self._waiting.until():
            self._give_up(list(self._under_way), now)
            raise self._failure
        if now >= self._next_at or all(each.idle for each in self._under_way):
            self._late = {each: self._late.get(each, now) for each in self._under_way}
            self._hurry(now)
        return None

    def _close(self) -> None:
        """Abandon what is still under way."""
        for each, member in self._under_way.items():
            each.close()
            member.leave()

    def _hurry(self, now: float) -> None:
        """Begin the next try now, if there is one."""
        if self._next_at != _NEVER:
            self._next_at = now

    def _settle(self, decided: Try, now: float) -> tuple[SocketStream, Address, Member] | None:
        """Take the account of a try that has connected or failed."""
        if decided.won is None:
            self._count_failure(decided, decided.failed or self._failure, now)
            self._hurry(now)
            return None
        member = self._under_way.pop(decided)
        decided.close()
        if self._late:
            self._give_up([each for each in self._late if each is not decided], now)
        member.connected = now
        return *decided.won, member

    def _make_room(self, now: float) -> None:
        """Give up who is late, if there is no descriptor for trying one beside it that has connected others since.

        Nobody else is given up: who is late may still answer, and the next is not known to be any better.
        """
        for each, since in tuple(self._late.items()):
            last = max(self._under_way.values(), key=lambda member: member.connected)
            if self._claim.short and last.connected > max(since, self._under_way[each].connected):
                self._give_up((each,), now)
                return

    def _give_up(self, tries: Iterable[Try], now: float) -> None:
        for each in tries:
            self._count_failure(each, each.expire(), now)

    def _count_failure(self, failed: Try, why: Ended, now: float) -> None:
        failed.close()
        self._late.pop(failed, None)
        member = self._under_way.pop(failed)
        member.leave()
        self._upstream.count_failure(member, why.detail or why.end)
        self._failure = why


def _share(left: float, untried: int) -> float:
    """Return after how many seconds the next of the untried targets begins beside this one.

    A second is more than a lost SYN costs (RFC 6298, section 2.1), so 40 healthy targets 150 ms away that share 5 s are
    not all tried. Half of what is left is enough, because who is late is not given up.
    """
    if left == _NEVER:
        left = _WITHOUT_LIMIT
    return max(left / untried, min(_LEAST_SHARE, left / 2))


def _begin(upstream: Upstream, target: Address, claim: Claim, tried: list[str], begun: Attempt | None = None) -> Try:
    if target.is_unix:
        return UnixTry(target, upstream.unix_queues, tried)
    return Race(target, upstream.resolver, claim, tried, begun)


def dial(upstream: Upstream, target: Address, until: float, tried: list[str]) -> SocketStream:
    """Return a stream to one target.

    Raises:
        Ended: it cannot be connected by ``until`` (monotonic seconds).
    """
    only = _begin(upstream, target, Claim(upstream.attempts, upstream.pool), tried)
    try:
        if first((only,), until) is None:
            raise only.expire()
        if only.won is None:
            raise only.failed or only.expire()
        return only.won[0]
    finally:
        only.close()
