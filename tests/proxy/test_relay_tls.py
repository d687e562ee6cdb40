"""The relay with TLS on one side or both: bytes, ends and back-pressure as without."""

import time
from unittest.mock import Mock

import gevent
import pytest
from gevent import socket

from tests.proxy.making import make_shared
from tests.sockets import Sockets
from tests.system.harness import read_to_eof
from tests.tls import NAME, TlsPeer, asking, serving
from veillink.model import Address, End, Ended, RuleOptions
from veillink.net.pipes import Pipes
from veillink.net.stream import Stream
from veillink.net.tls import TlsRoom, TlsStream
from veillink.proxy.relay import Relay
from veillink.proxy.session import CancelScope, close_both
from veillink.stats.ledger import Ledger


class PlainPeer:
    """A far end without TLS, with the words of one that has it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sendall, self.recv, self.close = sock.sendall, sock.recv, sock.close

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def read_to_eof(self) -> bytes:
        return read_to_eof(self.sock)


Peer = TlsPeer | PlainPeer


class Relayed:
    """A relay at work between two peers, each with TLS or without."""

    def __init__(self, sockets: Sockets, sides: str, version: str = "", buffers: int = 0) -> None:
        room = TlsRoom()
        self.client_stream, self.client = _leg(sockets, room, sides in ("client", "both"), True, version, buffers)
        self.target_stream, self.target = _leg(sockets, room, sides in ("target", "both"), False, version, buffers)
        shared = make_shared(Mock(), sockets.peer_watch, Pipes(1))
        self.connection = Ledger().open("web", Address("", 1), Address("", 2), time.monotonic(), Mock())
        self.relay = Relay(self.client_stream, self.target_stream, self.connection, RuleOptions(), shared)
        self.greenlet = gevent.spawn(self._run)

    def _run(self) -> End:
        self.connection.scope = scope = CancelScope()
        end = End.CLOSED
        try:
            self.relay.run()
        except Ended as ended:
            end = ended.end
            self.detail = ended.detail
        finally:
            scope.armed = False
            close_both(self.client_stream, self.target_stream, self.connection, end)
        return end

    def end(self) -> End:
        return self.greenlet.get()


def _leg(sockets: Sockets, room: TlsRoom, tls: bool, serves: bool, version: str, buffers: int) -> tuple[Stream, Peer]:
    near, far = sockets.pair(buffers)
    if not tls:
        return near, PlainPeer(far)
    if serves:
        stream, peer = TlsStream(near, serving(version=version), room), TlsPeer(far, asking())
    else:
        stream, peer = TlsStream(near, asking(version), room, NAME), TlsPeer(far, serving())
    other = gevent.spawn(peer.shake_hands)
    stream.handshake(time.monotonic() + 10)
    other.get()
    return stream, peer


SIDES = pytest.mark.parametrize("sides", ["client", "target", "both"])
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])


@SIDES
@VERSIONS
def test_an_echo_comes_back(sides: str, version: str, sockets: Sockets) -> None:
    relayed = Relayed(sockets, sides, version)
    relayed.client.sendall(b"ping")
    relayed.target.sendall(relayed.target.recv(4))
    assert relayed.client.recv(4) == b"ping"
    relayed.client.finish()
    assert relayed.target.recv(1) == b""
    relayed.target.finish()
    assert relayed.client.recv(1) == b""
    assert relayed.end() is End.CLOSED
