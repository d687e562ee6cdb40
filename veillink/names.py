"""Resolve host names in the background and keep the last good answer.

Rule: a look-up runs in a thread, one at a time for each name, and nobody but those who have no answer at all ever waits
for it.
"""

import socket
import time
from collections.abc import Collection, Mapping
from itertools import chain, zip_longest
from typing import Final

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from .log import Log
from .model import End, Ended

# A name that was just not found is not asked for again for each client that comes.
_RETRY: Final = 1.0
_LOOK_ROUND: Final = 0.25


class _Name:
    """What is known of one host name. ``asked`` and ``refresh`` are seconds, ``asked`` monotonic."""

    __slots__ = ("addresses", "answered", "asked", "busy", "failure", "refresh")

    def __init__(self, refresh: float) -> None:
        self.addresses: tuple[str, ...] = ()
        self.failure = ""
        self.asked = float("-inf")
        self.refresh = refresh
        self.busy = False
        self.answered = Event()


class Names:
    """The host names in use and their addresses.

    Args:
        log: told when a name cannot be resolved, and when it can again.
        most: look-ups at a time. One cannot be cancelled, and a silent name server holds it for 10 to 30 s: with the 10
            threads that gevent has for everything, twelve dead names stopped all others.
    """

    def __init__(self, log: Log, most: int) -> None:
        self._log = log
        self._names: dict[str, _Name] = {}
        self._threads = ThreadPool(most)
        self._refresher: gevent.Greenlet[[], None] | None = None

    def keep(self, wanted: Mapping[str, float]) -> None:
        """Keep these names fresh from now on, and no others.

        Args:
            wanted: host names and the age in seconds at which each is looked up again.
        """
        self._names = {host: self._names.get(host) or _Name(refresh) for host, refresh in wanted.items()}
        for host, refresh in wanted.items():
            self._names[host].refresh = refresh
        if wanted and self._refresher is None:
            self._refresher = gevent.spawn(self._refresh_forever)

    def lookup(self, host: str, until: float) -> tuple[str, ...]:
        """Return the addresses of a name, IPv6 and IPv4 in turn (RFC 8305, section 4), at least one.

        Args:
            host: the name.
            until: monotonic seconds at which to give up waiting for a first answer.

        Raises:
            Ended: ``name_not_found``, or ``connect_timeout`` when no answer came in time.
        """
        name = self._names.setdefault(host, _Name(refresh=float("inf")))
        if name.addresses:
            return name.addresses
        if not name.busy and time.monotonic() - name.asked >= _RETRY:
            self._ask(host, name)
        if name.busy:
            name.answered.wait(max(0.0, until - time.monotonic()) if until != float("inf") else None)
        if name.addresses:
            return name.addresses
        if name.failure and not name.busy:
            raise Ended(End.NAME_NOT_FOUND, f"{host}: {name.failure}")
        raise Ended(End.CONNECT_TIMEOUT, f"{host}: no answer from the name server")

    def suspect(self, host: str) -> None:
        """Look a name up again soon: its addresses did not answer."""
        name = self._names.get(host)
        if name is not None and not name.busy and time.monotonic() - name.asked >= _RETRY:
            self._ask(host, name)

    def _refresh_forever(self) -> None:
        while True:
            now = time.monotonic()
            for host, name in self._names.items():
                age = name.refresh if name.addresses else min(name.refresh, 5 * _RETRY)
                if not name.busy and now - name.asked >= age:
                    self._ask(host, name)
            gevent.sleep(_LOOK_ROUND)

    def _ask(self, host: str, name: _Name) -> None:
        name.busy = True
        name.asked = time.monotonic()
        name.answered.clear()
        gevent.spawn(self._answer, host, name)

    def _answer(self, host: str, name: _Name) -> None:
        try:
            found, failure = self._threads.apply(_getaddrinfo, (host,))
        except RuntimeError as error:  # no thread to be had
            found, failure = (), str(error)
        if failure and not name.failure:
            kept = "keeping the last good answer" if name.addresses else None
            self._log.warning("cannot resolve", host=host, reason=failure, kept=kept)
        elif found and name.failure:
            self._log.info("resolved again", host=host, addresses=",".join(found))
        name.failure = failure
        name.addresses = found or name.addresses
        name.busy = False
        name.answered.set()


def _getaddrinfo(host: str) -> tuple[tuple[str, ...], str]:
    """Return the addresses, or none and why. Raises nothing: the pool would print a traceback."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return (), error.strerror or str(error)
    except UnicodeError as error:
        return (), str(error)
    return interleave([str(answer[4][0]) for answer in answers]), ""


def interleave(addresses: Collection[str]) -> tuple[str, ...]:
    """Return the addresses with the families in turn, the first one's family first (RFC 8305, section 4)."""
    unique = list(dict.fromkeys(addresses))
    first = [a for a in unique if (":" in a) == (":" in unique[0])]
    other = [a for a in unique if (":" in a) != (":" in unique[0])]
    return tuple(a for a in chain.from_iterable(zip_longest(first, other)) if a is not None)
