"""Tests of a stream that encrypts: every byte, every end, and every way in which a handshake fails."""

import contextlib
import datetime
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
import trustme
from gevent import socket
from gevent.hub import get_hub

from tests.net.peers import pattern
from tests.sockets import Sockets, eventually
from tests.system.harness import reset
from tests.tls import NAME, TlsPeer, asking, authority, certificate, serving
from veillink.net import tls
from veillink.net.socket_stream import SocketStream
from veillink.net.tls import TlsError, TlsRoom, TlsStream, TruncatedError

SOON = 10.0
TINY = 4096

SERVES = pytest.mark.parametrize("serves", [True, False], ids=["server", "client"])
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])


class Room(TlsRoom):
    """A room that knows whether the rule is kept."""

    @property
    def empty(self) -> bool:
        return not self.received.pending and not self.to_send.pending


@pytest.fixture
def room() -> Iterator[Room]:
    """The room of a process; after a test nothing has been left in it."""
    room = Room()
    yield room
    assert room.empty


@pytest.fixture(autouse=True)
def rule(monkeypatch: pytest.MonkeyPatch, room: Room) -> None:
    """Have the loop see that the room is empty whenever somebody waits."""
    switch = type(get_hub()).switch

    def checked(hub: Any) -> object:
        assert room.empty
        return switch(hub)

    monkeypatch.setattr(type(get_hub()), "switch", checked)


def failing(function: Callable[..., object], *arguments: object) -> "gevent.Greenlet[..., BaseException | None]":
    """Run what is expected to fail, and return with what."""

    def run() -> BaseException | None:
        try:
            function(*arguments)
        except OSError as error:
            return error
        return None

    return gevent.spawn(run)


def soon() -> float:
    return time.monotonic() + SOON


def receive(stream: TlsStream, size: int = 1 << 16) -> bytes:
    buffer = bytearray(size)
    try:
        return bytes(buffer[: stream.recv_into(memoryview(buffer))])
    finally:
        stream.stop_reading()


def receive_to_eof(stream: TlsStream, size: int = 1 << 16) -> bytes:
    data = bytearray()
    while part := receive(stream, size):
        data += part
    return bytes(data)


def send(stream: TlsStream, data: bytes) -> None:
    stream.sendall(memoryview(data))


def ends(
    sockets: Sockets, room: TlsRoom, version: str = "", *, serves: bool = True, buffers: int = 0
) -> tuple[TlsStream, TlsPeer]:
    """Return a stream and its peer, who have not yet shaken hands."""
    near, far = sockets.pair(buffers)
    if serves:
        return TlsStream(near, serving(version=version), room), TlsPeer(far, asking())
    return TlsStream(near, asking(version), room, NAME), TlsPeer(far, serving())


def pair(
    sockets: Sockets, room: TlsRoom, version: str = "", *, serves: bool = True, buffers: int = 0
) -> tuple[TlsStream, TlsPeer]:
    """Return a stream and its peer, who have shaken hands."""
    stream, peer = ends(sockets, room, version, serves=serves, buffers=buffers)
    other = gevent.spawn(peer.shake_hands)
    stream.handshake()
    other.get()
    return stream, peer


# --- bytes -----------------------------------------------------------------------------------------------------------


@SERVES
@VERSIONS
def test_bytes_go_both_ways_after_a_handshake(version: str, serves: bool, sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room, version, serves=serves)
    assert (stream.version, stream.alpn) == (f"TLSv{version}", "")
    peer.sendall(b"question")
    assert receive(stream) == b"question"
    send(stream, b"answer")
    assert peer.read_exactly(6) == b"answer"


@SERVES
@VERSIONS
def test_everything_arrives_however_little_fits_at_once(
    version: str, serves: bool, sockets: Sockets, room: Room
) -> None:
    stream, peer = pair(sockets, room, version, serves=serves, buffers=TINY)
    out, back = pattern(300_000), pattern(400_000)
    gevent.spawn(peer.finish_with, back)
    writer = gevent.spawn(send, stream, out)
    reader = gevent.spawn(peer.read_exactly, len(out))
    assert receive_to_eof(stream) == back
    assert reader.get() == out
    writer.get()


