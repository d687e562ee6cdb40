"""Resolve host names in the background and keep the last good answer.

Rule: a look-up runs in a thread, one at a time for each name, and nobody but those whom no known address helps ever
waits for it. Names that hang leave threads for those that do not.
"""

import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from itertools import chain, zip_longest
from typing import Final

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from veillink.log import Log
from veillink.net.greenlets import unhurried

# A name that was just not found is not asked for again for each client that comes.
_RETRY: Final = 1.0
# One that was answered, or is in trouble, may be sooner: a client waits. Each failure in a row doubles it, up to the
# above.
_FIRST_PAUSE: Final = 0.25
# The longest pause after a look-up that hung: each takes a thread for 10 to 30 s.
_LONGEST_PAUSE: Final = 16.0
# A look-up that has taken so long hangs: its thread is not counted on any more.
_HANGS: Final = 0.5
_PERIOD: Final = 0.25

# What says that there is no such name; anything else is trouble on the way to the answer (getaddrinfo(3)).
_NOT_FOUND: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

Answer = tuple[tuple[str, ...], str, bool]
"""The addresses, or why there are none, and whether that is because there is no such name."""


def getaddrinfo(host: str) -> Answer:
    """Ask the system. Raises nothing: the pool would print a traceback."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return (), error.strerror or str(error), error.errno in _NOT_FOUND
    except UnicodeError as error:
        return (), str(error), True
    return interleave([str(answer[4][0]) for answer in answers]), "", False


def interleave(addresses: Collection[str]) -> tuple[str, ...]:
    """Return the addresses with the families in turn, the first one's family first (RFC 8305, section 4)."""
    unique = list(dict.fromkeys(addresses))
    first = [a for a in unique if (":" in a) == (":" in unique[0])]
    other = [a for a in unique if (":" in a) != (":" in unique[0])]
    return tuple(a for a in chain.from_iterable(zip_longest(first, other)) if a is not None)


class Name:
    """What is known of one host name.

    ``addresses``: the last good answer, the address that connected last at first. ``failure``: why the last look-up
    has failed. ``missing``: the name does not exist. ``asked``: when it was last looked up (monotonic seconds), and
    ``again``: when it may be for the next client. ``busy``: it is being looked up, or will be as soon as there is a
    thread; ``answered`` is set afterwards.
    """

    __slots__ = (
        "_failures",
        "_reached",
        "addresses",
        "again",
        "answered",
        "asked",
        "busy",
        "failure",
        "host",
        "hung",
        "missing",
        "queued",
        "refresh",
        "wanted",
    )

    def __init__(self, host: str) -> None:
        self.host = host
        self.addresses: tuple[str, ...] = ()
        self.failure = ""
        self.missing = False
        self.again = float("-inf")
        self.refresh = float("inf")
        self.busy = self.queued = False
        self.wanted = False
        """Whether clients wait."""
        self.hung = False
        """Whether its last look-up took long and failed."""
        self.answered = Event()
        self.asked = float("-inf")
        self._failures = 0
        self._reached = ("", float("-inf"))

    def reached(self, address: str, now: float) -> None:
        """Begin with this address from now on: it has just connected."""
        self._reached = address, now
        if self.addresses[:1] != (address,):
            self.addresses = self._ordered(self.addresses)

    def reached_since(self, when: float) -> str:
        """Return the address that has connected last, if that was after ``when`` (monotonic seconds); else nothing."""
        address, at = self._reached
        return address if at > when else ""

    def is_due(self, now: float) -> bool:
        """Return whether it is to be looked up though nobody waits."""
        age = self.refresh if self.addresses else min(self.refresh, 5 * _RETRY)
        return not self.busy and now >= max(self.again, self.asked + age)

    def begin(self, now: float) -> None:
        """Note that it is being looked up."""
        self.queued = False
        self.asked = now

    def take(self, answer: Answer, now: float) -> None:
        """Heed an answer: the last good one stays where there is none."""
        found, self.failure, self.missing = answer
        if found:
            self.addresses = self._ordered(found)
        trouble = bool(self.failure) and not self.missing
        self.hung = trouble and now - self.asked >= _HANGS
        self._failures = self._failures + 1 if trouble else 0
        first, longest = (_RETRY, _LONGEST_PAUSE) if self.hung or self.missing else (_FIRST_PAUSE, _RETRY)
        self.again = now + min(longest, first * 2 ** min(max(0, self._failures - 1), 10))
        self.busy = self.wanted = False
        self.answered.set()

    def _ordered(self, addresses: Collection[str]) -> tuple[str, ...]:
        return tuple(sorted(addresses, key=self._reached[0].__ne__))


