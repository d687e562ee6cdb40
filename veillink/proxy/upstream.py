"""Give a connected stream to a chosen target, or the reason why not.

Rule: next address, next target beside those that are late, and one time limit for all of them.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import gevent

from veillink.model import CONNECT_FAILURES, Address, End, Ended, RuleOptions
from veillink.net import unix_queue
from veillink.net.dial import HEAD_START, Attempt, Race, Try, ended, first
from veillink.net.places import Claim, Places
from veillink.net.resolver import Resolver
from veillink.net.sockets import error_name, numeric
from veillink.net.stream import Stream
from veillink.proxy.pool import Member, Pool

# What a target gets of the time before the next is tried beside it, in seconds, and what is shared without a limit.
_LEAST_SHARE: Final = 1.0
_WITHOUT_LIMIT: Final = RuleOptions().connect_timeout
_NEVER: Final = float("inf")
# What this host lacks says nothing about the target.
_OURS: Final = frozenset({"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL", "EADDRINUSE"})


@dataclass(frozen=True, slots=True)
class Route:
    """What ``connect`` needs to know of a rule.

    Args:
        pool: its targets.
        resolver: where their host names are resolved.
        places: the descriptors for trying addresses and targets side by side.
        on_state_change: is told when a target went out (with the reason) or came back (with nothing).
        lost: is told when a target's probes have failed.
        retry_interval: seconds after which to try again when no target could be connected; 0 never does.
    """

    pool: Pool
    resolver: Resolver
    places: Places
    on_state_change: Callable[[Member, str], None]
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
            self.on_state_change(member, reason)


class Waiting(Protocol):
    """What watches over a connect, entered for as long as it has to wait."""

    def until(self) -> float:
        """Return the monotonic seconds at which to give up, which may move."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...


def connect(
    route: Route, offset: int, client: str, waiting: Waiting, tried: list[str]
) -> tuple[Stream, Address, Member]:
    """Return a stream to one of the targets, the numeric address it is connected to, and the target.

    Args:
        route: the targets and how to reach them.
        offset: of the listener in its rule's range of ports.
        client: the host that the client comes from.
        waiting: says when to give up. A target gets an equal share of what is left, at least a second; then the next is
            tried beside it.
        tried: gets ``address errno`` of each failed try; what comes again and again, once.

    Raises:
        Ended: with the reason of the last failure.
    """
    now = time.monotonic()
    member = route.pool.choose(offset, client, now, ())
    attempt: Attempt | None = None
    if member is not None and not member.address.is_unix and not member.address.is_name:
        attempt = Attempt(member.address, now)
        if attempt.begin():  # as nearly always on this host, and this is all there is to it
            member.connected = now
            return attempt.stream(), member.address, member
    with waiting:
        tries = _Tries(route, waiting.until, tried)
        if member is not None:
            tries.add(member, now, attempt)
        while True:
            try:
                return tries.run(offset, client)
            except Ended as why:
                again = route.retry_interval and why.end in CONNECT_FAILURES and why.end is not End.NO_TARGET
                if not again or time.monotonic() + route.retry_interval >= waiting.until():
                    raise
            finally:
                tried[:] = dict.fromkeys(tried)
            gevent.sleep(route.retry_interval)
            tries = _Tries(route, waiting.until, tried)


class _Tries:
    """The targets that are being tried for one connection; the first to answer is the one it leads to.

    A target is late when its share of the time is over: the next is tried beside it, and it has failed only if that
    one connects first, or when the time for all is up.
    """

    __slots__ = ("_chosen", "_claim", "_failure", "_late", "_next_at", "_route", "_tried", "_under_way", "_until")

    def __init__(self, route: Route, until: Callable[[], float], tried: list[str]) -> None:
        self._route = route
        self._until = until
        self._tried = tried
        self._claim = Claim(route.places, route.pool)
        self._failure = Ended(End.NO_TARGET, "every target has weight 0")
        self._chosen: list[Member] = []
        self._under_way: dict[Try, Member] = {}
        self._late: dict[Try, float] = {}  # since when
        self._next_at = 0.0

    def run(self, offset: int, client: str) -> tuple[Stream, Address, Member]:
        """Try each target once; see ``connect``."""
        try:
            while (found := self._go_on(offset, client)) is None:
                pass
            return found
        finally:
            self._close()

    def add(self, member: Member, now: float, begun: Attempt | None = None) -> None:
        """Try this target, the next one at the end of its share of the time."""
        untried = self._route.pool.untried(self._chosen)
        self._next_at = now + _share(self._until() - now, untried) if untried > 1 else _NEVER
        self._chosen.append(member)
        self._under_way[_begin(self._route, member.address, self._claim, self._tried, begun)] = member

    def _go_on(self, offset: int, client: str) -> tuple[Stream, Address, Member] | None:
        """Begin the next try if it is its turn, and wait until one is decided or late; return what has connected.

        Raises:
            Ended: nothing is left to try, or no time.
        """
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = _NEVER
            member = self._route.pool.choose(offset, client, now, self._chosen)
            if member is not None:
                self.add(member, now)
        if not self._under_way:
            raise self._failure  # all have failed
        until = min(self._until(), self._next_at)
        if self._late:
            self._make_room(now)
            until = min(until, now + HEAD_START)  # for others may find out meanwhile
        decided = first(tuple(self._under_way), until, patient=self._next_at == _NEVER)
        now = time.monotonic()
        if decided is not None:
            return self._settle(decided, now)
        if now >= self._until():
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

    def _settle(self, decided: Try, now: float) -> tuple[Stream, Address, Member] | None:
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
        self._route.failed(member, why.detail or why.end)
        self._failure = why