@pytest.mark.parametrize("size", [1, 100, 1 << 14, 1 << 15, 1 << 16, 1 << 18])
def test_what_the_buffer_has_no_room_for_stays_inside(size: int, sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room)
    data = pattern(20_000 if size == 1 else 500_000)
    gevent.spawn(peer.finish_with, data)
    received = bytearray()
    while part := receive(stream, size):
        received += part
        assert len(stream._unread) <= 1 << 16
    assert received == data


@pytest.mark.parametrize("record", [1, 2, 1000, 1 << 14])
def test_records_may_be_of_any_size(record: int, sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room)
    data = pattern(10_000 if record < 3 else 500_000)
    gevent.spawn(peer.finish_with, data, record)
    assert receive_to_eof(stream) == data


def test_records_may_come_byte_by_byte(sockets: Sockets, room: Room) -> None:
    stream, peer = ends(sockets, room)
    far = peer.sock

    class Dribbling:
        def sendall(self, data: bytes) -> None:
            for n in range(len(data)):
                far.sendall(data[n : n + 1])
                if n % 50 == 0:
                    gevent.sleep(0)

        recv = staticmethod(far.recv)

    peer.sock = Dribbling()  # type: ignore[assignment]
    other = gevent.spawn(peer.shake_hands)
    stream.handshake()
    other.get()
    gevent.spawn(peer.finish_with, pattern(5000))
    assert receive_to_eof(stream) == pattern(5000)


def test_what_comes_with_the_last_of_the_handshake_is_not_lost(sockets: Sockets, room: Room) -> None:
    stream, peer = ends(sockets, room, "1.3")
    held: list[bytes] = []
    far = peer.sock

    class Holding:
        sendall = staticmethod(held.append)
        recv = staticmethod(far.recv)

    shaking = gevent.spawn(stream.handshake)
    with contextlib.suppress(ssl.SSLWantReadError):
        peer.engine.do_handshake()
    peer.push()
    peer.pull()
    peer.sock = Holding()  # type: ignore[assignment]
    peer.shake_hands()
    peer.sendall(pattern(40_000))
    far.sendall(b"".join(held))
    shaking.get()
    received = receive(stream)
    while len(received) < 40_000:
        received += receive(stream)
    assert received == pattern(40_000)


def test_two_streams_share_the_room(sockets: Sockets, room: Room) -> None:
    streams = [pair(sockets, room, version) for version in ("1.2", "1.3", "1.3")]
    data = pattern(200_000)
    readers = [gevent.spawn(receive_to_eof, stream, 5000) for stream, _ in streams]
    for _, peer in streams:
        gevent.spawn(peer.finish_with, data, 700)
    assert [reader.get() == data for reader in readers] == [True] * 3


class AlwaysReady:
    """Stands for a socket that never has to be waited for."""

    def __init__(self, records: bytes) -> None:
        self._records = memoryview(records)

    def recv_into(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._records))
        buffer[:count] = self._records[:count]
        self._records = self._records[count:]
        return count

    def stop_reading(self) -> None:
        pass


def test_a_source_that_is_always_ready_lets_others_run(
    sockets: Sockets, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, peer = pair(sockets, room)
    data = pattern(4 << 20)
    for start in range(0, len(data), 1 << 14):
        peer.engine.write(data[start : start + (1 << 14)])
    monkeypatch.setattr(stream, "_stream", AlwaysReady(peer._to_send.read()))
    turns = 0

    def other() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0)
            turns += 1

    running, received = gevent.spawn(other), b""
    while len(received) < len(data):
        received += receive(stream)
    running.kill()
    assert received == data
    assert turns > len(data) // (4 * tls._ROOM)  # one after three full reads


def test_a_prefix_is_read_and_the_rest_stays(sockets: Sockets, room: Room) -> None:
    def line(data: bytes) -> tuple[bytes, int] | None:
        found, end, _ = data.partition(b"\n")
        return (found, len(found) + 1) if end else None

    stream, peer = pair(sockets, room)
    peer.sendall(b"header\nHELLO", 4)
    assert stream.read_prefix(line, 100) == b"header"
    assert receive(stream) == b"HELLO"
    assert stream.raw() is None


# --- ends ------------------------------------------------------------------------------------------------------------


@SERVES
@VERSIONS
def test_who_has_finished_sending_may_still_receive(version: str, serves: bool, sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room, version, serves=serves)
    send(stream, b"last words")
    stream.send_eof()
    assert peer.read_to_eof() == b"last words"
    assert peer.sock.recv(1) == b""  # on TCP too
    data = pattern(1 << 20)
    gevent.spawn(peer.finish_with, data)
    assert receive_to_eof(stream) == data
    assert receive(stream) == b""
    stream.close()


