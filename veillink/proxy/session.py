"""Serve one client, from first byte to last, and enter it in the ledger.

Rule: every ending passes through ``serve``; both sockets and the connection's account are closed once.
"""

import _socket
import time
import traceback
from typing import Any, Final

from gevent.hub import get_hub, getcurrent

from veillink.log import Log
from veillink.model import CONNECT_FAILURES, REFUSALS, Address, End, Ended, SendProxy
from veillink.net.client_hello import ClientHello
from veillink.net.socket_stream import SocketStream
from veillink.net.sockets import error_name
from veillink.net.stream import Stream
from veillink.net.tls import TlsStream
from veillink.proxy.bandwidth import leave_bandwidth
from veillink.proxy.client_limits import Client
from veillink.proxy.connect import connect
from veillink.proxy.introduction import send_header, shake_hands
from veillink.proxy.loops import add_leg, refuse_loop
from veillink.proxy.pool import Member
from veillink.proxy.relay import Relay
from veillink.proxy.service import Binding, Service
from veillink.proxy.shared import Shared
from veillink.proxy.trial import Trial, begin_trial, judge
from veillink.proxy.upstream import Upstream
from veillink.stats.ledger import Connection

_IN_TLS: Final = frozenset({End.BAD_TLS, End.NO_ROUTE, End.TARGET_TLS, End.CLIENT_TRUNCATED, End.TARGET_TRUNCATED})
_NO_HELLO: Final = ClientHello()
_SILENCE: Final = frozenset({End.IDLE_TIMEOUT, End.HALF_CLOSE_TIMEOUT})


class CancelScope:
    """Ends a session from outside, wherever it waits: only the first call counts, but a drain's cut always does."""

    __slots__ = ("_called", "_greenlet", "armed")

    def __init__(self) -> None:
        self._greenlet: Any = getcurrent()
        self._called = False
        self.armed = True

    def cancel(self, ended: Exception) -> None:
        """End it with this, soon."""
        cut = isinstance(ended, Ended) and ended.end is End.DRAINED
        if cut or not self._called:
            self._called = True
            get_hub().loop.run_callback(self._deliver, ended)

    def _deliver(self, ended: Exception) -> None:
        if self.armed:
            self._greenlet.throw(type(ended), ended, ended.__traceback__)


def serve(sock: _socket.socket, peer: Address, listen: Address, binding: Binding) -> None:
    """Tell the story of one connection.

    Args:
        sock: the accepted socket; closed when this returns.
        peer: the client's address.
        listen: the address it came to.
        binding: what to do with it.
    """
    service = binding.service
    upstream, hello, shared = service.upstream, _NO_HELLO, service.shared
    scope, accepted = CancelScope(), SocketStream(sock)
    client: Stream = accepted
    connection = shared.ledger.open(service.rule.name, peer, listen, time.monotonic(), scope)
    admitted: Client | None = None
    target: Stream | None = None
    member: Member | None = None
    trial: Trial | None = None
    end, detail = End.INTERNAL, ""
    try:
        refuse_loop(client, connection, shared.ledger)
        if service.edge is not None:
            admitted = service.edge.admit(client, connection, shared.ticker)
        if service.front is not None:
            client, upstream, hello = service.front.receive(accepted, connection)
        target, member = _connect(client, connection, binding, upstream, hello)
        if service.front is not None and service.front.passes_alpn:
            client = service.front.answer(accepted, connection, hello, target)
        trial = begin_trial(member, upstream, shared.ticker) if member.failing else None
        if service.bandwidth.on:
            service.bandwidth.begin(connection, time.monotonic())
        Relay(client, target, connection, service.rule.options, shared).run()
        end = End.CLOSED
    except Ended as ended:
        end, detail = ended.end, ended.detail if ended.end in _IN_TLS else ""
        _log_failure(ended, connection, shared.log)
    except Exception:
        _log_unforeseen(connection, shared.log)
    finally:
        scope.armed = False
        close_both(client, target, connection, end)
        if member is not None:
            judge(member, upstream, connection, end, trial)
            member.leave()
        if admitted is not None and service.edge is not None:
            service.edge.release(admitted)
        _close(connection, end, detail, shared)


def send_away(sock: _socket.socket, peer: Address, listen: Address, service: Service) -> None:
    """Reset a client that comes when all connections are cut; see ``serve``."""
    connection = service.shared.ledger.open(service.rule.name, peer, listen, time.monotonic(), CancelScope())
    SocketStream(sock).abort()
    _close(connection, End.DRAINED, "", service.shared)


def _close(connection: Connection, end: End, detail: str, shared: Shared) -> None:
    now = time.monotonic()
    if connection.inbound.limit or connection.outbound.limit:
        leave_bandwidth(connection, now)
    shared.ledger.close(connection, end, now)
    if shared.log.access_lines:
        shared.log.access(connection.summary(end, now, detail))


