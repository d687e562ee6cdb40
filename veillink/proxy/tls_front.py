"""What a rule does with what its clients say first in TLS: choose targets by the name, and shake hands.

Rule: nothing reaches a target, and no connection to it is begun, before the name is known and, where TLS ends here,
the handshake is through; with ``alpn=pass`` alone the target is asked before the client is answered.
"""

import time
from typing import Any, Final

from veillink.credentials import PASS, ServerTls
from veillink.model import End, Ended, RuleOptions
from veillink.names import Routes
from veillink.net.client_hello import LIMIT, ClientHello, HelloParser
from veillink.net.socket_stream import SocketStream
from veillink.net.stream import Stream
from veillink.net.tls import TlsError, TlsStream
from veillink.proxy.edge import Limit
from veillink.proxy.shared import Shared
from veillink.proxy.upstream import Upstream
from veillink.stats.ledger import Connection, TlsFacts

# Of TLS: a fatal alert, unrecognized_name (RFC 6066 section 3), in a record of its own.
_UNRECOGNIZED_NAME: Final = b"\x15\x03\x03\x00\x02\x02\x70"


class TlsFront:
    """What a form of a rule does with what its clients say first.

    Args:
        tls: how TLS ends here; where it does not, hellos are only looked at.
        options: of the rule.
        routes: the targets by their names; nothing where names do not matter.
        upstream: the targets otherwise.
        shared: what the process has for it.
    """

    def __init__(
        self,
        tls: ServerTls | None,
        options: RuleOptions,
        routes: Routes[Upstream] | None,
        upstream: Upstream,
        shared: Shared,
    ) -> None:
        self._tls = tls
        self._timeout = options.tls_timeout
        self._routes = routes
        self._upstream = upstream
        self._shared = shared
        self.passes_alpn = tls is not None and options.alpn == PASS
        several = tls is not None and len(tls.contexts) > 1
        self._peeks = routes is not None or several or self.passes_alpn
        self._contexts: Routes[Any] = _by_name(tls) if tls is not None else Routes(())
        self._client_names = Routes((name, True) for name in tls.client_names) if tls and tls.client_names else None

    def receive(self, client: SocketStream, connection: Connection) -> tuple[Stream, Upstream, ClientHello]:
        """Hear a client out, and return the stream for its bytes, the targets for it, and what it has said.

        Args:
            client: who has come; closed when this fails after an alert.
            connection: its account.

        Raises:
            Ended: it does not speak TLS as it should, or nobody is there for the name it asks for.
        """
        stream: Stream = client
        with Limit(connection, self._timeout, self._shared.ticker, End.BAD_TLS):
            found = self._peek(client, connection) if self._peeks else ClientHello()
            upstream, hello = self._choose(client, connection, found), found or ClientHello()
            if self._tls is not None and not self.passes_alpn:
                stream = self._shake_hands(client, connection, hello)
        connection.accepted = time.monotonic()
        return stream, upstream, hello

    def _peek(self, client: SocketStream, connection: Connection) -> ClientHello | None:
        """Return what a client says of itself, and leave all of it in its stream; nothing if that cannot be TLS."""
        try:
            hello = client.read_prefix(HelloParser().parse, LIMIT)
        except (EOFError, OSError):
            raise Ended(End.CLIENT_LEFT) from None
        except ValueError as error:
            raise Ended(End.BAD_TLS, str(error)) from None
        if hello is not None:
            connection.tls = TlsFacts(sni=hello.server_name or "")
        return hello

    def _choose(self, client: SocketStream, connection: Connection, hello: ClientHello | None) -> Upstream:
        if hello is None and self._tls is not None:
            raise Ended(End.BAD_TLS, "no TLS")
        if self._routes is None:
            return self._upstream
        upstream = self._routes.find(hello.server_name if hello is not None else None)
        if upstream is not None:
            return upstream
        if hello is None:
            raise Ended(End.BAD_TLS, "no TLS")
        client.send(memoryview(_UNRECOGNIZED_NAME))
        client.close()  # an abort would overtake it
        raise Ended(End.NO_ROUTE, hello.server_name or "no name")

    def answer(self, client: SocketStream, connection: Connection, hello: ClientHello, target: Stream) -> Stream:
        """Shake hands with a client whose target has decided on the protocol; see ``receive``."""
        connection.accepted = time.monotonic()
        with Limit(connection, self._timeout, self._shared.ticker, End.BAD_TLS):
            return self._shake_hands(client, connection, hello, target.alpn if isinstance(target, TlsStream) else "")

    def _shake_hands(self, client: SocketStream, connection: Connection, hello: ClientHello, alpn: str = "") -> Stream:
        """Agree with a client on TLS, and on this protocol if the target decides on that; it is closed on failure."""
        context: Any = self._contexts.find(hello.server_name)
        if self.passes_alpn:
            # Of a context that others use too: it is looked at once, when the hello is read, which is here already.
            context.set_alpn_protocols([alpn] if alpn else [])
        began = time.monotonic()
        stream = TlsStream(client, context, self._shared.tls)
        try:
            stream.handshake()
            if self.passes_alpn and stream.alpn != alpn:  # another client has come between its first hello and a second
                raise TlsError("the protocol was not to be had")
            self._check_name(stream)
        except BaseException as error:
            stream.abort()
            ended = _ended(error)
            self._shared.ledger.count_handshake(connection.rule, ended.end.value if ended else End.INTERNAL.value)
            if ended is None:
                raise
            raise ended from None
        self._shared.ledger.count_handshake(connection.rule, "ok", time.monotonic() - began)
        connection.tls = TlsFacts(
            stream.version, hello.server_name or "", stream.alpn, next(iter(stream.peer_names), "")
        )
        return stream

    def _check_name(self, stream: TlsStream) -> None:
        """Have a client's certificate hold one of the names that may come in."""
        if self._client_names is None:
            return
        names = stream.peer_names
        if not any(self._client_names.find(name) for name in names):
            raise TlsError(f"the client's certificate is for {', '.join(names) or 'nobody'}")


def _ended(error: BaseException) -> Ended | None:
    """Return how the connection ends, if that is foreseen."""
    match error:
        case Ended():
            return error
        case EOFError():
            return Ended(End.CLIENT_LEFT)
        case TlsError():
            return Ended(End.BAD_TLS, str(error))
        case OSError():
            return Ended(End.BAD_TLS, "closed in the handshake")
    return None


def _by_name(tls: ServerTls) -> Routes[Any]:
    """Return the contexts by the names that their certificates hold; the first for all others."""
    found: dict[str, Any] = {}
    for certificate, context in zip(tls.certificates, tls.contexts, strict=True):
        for name in certificate.names:
            found.setdefault(name.lower(), context)
    return Routes(found.items(), tls.contexts[0])