@SERVES
@VERSIONS
def test_a_peer_that_has_finished_may_still_receive(version: str, serves: bool, sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room, version, serves=serves)
    peer.sendall(b"last words")
    peer.finish()
    peer.sock.sendall(b"what follows is nothing")
    assert receive_to_eof(stream) == b"last words"
    assert receive(stream) == b""
    data = pattern(1 << 20)
    reader = gevent.spawn(peer.read_to_eof)
    send(stream, data)
    stream.send_eof()
    assert reader.get() == data
    stream.close()


@SERVES
@VERSIONS
def test_a_fin_without_a_close_notify_is_a_cut(version: str, serves: bool, sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room, version, serves=serves)
    peer.sendall(b"not all of it")
    peer.sock.shutdown(socket.SHUT_WR)
    assert receive(stream) == b"not all of it"
    for _ in range(2):
        with pytest.raises(TruncatedError, match=r"^truncated$"):
            receive(stream)


def test_a_fin_in_the_middle_of_a_record_is_a_cut(sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room)
    peer.engine.write(b"a record")
    peer.sock.sendall(peer._to_send.read()[:-1])
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(TruncatedError):
        receive(stream)


def test_a_fin_without_a_close_notify_is_a_cut_after_we_have_finished_too(sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room)
    stream.send_eof()
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(TruncatedError):
        receive(stream)


def test_a_reset_is_an_error_of_the_system(sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room)
    reset(peer.sock)
    with pytest.raises(ConnectionResetError):
        receive(stream)


@VERSIONS
def test_finishing_towards_a_peer_that_has_closed_already_is_no_error(
    version: str, sockets: Sockets, room: Room
) -> None:
    stream, peer = pair(sockets, room, version)
    peer.close()  # with a reset in TLS 1.3, where it has not read its tickets
    assert receive(stream) == b""
    stream.send_eof()  # is answered with a reset in TLS 1.2
    stream.close()


def test_finishing_towards_a_peer_that_has_left_an_answer_unread_is_an_error(sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room, "1.2", buffers=TINY)
    peer.finish()
    assert receive(stream) == b""
    send(stream, b"x" * 1000)
    while stream.send(memoryview(bytes(1000))):
        pass
    peer.sock.close()
    with pytest.raises(ConnectionError):
        stream.send_eof()


def test_closing_is_a_fin_and_aborting_a_reset(sockets: Sockets, room: Room) -> None:
    (stream, peer), (other, far) = pair(sockets, room), pair(sockets, room)
    stream.send_eof()
    stream.close()
    stream.close()
    assert peer.read_to_eof() == b""
    other.abort()
    with pytest.raises(ConnectionResetError):
        far.recv(1)


@VERSIONS
def test_bytes_are_unacked_until_the_peer_has_them(version: str, sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room, version, buffers=TINY)
    data = memoryview(pattern(1 << 16))
    assert not stream.send(data)
    assert stream.unacked_bytes() > stream.transport.kept > 0
    assert stream.transport.kept <= len(data) + 5 * 100  # nothing but records is kept
    reader = gevent.spawn(peer.read_exactly, len(data))
    stream.flush()
    assert reader.get() == data
    eventually(lambda: stream.unacked_bytes() == 0)


def test_a_reader_may_be_thrown_out_and_leaves_the_bytes_to_the_next(sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room)
    peer.engine.write(b"for the next")
    record = peer._to_send.read()
    peer.sock.sendall(record[:9])
    reader = gevent.spawn(receive, stream)
    eventually(lambda: stream.waits_to_read)
    gevent.sleep(0.01)
    reader.kill()
    told: list[str] = []
    stream.when_readable(lambda: told.append("readable"))
    peer.sock.sendall(record[9:])
    eventually(lambda: told)
    assert receive(stream) == b"for the next"


# --- what a peer may not do ------------------------------------------------------------------------------------------


