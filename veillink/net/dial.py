"""Connect to targets: the addresses of one after another, several targets beside each other; the first to connect wins.

Rule: whoever may still answer is not given up for another one, unless that is known to answer.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from gevent.hub import Waiter, get_hub

from veillink.model import Address, End, Ended
from veillink.net.attempt import Attempt, Callback, ended
from veillink.net.places import Claim
from veillink.net.resolver import Name, Resolver
from veillink.net.socket_stream import SocketStream
from veillink.net.sockets import error_name

# RFC 8305, section 5: the head start of one address before the next is tried beside it, in seconds. After as long in
# vain its name is looked up again, and who has found no descriptor for trying beside looks for one again.
HEAD_START: Final = 0.25
_NEVER: Final = float("inf")


class Try(Protocol):
    """A target that is being tried: once decided, it is ``won`` or has ``failed``.

    ``idle``: nothing is on its way to it, and only a name server can help. ``due``: monotonic seconds at which it is to
    be looked at again.
    """

    won: tuple[SocketStream, Address] | None
    failed: Ended | None
    idle: bool
    due: float

    def advance(self, now: float, *, last: bool) -> bool:
        """Do what is due, or when time is up only look; return whether it is decided."""

    def watch(self, callback: Callback) -> None:
        """Have this called from the hub when there is something to advance."""

    def unwatch(self, callback: Callback) -> None:
        """Have it called no more."""

    def expire(self) -> Ended:
        """Note what is still under way as tried in vain; return why there is no time left for it."""

    def close(self) -> None:
        """Abandon what is still under way."""


class Race:
    """A TCP target that is being tried: its addresses one after another, each with a head start on the next.

    Args:
        target: where to. A name is looked up again when no address answers within a head start, or none at all.
        resolver: where it is looked up.
        claim: on descriptors.
        tried: gets ``address errno`` of each failed connect.
        begun: the first attempt, to a numeric target, where there is one already.
    """

    __slots__ = (
        "_ask_at",
        "_attempts",
        "_began",
        "_claim",
        "_failure",
        "_known",
        "_name",
        "_next_start",
        "_resolver",
        "_target",
        "_tried",
        "_waiting",
        "due",
        "failed",
        "idle",
        "won",
    )

    def __init__(
        self, target: Address, resolver: Resolver, claim: Claim, tried: list[str], begun: Attempt | None = None
    ) -> None:
        self._target = target
        self._resolver = resolver
        self._claim = claim
        self._tried = tried
        self._name: Name | None = resolver.find(target.host) if target.is_name else None
        self._known: tuple[str, ...] = ()
        self._waiting: deque[Address] = deque(() if self._name or begun else (target,))
        self._attempts: list[Attempt] = []
        if begun is not None and claim.take():
            self._attempts.append(begun)
        self._next_start = 0.0
        self._began = 0.0
        self._ask_at = _NEVER
        self._failure: Ended | None = None
        self.won: tuple[SocketStream, Address] | None = None
        self.failed: Ended | None = None
        self.idle = False
        self.due = _NEVER

    def advance(self, now: float, *, last: bool) -> bool:
        """Look at what was decided, and begin what is due."""
        for attempt in tuple(self._attempts):
            if (attempt.decided or last) and self._has_won(attempt, attempt.look(), now):
                return True
        if last:
            return False
        self._began = self._began or now
        if self._name is not None and self._name.addresses is not self._known:
            self._take_up(self._name.addresses)
        while self._waiting and now >= self._next_start:
            if self._begin(now):
                return True
        return self._is_over(now)

    def watch(self, callback: Callback) -> None:
        """Wait for the attempts, and for the name server if it has been asked."""
        for attempt in self._attempts:
            attempt.watch(callback)
        if self._name is not None and self._name.busy:
            self._name.answered.rawlink(callback)

    def unwatch(self, callback: Callback) -> None:
        """Wait no more."""
        for attempt in self._attempts:
            attempt.unwatch()
        if self._name is not None:
            self._name.answered.unlink(callback)

    def expire(self) -> Ended:
        """Note the attempts that are still under way as tried in vain, or the name server that has not answered."""
        self._tried.extend(f"{attempt.address} ETIMEDOUT" for attempt in self._attempts)
        if self._attempts:
            return Ended(End.CONNECT_TIMEOUT, "ETIMEDOUT")
        if self._failure is not None:
            return self._failure
        if self._name is None or self._known:
            return Ended(End.CONNECT_TIMEOUT, "EMFILE")  # there was no descriptor to try it with
        self._tried.append(f"{self._target} {End.CONNECT_TIMEOUT}")
        return Ended(
            End.CONNECT_TIMEOUT, f"{self._name.host}: {self._name.failure or 'no answer from the name server'}"
        )

    def close(self) -> None:
        """Abandon the attempts that are still under way."""
        for attempt in self._attempts:
            attempt.abandon()
            self._claim.give_back()
        self._attempts.clear()

    def _take_up(self, addresses: tuple[str, ...]) -> None:
        """Try those addresses of the name at once that are new."""
        new = [Address(host, self._target.port) for host in addresses if host not in self._known]
        if new:
            self._waiting.extendleft(reversed(new))
            self._next_start = 0.0
        self._known = addresses

    def _begin(self, now: float) -> bool:
        """Begin to connect to the next address, if there is a descriptor; return whether it has connected at once."""
        self._next_start = now + HEAD_START
        if not self._claim.take() and not self._gives_way():
            return False
        if not self._attempts:
            self._ask_at = self._next_start
        attempt = Attempt(self._waiting.popleft(), now)
        self._attempts.append(attempt)
        return self._has_won(attempt, attempt.begin(), now)

    def _gives_way(self) -> bool:
        """Abandon the oldest attempt, if its descriptor is needed for an address that has connected since it began.

        Without a descriptor to spare an attempt goes on alone: it may still answer, and the next address perhaps never
        does. But one that has answered somebody meanwhile is better; else all but a few of many clients that have begun
        with a dead address would be reset.
        """
        if self._name is None or not self._attempts:
            return False
        better = Address(self._name.reached_since(self._attempts[0].began), self._target.port)
        if better not in self._waiting:
            return False
        gives_way = self._attempts.pop(0)
        gives_way.abandon()
        self._waiting.remove(better)
        self._waiting.appendleft(better)
        self._waiting.append(gives_way.address)
        return True

    def _has_won(self, attempt: Attempt, connected: bool, now: float) -> bool:
        if connected:
            self._attempts.remove(attempt)
            self.won = attempt.stream(), attempt.address
            if self._name is not None:
                self._name.reached(attempt.address.host, now)
        elif attempt.error is not None:
            self._tried.append(f"{attempt.address} {error_name(attempt.error)}")
            self._failure = ended(attempt.error)
            self._next_start = 0.0
            self._attempts.remove(attempt)
            attempt.abandon()
            self._claim.give_back()
        return connected

    def _is_over(self, now: float) -> bool:
        """Return whether nothing is left to be tried, after asking the name server where that may help."""
        self.due = self._next_start if self._waiting else _NEVER
        self.idle = False
        if self._name is not None:
            self._ask(self._name, now)
        elif not self._attempts and not self._waiting:
            self.failed = self._failure
        return self.failed is not None

    def _ask(self, name: Name, now: float) -> None:
        """Ask the name server where it may know better, or take its answer as final.

        Where all known addresses have failed, its answer is final if it is newer than this try, or the name server is
        in trouble: a service that restarts behind a name is refused nearly as quickly as one behind an address.
        """
        if self._attempts or self._waiting:
            if now >= self._ask_at:
                self._ask_at = _NEVER if self._resolver.ask(name, now) else name.again
            self.due = min(self.due, self._ask_at)
        elif name.missing and not self._known and now < name.again:
            self._tried.append(f"{self._target} {End.NAME_NOT_FOUND}")
            self.failed = Ended(End.NAME_NOT_FOUND, f"{name.host}: {name.failure}")
        else:
            asked = self._resolver.ask(name, now)
            final = name.failure or name.asked >= self._began
            if self._known and (name.hung or (final and not asked)):
                self.failed = self._failure
            self.idle = bool(self._known) or not asked
            self.due = self.due if asked else name.again


def first(tries: Sequence[Try], until: float, *, patient: bool = True) -> Try | None:
    """Return the first of the tries that is decided, or ``None`` when time is up.

    Args:
        tries: they go on until they are closed.
        until: monotonic seconds.
        patient: whether to wait also where nothing but a name server can help.
    """
    while True:
        now = time.monotonic()
        last = now >= until
        for each in tries:
            if each.advance(now, last=last):
                return each
        if last or (not patient and all(each.idle for each in tries)):
            return None
        _wait(tries, until)


def _wait(tries: Sequence[Try], until: float) -> None:
    """Wait until one of the tries has something to advance, or is due."""
    hub = get_hub()
    waiter: Any = Waiter(hub)
    callback = waiter.switch
    due = min(until, *(each.due for each in tries))
    timer: Any = None
    try:
        for each in tries:
            each.watch(callback)
        if due != _NEVER:
            timer = hub.loop.timer(max(0.0, due - time.monotonic()))
            timer.start(callback, None)
        waiter.get()
    finally:
        for each in tries:
            each.unwatch(callback)
        if timer is not None:
            timer.close()
