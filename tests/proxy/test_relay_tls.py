"""The relay with TLS on one side or both: bytes, ends and back-pressure as without."""

import random
import ssl
import time
from unittest.mock import Mock

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from tests.proxy.making import make_shared
from tests.sockets import Sockets, eventually
from tests.system.harness import read_to_eof, reset
from tests.tls import NAME, TlsPeer, asking, serving
from veillink.model import Address, End, Ended, RuleOptions
from veillink.net.pipes import Pipes
from veillink.net.socket_stream import SocketStream
from veillink.net.stream import Stream
from veillink.net.tls import TlsRoom, TlsStream
from veillink.proxy import deadlines
from veillink.proxy import relay as relay_module
from veillink.proxy.relay import Relay
from veillink.proxy.session import CancelScope, close_both
from veillink.stats.ledger import Ledger

TINY = 4096


class PlainPeer:
    """A far end without TLS, with the words of one that has it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sendall, self.recv, self.close = sock.sendall, sock.recv, sock.close

    def finish_with(self, data: bytes) -> None:
        self.sock.sendall(data)
        self.finish()

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def read_to_eof(self) -> bytes:
        return read_to_eof(self.sock)


Peer = TlsPeer | PlainPeer


class Relayed:
    """A relay at work between two peers, each with TLS or without."""

    def __init__(self, sockets: Sockets, sides: str, version: str = "", tiny: str = "") -> None:
        room = TlsRoom()
        legs = []
        for side in ("client", "target"):
            buffers = TINY if tiny in (side, "both") else 0
            legs.append(_leg(sockets, room, sides in (side, "both"), side == "client", version, buffers))
        (self.client_stream, self.client), (self.target_stream, self.target) = legs
        shared = make_shared(Mock(), sockets.peer_watch, Pipes(1))
        shared.ticker.period = 0.01
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

    @property
    def moved(self) -> tuple[int, int]:
        return self.connection.inbound.bytes, self.connection.outbound.bytes


def _leg(sockets: Sockets, room: TlsRoom, tls: bool, serves: bool, version: str, buffers: int) -> tuple[Stream, Peer]:
    near, far = sockets.pair(buffers)
    if not tls:
        return near, PlainPeer(far)
    if serves:
        stream, peer = TlsStream(near, serving(version=version), room), TlsPeer(far, asking())
    else:
        stream, peer = TlsStream(near, asking(version), room, NAME), TlsPeer(far, serving())
    other = gevent.spawn(peer.shake_hands)
    stream.handshake()
    other.get()
    return stream, peer


SIDES = pytest.mark.parametrize("sides", ["client", "target", "both"])
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])
MIB = random.Random(1).randbytes(1 << 20)


# Which sides have TLS, and which end does something.
CASES = [("client", "client"), ("client", "target"), ("target", "client"), ("target", "target")]
CASES += [("both", "client"), ("both", "target")]
WHO = pytest.mark.parametrize(("sides", "who"), CASES)
WHO_WITH_TLS = pytest.mark.parametrize(("sides", "who"), [case for case in CASES if case[0] in ("both", case[1])])


def ends(relayed: Relayed, who: str) -> tuple[Peer, Peer, End]:
    """Return the end that does something, the other one, and what its reset is called."""
    if who == "client":
        return relayed.client, relayed.target, End.CLIENT_RESET
    return relayed.target, relayed.client, End.TARGET_RESET


def expect_reset(peer: Peer) -> bytes:
    """Return what comes before a reset, and fail where it looks like an end."""
    received = b""
    while True:
        try:
            part = peer.recv(1 << 16)
        except ConnectionResetError:
            return received
        assert part, "finished"
        received += part


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
    assert relayed.moved == (4, 4)


@WHO
@VERSIONS
def test_an_end_is_passed_on_and_a_mebibyte_follows_the_other_way(
    sides: str, version: str, who: str, sockets: Sockets
) -> None:
    relayed = Relayed(sockets, sides, version)
    one, other, _ = ends(relayed, who)
    one.sendall(b"last words")
    one.finish()
    assert other.read_to_eof() == b"last words"
    gevent.spawn(other.finish_with, MIB)
    assert one.read_to_eof() == MIB
    assert relayed.end() is End.CLOSED


@SIDES
@VERSIONS
def test_bulk_both_ways_at_once_arrives_whole(sides: str, version: str, sockets: Sockets) -> None:
    relayed = Relayed(sockets, sides, version)
    data = MIB * 8
    for peer, out in ((relayed.client, data), (relayed.target, data[::-1])):
        gevent.spawn(peer.finish_with, out)
    readers = [gevent.spawn(peer.read_to_eof) for peer in (relayed.client, relayed.target)]
    assert [reader.get() for reader in readers] == [data[::-1], data]
    assert relayed.end() is End.CLOSED
    assert relayed.moved == (len(data), len(data))


@WHO
@VERSIONS
def test_a_slow_reader_makes_the_writer_wait_and_gets_all_of_it(
    sides: str, version: str, who: str, sockets: Sockets
) -> None:
    relayed = Relayed(sockets, sides, version, "both")
    one, other, _ = ends(relayed, who)
    other.finish()  # so that the end of the other direction is the end of all
    assert one.recv(1) == b""
    writer = gevent.spawn(one.finish_with, MIB)
    moved = -1
    while moved != sum(relayed.moved):
        moved = sum(relayed.moved)
        gevent.sleep(0.02)
    assert not writer.ready()
    assert moved < 1 << 18
    for stream in (relayed.client_stream, relayed.target_stream):
        transport = stream.transport
        assert isinstance(transport, SocketStream)
        assert transport.kept < 70_000
    assert other.read_to_eof() == MIB
    assert relayed.end() is End.CLOSED


@WHO_WITH_TLS
@VERSIONS
def test_a_fin_without_a_close_notify_is_passed_on_as_a_reset(
    sides: str, version: str, who: str, sockets: Sockets
) -> None:
    relayed = Relayed(sockets, sides, version)
    one, other, _ = ends(relayed, who)
    assert isinstance(one, TlsPeer)
    one.sendall(MIB[:65536])
    one.sock.shutdown(socket.SHUT_WR)
    assert expect_reset(other) == MIB[:65536]
    assert relayed.end() is (End.CLIENT_TRUNCATED if who == "client" else End.TARGET_TRUNCATED)


@WHO
def test_a_reset_is_passed_on(sides: str, who: str, sockets: Sockets) -> None:
    relayed = Relayed(sockets, sides)
    one, other, end = ends(relayed, who)
    one.sendall(b"before")
    assert other.recv(6) == b"before"
    reset(one.sock)
    expect_reset(other)
    assert (relayed.end(), relayed.detail) == (end, "ECONNRESET")


@WHO
def test_a_reset_that_nobody_reads_is_passed_on(
    sides: str, who: str, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "FLUSH_TIME", 0.2)
    relayed = Relayed(sockets, sides, tiny="both")
    one, other, end = ends(relayed, who)
    writer = gevent.spawn(one.sendall, MIB)
    eventually(lambda: relayed.relay._armed)
    writer.kill()
    reset(one.sock)
    assert relayed.end() is end
    expect_reset(other)


@WHO_WITH_TLS
def test_a_broken_record_is_told_to_who_sent_it_and_resets_the_other(sides: str, who: str, sockets: Sockets) -> None:
    relayed = Relayed(sockets, sides)
    one, other, _ = ends(relayed, who)
    assert isinstance(one, TlsPeer)
    one.sendall(b"sound")
    one.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert expect_reset(other) == b"sound"
    with pytest.raises(ssl.SSLError, match="ALERT"):
        one.recv(1)
    end = End.BAD_TLS if who == "client" else End.TARGET_TLS
    assert (relayed.end(), relayed.detail) == (end, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC")


@SIDES
@pytest.mark.parametrize("armed", [False, True])
def test_who_sends_and_closes_without_reading_its_tickets_has_finished(
    armed: bool, sides: str, sockets: Sockets
) -> None:
    relayed = Relayed(sockets, sides, "1.3")
    if armed:
        eventually(lambda: relayed.relay._armed)
    relayed.client.sendall(b"a line of a log")
    relayed.client.close()
    assert relayed.target.read_to_eof() == b"a line of a log"
    if armed:
        gevent.sleep(0.02)  # the reset comes after what it closes
    relayed.target.close()
    assert relayed.end() is End.CLOSED


@pytest.mark.parametrize("sides", ["client", "both"])
def test_a_reset_after_the_end_was_read_takes_nothing_back(
    sides: str, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, on_reset = Event(), Relay._on_client_reset

    def see(relay: Relay) -> None:
        on_reset(relay)
        seen.set()

    monkeypatch.setattr(Relay, "_on_client_reset", see)
    relayed = Relayed(sockets, sides, "1.3")
    eventually(lambda: relayed.relay._armed)
    relayed.client.finish()
    assert relayed.target.recv(1) == b""
    relayed.client.close()  # with its tickets unread
    seen.wait()
    gevent.sleep(0)
    relayed.target.close()
    assert relayed.end() is End.CLOSED


@pytest.mark.parametrize("sides", ["client", "both"])
def test_a_reset_before_the_end_was_read_is_forgotten_once_it_is(
    sides: str, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "FLUSH_TIME", 0.05)
    relayed = Relayed(sockets, sides, "1.3", "target")
    eventually(lambda: relayed.relay._armed)
    relayed.client.sendall(MIB[:40_000])
    relayed.client.close()  # with its tickets unread
    eventually(lambda: relayed.relay._reset)
    received = b""
    while len(received) < 40_000:
        received += relayed.target.recv(1 << 16)
    assert received == MIB[:40_000]
    assert relayed.target.recv(1) == b""
    gevent.sleep(0.1)
    relayed.target.close()
    assert relayed.end() is End.CLOSED


@pytest.mark.parametrize("sides", ["client", "both"])
def test_the_end_of_the_target_is_told_whatever_the_client_does_meanwhile(
    sides: str, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    relayed = Relayed(sockets, sides)
    room, send_eof = Event(), TlsStream.send_eof

    def late(stream: TlsStream) -> None:
        if stream is relayed.client_stream:
            room.wait()
        send_eof(stream)

    monkeypatch.setattr(TlsStream, "send_eof", late)
    relayed.target.finish_with(b"all of it")
    eventually(lambda: relayed.connection.outbound.done)
    relayed.client.finish()
    eventually(lambda: relayed.connection.inbound.done)
    room.set()
    assert relayed.client.read_to_eof() == b"all of it"
    assert relayed.end() is End.CLOSED


@SIDES
def test_a_silent_twin_is_parked_and_comes_back(sides: str, sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_PARK_AFTER", 0.02)
    relayed = Relayed(sockets, sides)
    for word in (b"one", b"two"):
        relayed.target.sendall(word)
        assert relayed.client.recv(3) == word
        eventually(lambda: relayed.relay._twin is None)
    relayed.target.finish()
    assert relayed.client.recv(1) == b""
    relayed.client.finish()
    assert relayed.end() is End.CLOSED


@WHO_WITH_TLS
def test_a_thousand_changes_of_keys_go_unnoticed(sides: str, who: str, sockets: Sockets) -> None:
    relayed = Relayed(sockets, sides, "1.3")
    one, other, _ = ends(relayed, who)
    assert isinstance(one, TlsPeer)
    for n in range(1000):
        one.update_keys()
        if n % 10 == 0:
            one.sendall(b"x")
            other.sendall(other.recv(1))
            assert one.recv(1) == b"x"
    one.finish()
    assert other.recv(1) == b""
    other.finish()
    assert one.recv(1) == b""
    assert relayed.end() is End.CLOSED