@VERSIONS
def test_what_came_before_a_broken_record_is_delivered_and_the_alert_arrives(
    version: str, sockets: Sockets, room: Room
) -> None:
    stream, peer = pair(sockets, room, version)
    peer.engine.write(b"sound")
    sound = peer._to_send.read()
    peer.engine.write(b"broken")
    broken = bytearray(peer._to_send.read())
    broken[-1] ^= 1
    peer.sock.sendall(sound + broken)
    assert receive(stream) == b"sound"
    for _ in range(2):
        with pytest.raises(TlsError, match="DECRYPTION_FAILED_OR_BAD_RECORD_MAC") as caught:
            receive(stream)
        assert caught.value.errno is None
    with pytest.raises(TlsError):
        send(stream, b"to nobody")
    stream.abort()
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        peer.recv(1)
    assert peer.sock.recv(1) == b""  # no reset, which would have overtaken the alert


def test_a_thousand_changes_of_keys_are_answered(sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room, "1.3")
    reader = gevent.spawn(peer.read_exactly, 2000)
    for n in range(1000):
        peer.update_keys()
        peer.sendall(b"%02d" % (n % 100))
        send(stream, receive(stream))
    assert len(reader.get()) == 2000


def test_a_peer_that_changes_keys_and_never_reads_the_answers_is_cut(sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room, "1.3", buffers=TINY)

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer.update_keys()
                peer.push()

    flooding = gevent.spawn(flood)
    most = 0

    def read() -> None:
        nonlocal most
        try:
            receive(stream)
        finally:
            most = stream.transport.kept

    assert "does not read" in str(failing(read).get())
    assert most < tls._MOST_KEPT + tls._ROOM
    stream.abort()
    flooding.get()


def test_what_is_said_while_a_writer_waits_goes_out_after_what_it_wrote(sockets: Sockets, room: Room) -> None:
    stream, peer = pair(sockets, room, "1.3", buffers=TINY)
    data = pattern(1 << 18)
    writer = gevent.spawn(send, stream, data)
    gevent.sleep(0)
    peer.update_keys()
    peer.sendall(b"new keys")
    assert receive(stream) == b"new keys"
    assert not writer.ready()
    assert peer.read_exactly(len(data)) == data
    writer.get()
    send(stream, b"with new keys")
    assert peer.read_exactly(13) == b"with new keys"


# --- handshakes that fail --------------------------------------------------------------------------------------------


def hello() -> bytes:
    """Return what a client says first."""
    to_send = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        asking().wrap_bio(ssl.MemoryBIO(), to_send, server_hostname=NAME).do_handshake()
    return to_send.read()


@pytest.mark.parametrize("count", [0, 1, 5, 100, None])
def test_a_handshake_that_stalls_can_be_ended(count: int | None, sockets: Sockets, room: Room) -> None:
    near, far = sockets.pair()
    stream = TlsStream(near, serving(), room)
    far.sendall(hello()[:count])
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        stream.handshake()
    assert not stream.waits_to_read


@pytest.mark.parametrize("count", [0, 1, 100])
def test_who_leaves_before_a_whole_hello_was_only_looking(count: int, sockets: Sockets, room: Room) -> None:
    near, far = sockets.pair()
    far.sendall(hello()[:count])
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        TlsStream(near, serving(), room).handshake()


def test_who_leaves_after_it_has_failed(sockets: Sockets, room: Room) -> None:
    near, far = sockets.pair()
    far.sendall(hello())
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(TlsError, match="closed in the handshake"):
        TlsStream(near, serving(), room).handshake()


def test_who_resets_before_a_whole_hello_was_only_looking(sockets: Sockets, room: Room) -> None:
    near, far = sockets.pair()
    reset(far)
    with pytest.raises(EOFError):
        TlsStream(near, serving(), room).handshake()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP_REQUEST"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "WRONG_VERSION_NUMBER"),
        (bytes(range(1, 100)), "WRONG_VERSION_NUMBER|UNSUPPORTED_PROTOCOL"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "LENGTH"),
    ],
)
def test_who_does_not_speak_tls_is_refused(words: bytes, why: str, sockets: Sockets, room: Room) -> None:
    near, far = sockets.pair()
    far.sendall(words)
    stream = TlsStream(near, serving(), room)
    with pytest.raises(TlsError, match=why) as caught:
        stream.handshake()
    assert caught.value.errno is None


def test_a_server_that_does_not_speak_tls_is_refused(sockets: Sockets, room: Room) -> None:
    near, far = sockets.pair()
    far.sendall(b"220 mail.example ESMTP\r\n")
    with pytest.raises(TlsError, match="WRONG_VERSION_NUMBER"):
        TlsStream(near, asking(), room, NAME).handshake()


