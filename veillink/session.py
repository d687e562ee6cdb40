"""Serve one client, from first byte to last, and enter it in the ledger.

Rule: every ending passes through ``serve``; whatever happens, both sockets are closed and the entry is closed once.
"""

import _socket
import time
import traceback
from dataclasses import dataclass
from typing import Any, Final

from gevent.hub import get_hub, getcurrent

from .ledger import Entry, Ledger
from .log import Log
from .loops import add_leg, refuse_loop
from .model import CONNECT_FAILURES, Address, End, Ended, Rule
from .pipes import Pipes
from .pool import Member
from .relay import Relay
from .stream import Stream
from .ticker import Ticker
from .trial import Trial, begin_trial, judge
from .upstream import Route, connect

_SILENCE: Final = frozenset({End.IDLE_TIMEOUT, End.HALF_CLOSE_TIMEOUT})


@dataclass(frozen=True, slots=True)
class Service:
    """What a rule needs at run time, built whole before it is used. A connection keeps the one it began with."""

    rule: Rule
    route: Route
    ledger: Ledger
    ticker: Ticker
    pipes: Pipes
    log: Log


class _Interrupt:
    """Ends a session from outside, wherever it waits: only the first call counts, but a drain's cut always does."""

    __slots__ = ("_called", "_greenlet", "armed")

    def __init__(self) -> None:
        self._greenlet: Any = getcurrent()
        self._called = False
        self.armed = True

    def __call__(self, ended: Exception) -> None:
        cut = isinstance(ended, Ended) and ended.end is End.DRAINED
        if cut or not self._called:
            self._called = True
            get_hub().loop.run_callback(self._deliver, ended)

    def _deliver(self, ended: Exception) -> None:
        if self.armed:
            self._greenlet.throw(type(ended), ended, ended.__traceback__)


def serve(sock: _socket.socket, peer: Address, listen: Address, offset: int, service: Service) -> None:
    """Tell the story of one connection.

    Args:
        sock: the accepted socket; closed when this returns.
        peer: the client's address.
        listen: the address it came to.
        offset: of that address in the rule's range.
        service: what to do with it.
    """
    interrupt = _Interrupt()
    client = Stream(sock)
    entry = service.ledger.open(service.rule.name, peer, listen, time.monotonic(), interrupt)
    target: Stream | None = None
    member: Member | None = None
    trial: Trial | None = None
    end = End.INTERNAL
    try:
        refuse_loop(client, entry, service.ledger)
        target, member = _connect(client, entry, offset, service)
        add_leg(target, entry, service.ledger)
        trial = begin_trial(member, service.route, service.ticker) if member.failing else None
        Relay(client, target, entry, service.rule.options, service.ticker, service.pipes).run()
        end = End.CLOSED
    except Ended as ended:
        end = ended.end
        _report(ended, entry, service.log)
    except Exception:
        service.log.error("unforeseen error", id=entry.number, rule=entry.rule, traceback=traceback.format_exc())
    finally:
        interrupt.armed = False
        _part(client, target, entry, end)
        if member is not None:
            judge(member, service.route, entry, end, trial)
            member.leave()
        _close(entry, end, service)


def send_away(sock: _socket.socket, peer: Address, listen: Address, service: Service) -> None:
    """Reset a client that comes when all connections are cut; see ``serve``."""
    entry = service.ledger.open(service.rule.name, peer, listen, time.monotonic(), lambda ended: None)
    Stream(sock).abort()
    _close(entry, End.DRAINED, service)


def _close(entry: Entry, end: End, service: Service) -> None:
    now = time.monotonic()
    service.ledger.close(entry, end, now)
    if service.log.access_lines:
        service.log.access(entry.summary(end, now))


class _Connecting:
    """A client whose target has to be waited for: when it leaves, or is too old, the attempt is given up."""

    __slots__ = ("_client", "_entry", "_lost", "_reset_watched", "_service")

    def __init__(self, client: Stream, entry: Entry, service: Service) -> None:
        self._client = client
        self._entry = entry
        self._service = service

    def __enter__(self) -> None:
        self._reset_watched = False
        self._lost = self._service.ticker.lost
        self._service.ticker.watch(self)

    def __exit__(self, *_: object) -> None:
        self._service.ticker.forget(self)

    def until(self) -> float:
        """Return when to give up: time that nobody lived through is given back."""
        limit = self._service.rule.options.connect_timeout or float("inf")
        return self._entry.opened + limit + self._service.ticker.lost - self._lost

    def on_tick(self, now: float) -> bool:
        if not self._reset_watched:
            self._reset_watched = True
            self._client.on_reset(self._left)
        lifetime = self._service.rule.options.max_lifetime
        if lifetime and now - self._entry.opened >= lifetime:
            self._entry.interrupt(Ended(End.MAX_LIFETIME))
        return True  # the ticks go on, and with them the account of lost time

    def _left(self) -> None:
        if self._entry.connected is None:
            self._entry.interrupt(Ended(End.CLIENT_LEFT))


def _connect(client: Stream, entry: Entry, offset: int, service: Service) -> tuple[Stream, Member]:
    if client.was_reset():  # as it waited in the kernel's queue: accept(2) does not tell
        raise Ended(End.CLIENT_LEFT)
    tried: list[str] = []
    waiting = _Connecting(client, entry, service)
    try:
        stream, entry.target, member = connect(service.route, offset, entry.client.host, waiting, tried)
    finally:
        entry.tried = tuple(tried)
    entry.connected = time.monotonic()
    entry.member = member
    return stream, member


def _report(ended: Ended, entry: Entry, log: Log) -> None:
    if ended.end in CONNECT_FAILURES:
        log.limited(
            "cannot reach a target",
            f"{entry.rule} {ended.end}",
            rule=entry.rule,
            failure=ended.end,  # "end=" stands in access lines alone: whoever counts it counts connections
            reason=ended.detail,
            tried=", ".join(entry.tried) or None,
        )
    elif ended.end is End.LOOP:
        log.limited(
            "a client is a connection of our own that has come round: change the target of one of these rules",
            entry.rule,
            rule=entry.rule,
            client=entry.client,
            way=ended.detail,
        )


def _part(client: Stream, target: Stream | None, entry: Entry, end: End) -> None:
    """Close with FIN the side that has everything of a peer that had finished, else with RST.

    A limit that cuts an answer in the middle must not make it look complete, and where bytes that were taken have not
    arrived, neither side may think so.
    """
    if target is None:
        client.abort()
        return
    if end is End.CLOSED:
        client.close()
        target.close()
        return
    arrived = end in _SILENCE and _all_arrived(client, target)
    for stream, flow in ((client, entry.outbound), (target, entry.inbound)):
        if arrived and flow.done:
            stream.close()
        else:
            stream.abort()


def _all_arrived(*streams: Stream) -> bool:
    try:
        return not any(stream.broken or stream.unacked_bytes() for stream in streams)
    except OSError:  # it is gone already
        return False