class Resolver:
    """The host names in use and their addresses.

    Args:
        log: told when a name cannot be resolved, and when it can again.
        most: look-ups at a time. One cannot be cancelled, and a silent name server holds it for 10 to 30 s.
        system: finds the addresses of a name; called in a thread.
        clock: tells the time, in monotonic seconds.
        period: seconds from one look at what is due to the next.
    """

    def __init__(
        self,
        log: Log,
        most: int,
        system: Callable[[str], Answer] = getaddrinfo,
        clock: Callable[[], float] = time.monotonic,
        period: float = _PERIOD,
    ) -> None:
        self._log = log
        self._most = most
        self._system = system
        self._clock = clock
        self._period = period
        self._names: dict[str, Name] = {}
        self._threads = ThreadPool(most)
        self._refresher: gevent.Greenlet[[], None] | None = None
        self._first: deque[Name] = deque()
        self._others: deque[Name] = deque()
        self._running: dict[Name, tuple[float, bool]] = {}  # since when, and whether it was one of the first

    def keep(self, wanted: Mapping[str, float]) -> None:
        """Keep these names fresh from now on, and no others.

        Args:
            wanted: host names and the age in seconds at which each is looked up again.
        """
        names: dict[str, Name] = {}
        for host, refresh in unhurried(wanted.items()):
            names[host] = self._names.get(host) or Name(host)
            names[host].refresh = refresh
        self._names = names
        if wanted:
            self._tend()

    def find(self, host: str) -> Name:
        """Return what is known of a name."""
        return self._names.get(host) or self._names.setdefault(host, Name(host))

    def ask(self, name: Name, now: float) -> bool:
        """Look a name up for a client, unless that was done just now; return whether an answer is on its way."""
        if not name.busy and now < name.again:
            return False
        if not name.wanted and (not name.busy or name.queued):
            name.wanted = True
            self._queue(name)
            self._tend()
        return True

    def _tend(self) -> None:
        if self._refresher is None:
            self._refresher = gevent.spawn(self._refresh_forever)

    def _refresh_forever(self) -> None:
        while True:
            now = self._clock()
            for name in self._names.values():
                if name.is_due(now):
                    self._queue(name)
            self._start_queued()  # one that hangs since the last round has freed a turn
            gevent.sleep(self._period)

    def _queue(self, name: Name) -> None:
        """Let a name wait for a thread.

        Names for which clients wait go before all others, the newest first: where there are too many, its client is the
        one that can still be in time. Those that have hung stand behind, those with clients at the head.
        """
        if not name.busy:
            name.busy = name.queued = True
            name.answered.clear()
        if not name.wanted:
            self._others.append(name)
        elif name.hung:
            self._others.appendleft(name)
        else:
            self._first.append(name)
        self._start_queued()

    def _start_queued(self) -> None:
        now = self._clock()
        while self._first and self._has_thread_for_first(now):
            self._start(self._first.pop(), now, is_first=True)
        while self._others and self._has_thread_for_others():
            self._start(self._others.popleft(), now, is_first=False)

    def _has_thread_for_others(self) -> bool:
        """Return whether a name may be looked up that has hung, or that nobody waits for: in half of the threads."""
        used = sum(not is_first for _, is_first in self._running.values())
        return used < self._most // 2 and len(self._running) < self._most

    def _has_thread_for_first(self, now: float) -> bool:
        """Return whether a name may be looked up that clients wait for, and that may hang as far as anybody knows.

        A quarter of the idle threads is given away until it is known what hangs: 300 dead names held all 128, and a new
        one that stands in /etc/hosts was not looked up for 13 s.
        """
        idle = self._most - len(self._running)
        young = sum(is_first and now - began < _HANGS for began, is_first in self._running.values())
        return idle > 0 and young < max(1, idle // 4)

    def _start(self, name: Name, now: float, *, is_first: bool) -> None:
        if not name.queued:
            return  # it stood in both queues
        if not name.wanted and self._names.get(name.host) is not name:
            name.busy = name.queued = False
            return  # nobody wants it any more
        name.begin(now)
        self._running[name] = now, is_first
        gevent.spawn(self._look_up, name)

    def _look_up(self, name: Name) -> None:
        try:
            answer = self._threads.apply(self._system, (name.host,))
        except RuntimeError as error:  # no thread to be had
            answer = (), str(error), False
        del self._running[name]
        found, failure, _ = answer
        if failure and not name.failure:
            kept = "keeping the last good answer" if name.addresses else None
            self._log.warning("cannot resolve", host=name.host, reason=failure, kept=kept)
        elif found and name.failure:
            self._log.info("resolved again", host=name.host, addresses=",".join(found))
        name.take(answer, self._clock())
        self._start_queued()