def test_a_server_that_closes_has_failed(sockets: Sockets, room: Room) -> None:
    near, far = sockets.pair()
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(TlsError, match="closed in the handshake"):
        TlsStream(near, asking(), room, NAME).handshake()


def test_a_second_round_of_hellos_is_no_failure(sockets: Sockets, room: Room) -> None:
    near, far = sockets.pair()
    context = serving()
    context.set_ecdh_curve("secp384r1")  # which the client offers, but does not begin with
    stream, peer = TlsStream(near, context, room), TlsPeer(far, asking("1.3"))
    other = gevent.spawn(peer.shake_hands)
    stream.handshake()
    other.get()
    assert stream.version == "TLSv1.3"


def test_a_handshake_through_tiny_buffers(sockets: Sockets, room: Room) -> None:
    chain = certificate(*(f"{n}.a-long-name-to-fill-the-certificate.example" for n in range(300)), NAME)
    near, far = sockets.pair(TINY)
    stream, peer = TlsStream(near, serving(chain), room), TlsPeer(far, asking())
    other = gevent.spawn_later(0.02, peer.shake_hands)
    stream.handshake()
    other.get()


OLD = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
NEVER = datetime.datetime(2990, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("leaf", "name", "why"),
    [
        (lambda: certificate("b.example"), NAME, "Hostname mismatch"),
        (lambda: certificate(NAME), "127.0.0.1", "IP address mismatch"),
        (lambda: certificate("127.0.0.2"), "127.0.0.1", "IP address mismatch"),
        (lambda: authority("ours").issue_cert(NAME, not_after=OLD), NAME, "certificate has expired"),
        (lambda: authority("ours").issue_cert(NAME, not_before=NEVER), NAME, "certificate is not yet valid"),
        (lambda: certificate(of="others"), NAME, "unable to get local issuer certificate"),
    ],
    ids=["name", "address for a name", "another address", "expired", "not yet valid", "authority"],
)
@VERSIONS
def test_a_server_that_is_not_who_it_should_be_is_refused(
    version: str, leaf: Callable[[], trustme.LeafCert], name: str, why: str, sockets: Sockets, room: Room
) -> None:
    near, far = sockets.pair()
    stream, peer = TlsStream(near, asking(version), room, name), TlsPeer(far, serving(leaf()))
    other = failing(peer.shake_hands)
    with pytest.raises(TlsError, match=why):
        stream.handshake()
    stream.abort()
    assert "ALERT" in str(other.get())
    assert far.recv(1) == b""


@pytest.mark.parametrize("name", ["127.0.0.1", "::1"])
def test_an_address_is_verified_by_the_addresses_of_a_certificate(name: str, sockets: Sockets, room: Room) -> None:
    near, far = sockets.pair()
    stream, peer = TlsStream(near, asking(), room, name), TlsPeer(far, serving(certificate("127.0.0.1", "::1")))
    other = gevent.spawn(peer.shake_hands)
    stream.handshake()
    other.get()


@pytest.mark.parametrize("shown", [None, "others", "ours"])
@VERSIONS
def test_a_client_has_to_show_a_certificate_where_one_is_asked_for(
    version: str, shown: str | None, sockets: Sockets, room: Room
) -> None:
    server, client = serving(version=version), asking()
    authority("ours").configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    if shown:
        certificate("client.example", of=shown).configure_cert(client)
    near, far = sockets.pair()
    stream, peer = TlsStream(near, server, room), TlsPeer(far, client)

    def talk() -> None:
        peer.shake_hands()
        peer.sendall(b"said at once")
        peer.recv(1)

    talking = failing(talk)
    if shown == "ours":
        stream.handshake()
        assert receive(stream) == b"said at once"
        talking.kill()
        return
    with pytest.raises(TlsError, match=r"PEER_DID_NOT_RETURN_A_CERTIFICATE|unable to get local issuer"):
        stream.handshake()
    stream.abort()
    assert "ALERT" in str(talking.get())


def test_a_stream_knows_its_socket_and_nothing_of_a_key_is_shown(sockets: Sockets, room: Room) -> None:
    stream, _ = pair(sockets, room)
    assert isinstance(stream.transport, SocketStream)
    assert stream.transport.peer_address().host == "127.0.0.1"
    assert "KEY" not in repr(stream).upper()
