"""What a target hears before its client's bytes."""

import contextlib
import ssl
import time
from unittest.mock import Mock

import gevent
import pytest
from gevent import socket

from tests.sockets import Sockets
from tests.tls import NAME, TlsPeer, asking, certificate, serving
from veillink.credentials import ClientTls
from veillink.model import Address, End, Ended, SendProxy
from veillink.net.proxy_protocol import encode, parse
from veillink.net.tls import TlsRoom
from veillink.proxy.introduction import send_header, send_own_header, shake_hands
from veillink.stats.ledger import Proxied

CLIENT, BALANCER, OURS = Address("192.0.2.1", 1), Address("198.51.100.1", 443), Address("127.0.0.1", 80)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("proxied", [None, Proxied(Address("10.0.0.1", 2), BALANCER), Proxied(OURS, None)])
def test_the_header_names_the_client_and_where_it_has_connected_to(
    version: int, proxied: Proxied | None, sockets: Sockets
) -> None:
    stream, peer = sockets.pair()
    client = Mock(transport=Mock(own_address=lambda: OURS))
    send_header(stream, client, Mock(client=CLIENT, proxied=proxied), SendProxy(f"v{version}"))
    destination = BALANCER if proxied and proxied.destination else OURS
    assert peer.recv(1000) == encode(version, CLIENT, destination)


@pytest.mark.parametrize("which", [SendProxy.V1, SendProxy.V2])
def test_a_connection_of_our_own_says_so(which: SendProxy, sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    send_own_header(stream, which)
    found = parse(peer.recv(1000))
    assert found is not None
    ours = stream.transport.own_address()
    assert found[0].source == (ours if which is SendProxy.V1 else None)


def _answer(peer: TlsPeer) -> None:
    with contextlib.suppress(ssl.SSLError):  # what it is told is another test's matter
        peer.shake_hands()


def shake(
    sockets: Sockets, server: ssl.SSLContext | None, *, of: str = "ours", seconds: float = 5, alpn: tuple[str, ...] = ()
) -> tuple[str, TlsPeer | None]:
    """Shake hands with a target, and return what came of it, and the target."""
    stream, far = sockets.pair()
    peer = TlsPeer(far, server) if server else None
    answering = gevent.spawn(_answer, peer) if peer else None
    tls = ClientTls(b"", NAME, None, asking(of=of))
    try:
        encrypted = shake_hands(stream, tls, TlsRoom(), time.monotonic() + seconds, alpn)
    except Ended as ended:
        if answering:
            answering.join()
        return (ended.detail if ended.end is End.TARGET_TLS else ended.end), peer
    encrypted.send(memoryview(b"hello"))
    if answering:
        answering.get()
    return encrypted.alpn, peer


def test_bytes_follow_a_handshake(sockets: Sockets) -> None:
    said, peer = shake(sockets, serving())
    assert said == ""
    assert peer is not None
    assert peer.recv(5) == b"hello"


@pytest.mark.parametrize(
    ("server", "of", "said"),
    [
        (
            lambda: serving(certificate("b.example")),
            "ours",
            "Hostname mismatch, certificate is not valid for 'a.example'.",
        ),
        (serving, "others", "unable to get local issuer certificate"),
    ],
)
def test_a_target_that_cannot_prove_who_it_is_has_failed(server: object, of: str, said: str, sockets: Sockets) -> None:
    assert shake(sockets, server(), of=of)[0] == said  # type: ignore[operator]


def test_a_target_that_says_nothing_has_failed_in_time(sockets: Sockets) -> None:
    started = time.monotonic()
    assert shake(sockets, None, seconds=0.1) == ("handshake too slow", None)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("answer", "said"), [(b"", "closed in the handshake"), (b"220 ready\r\n", "WRONG_VERSION_NUMBER")]
)
def test_a_target_that_speaks_no_tls_has_failed(answer: bytes, said: str, sockets: Sockets) -> None:
    stream, far = sockets.pair()
    far.sendall(answer)
    far.shutdown(socket.SHUT_WR)
    tls = ClientTls(b"", NAME, None, asking())
    with pytest.raises(Ended) as caught:
        shake_hands(stream, tls, TlsRoom(), time.monotonic() + 5)
    assert (caught.value.end, caught.value.detail) == (End.TARGET_TLS, said)


def test_each_target_is_offered_what_its_own_client_speaks(sockets: Sockets) -> None:
    server = serving()
    server.set_alpn_protocols(["h2", "http/1.1"])
    for offered, agreed in ((("http/1.1",), "http/1.1"), (("h2", "http/1.1"), "h2"), ((), ""), (("x",), "")):
        assert shake(sockets, server, alpn=offered)[0] == agreed
