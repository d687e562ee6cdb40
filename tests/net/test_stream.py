"""What stands before the data is read, and nothing behind it is lost."""

import gevent
import pytest
from gevent import socket

from tests.net.peers import receive
from tests.sockets import Sockets
from tests.system.harness import read_to_eof
from veillink.model import End, Ended
from veillink.net.stream import Spliceable, Stream


def line(data: bytes) -> tuple[bytes, int] | None:
    """Parse a line: it is whole once its end has come."""
    found, end, _ = data.partition(b"\n")
    if found.startswith(b"junk"):
        raise Ended(End.INTERNAL, "junk")
    return (found, len(found) + 1) if end else None


def prefix(stream: Stream, limit: int = 100) -> bytes:
    return stream.read_prefix(line, limit)


@pytest.mark.parametrize("cut", range(12))
def test_a_prefix_that_comes_in_two_parts_is_read_and_the_rest_stays(cut: int, sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    whole = b"header\nHELLO"

    def send() -> None:
        peer.sendall(whole[:cut])
        gevent.sleep(0.005)
        peer.sendall(whole[cut:])
        peer.shutdown(socket.SHUT_WR)

    gevent.spawn(send)
    assert prefix(stream) == b"header"
    rest = b""
    while part := receive(stream):
        rest += part
    assert rest == b"HELLO"


def test_it_may_come_byte_by_byte(sockets: Sockets) -> None:
    stream, peer = sockets.pair()

    def send() -> None:
        for byte in b"header\nH":
            peer.sendall(bytes([byte]))
            gevent.sleep(0.001)

    gevent.spawn(send)
    assert prefix(stream) == b"header"
    assert receive(stream) == b"H"


def test_two_prefixes_may_follow_each_other(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(b"one\ntwo\nrest")
    assert [prefix(stream), prefix(stream)] == [b"one", b"two"]
    assert receive(stream, 2) == b"re"
    assert receive(stream) == b"st"


def test_only_a_stream_that_holds_nothing_is_raw(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(b"one\nrest")
    raw: Spliceable | None = stream.raw()
    assert raw is stream
    prefix(stream)
    assert stream.raw() is None
    receive(stream)
    assert stream.raw() is stream


def test_what_the_parser_raises_passes_through(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(b"junk")
    with pytest.raises(Ended, match="junk"):
        prefix(stream)


@pytest.mark.parametrize("sent", [b"", b"head"])
def test_a_peer_that_finishes_before_it_is_whole_is_told_with_what_came(sent: bytes, sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(sent)
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError) as caught:
        prefix(stream)
    assert caught.value.args == (sent,)


def test_it_may_be_given_up_and_the_stream_still_works(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(b"he")
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        prefix(stream)
    peer.sendall(b"x")
    assert receive(stream) == b"x"


def test_no_more_is_held_than_the_limit(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(b"x" * 1000)
    with pytest.raises(ValueError, match="longer"):
        prefix(stream, limit=107)
    peer.shutdown(socket.SHUT_WR)
    left = bytearray(2000)
    assert stream.recv_into(memoryview(left)) == 1000 - 107


def test_a_peer_that_resets_meanwhile_is_an_error(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    with pytest.raises(ConnectionResetError):
        prefix(stream)


def test_after_a_prefix_everything_else_works_as_before(sockets: Sockets) -> None:
    stream, peer = sockets.pair()
    peer.sendall(b"one\n")
    prefix(stream)
    stream.sendall(memoryview(b"answer"))
    stream.send_eof()
    assert read_to_eof(peer) == b"answer"
