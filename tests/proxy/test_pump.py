"""One direction: every byte in order, by whatever way."""

import random
from collections.abc import Callable

import gevent
import pytest
from gevent import socket

from tests.sockets import Sockets, eventually
from tests.system.harness import read_to_eof
from veillink.model import End, Ended
from veillink.net.pipes import Pipes
from veillink.net.socket_stream import SocketStream
from veillink.net.ticker import Ticker
from veillink.proxy.pump import Pump
from veillink.stats.ledger import Flow

DATA = random.Random(1).randbytes(3 << 20)


class Opaque:
    """A stream that nothing can be spliced from or to, as one that decrypts."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream

    def raw(self) -> None:
        return None

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def finish_with(far: socket.socket, data: bytes) -> None:
    far.sendall(data)
    far.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("wrap", [lambda stream: stream, Opaque], ids=["plain", "opaque"])
@pytest.mark.parametrize("pipes", [0, 1])
def test_bytes_arrive_in_order_and_are_counted(
    pipes: int, wrap: Callable[[SocketStream], SocketStream], sockets: Sockets
) -> None:
    source, sender = sockets.pair()
    sink, reader = sockets.pair()
    flow = Flow()
    pump = Pump(Pipes(pipes), Ticker())
    gevent.spawn(finish_with, sender, DATA)
    received = gevent.spawn(read_to_eof, reader)
    pump.run(wrap(source), sink, flow, End.CLIENT_RESET)
    sink.send_eof()
    assert received.get() == DATA
    assert flow.bytes == len(DATA)


def test_an_opaque_stream_lets_others_run(sockets: Sockets) -> None:
    source, sender = sockets.pair()
    sink, reader = sockets.pair()
    turns = [0]

    def tick() -> None:
        while True:
            gevent.sleep(0)
            turns[0] += 1

    other = gevent.spawn(tick)
    gevent.spawn(finish_with, sender, DATA)
    received = gevent.spawn(read_to_eof, reader)
    Pump(Pipes(1), Ticker()).run(Opaque(source), sink, Flow(), End.CLIENT_RESET)  # type: ignore[arg-type]
    sink.send_eof()
    received.get()
    other.kill()
    assert turns[0] > len(DATA) // (64 << 10) // 4


def test_a_source_that_is_lost_ends_the_connection_with_the_given_end(sockets: Sockets) -> None:
    source, sender = sockets.pair()
    sink, _ = sockets.pair()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sender.close()
    with pytest.raises(Ended) as caught:
        Pump(Pipes(1), Ticker()).run(source, sink, Flow(), End.TARGET_RESET)
    assert (caught.value.end, caught.value.detail) == (End.TARGET_RESET, "ECONNRESET")


def test_a_sink_that_is_gone_ends_this_direction_only(sockets: Sockets) -> None:
    source, sender = sockets.pair()
    sink, reader = sockets.pair()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    reader.close()
    eventually(lambda: sink.transport.was_reset())
    gevent.spawn(sender.sendall, b"x" * 100_000)
    Pump(Pipes(1), Ticker()).run(source, sink, Flow(), End.CLIENT_RESET)
    assert sink.broken in ("EPIPE", "ECONNRESET")
