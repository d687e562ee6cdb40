"""Tests of moving bytes both ways, and of every way in which that ends."""

import contextlib
import errno
import fcntl
import itertools
import os
import random
import termios
import time
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import gevent
import pytest
from gevent import socket

from tests.proxy.making import NO_TICK, TICK, look, make_shared
from tests.sockets import Sockets, eventually, open_files, stuff
from tests.system.harness import read_exactly, read_to_eof, reset
from veillink.model import Address, End, Ended, RuleOptions
from veillink.net.pipes import Pipe, Pipes
from veillink.net.socket_stream import SocketStream
from veillink.proxy import deadlines, pump
from veillink.proxy.relay import Relay
from veillink.proxy.session import CancelScope
from veillink.stats.ledger import Ledger

DEFAULT = RuleOptions()
TINY = 4096
BOTH, OTHER = {"client", "target"}, {"other"}
DATA = bytes(range(256)) * 1024  # more than a pair with tiny buffers holds


class Connection:
    """A relay at work between two peers: ``client`` and ``target`` are the far ends; ``tiny`` have small buffers."""

    def __init__(
        self,
        sockets: Sockets,
        timeouts: RuleOptions = DEFAULT,
        tiny: Collection[str] = (),
        pipes: Pipes | None = None,
        tick: float = TICK,
    ) -> None:
        self.client_stream, self.client = sockets.pair(TINY if "client" in tiny else 0)
        self.target_stream, self.target = sockets.pair(TINY if "target" in tiny else 0)
        self.timeouts = timeouts
        shared = make_shared(Mock(), sockets.peer_watch, pipes or Pipes(1), tick)
        self.ticker = shared.ticker
        self.connection = Ledger().open("web", Address("", 1), Address("", 2), time.monotonic(), self)
        self._interrupts: list[CancelScope] = []
        self.relay = Relay(self.client_stream, self.target_stream, self.connection, timeouts, shared)
        self._greenlet: gevent.Greenlet[[], End | Exception] | None = None

    def cancel(self, ended: Exception) -> None:
        """End it."""
        self._interrupts[0].cancel(ended)

    def be_silent(self, seconds: float) -> None:
        """Let it be looked at now, and again as if so many seconds had passed in silence."""
        now = time.monotonic()
        if not (look(self.relay, now) and look(self.relay, now + seconds)):
            self.ticker.forget(self.relay)

    def settle(self) -> None:
        """Wait until all is acknowledged: what is later than a look counts as something that moves."""
        eventually(lambda: not (self.client_stream.unacked_bytes() or self.target_stream.unacked_bytes()))

    def start(self) -> "Connection":
        self._greenlet = gevent.spawn(self._run)
        return self

    def _run(self) -> End | Exception:
        interrupt = CancelScope()
        self._interrupts.append(interrupt)
        try:
            self.relay.run()
        except Ended as ended:
            return ended.end
        except Exception as error:
            return error
        finally:
            interrupt.armed = False
        return End.CLOSED

    def end(self) -> End:
        """Return why it ended, and part both streams as the session does."""
        assert self._greenlet is not None
        end = self._greenlet.get()
        if isinstance(end, Exception):
            raise end
        assert self.relay not in self.ticker._watched
        for stream in (self.client_stream, self.target_stream):
            if end is End.CLOSED:
                stream.close()
            else:
                stream.abort()
        return end

    def near(self, far: socket.socket) -> SocketStream:
        """Return the stream to this peer."""
        return self.client_stream if far is self.client else self.target_stream

    @property
    def moved(self) -> tuple[int, int]:
        return self.connection.inbound.bytes, self.connection.outbound.bytes


Connect = Callable[..., Connection]


@pytest.fixture
def connect(sockets: Sockets) -> Connect:
    def _connect(*arguments: Any, **more: Any) -> Connection:
        return Connection(sockets, *arguments, **more)

    return _connect


Far = tuple[Connection, socket.socket, socket.socket, End]


