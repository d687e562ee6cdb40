"""Say to a target what comes before its client's bytes: a PROXY header, and a handshake in TLS.

Rule: a target that does not want to hear it has failed like one that cannot be connected, and the next one is tried.
"""

import time

import gevent

from veillink.credentials import ClientTls
from veillink.model import End, Ended, SendProxy
from veillink.net.proxy_protocol import encode, encode_local
from veillink.net.socket_stream import SocketStream
from veillink.net.sockets import error_name
from veillink.net.stream import Stream
from veillink.net.tls import TlsError, TlsRoom, TlsStream
from veillink.stats.ledger import Connection

_VERSIONS = {SendProxy.V1: 1, SendProxy.V2: 2}


def send_header(target: Stream, client: Stream, connection: Connection, which: SendProxy) -> None:
    """Tell a target who its client is.

    Raises:
        OSError: it has gone already.
    """
    destination = connection.proxied.destination if connection.proxied else None
    header = encode(_VERSIONS[which], connection.client, destination or client.transport.own_address())
    target.sendall(memoryview(header))


def send_own_header(target: Stream, which: SendProxy) -> None:
    """Tell a target that a connection is our own.

    Raises:
        OSError: it has gone already.
    """
    transport = target.transport
    target.sendall(memoryview(encode_local(_VERSIONS[which], transport.own_address(), transport.peer_address())))


def shake_hands(
    stream: SocketStream, tls: ClientTls, room: TlsRoom, until: float, alpn: tuple[str, ...] = ()
) -> TlsStream:
    """Agree with a target on TLS, and have it prove who it is where that is asked for.

    Args:
        stream: to it; closed when this fails.
        tls: how.
        room: of the process.
        until: monotonic seconds at which to give up.
        alpn: the protocols that it is offered.

    Raises:
        Ended: it has failed.
    """
    # Many share the context, but from when it is made the stream has its own list.
    tls.context.set_alpn_protocols(list(alpn))
    encrypted = TlsStream(stream, tls.context, room, tls.name)
    try:
        with gevent.Timeout(max(0.0, until - time.monotonic()), TimeoutError()):
            encrypted.handshake()
    except BaseException as error:
        encrypted.abort()
        match error:
            case TimeoutError():
                raise Ended(End.TARGET_TLS, "handshake too slow") from None
            case EOFError():
                raise Ended(End.TARGET_TLS, "closed in the handshake") from None
            case TlsError():
                raise Ended(End.TARGET_TLS, str(error)) from None
            case OSError():
                raise Ended(End.TARGET_TLS, error_name(error)) from None
        raise
    return encrypted