def _share(left: float, untried: int) -> float:
    """Return after how many seconds the next of the untried targets begins beside this one.

    A second is more than a lost SYN costs (RFC 6298, section 2.1), so 40 healthy targets 150 ms away that share 5 s are
    not all tried. Half of what is left is enough, because who is late is not given up.
    """
    if left == _NEVER:
        left = _WITHOUT_LIMIT
    return max(left / untried, min(_LEAST_SHARE, left / 2))


def _begin(route: Route, target: Address, claim: Claim, tried: list[str], begun: Attempt | None = None) -> Try:
    if target.is_unix:
        return _UnixTry(target, tried)
    return Race(target, route.resolver, claim, tried, begun)


def dial(route: Route, target: Address, until: float, tried: list[str]) -> Stream:
    """Return a stream to one target.

    Raises:
        Ended: it cannot be connected by ``until`` (monotonic seconds).
    """
    only = _begin(route, target, Claim(route.places, route.pool), tried)
    try:
        if first((only,), until) is None:
            raise only.expire()
        if only.won is None:
            raise only.failed or only.expire()
        return only.won[0]
    finally:
        only.close()


class _UnixTry:
    """A UNIX target that is being tried; where its queue is full, a greenlet waits for room."""

    __slots__ = ("_closed", "_target", "_tried", "_waits", "due", "failed", "idle", "won")

    def __init__(self, target: Address, tried: list[str]) -> None:
        self._target = target
        self._tried = tried
        self._waits: gevent.Greenlet[[], Stream | Ended] | None = None
        self._closed = False
        self.won: tuple[Stream, Address] | None = None
        self.failed: Ended | None = None
        self.idle = False
        self.due = _NEVER

    def advance(self, now: float, *, last: bool) -> bool:
        """Connect, or look whether there was room."""
        found = self._waits.value if self._waits is not None else None
        if self._waits is None and not last:
            found = self._connect(now)
        if isinstance(found, Stream):
            self.won = found, self._target
        elif found is not None:
            self.failed = found
        return found is not None

    def watch(self, told: Callable[[object], None]) -> None:
        """Wait for room."""
        if self._waits is not None:
            self._waits.rawlink(told)

    def unwatch(self, told: Callable[[object], None]) -> None:
        """Wait no more."""
        if self._waits is not None:
            self._waits.unlink(told)

    def expire(self) -> Ended:
        """Note that there was no room."""
        self._tried.append(f"{self._target} EAGAIN")
        return Ended(End.CONNECT_TIMEOUT, "EAGAIN")

    def close(self) -> None:
        """Leave the queue, and close what has connected unseen."""
        self._closed = True
        if self._waits is not None and self.won is None:
            if isinstance(self._waits.value, Stream):
                self._waits.value.close()
            self._waits.kill(block=False)

    def _connect(self, now: float) -> Stream | Ended | None:
        tried: list[str] = []
        try:
            return _dial_unix(self._target, now, tried)
        except Ended as failure:
            if failure.end is End.CONNECT_TIMEOUT:
                self._waits = gevent.spawn(self._wait)
                return None
            self._tried += tried
            return failure

    def _wait(self) -> Stream | Ended:
        try:
            stream = _dial_unix(self._target, _NEVER, self._tried)
        except Ended as failure:
            return failure
        if self._closed:  # there was room before the kill came
            stream.close()
        return stream


def _dial_unix(address: Address, until: float, tried: list[str]) -> Stream:
    try:
        return Stream(unix_queue.connect(*numeric(address), until))
    except OSError as error:
        tried.append(f"{address} {error_name(error)}")
        raise ended(error) from None