@pytest.fixture(params=["client", "target"])
def sides(request: pytest.FixtureRequest, connect: Connect) -> Callable[..., Far]:
    """Make a connection and name its ends: one that does something, the other one, and what is its reset called."""

    def _sides(timeouts: RuleOptions = DEFAULT, tiny: Collection[str] = (), tick: float = TICK) -> Far:
        if tiny == OTHER:
            tiny = BOTH - {request.param}
        connection = connect(timeouts, tiny, tick=tick)
        if request.param == "client":
            return connection, connection.client, connection.target, End.CLIENT_RESET
        return connection, connection.target, connection.client, End.TARGET_RESET

    return _sides


Sides = Callable[..., Far]


# --- bytes and FINs --------------------------------------------------------------------------------------------------


def test_bytes_go_both_ways_until_both_sides_have_finished(connect: Connect) -> None:
    connection = connect().start()
    connection.client.sendall(b"question")
    assert read_exactly(connection.target, 8) == b"question"
    connection.target.sendall(b"answer")
    assert read_exactly(connection.client, 6) == b"answer"
    connection.client.shutdown(socket.SHUT_WR)
    connection.target.shutdown(socket.SHUT_WR)
    assert connection.end() is End.CLOSED
    assert connection.moved == (8, 6)
    assert connection.client.recv(1) == connection.target.recv(1) == b""


def test_a_fin_follows_the_last_byte_and_the_other_direction_goes_on(sides: Sides) -> None:
    connection, one, other, _ = sides()
    connection.start()
    one.sendall(b"last words")
    one.shutdown(socket.SHUT_WR)
    assert read_to_eof(other) == b"last words"
    for _ in range(3):
        other.sendall(b"still here")
        assert read_exactly(one, 10) == b"still here"
    other.close()
    assert connection.end() is End.CLOSED
    assert one.recv(1) == b""


def test_both_directions_move_at_once_through_tiny_buffers(connect: Connect) -> None:
    connection = connect(tiny=BOTH).start()
    readers = [gevent.spawn(read_to_eof, far) for far in (connection.client, connection.target)]
    for far, data in ((connection.client, DATA), (connection.target, DATA[::-1])):
        gevent.spawn(finish_with, far, data)
    assert connection.end() is End.CLOSED
    assert [reader.get() for reader in readers] == [DATA[::-1], DATA]
    assert connection.moved == (len(DATA), len(DATA))


def finish_with(far: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # whoever gets the other end of it tells what came
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)


def test_a_slow_reader_makes_the_writer_wait(sides: Sides) -> None:
    connection, one, other, _ = sides(tiny=BOTH)
    connection.start()
    writer = gevent.spawn(finish_with, one, DATA)
    gevent.sleep(0.05)
    assert not writer.ready()
    assert sum(connection.moved) < len(DATA) / 2
    assert read_to_eof(other) == DATA
    other.close()
    assert connection.end() is End.CLOSED


class Lending(Pipes):
    """Pipes that count how often one was lent."""

    lent = 0
    expected = True

    def take(self) -> Pipe | None:
        pipe = super().take()
        self.lent += pipe is not None
        return pipe


@pytest.fixture(params=["spliced", "copied", "no pipe to be had"])
def pipes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lending:
    """Make bulk go each of its ways."""

    def no_pipe(flags: int) -> None:
        raise OSError(errno.EMFILE, "injected")

    if request.param == "no pipe to be had":
        monkeypatch.setattr(os, "pipe2", no_pipe)
    pipes = Lending(0 if request.param == "copied" else 2)
    pipes.expected = request.param == "spliced"
    return pipes


def test_bulk_arrives_whole_whichever_way_it_goes(pipes: Lending, connect: Connect) -> None:
    before = open_files()
    connection = connect(pipes=pipes).start()
    data = random.Random(0).randbytes(4 << 20)
    readers = [gevent.spawn(read_to_eof, far) for far in (connection.client, connection.target)]
    gevent.spawn(finish_with, connection.client, data)
    gevent.spawn(finish_with, connection.target, data[::-1])
    assert connection.end() is End.CLOSED
    received = [reader.get() for reader in readers]
    assert received[0] == data[::-1]
    assert received[1] == data
    assert connection.moved == (len(data), len(data))
    assert (pipes.lent > 0) is pipes.expected
    # The far ends: the ticker has closed what nobody wants any more, and what the test before this one had left.
    eventually(lambda: open_files() <= before + 2)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("allowed", [0, 1, 2], ids=["at once", "with bytes in the pipe", "later"])