class _Connecting:
    """A client whose target has to be waited for: when it leaves, or is too old, the attempt is given up."""

    __slots__ = ("_client", "_connection", "_hello", "_lost", "_reset_watched", "_service")

    def __init__(self, client: Stream, connection: Connection, service: Service, hello: ClientHello) -> None:
        self._client = client
        self._connection = connection
        self._service = service
        self._hello = hello

    def __enter__(self) -> None:
        self._reset_watched = False
        self._lost = self._service.shared.ticker.lost
        self._service.shared.ticker.watch(self)

    def __exit__(self, *_: object) -> None:
        self._service.shared.ticker.forget(self)

    def until(self) -> float:
        """Return when to give up: time that nobody lived through is given back."""
        limit = self._service.rule.options.connect_timeout or float("inf")
        return self._connection.accepted + limit + self._service.shared.ticker.lost - self._lost

    def introduce(self, stream: SocketStream, address: Address, member: Member, until: float) -> Stream:
        """See ``connect.Waiting``. The leg is known before anybody waits: a listener of our own may be there."""
        connection, shared = self._connection, self._service.shared
        connection.target = address
        add_leg(stream, connection, shared.ledger)
        try:
            if member.send_proxy is not SendProxy.OFF:
                send_header(stream, self._client, connection, member.send_proxy)
            if member.tls is None:
                return stream
            return shake_hands(stream, member.tls, shared.tls, until, self._offered())
        except (OSError, Ended) as error:
            stream.abort()
            connection.target = None
            shared.ledger.drop_leg(connection)
            if isinstance(error, Ended):
                raise
            raise Ended(End.TARGET_RESET, error_name(error)) from None

    def _offered(self) -> tuple[str, ...]:
        """Return the protocols that the target is offered in TLS: what the client speaks, or would speak."""
        if isinstance(self._client, TlsStream):
            return tuple(filter(None, (self._client.alpn,)))
        if self._service.front is None or not self._service.front.passes_alpn:
            return ()
        return tuple(name.decode() for name in self._hello.alpn if name.isascii())  # GREASE is for nobody

    def on_tick(self, now: float) -> bool:
        if not self._reset_watched:
            self._reset_watched = True
            self._client.transport.on_reset(self._service.shared.peer_watch, self._left)
        lifetime = self._service.rule.options.max_lifetime
        if lifetime and now - self._connection.opened >= lifetime:
            self._connection.scope.cancel(Ended(End.MAX_LIFETIME))
        return True  # the ticks go on, and with them the account of lost time

    def _left(self) -> None:
        if self._connection.connected is None:
            self._connection.scope.cancel(Ended(End.CLIENT_LEFT))


def _connect(
    client: Stream, connection: Connection, binding: Binding, upstream: Upstream, hello: ClientHello
) -> tuple[Stream, Member]:
    if client.transport.was_reset():  # as it waited in the kernel's queue: accept(2) does not tell
        raise Ended(End.CLIENT_LEFT)
    tried: list[str] = []
    waiting = _Connecting(client, connection, binding.service, hello)
    try:
        stream, member = connect(upstream, binding.port_offset, connection.client.host, waiting, tried)
    finally:
        connection.tried = tuple(tried)
    connection.connected = time.monotonic()
    connection.member = member
    return stream, member


def _log_unforeseen(connection: Connection, log: Log) -> None:
    log.error("unforeseen error", id=connection.number, rule=connection.rule, traceback=traceback.format_exc())


def _log_failure(ended: Ended, connection: Connection, log: Log) -> None:
    if ended.end in CONNECT_FAILURES:
        log.limited(
            "cannot reach a target",
            f"{connection.rule} {ended.end}",
            rule=connection.rule,
            failure=ended.end,  # "end=" stands in access lines alone: whoever counts it counts connections
            reason=ended.detail,
            tried=", ".join(connection.tried) or None,
        )
    elif ended.end in REFUSALS:
        log.limited(
            "a client is not let in",
            f"{connection.rule} {ended.end}",
            rule=connection.rule,
            failure=ended.end,
            reason=ended.detail or None,
            client=connection.client,
        )
    elif ended.end is End.LOOP:
        log.limited(
            "a client is a connection of our own that has come round: change the target of one of these rules",
            connection.rule,
            rule=connection.rule,
            client=connection.client,
            way=ended.detail,
        )


def close_both(client: Stream, target: Stream | None, connection: Connection, end: End) -> None:
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
    for stream, flow in ((client, connection.outbound), (target, connection.inbound)):
        if arrived and flow.done:
            stream.close()
        else:
            stream.abort()


def _all_arrived(*streams: Stream) -> bool:
    try:
        return not any(stream.broken or stream.unacked_bytes() for stream in streams)
    except OSError:  # it is gone already
        return False
