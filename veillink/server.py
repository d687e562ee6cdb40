"""Run a rule set: one listener for each listen address, changed rule by rule, drained at the end.

Rule: no error ends a listener, and at the connection limit nobody is accepted and dropped: clients wait in the kernel.
"""

import errno
import select
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import gevent
from gevent.server import StreamServer

from . import tasks
from .ledger import Ledger
from .log import Log
from .model import Address, End, Ended, Rule, RuleSet
from .names import Names
from .net import BACKLOG, Stream, adopt, error_name, listen, readable, set_keepalive
from .pipes import Pipes
from .pool import Pool
from .relay import Patience
from .rules import diff
from .session import Service, serve
from .upstream import Route

# How long accepting pauses after EMFILE and its like, in seconds: ten tries a second cost nothing.
_ACCEPT_PAUSE: Final = 0.1
_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 10.0

_HINTS: Final = {
    errno.EADDRINUSE: "another program listens there",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this host has no such address",
}


@dataclass(frozen=True, slots=True)
class Descriptors:
    """How the process's file descriptors are divided.

    Args:
        limit: how many it may have.
        splice: whether bulk streams go through pipes.
    """

    limit: int
    splice: bool = True

    @property
    def lookups(self) -> int:
        """Name look-ups at a time; each has a socket, and may read a file."""
        return min(128, max(4, self.limit // 32))

    @property
    def pipes(self) -> int:
        """Pipes of two descriptors for bulk streams; 32 of 1 MiB are half of what an unprivileged user may have."""
        return min(32, self.limit // 64) if self.splice else 0

    @property
    def beside(self) -> int:
        """Addresses tried beside the first one of each connection."""
        return min(16, self.limit // 16)

    def connections(self, listeners: int) -> int:
        """Return how many connections of two descriptors fit; 22 are for stdio, the loop, and files being read."""
        return (self.limit - 22 - 2 * self.lookups - 2 * self.pipes - self.beside - listeners) // 2

    @staticmethod
    def needed(listeners: int) -> int:
        """Return the least limit with which one connection fits."""
        return next(limit for limit in count(listeners) if Descriptors(limit).connections(listeners) > 0)


class Gate:
    """How many connections the process may hold, and the listeners that wait for a place."""

    def __init__(self) -> None:
        self.cut = False
        self.limit = 0
        self.taken = 0
        self._waiting: deque[Listener] = deque()

    def full_for(self, listener: "Listener") -> bool:
        """Return whether there is no place; then the listener is told when there is one."""
        if self.taken < self.limit:
            return False
        self._waiting.append(listener)
        return True

    def leave(self) -> None:
        """Give a place back."""
        self.taken -= 1
        self.wake()

    def wake(self) -> None:
        """Let listeners accept again, those that have waited longest first, until one has a client for the place."""
        while self._waiting and self.taken < self.limit:
            listener = self._waiting.popleft()
            if listener.started:
                listener.start_accepting()
                if listener.has_client():
                    return


class Listener(StreamServer):
    """Accepts on one address, for the service that it holds at the moment.

    Args:
        address: where it listens.
        sock: bound and listening there.
        service: for those who come.
        offset: of the address in its rule's range.
        gate: asked before each accept.

    Raises:
        OSError: the address cannot be had.
    """

    def __init__(self, address: Address, service: Service, offset: int, gate: Gate) -> None:
        sock: Any = listen(address, service.rule.timeouts.keepalive)
        super().__init__(sock)
        self.listens_on = address
        self.service = service
        self.offset = offset
        self._gate = gate

    def handle(self, client: Any) -> None:  # type: ignore[override]
        """Serve one client, a bare socket and its address, in the client's greenlet."""
        sock, peer = client
        try:
            if self._gate.cut:
                Stream(sock).abort()
                return
            serve(sock, readable(peer), self.listens_on, self.offset, self.service)
        finally:
            self._gate.leave()

    def full(self) -> bool:
        """Return whether the process has no place left."""
        return self._gate.full_for(self)

    def do_read(self) -> Any:
        """Accept one client, or return ``None``."""
        listening: Any = self.socket
        try:
            fd, peer = listening._accept()
        except BlockingIOError:
            self._gate.wake()  # there may be more places than this listener had clients
            return None
        except OSError as error:
            if error.errno not in (errno.ECONNABORTED, errno.EINTR, errno.EPROTO):
                self._pause(error)
            self._gate.wake()
            return None
        return adopt(fd, listening.family), peer

    def has_client(self) -> bool:
        """Return whether somebody waits to be accepted."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def do_handle(self, *args: Any) -> None:
        """Give the client its greenlet."""
        self._gate.taken += 1
        tasks.spawn(self.handle, args)

    def _pause(self, error: OSError) -> None:
        log = self.service.log
        log.limited("cannot accept", str(self.listens_on), listen=self.listens_on, reason=error_name(error))
        self.stop_accepting()
        self._timer = self.loop.timer(_ACCEPT_PAUSE)
        self._timer.start(self._resume)

    def _resume(self) -> None:
        if self.started:
            self.start_accepting()

    def retire(self) -> None:
        """Stop listening. Who waits in the kernel's queue is accepted first: closing would reset them."""
        for _ in range(BACKLOG):
            if self.full() or not self.has_client():
                break
            client = self.do_read()
            if client:
                self.do_handle(*client)
        self.close()


class Server:
    """The rules at work.

    Args:
        log: told about listeners that cannot be had.
        source: the name of the rules' file, for the log.
        descriptors: what the process may have.
        max_connections: the most connections at a time; 0 for as many as the descriptors allow.
    """

    def __init__(self, log: Log, source: str, descriptors: Descriptors, max_connections: int) -> None:
        self.gate = Gate()
        self.ledger = Ledger()
        self.listeners: dict[Address, Listener] = {}
        self.down: dict[Address, str] = {}
        self.rules = RuleSet()
        self._log = log
        self._source = source
        self._descriptors = descriptors
        self._max_connections = max_connections
        self._names = Names(log, descriptors.lookups)
        self._patience = Patience()
        self._pipes = Pipes(descriptors.pipes)
        self._services: dict[Rule, Service] = {}
        self._wanted: dict[Address, tuple[Service, int]] = {}
        self._retrier: gevent.Greenlet[[], None] | None = None

    def apply(self, rules: RuleSet) -> None:
        """Make these rules the ones at work. Rules that stay as they are are not touched.

        A listener that cannot be had is reported, and tried again in the background.
        """
        same = set(diff(self.rules, rules).same)
        self._services = {rule: self._services[rule] if rule in same else self._build(rule) for rule in rules.rules}
        self._wanted = {address: (self._services[rule], n) for rule in rules.rules for address, n in rule.listens()}
        self.rules = rules
        self._names.keep(_host_names(rules))
        self.down = {address: why for address, why in self.down.items() if address in self._wanted}
        self._open_missing()
        gone = [address for address in self.listeners if address not in self._wanted]
        for address in gone:
            self.listeners.pop(address).retire()
        if gone:  # an address may have been freed just now, like 127.0.0.1:80 for *:80
            self._open_missing()
        for address, listener in self.listeners.items():
            self._hand_over(listener, *self._wanted[address])
        self._set_limit()
        self._report_down()
        if self._retrier is not None:
            self._retrier.kill()
        self._retrier = gevent.spawn(self._retry) if self.down else None

    def stop_accepting(self) -> None:
        """Close every listener; connections go on."""
        self._wanted = {}
        for listener in self.listeners.values():
            listener.retire()
        self.listeners = {}

    def cut(self) -> None:
        """End every connection, also those whose greenlet has not begun."""
        self.gate.cut = True
        for entry in tuple(self.ledger.live.values()):
            entry.interrupt(Ended(End.DRAINED))

    def _build(self, rule: Rule) -> Service:
        route = Route(Pool(rule.targets), self._names, self._descriptors.beside)
        return Service(rule, route, self.ledger, self._patience, self._pipes, self._log)

    def _open_missing(self) -> None:
        for address in self._wanted.keys() - self.listeners.keys():
            service, offset = self._wanted[address]
            try:
                listener = Listener(address, service, offset, self.gate)
            except OSError as error:
                self.down.setdefault(address, _reason(error))
            else:
                listener.start()
                self.listeners[address] = listener
                self.down.pop(address, None)

    def _hand_over(self, listener: Listener, service: Service, offset: int) -> None:
        if listener.service is not service:
            set_keepalive(listener.socket, service.rule.timeouts.keepalive)
            listener.service = service
            listener.offset = offset

    def _set_limit(self) -> None:
        room = self._descriptors.connections(len(self._wanted))
        self.gate.limit = max(0, min(room, self._max_connections or room))
        self.gate.wake()

    def _report_down(self) -> None:
        lines = {rule: rule.line for rule in self.rules.rules}  # a rule that stayed the same may have moved
        for address, reason in sorted(self.down.items()):
            rule = self._wanted[address][0].rule
            place = f"{self._source}:{lines[rule]}"
            self._log.error(f"{place}: cannot listen on {address}: {reason}; it is tried again", rule=rule.name)

    def _retry(self) -> None:
        delay = _FIRST_RETRY
        while self.down:
            gevent.sleep(delay)
            delay = min(_LAST_RETRY, delay * 2)
            before = tuple(self.down)
            self._open_missing()
            for address in before:
                if address in self.listeners:
                    rule = self.listeners[address].service.rule
                    self._log.info("listening at last", rule=rule.name, listen=address)
        self._retrier = None


def _host_names(rules: RuleSet) -> dict[str, float]:
    """Return the host names of all targets with the shortest refresh that a rule asks for."""
    wanted: dict[str, float] = {}
    for rule in rules.rules:
        for target in rule.targets:
            if target.address.is_name:
                refresh = rule.timeouts.dns_refresh
                wanted[target.address.host] = min(refresh, wanted.get(target.address.host, refresh))
    return wanted


def _reason(error: OSError) -> str:
    hint = _HINTS.get(error.errno or 0)
    return f"{error.strerror} ({error_name(error)})" + (f": {hint}" if hint else "")
