"""One direction: every byte in order, by whatever way."""

import random
import time
from collections.abc import Callable

import gevent
import pytest
from gevent import socket

from tests.sockets import Sockets, eventually
from tests.system.harness import read_to_eof
from veillink.limits import ByteRate
from veillink.model import End, Ended
from veillink.net.pipes import Pipes
from veillink.net.socket_stream import SocketStream
from veillink.net.ticker import Ticker
from veillink.proxy.pump import Pump
from veillink.proxy.shaping import Shaping
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


@pytest.mark.parametrize("wrap", [lambda stream: stream, Opaque], ids=["plain", "opaque"])
@pytest.mark.parametrize("pipes", [0, 1])
@pytest.mark.parametrize("rate", [4 << 20, 100 << 20])
def test_limited_bytes_arrive_in_order_and_in_time(
    rate: int, pipes: int, wrap: Callable[[SocketStream], SocketStream], sockets: Sockets
) -> None:
    source, sender = sockets.pair()
    sink, reader = sockets.pair()
    flow = Flow()
    flow.limit = Shaping(ByteRate(rate)).join("a", time.monotonic())
    gevent.spawn(finish_with, sender, DATA)
    received = gevent.spawn(read_to_eof, reader)
    started = time.monotonic()
    Pump(Pipes(pipes), Ticker()).run(wrap(source), sink, flow, End.CLIENT_RESET)
    assert time.monotonic() - started > 0.9 * len(DATA) / rate - 0.05
    sink.send_eof()
    assert received.get() == DATA
    assert flow.bytes == len(DATA)


@pytest.mark.parametrize("pipes", [0, 1])
def test_a_limit_may_come_change_and_go_while_bytes_move(pipes: int, sockets: Sockets) -> None:
    source, sender = sockets.pair()
    sink, reader = sockets.pair()
    flow, rounds, goes_on = Flow(), [0], [True]

    def send() -> None:
        while goes_on[0]:
            sender.sendall(DATA)
            rounds[0] += 1
        sender.shutdown(socket.SHUT_WR)

    gevent.spawn(send)
    received = gevent.spawn(read_to_eof, reader)
    pump = gevent.spawn(Pump(Pipes(pipes), Ticker()).run, source, sink, flow, End.CLIENT_RESET)
    limits = [Shaping(ByteRate(rate)).join("a", time.monotonic()) for rate in (64 << 10, 8 << 20)]
    for limit in (None, limits[0], limits[1], None, limits[0], None):
        flow.limit = limit
        seen = flow.bytes + (30 << 10)
        while flow.bytes < seen:
            gevent.sleep(0.001)
    goes_on[0] = False
    pump.get()
    sink.send_eof()
    assert received.get() == rounds[0] * DATA


def test_a_turn_is_taken_for_what_waits_and_what_is_left_of_it_is_given_back(sockets: Sockets) -> None:
    source, sender = sockets.pair()
    sink, reader = sockets.pair()
    flow, shaping = Flow(), Shaping(ByteRate(1 << 20))
    flow.limit = shaping.join("a", time.monotonic())
    other = shaping.join("a", time.monotonic())
    pump = gevent.spawn(Pump(Pipes(1), Ticker()).run, source, sink, flow, End.CLIENT_RESET)
    for _ in range(20):
        sender.sendall(b"ping")
        assert reader.recv(4) == b"ping"
    assert not flow.limit.waits
    assert other.take(time.monotonic(), 1 << 20)[0] > 0
    pump.kill()


def test_a_limited_source_that_is_lost_ends_the_connection_with_the_given_end(sockets: Sockets) -> None:
    source, sender = sockets.pair()
    sink, _ = sockets.pair()
    flow = Flow()
    flow.limit = Shaping(ByteRate(1 << 20)).join("a", time.monotonic())
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sender.close()
    with pytest.raises(Ended) as caught:
        Pump(Pipes(1), Ticker()).run(source, sink, flow, End.TARGET_RESET)
    assert (caught.value.end, caught.value.detail) == (End.TARGET_RESET, "ECONNRESET")


def test_the_end_of_a_stream_takes_nothing_of_what_others_may_move(sockets: Sockets) -> None:
    shaping, pump = Shaping(ByteRate(1 << 20)), Pump(Pipes(1), Ticker())
    started = time.monotonic()
    for _ in range(50):
        source, sender = sockets.pair()
        sink, _ = sockets.pair()
        flow = Flow()
        flow.limit = shaping.join("a", time.monotonic())
        finish_with(sender, b"ping")
        pump.run(source, sink, flow, End.CLIENT_RESET)
        flow.limit.leave(time.monotonic())
    assert time.monotonic() - started < 0.5


def test_who_has_little_to_say_takes_a_short_turn(sockets: Sockets) -> None:
    shaping, pump = Shaping(ByteRate(1 << 20)), Pump(Pipes(1), Ticker())
    pumps, readers = [], []
    for _ in range(100):
        source, sender = sockets.pair()
        sink, reader = sockets.pair()
        sender.sendall(bytes(2000))
        flow = Flow()
        flow.limit = shaping.join("a", time.monotonic())
        pumps.append(gevent.spawn(pump.run, source, sink, flow, End.CLIENT_RESET))
        readers.append(reader)
    started = time.monotonic()
    for reader in readers:
        assert reader.recv(2000) == bytes(2000)
    assert time.monotonic() - started < 0.4
    gevent.killall(pumps)
