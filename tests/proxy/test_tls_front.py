"""What a rule does with what its clients say first in TLS: real handshakes, and targets that are mere names."""

import ssl
import time
from typing import Any, cast
from unittest.mock import Mock

import gevent
import pytest
from gevent import socket

from tests.net.hellos import hello, in_records, named
from tests.proxy.making import make_shared
from tests.sockets import Sockets, eventually
from tests.system.harness import read_to_eof, reset
from tests.tls import TlsPeer, asking, authority, certificate, serving
from veillink.credentials import Certificate, ServerTls
from veillink.model import Address, End, Ended, RuleOptions
from veillink.names import Routes
from veillink.net.stream import Stream
from veillink.net.tls import TlsStream
from veillink.proxy.session import CancelScope
from veillink.proxy.shared import Shared
from veillink.proxy.tls_front import TlsFront
from veillink.proxy.upstream import Upstream

UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"


@pytest.fixture
def shared(sockets: Sockets) -> Shared:
    return make_shared(Mock(), sockets.peer_watch)


def front(
    shared: Shared,
    tls: ServerTls | None = None,
    *,
    default: str = "",
    alpn: str = "",
    routes: dict[str, str] | None = None,
) -> TlsFront:
    """Return the front of a rule whose targets are words."""
    options = RuleOptions(tls_timeout=0.2, alpn=tuple(alpn.split()))
    by_name = ((name, cast(Upstream, word)) for name, word in (routes or {}).items())
    names = Routes(by_name, cast(Upstream, default) if default else None) if routes else None
    return TlsFront(tls, options, names, cast(Upstream, default), shared)


def tls(*names: str, client_names: tuple[str, ...] = (), clients: bool = False) -> ServerTls:
    contexts = [serving(certificate(name)) for name in names]
    for context in contexts:
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=authority("ours").cert_pem.bytes().decode())
    return ServerTls(b"", tuple(Certificate(name, (name,)) for name in names), client_names, tuple(contexts))


class Come:
    """A client that has come, and what becomes of it."""

    def __init__(self, sockets: Sockets, shared: Shared, front: TlsFront, target: Any = None) -> None:
        self.stream, self.far = sockets.pair()
        self.connection = shared.ledger.open("web", Address("", 1), Address("", 2), time.monotonic(), Mock())
        self.greenlet = gevent.spawn(self._receive, front, target)

    def _receive(self, front: TlsFront, target: Any) -> tuple[Stream, Any] | tuple[End, str]:
        self.connection.scope = CancelScope()
        try:
            stream, upstream, hello = front.receive(self.stream, self.connection)
            if target is not None:
                stream = front.answer(self.stream, self.connection, hello, target)
        except Ended as ended:
            self.stream.abort()
            return ended.end, ended.detail
        return stream, upstream

    def outcome(self) -> Any:
        return self.greenlet.get()


@pytest.mark.parametrize(
    ("name", "word"), [("a.example", "one"), ("A.Example.", "one"), ("x.b.example", "two"), ("c.example", "rest")]
)
def test_targets_are_chosen_by_the_name_and_nothing_of_the_hello_is_used_up(
    name: str, word: str, sockets: Sockets, shared: Shared
) -> None:
    come = Come(sockets, shared, front(shared, default="rest", routes={"a.example": "one", "*.b.example": "two"}))
    sent = named(name) + b"more"
    come.far.sendall(sent)
    come.far.shutdown(socket.SHUT_WR)
    stream, upstream = come.outcome()
    buffer = memoryview(bytearray(4096))
    assert (upstream, bytes(buffer[: stream.recv_into(buffer)])) == (word, sent)
    assert come.connection.tls is not None
    assert come.connection.tls.summary() == {"sni": name.lower().removesuffix(".")}


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x00", b"SSH-2.0-x\r\n"])
def test_who_speaks_no_tls_gets_the_rows_without_names_and_else_is_refused_at_once(
    sent: bytes, sockets: Sockets, shared: Shared
) -> None:
    come = Come(sockets, shared, front(shared, default="rest", routes={"a.example": "one"}))
    come.far.sendall(sent)
    assert come.outcome()[1] == "rest"
    for refusing in (front(shared, routes={"a.example": "one"}), front(shared, tls("a.example", "b.example"))):
        come = Come(sockets, shared, refusing)
        come.far.sendall(sent)
        assert come.outcome() == (End.BAD_TLS, "no TLS")