def test_bulk_is_copied_from_when_on_splice_is_refused(
    allowed: int, number: int, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    splice, pipes, calls = os.splice, Lending(2), itertools.count()

    def refused(*args: int, **options: int) -> int:
        if next(calls) >= allowed:
            raise OSError(number, "injected")
        return splice(*args, **options)

    monkeypatch.setattr(os, "splice", refused)
    monkeypatch.setattr(pump, "_BULK_READS", 1)
    connection = connect(pipes=pipes).start()
    data = random.Random(0).randbytes(4 << 20)
    reader = gevent.spawn(read_to_eof, connection.target)
    gevent.spawn(finish_with, connection.client, data)
    assert reader.get() == data
    connection.target.close()
    assert connection.end() is End.CLOSED
    assert 1 <= pipes.lent <= 1 + allowed
    assert pipes.take() is None


@pytest.mark.parametrize("fin", ["at once", "later"])
def test_bulk_with_urgent_data_in_it_arrives_whole(fin: str, pipes: Lending, connect: Connect) -> None:
    connection = connect(pipes=pipes)
    connection.client_stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    connection.start()
    data = random.Random(1).randbytes(1 << 20)
    reader = gevent.spawn(read_exactly, connection.target, 2 * len(data) + 1)
    connection.client.sendall(data)
    connection.client.send(b"!", socket.MSG_OOB)
    connection.client.sendall(data)
    if fin == "at once":
        connection.client.shutdown(socket.SHUT_WR)
    assert reader.get() == data + b"!" + data
    connection.client.close()
    assert connection.target.recv(1) == b""
    connection.target.close()
    assert connection.end() is End.CLOSED


def replace(monkeypatch: pytest.MonkeyPatch, stream: SocketStream, **methods: Callable[..., int]) -> None:
    """Replace methods of a stream's socket."""
    sock = stream._socket
    own = {name: getattr(sock, name) for name in ("fileno", "recv_into", "send", "shutdown", "setsockopt", "close")}
    monkeypatch.setattr(stream, "_socket", SimpleNamespace(**own | methods))


def test_a_source_that_is_always_ready_lets_others_run(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = connect(pipes=Pipes(0))
    connection.client.sendall(b"x")  # is never read, and keeps the stream readable
    full = pump._BUFFER_SIZE
    left = iter([full] * 64)
    replace(monkeypatch, connection.client_stream, recv_into=lambda buffer: next(left, 0))
    replace(monkeypatch, connection.target_stream, send=len)
    connection.start()
    looks = set()
    while not connection.connection.inbound.done:
        gevent.sleep(0)
        looks.add(connection.connection.inbound.bytes)
    assert len(looks) > 20  # a turn for the others after three reads, 192 KiB
    connection.target.close()
    assert connection.end() is End.CLOSED


# --- resets ----------------------------------------------------------------------------------------------------------


def test_a_reset_ends_it_and_is_passed_on(sides: Sides) -> None:
    connection, one, other, was_reset = sides()
    connection.start()
    one.sendall(b"before")
    assert read_exactly(other, 6) == b"before"
    reset(one)
    assert connection.end() is was_reset
    with pytest.raises(ConnectionResetError):
        other.recv(1)


def test_what_is_in_the_kernel_when_a_reset_comes_is_delivered_to_a_slow_reader(sides: Sides) -> None:
    connection, one, other, was_reset = sides(tiny=BOTH)
    connection.start()
    while not waits_for_room(connection.near(other)):
        one.sendall(DATA[:500])
        eventually(lambda: all_taken(one))
    reset(one)
    reader = gevent.spawn_later(0.05, read_to_reset, other)
    assert connection.end() is was_reset
    assert len(reader.get()) == sum(connection.moved)


@pytest.mark.parametrize("silent_before", [False, True])
def test_what_the_relay_holds_when_a_reset_comes_is_delivered_to_a_slow_reader(
    silent_before: bool, sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, one, other, was_reset = sides(tiny=OTHER, tick=NO_TICK if silent_before else TICK)
    connection.start()
    if silent_before:  # and nobody looks between the bytes and the end
        monkeypatch.setattr(deadlines, "FLUSH_TIME", 0.2)
        park(connection)
        gevent.sleep(0.2)
    one.sendall(DATA[:40_000])
    eventually(lambda: all_taken(one))
    reset(one)
    reader = gevent.spawn_later(0.02, read_to_reset, other, 1000)
    assert connection.end() is was_reset
    assert reader.get() == DATA[:40_000]


def read_to_reset(far: socket.socket, at_once: int = 1 << 16, pause: float = 0.001) -> bytes:
    """Return everything until the peer resets, read by so many bytes with a pause after each."""
    received = b""
    while True:
        gevent.sleep(pause)
        try:
            part = far.recv(at_once)
        except ConnectionResetError:
            return received
        assert part, "finished"
        received += part


def waits_for_room(stream: SocketStream) -> bool:
    """Return whether the kernel holds bytes that do not fit into the peer's (tcp(7), SIOCOUTQNSD)."""
    return fcntl.ioctl(stream._fd, 0x894B, bytes(4)) != bytes(4)


def all_taken(far: socket.socket) -> bool:
    """Return whether the other end has received all that was sent (which a reset would throw away)."""
    return fcntl.ioctl(far.fileno(), termios.TIOCOUTQ, bytes(4)) == bytes(4)


def test_a_reader_that_takes_nothing_holds_a_reset_up_for_so_long_only(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "FLUSH_TIME", 0.3)
    connection, one, other, was_reset = sides(tiny=BOTH)
    connection.start()
    gevent.spawn(finish_with, one, DATA)
    eventually(connection.near(other).unacked_bytes)
    started = time.monotonic()
    reset(one)
    assert connection.end() is was_reset
    assert 0.3 <= time.monotonic() - started < 5
    eventually(lambda: connection.ticker._close_timer is None)
    with pytest.raises(ConnectionResetError):
        read_to_eof(other)


def test_a_reset_waits_for_a_slow_reader_for_as_long_as_bytes_move(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "FLUSH_TIME", 0.25)
    connection, one, other, was_reset = sides(tiny=OTHER)
    connection.start()
    one.sendall(DATA[:100_000])
    eventually(lambda: all_taken(one))
    started = time.monotonic()
    reset(one)
    reader = gevent.spawn(read_to_reset, other, 800, 0.005)
    assert connection.end() is was_reset
    assert reader.get() == DATA[:100_000]
    assert time.monotonic() - started > 2 * 0.25  # or nothing was tried


def test_a_reset_after_both_have_finished_changes_nothing(connect: Connect) -> None:
    connection = connect().start()
    connection.client.shutdown(socket.SHUT_WR)
    assert connection.target.recv(1) == b""
    connection.target.shutdown(socket.SHUT_WR)
    while not connection.connection.outbound.done:
        gevent.sleep(0)
    assert connection._greenlet is not None
    assert not connection._greenlet.ready()
    connection.relay._on_client_reset()
    connection.relay._on_target_reset()
    assert connection.end() is End.CLOSED


def test_a_reset_after_the_fin_is_seen_though_nobody_reads(sides: Sides) -> None:
    connection, one, other, was_reset = sides()
    connection.start()
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    reset(one)
    with gevent.Timeout(2):  # the ticker would see it too, but after 5 s
        assert connection.end() is was_reset
    with pytest.raises(BrokenPipeError):  # what a reset is called after a FIN; after a FIN alone this would be sent
        other.send(b"x")


def test_what_a_side_sent_before_it_broke_is_delivered(sides: Sides) -> None:
    connection, one, other, was_reset = sides()
    one.sendall(b"I refuse")
    reset(one)
    other.sendall(b"question")  # to whom is gone: the failed send eats the error, and the rest looks like a FIN
    connection.start()
    assert read_exactly(other, 8) == b"I refuse"
    assert connection.end() is was_reset
    with pytest.raises(ConnectionResetError):
        other.recv(1)


def test_bulk_to_a_side_that_breaks_is_blamed_on_that_side(sides: Sides) -> None:
    connection, one, other, was_reset = sides(tick=NO_TICK)
    connection.start()
    one.shutdown(socket.SHUT_WR)  # nobody reads from it or looks at it any more: the failed write is what tells
    gevent.spawn(finish_with, other, DATA * 40)
    read_exactly(one, len(DATA) * 5)
    reset(one)
    assert connection.end() is was_reset


# --- interrupts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiny", [(), BOTH], ids=["for bytes", "for room"])
def test_an_interrupt_ends_it_wherever_it_waits(tiny: Collection[str], connect: Connect) -> None:
    connection = connect(tiny=tiny).start()
    if tiny:  # both directions wait for a reader, not for bytes
        for far in (connection.client, connection.target):
            gevent.spawn(finish_with, far, DATA)
    gevent.sleep(0.01)
    connection.connection.scope.cancel(Ended(End.DRAINED))
    assert connection.end() is End.DRAINED
    for far in (connection.client, connection.target):
        with pytest.raises(OSError, match="reset"):
            read_to_eof(far)


def test_an_error_in_the_twin_is_raised_by_run(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(buffer: memoryview) -> int:
        raise RuntimeError("in the twin")

    connection = connect()
    replace(monkeypatch, connection.target_stream, recv_into=fails)
    with pytest.raises(RuntimeError, match="in the twin"):
        connection.start().end()


def test_a_twin_that_has_not_begun_never_does(connect: Connect) -> None:
    connection = connect()
    connection.target.sendall(b"too late")
    reset(connection.client)
    assert connection.start().end() is End.CLIENT_RESET
    gevent.sleep(0.01)
    assert connection.moved == (0, 0)


def test_a_twin_is_gone_before_anything_else_runs(connect: Connect) -> None:
    connection = connect().start()
    gevent.sleep(0.01)
    twin = connection.relay._twin
    waits = [connection.target_stream.waits_to_read]
    connection.relay._end_twin()
    assert twin.dead
    assert [*waits, connection.target_stream.waits_to_read] == [True, False]
    connection.connection.scope.cancel(Ended(End.DRAINED))
    assert connection.end() is End.DRAINED


# --- parking ---------------------------------------------------------------------------------------------------------


def park(connection: Connection, seconds: float = 1.0) -> None:
    """Let a connection be silent for so long that its twin is parked."""
    eventually(lambda: connection.target_stream.waits_to_read)
    connection.be_silent(seconds)
    assert connection.relay._twin is None


def test_a_parked_direction_wakes_up_with_its_next_byte_again_and_again(connect: Connect) -> None:
    connection = connect().start()
    park(connection)
    for _ in range(2):
        connection.client.sendall(b"question")
        assert read_exactly(connection.target, 8) == b"question"
        connection.target.sendall(b"answer")
        assert read_exactly(connection.client, 6) == b"answer"
        park(connection)
        assert connection.relay not in connection.ticker._watched
    connection.target.shutdown(socket.SHUT_WR)
    assert connection.client.recv(1) == b""
    connection.client.close()
    assert connection.end() is End.CLOSED
    assert connection.moved == (16, 12)


def finish(far: socket.socket) -> None:
    far.shutdown(socket.SHUT_WR)


def await_fin(far: socket.socket) -> None:
    assert far.recv(1) == b""


Steps = list[tuple[Callable[[socket.socket], object], str]]


def test_a_direction_that_is_parked_has_not_finished(connect: Connect) -> None:
    connection = connect()
    connection.client.shutdown(socket.SHUT_WR)
    connection.start()
    park(connection)
    connection.target.sendall(b"late")
    assert read_exactly(connection.client, 4) == b"late"
    connection.target.close()
    assert connection.end() is End.CLOSED


PARKED: dict[str, tuple[Steps, End]] = {
    "client finishes first": ([(finish, "client"), (await_fin, "target"), (finish, "target")], End.CLOSED),
    "target finishes first": ([(finish, "target"), (await_fin, "client"), (finish, "client")], End.CLOSED),
    "both finish at once": ([(finish, "client"), (finish, "target")], End.CLOSED),
    "client resets": ([(reset, "client")], End.CLIENT_RESET),
    "target resets": ([(reset, "target")], End.TARGET_RESET),
    "client finishes, then resets": ([(finish, "client"), (await_fin, "target"), (reset, "client")], End.CLIENT_RESET),
    "target finishes, then resets": ([(finish, "target"), (await_fin, "client"), (reset, "target")], End.TARGET_RESET),
}


@pytest.mark.parametrize(("steps", "end"), PARKED.values(), ids=PARKED)
def test_a_parked_connection_ends_as_any_other(steps: Steps, end: End, connect: Connect) -> None:
    connection = connect().start()
    park(connection)
    for step, far in steps:
        step(connection.client if far == "client" else connection.target)
    with gevent.Timeout(2):
        assert connection.end() is end


@pytest.mark.parametrize("wakes_up", [False, True])
def test_a_parked_connection_can_be_interrupted(wakes_up: bool, connect: Connect) -> None:
    connection = connect().start()
    park(connection)
    connection.connection.scope.cancel(Ended(End.DRAINED))
    if wakes_up:
        connection.target.sendall(b"x")
    assert connection.end() is End.DRAINED
    gevent.sleep(0.01)


def test_a_parked_connection_is_still_watched_for_its_limits(connect: Connect) -> None:
    connection = connect(RuleOptions(idle_timeout=2.0)).start()
    park(connection)
    assert connection.relay in connection.ticker._watched
    connection.be_silent(2.0)
    assert connection.end() is End.IDLE_TIMEOUT


@pytest.mark.parametrize("far", ["client", "target"])
def test_a_fin_on_a_parked_connection_starts_its_limit(far: str, connect: Connect) -> None:
    connection = connect(RuleOptions(half_close_timeout=0.05)).start()
    park(connection)
    assert connection.relay not in connection.ticker._watched
    finish(connection.client if far == "client" else connection.target)
    with gevent.Timeout(5):
        assert connection.end() is End.HALF_CLOSE_TIMEOUT


@pytest.mark.parametrize("far", ["client", "target"])
def test_a_connection_with_long_limits_rests_until_it_has_a_short_one(far: str, connect: Connect) -> None:
    connection = connect(RuleOptions(idle_timeout=60.0, half_close_timeout=0.05)).start()
    begun = time.monotonic()
    park(connection, 59)
    assert look(connection.relay, begun + 60)
    assert connection.relay in connection.ticker._watched
    finish(connection.client if far == "client" else connection.target)
    with gevent.Timeout(5):
        assert connection.end() is End.HALF_CLOSE_TIMEOUT


def test_a_connection_with_long_limits_is_looked_at_again_after_a_rest(connect: Connect) -> None:
    connection = connect(RuleOptions(idle_timeout=60.0)).start()
    park(connection, 59)
    connection.be_silent(60)
    assert connection.end() is End.IDLE_TIMEOUT


def test_a_connection_with_a_short_limit_never_rests(connect: Connect) -> None:
    connection = connect(RuleOptions(idle_timeout=60.0, max_lifetime=59.0)).start()
    begun = time.monotonic()
    park(connection, 58)
    assert not look(connection.relay, begun + 59)
    assert connection.end() is End.MAX_LIFETIME


def test_a_twin_that_waits_for_a_reader_is_not_parked(connect: Connect) -> None:
    connection = connect(tiny=BOTH)
    gevent.spawn(finish_with, connection.target, DATA)
    connection.start()
    eventually(lambda: waits_for_room(connection.client_stream) and not connection.target_stream.waits_to_read)
    connection.be_silent(1.0)
    assert connection.relay._twin is not None
    assert read_to_eof(connection.client) == DATA
    connection.client.close()
    assert connection.end() is End.CLOSED


# --- ticker --------------------------------------------------------------------------------------------------------


def test_silence_ends_it(connect: Connect) -> None:
    connection = connect(RuleOptions(idle_timeout=0.1)).start()
    started = time.monotonic()
    assert connection.end() is End.IDLE_TIMEOUT
    assert 0.1 <= time.monotonic() - started < 5


def test_any_byte_breaks_the_silence(connect: Connect) -> None:
    connection = connect(RuleOptions(idle_timeout=100), tick=NO_TICK).start()
    now = time.monotonic()
    for far, other in ((connection.client, connection.target), (connection.target, connection.client)) * 3:
        far.sendall(b"x")
        assert read_exactly(other, 1) == b"x"
        connection.settle()
        now += 99
        assert look(connection.relay, now)
    assert not look(connection.relay, now + 100)
    assert connection.end() is End.IDLE_TIMEOUT


def test_after_the_first_fin_silence_has_its_own_limit(connect: Connect) -> None:
    connection = connect(RuleOptions(half_close_timeout=100), tick=NO_TICK).start()
    connection.client.sendall(b"x")
    assert read_exactly(connection.target, 1) == b"x"
    assert look(connection.relay, time.monotonic() - 200)  # since then nothing has moved
    park(connection, 0)
    connection.client.shutdown(socket.SHUT_WR)
    assert connection.target.recv(1) == b""
    connection.settle()
    now = time.monotonic() + 99
    assert look(connection.relay, now)
    for _ in range(4):
        connection.target.sendall(b"x")
        assert read_exactly(connection.client, 1) == b"x"
        connection.settle()
        now += 99
        assert look(connection.relay, now)
    assert not look(connection.relay, now + 100)
    assert connection.end() is End.HALF_CLOSE_TIMEOUT


def test_old_age_ends_it_however_busy_it_is(connect: Connect) -> None:
    connection = connect(RuleOptions(max_lifetime=100), tick=NO_TICK).start()
    begun = time.monotonic()
    goes_on = []
    for seconds in (30, 60, 90, 100):
        connection.client.sendall(b"x")
        assert read_exactly(connection.target, 1) == b"x"
        goes_on.append(look(connection.relay, begun + seconds))
    assert goes_on == [True, True, True, False]
    assert connection.end() is End.MAX_LIFETIME


# --- time that nobody lived through ----------------------------------------------------------------------------------


def pause(seconds: float) -> None:
    """Let the whole process do nothing, as after SIGSTOP."""
    time.sleep(seconds)


@pytest.mark.parametrize("finished", [False, True], ids=["idle", "half-closed"])
def test_silence_while_this_process_did_not_run_does_not_count(finished: bool, connect: Connect) -> None:
    connection = connect(RuleOptions(idle_timeout=0.2, half_close_timeout=0.2)).start()
    connection.target.sendall(b"first")
    assert read_exactly(connection.client, 5) == b"first"
    if finished:
        connection.client.shutdown(socket.SHUT_WR)
        assert connection.target.recv(1) == b""
    gevent.sleep(0.05)
    pause(0.3)
    gevent.sleep(0.05)
    connection.target.sendall(b"after it")
    assert read_exactly(connection.client, 8) == b"after it"
    assert connection.end() is (End.HALF_CLOSE_TIMEOUT if finished else End.IDLE_TIMEOUT)


def test_what_has_arrived_meanwhile_is_looked_at_before_a_limit_is_judged(connect: Connect) -> None:
    connection = connect(RuleOptions(idle_timeout=0.4), tick=0.3).start()  # the pause is too short to be seen as one
    gevent.sleep(0.2)
    connection.client.sendall(b"meanwhile")
    pause(0.25)
    assert read_exactly(connection.target, 9) == b"meanwhile"
    gevent.sleep(0.1)
    connection.client.sendall(b"and later")
    assert read_exactly(connection.target, 9) == b"and later"
    assert connection.end() is End.IDLE_TIMEOUT


Step = tuple[float, str]  # seconds from the beginning, and what has happened since the last look

LOOKS: dict[str, tuple[RuleOptions, list[Step], list[End | None]]] = {
    "no limit": (RuleOptions(half_close_timeout=0), [(1e9, "")], [None]),
    "half-close limit without a FIN": (RuleOptions(half_close_timeout=100), [(1e9, "")], [None]),
    "silent": (RuleOptions(idle_timeout=100), [(49, ""), (99, ""), (101, "")], [None, None, End.IDLE_TIMEOUT]),
    "silent, first look late": (RuleOptions(idle_timeout=100), [(101, "")], [End.IDLE_TIMEOUT]),
    "a byte came in": (
        RuleOptions(idle_timeout=100),
        [(60, "in"), (159, ""), (161, "")],
        [None, None, End.IDLE_TIMEOUT],
    ),
    "a byte went out": (
        RuleOptions(idle_timeout=100),
        [(101, "out"), (200, ""), (202, "")],
        [None, None, End.IDLE_TIMEOUT],
    ),
    "client finished": (
        RuleOptions(half_close_timeout=100),
        [(99, "client FIN"), (101, "")],
        [None, End.HALF_CLOSE_TIMEOUT],
    ),
    "target finished": (
        RuleOptions(half_close_timeout=100),
        [(99, "target FIN"), (101, "")],
        [None, End.HALF_CLOSE_TIMEOUT],
    ),
    "both finished": (RuleOptions(half_close_timeout=100), [(50, "client FIN"), (1e9, "target FIN")], [None, None]),
    "a byte after the FIN": (
        RuleOptions(half_close_timeout=100),
        [(99, "client FIN"), (100, "out"), (199, ""), (201, "")],
        [None, None, None, End.HALF_CLOSE_TIMEOUT],
    ),
    "the shorter limit counts": (
        RuleOptions(idle_timeout=50, half_close_timeout=100),
        [(49, "client FIN"), (51, "")],
        [None, End.IDLE_TIMEOUT],
    ),
    "idle limit is the longer one": (
        RuleOptions(idle_timeout=200, half_close_timeout=100),
        [(99, "client FIN"), (101, "")],
        [None, End.HALF_CLOSE_TIMEOUT],
    ),
    "idle limit counts where the other is off": (
        RuleOptions(idle_timeout=100, half_close_timeout=0),
        [(99, "client FIN"), (101, "")],
        [None, End.IDLE_TIMEOUT],
    ),
    "old": (RuleOptions(max_lifetime=100), [(99, "in"), (101, "in")], [None, End.MAX_LIFETIME]),
    "old and silent": (RuleOptions(max_lifetime=100, idle_timeout=100), [(101, "")], [End.MAX_LIFETIME]),
}


@pytest.mark.parametrize(("timeouts", "steps", "ends"), LOOKS.values(), ids=LOOKS)
def test_a_connection_is_overdue(
    timeouts: RuleOptions, steps: list[Step], ends: list[End | None], connect: Connect
) -> None:
    begun = time.monotonic()
    connection = connect(timeouts)
    seen = []
    for seconds, what in steps:
        connection.connection.inbound.bytes += what == "in"
        connection.connection.outbound.bytes += what == "out"
        connection.connection.inbound.done |= what == "client FIN"
        connection.connection.outbound.done |= what == "target FIN"
        ended = connection.relay.overdue(begun + seconds)
        seen.append(ended and ended.end)
    assert seen == ends


def test_a_reader_that_still_takes_what_the_kernel_holds_is_not_silent(sides: Sides) -> None:
    connection, one, _, _ = sides(RuleOptions(idle_timeout=100), BOTH)
    near = connection.near(one)
    begun = time.monotonic()
    assert connection.relay.overdue(begun) is None
    stuff(near)
    connection.connection.inbound.bytes += 1
    unacked = near.unacked_bytes()
    assert connection.relay.overdue(begun + 1) is None
    assert connection.relay.overdue(begun + 60) is None
    while near.unacked_bytes() == unacked:
        one.recv(1000)
        gevent.sleep(0.001)
    assert connection.relay.overdue(begun + 101) is None
    assert connection.relay.overdue(begun + 160) is None
    assert is_idle(connection.relay.overdue(begun + 202))


def test_a_reader_that_has_stopped_with_bytes_before_it_is_silent(sides: Sides) -> None:
    connection, one, _, _ = sides(RuleOptions(idle_timeout=100), BOTH)
    begun = time.monotonic()
    assert connection.relay.overdue(begun + 60) is None
    stuff(connection.near(one))
    connection.connection.inbound.bytes += 1
    for seconds in (61, 120, 160):
        assert connection.relay.overdue(begun + seconds) is None
    assert is_idle(connection.relay.overdue(begun + 162))


def is_idle(ended: Ended | None) -> bool:
    return ended is not None and ended.end is End.IDLE_TIMEOUT
