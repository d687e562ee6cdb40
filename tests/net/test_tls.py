"""Tests of a stream that encrypts: against Python's engine and OpenSSL's own programs."""

import time

import gevent
import pytest

from tests.sockets import Sockets
from tests.tls import NAME, TlsPeer, asking, serving
from veillink.net.tls import TlsRoom, TlsStream

SOON = 10.0


def soon() -> float:
    return time.monotonic() + SOON


@pytest.fixture
def room() -> TlsRoom:
    return TlsRoom()


def receive_tls(stream: TlsStream, size: int = 1 << 16) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: stream.recv_into(memoryview(buffer))])


def pair(
    sockets: Sockets, room: TlsRoom, version: str = "", *, serves: bool = True, buffers: int = 0
) -> tuple[TlsStream, TlsPeer]:
    near, far = sockets.pair(buffers)
    if serves:
        stream, peer = TlsStream(near, serving(version=version), room), TlsPeer(far, asking())
    else:
        stream, peer = TlsStream(near, asking(version), room, NAME), TlsPeer(far, serving())
    other = gevent.spawn(peer.shake_hands)
    stream.handshake(soon())
    other.get()
    return stream, peer


@pytest.mark.parametrize("serves", [True, False], ids=["server", "client"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_bytes_go_both_ways_after_a_handshake(version: str, serves: bool, sockets: Sockets, room: TlsRoom) -> None:
    stream, peer = pair(sockets, room, version, serves=serves)
    assert stream.version == f"TLSv{version}"
    peer.sendall(b"question")
    assert receive_tls(stream) == b"question"
    stream.sendall(memoryview(b"answer"))
    assert peer.read_exactly(6) == b"answer"