@pytest.mark.parametrize("sent", [named("b.example"), hello()])
def test_an_unknown_name_is_told_so(sent: bytes, sockets: Sockets, shared: Shared) -> None:
    come = Come(sockets, shared, front(shared, routes={"a.example": "one"}))
    come.far.sendall(sent)
    assert read_to_eof(come.far) == UNRECOGNIZED_NAME
    assert come.outcome()[0] is End.NO_ROUTE


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_who_leaves_before_a_whole_hello_was_only_looking(
    count: int, several: bool, sockets: Sockets, shared: Shared
) -> None:
    for leave in (lambda far: far.shutdown(socket.SHUT_WR), reset):
        come = Come(sockets, shared, front(shared, tls("a.example", *["b.example"] * several)))
        come.far.sendall(in_records(named("a.example")[5:], 50)[:count])
        leave(come.far)
        assert come.outcome() == (End.CLIENT_LEFT, "")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_who_is_too_late_is_ended(count: int, several: bool, sockets: Sockets, shared: Shared) -> None:
    come = Come(sockets, shared, front(shared, tls("a.example", *["b.example"] * several)))
    come.far.sendall(named("a.example")[:count])
    assert come.outcome() == (End.BAD_TLS, "too late")
    assert not shared.ticker._watched


@pytest.mark.parametrize("name", ["a.example", "b.example"])
def test_the_certificate_is_the_one_of_the_name(name: str, sockets: Sockets, shared: Shared) -> None:
    come = Come(sockets, shared, front(shared, tls("a.example", "b.example"), default="all"))
    peer = TlsPeer(come.far, asking(), name).shake_hands()
    stream, upstream = come.outcome()
    assert upstream == "all"
    peer.sendall(b"ping")
    buffer = memoryview(bytearray(100))
    assert bytes(buffer[: stream.recv_into(buffer)]) == b"ping"
    assert come.connection.tls is not None
    assert come.connection.tls.summary() == {"tls": "TLSv1.3", "sni": name}
    assert dict(shared.ledger.totals["web"].handshakes) == {"ok": 1}


def test_a_handshake_that_fails_is_told_and_counted(sockets: Sockets, shared: Shared) -> None:
    come = Come(sockets, shared, front(shared, tls("a.example")))
    with pytest.raises(ssl.SSLError):
        TlsPeer(come.far, asking(of="others"), "a.example").shake_hands()
    assert come.outcome() == (End.BAD_TLS, "TLSV1_ALERT_UNKNOWN_CA")
    assert dict(shared.ledger.totals["web"].handshakes) == {"bad_tls": 1}


@pytest.mark.parametrize(("pattern", "let_in"), [("me.example", True), ("*.example", True), ("you.example", False)])
def test_a_clients_certificate_has_to_hold_one_of_the_names(
    pattern: str, let_in: bool, sockets: Sockets, shared: Shared
) -> None:
    come = Come(sockets, shared, front(shared, tls("a.example", client_names=(pattern,), clients=True)))
    context = asking()
    certificate("me.example").configure_cert(context)
    TlsPeer(come.far, context, "a.example").shake_hands()
    if let_in:
        assert isinstance(come.outcome()[0], TlsStream)
        assert come.connection.tls is not None
        assert come.connection.tls.client_cert == "me.example"
    else:
        assert come.outcome() == (End.BAD_TLS, "the client's certificate is for me.example")


@pytest.mark.parametrize("agreed", ["h2", ""])
def test_the_protocol_is_the_one_that_the_target_has_agreed_to(agreed: str, sockets: Sockets, shared: Shared) -> None:
    target = Mock(spec=TlsStream, alpn=agreed)
    come = Come(sockets, shared, front(shared, tls("a.example"), alpn="pass"), target)
    context = asking()
    context.set_alpn_protocols(["h2", "http/1.1"])
    peer = TlsPeer(come.far, context, "a.example").shake_hands()
    assert isinstance(come.outcome()[0], TlsStream)
    assert (peer.engine.selected_alpn_protocol() or "") == agreed
    eventually(lambda: come.connection.tls is not None and come.connection.tls.alpn == agreed)
